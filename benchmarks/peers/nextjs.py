"""Next.js: two projects beside this file, one for each of its major versions that is measured.

    python -m benchmarks.peers.nextjs

installs and builds them, with npm. A page of 20 KB with ``revalidate``, served by ``next start``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import Program, running
from benchmarks.subjects import PARAGRAPHS

HERE = Path(__file__).parent
PROJECTS = {"Next.js 12": HERE / "next12", "Next.js 16": HERE / "next16"}
QUIET = {"NEXT_TELEMETRY_DISABLED": "1"}


def build(project: Path) -> None:
    (project / "paragraphs.json").write_text(json.dumps(PARAGRAPHS), "utf-8")
    for command in (["npm", "install", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        subprocess.run(command, cwd=project, env=os.environ | QUIET, check=True)


@contextlib.contextmanager
def nextjs(name: str, folder: Path, core: int) -> Iterator[Program | None]:
    project = PROJECTS[name]
    program = project / "node_modules" / "next" / "dist" / "bin" / "next"
    if shutil.which("node") is None or not (project / ".next" / "BUILD_ID").exists():
        yield None
        return
    command = ["node", str(program), "start", str(project), "-p", "{port}", "-H", "127.0.0.1"]
    with running(command, folder, core, environ=QUIET | {"NODE_ENV": "production"}) as server:
        yield server


if __name__ == "__main__":
    for project in PROJECTS.values():
        build(project)
