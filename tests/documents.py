"""Runs a page of the documentation from its first line to its last, in a folder of its own.

Each block with a language is run: Python in one program of the page, ``sh`` line by line. Files are
written, and what follows reads them. Comments that no reader sees say more of a block:

``<!-- file: NAME -->``    the block is a file; ``append:`` adds to one that exists
``<!-- unit: NAME -->``    a file that systemd checks, where it is there
``<!-- not run: WHY -->``  the block is only shown, for a reason
``<!-- check ... -->``     Python in the same program, which says what has to be true by then
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import types
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from packaging.requirements import Requirement
from werkzeug.test import Client, TestResponse

from wsgi_isr import ISRMiddleware

ROOT = Path(__file__).parents[1]
PATHS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*/*.md"))
)
TEXTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in PATHS}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

#: Programs that go on, so that the blocks after them find them.
SERVERS = ("gunicorn", "uwsgi", "granian", "waitress-serve", "apache2")
#: What needs a machine of its own, and is only shown.
SHOWN = ("apt", "docker", "sudo", "systemctl")
PATIENCE = 30

_BLOCK = re.compile(
    r"^(?:<!-- (?P<how>append|file|not run|unit): (?P<what>.+?) -->\n)?"
    r"```(?P<language>[a-z]+)\n(?P<code>.+?)^```$"
    r"|^<!-- check\n(?P<check>.+?)^-->$",
    re.DOTALL | re.MULTILINE,
)


class Block(t.NamedTuple):
    language: str
    code: str
    how: str = ""
    what: str = ""
    line: int = 0


def blocks(text: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 2 + bool(found["how"])
        if found["check"]:
            yield Block("python", found["check"], line=line)
        else:
            yield Block(
                found["language"], found["code"], found["how"] or "", found["what"] or "", line
            )


def status(response: TestResponse) -> str:
    return response.headers.get("Cache-Status", "")


class Page:
    """A page that is being run.

    :param folder: the working directory of all its programs.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        #: Ports of this machine, by those of the page.
        self._ports = {}
        for port in (8000, 6379):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._ports[port] = free.getsockname()[1]
        self.module = types.ModuleType("page")
        self.module.__file__ = str(folder / "page.py")
        names = {"Client": Client, "folder": folder, "run": self.run, "status": status}
        vars(self.module).update(names)
        self._server: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        self._logs = 0

    def __enter__(self) -> Page:
        sys.modules["page"] = self.module
        return self

    def __exit__(self, *args: object) -> None:
        for other in self._others:
            other.terminate()
            assert other.wait(PATIENCE) == 0, self.name
        self._stop()
        for value in vars(self.module).values():
            if type(value) is Flask and "isr" in value.extensions:
                with value.app_context():
                    value = value.extensions["isr"].middleware
            if type(value) is ISRMiddleware:
                value.close()
        del sys.modules["page"]

    def _stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(5)
            # What it has left behind, and its port.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            deadline = time.monotonic() + PATIENCE
            while self._answers(8000) and time.monotonic() < deadline:
                time.sleep(0.02)
            self._server = None

    def run_all(self) -> None:
        for block in blocks(TEXTS[self.name]):
            self.run_block(block)

    def run_block(self, block: Block) -> None:
        code = self._here(block.code)
        if block.how == "not run":
            return
        if block.how:
            path = self.folder / self._here(block.what)
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.read_text() if block.how == "append" else ""
            path.write_text(before + code)
            if path.suffix == ".py":
                compile(code, str(path), "exec")
            elif path.name == "Dockerfile":
                self._start_container(code)
            elif block.how == "unit":
                self._check_unit(path)
        elif block.language == "python":
            place = "\n" * (block.line - 1) + code
            exec(compile(place, str(ROOT / self.name), "exec"), vars(self.module))
        elif block.language in ("sh", "console"):
            self.run(code)
        elif block.language == "json":
            json.loads(code)
        elif block.language != "text":
            raise AssertionError(f"{self.name}:{block.line}: {block.language} runs nowhere")

    def _here(self, text: str) -> str:
        """The text with a port and folders that are there."""
        for port, own in self._ports.items():
            text = re.sub(rf"\b{port}\b", str(own), text)
        text = text.replace("/var/cache/site", str(self.folder / "cache"))
        return text.replace("/srv/site", str(self.folder))

    def run(self, commands: str) -> str:
        """Run the lines of a shell, each on its own, and return what they print.

        :raises AssertionError: for one that fails.
        """
        output, goes_on = "", False
        # A line goes on after a backslash, and within quotes.
        lines = re.findall(r"""(?:"[^"]*"|'[^'\n]*'|[^"'\n]+|')+""", commands.replace("\\\n", " "))
        for line in lines:
            words = shlex.split(line, comments=True)
            if not words or words[0] in SHOWN:
                continue
            assert not goes_on, f"{self.name}: {line} waits for the line before"
            goes_on = words[0] in (*SERVERS, "redis-server") or "regenerate" in words
            if words[1:3] == ["-m", "venv"]:
                # What is installed there is lent by ours, and copying pip takes seconds.
                output += self._do(f"{line} --without-pip")
            elif words[0].endswith("pip") and words[1] == "install":
                self._check_requirements(words[2:])
                self._lend_packages(Path(words[0]))
            elif words[0] in SERVERS:
                self._serve(line)
            elif goes_on:
                self._others.append(self._start(line))
                if words[0] == "redis-server":
                    self._wait(self._others[-1], line, lambda: self._answers(6379))
                else:
                    self._wait(self._others[-1], line, self._regenerates)
            else:
                output += self._do(line)
        return output

    @property
    def _environ(self) -> dict[str, str]:
        # No socket and no history of ours in a home folder.
        own = {"HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, **own, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def _do(self, line: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            capture_output=True,
            cwd=self.folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=2 * PATIENCE,
        )
        log = "".join(path.read_text() for path in self.folder.glob("*.log"))
        said = f"{self.name}: {line}\n{done.stdout}{done.stderr}{log}"
        assert done.returncode == 0, said
        return done.stdout

    def _serve(self, line: str) -> None:
        """Start a server in place of the one before."""
        self._stop()
        self._server = self._start(line)
        self._wait(self._server, line, lambda: self._answers(8000))

    def _wait(
        self, server: subprocess.Popen[bytes], line: str, is_ready: Callable[[], bool]
    ) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_ready():
            said = "".join(path.read_text() for path in self.folder.glob("*.log"))
            assert server.poll() is None, f"{self.name}: {line}\n{said}"
            assert time.monotonic() < deadline, f"{self.name}: {line} does not answer\n{said}"
            time.sleep(0.02)

    def _start(self, line: str) -> subprocess.Popen[bytes]:
        program = line.split()[0]
        if shutil.which(program, path=self._environ["PATH"]) is None:
            fail = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            fail(f"{program} is not installed")
        self._logs += 1
        with (self.folder / f"server-{self._logs}.log").open("wb") as log:
            return subprocess.Popen(
                ["bash", "-euc", f"exec {line}"],
                cwd=self.folder,
                env=self._environ,
                start_new_session=True,
                stderr=log,
                stdin=subprocess.DEVNULL,
                stdout=log,
            )

    def _regenerates(self) -> bool:
        """Whether what was started last has begun, and handles the signal that ends it."""
        said = (self.folder / f"server-{self._logs}.log").read_text()
        return "Regenerating what" in said

    def _answers(self, port: int) -> bool:
        address = ("127.0.0.1", self._ports[port])
        with contextlib.suppress(OSError), socket.create_connection(address):
            return True
        return False

    def _start_container(self, text: str) -> None:
        """There is no Docker in most places: what the container runs has to work."""
        lines = text.replace("\\\n", " ").splitlines()
        words = ("FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "CMD")
        assert not [line for line in lines if line.split()[0] not in words]
        (command,) = (line.removeprefix("CMD ") for line in lines if line.startswith("CMD "))
        self._serve(shlex.join(json.loads(command)))

    def _check_unit(self, path: Path) -> None:
        if shutil.which("systemd-analyze") is None:
            return
        # It asks whether the program is there.
        text = path.read_text()
        (program,) = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE)
        path.write_text(text.replace(program, sys.executable))
        self._do(f"systemd-analyze verify --man=no ./{path.name}")

    def _lend_packages(self, pip: Path) -> None:
        """Give an environment that the page has made what ours has, without the network."""
        for packages in pip.parent.parent.glob("lib/python*/site-packages"):
            own = [path for path in sys.path if path and not path.startswith(sys.base_prefix)]
            (packages / "ours.pth").write_text("\n".join(own))

    def _check_requirements(self, words: list[str]) -> None:
        for word in words:
            if word.startswith("-"):
                continue
            found = re.search(r"\[([\w,]+)\]$", word)
            own = word.startswith(("wsgi-isr", "/path/to/the/clone", "."))
            if own and found:
                unknown = set(found[1].split(",")) - set(PROJECT["optional-dependencies"])
                assert not unknown, (self.name, word)
            elif not own:
                Requirement(word)
