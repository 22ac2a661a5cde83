"""The Wagtail project of ``shelf`` in a process of its own: this one may have another Django."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("wagtail")

TESTS = Path(__file__).parent
EXAMPLE = TESTS.parent / "examples" / "wagtail_site"
#: Pages of the first site, and one of the second.
PATHS = ("/", "/text/", "/text/string/", "/text/re/", "/files/", "/files/glob/", "/files/book/")
OTHER = "b.example/"


class Answer(t.NamedTuple):
    status: int
    text: str
    headers: dict[str, str]

    @property
    def cache(self) -> str:
        """What ``Cache-Status`` says, but for the freshness that is left."""
        return self.headers.get("Cache-Status", "").partition("; ttl=")[0]


class Shelf:
    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join(map(str, (TESTS, EXAMPLE, os.environ.get("PYTHONPATH", ""))))
        environment = {"PYTHONPATH": path, "LIBRARY_DATA": str(folder)}
        environment["DJANGO_SETTINGS_MODULE"] = "shelf.settings"
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shelf.process"],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._read()

    def _read(self) -> t.Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.log()
        return json.loads(line)

    def log(self) -> str:
        """All that it has logged."""
        self._log.seek(0)
        return self._log.read()

    def do(self, code: str) -> t.Any:
        """Run Python in the process, and return the value of an expression."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(code)}\n")
        self._process.stdin.flush()
        answer = self._read()
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def get(self, path: str, host: str = "a.example", cookie: str = "") -> Answer:
        return Answer(**self.do(f"get({path!r}, {host!r}, {cookie!r})"))

    def renewed(self, change: str) -> set[str]:
        """The pages that are not what they were after a change."""
        self._hits()
        assert self._hits() == {*PATHS, OTHER}
        self.do(change)
        return {*PATHS, OTHER} - self._hits()

    def _hits(self) -> set[str]:
        answers = {path: self.get(path) for path in PATHS}
        answers[OTHER] = self.get("/", "b.example")
        return {path for path, answer in answers.items() if answer.cache == "isr; hit"}

    def stop(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self._log.close()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    yield shelf
    shelf.stop()


@pytest.fixture
def shelf(process: Shelf) -> Shelf:
    """The project as it was built, whatever other tests did to it."""
    process.do("reset()")
    return process
