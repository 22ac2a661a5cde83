"""Pages that a command rendered are hits of the first visitors, in each of four workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import HERE, HOST, Folder, Server, gunicorn

pytestmark = pytest.mark.processes

NAMES = ("one", "two", "gone")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Two posts, and none under the third name."""
    folder = Folder(tmp_path / "site")
    for name in NAMES[:2]:
        folder.write(name, f"the post {name}")
    return folder


@pytest.fixture
def server(folder: Folder) -> Iterator[Server]:
    server = gunicorn(folder)
    yield server
    server.kill()


def prerender(folder: Folder) -> str:
    paths = [f"/{name}" for name in NAMES]
    done = subprocess.run(
        [sys.executable, "-m", "wsgi_isr", "served:isr", "prerender", *paths]
        + ["--base-url", f"http://{HOST}"],
        cwd=HERE,
        env={**os.environ, "SITE_FOLDER": str(folder.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_all_are_hits(server: Server) -> None:
    for name in NAMES:
        for answer in server.from_all_workers(name).values():
            assert answer.told == "isr; hit"
            assert answer.status == (404 if name == "gone" else 200)
        # By the command, and by nobody since.
        assert len(server.folder.renders(name)) == 1


def test_before_the_server_starts_and_after_a_restart(server: Server, folder: Folder) -> None:
    assert "3 pages in" in prerender(folder)
    server.start()
    assert_all_are_hits(server)
    server.stop()
    assert "3 skipped" in prerender(folder)
    server.start()
    assert_all_are_hits(server)


def test_while_the_server_runs(server: Server, folder: Folder) -> None:
    server.start()
    prerender(folder)
    assert_all_are_hits(server)
