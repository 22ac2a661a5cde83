"""Server programs on a core of their own, and the processor time that all their processes took."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .subjects import ROOT

#: Seconds for a program to come up, or to end.
PATIENCE = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


def cores() -> tuple[int, int]:
    """One for the server, one for who asks it."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Program:
    """A running server program.

    :param command: ``{port}`` in it stands for the port.
    :param core: the only one it may use; ``None``: any.
    :param listens: whether it is there when the port answers, and not at once.
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        core: int | None = None,
        listens: bool = True,
        environ: dict[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        words = [word.replace("{port}", str(self.port)) for word in command]
        self._log = (folder / f"log-{self.port}").open("w+")
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        self._process = subprocess.Popen(
            [*pinned, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=self._log,
            stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"PYTHONPATH": path} | (environ or {}),
        )  # fmt: skip
        try:
            if listens:
                self._wait(words[0])
        except BaseException:
            self.stop()
            raise

    def _wait(self, name: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                raise RuntimeError(f"{name} does not serve: {self._log.read()[-2000:]}")
            time.sleep(0.02)

    def url(self, path: str = "/page/1") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def processor_time(self) -> float:
        """Seconds that it and all its children have taken so far."""
        times: dict[int, tuple[int, float]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                    # User and system time, and those of children that have ended (proc(5)).
                    times[int(entry)] = int(fields[1]), sum(map(int, fields[11:15])) / _TICKS
        total = 0.0
        found = {self._process.pid}
        while found:
            total += sum(times[pid][1] for pid in found if pid in times)
            found = {pid for pid, (parent, _) in times.items() if parent in found}
        return total

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE if number == signal.SIGKILL else 5)
        self._log.close()


@contextlib.contextmanager
def running(
    command: list[str],
    folder: Path,
    core: int | None = None,
    listens: bool = True,
    environ: dict[str, str] | None = None,
) -> Iterator[Program]:
    program = Program(command, folder, core, listens, environ)
    try:
        yield program
    finally:
        program.stop()


@contextlib.contextmanager
def redis_server() -> Iterator[str | None]:
    """The URL of a Redis server with nothing in it, ``None`` where there is none to be had."""
    if shutil.which("redis-server") is None or importlib.util.find_spec("redis") is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", "{port}", "--bind", "127.0.0.1", "--save", ""]
        with running(command, Path(folder)) as program:
            yield f"redis://127.0.0.1:{program.port}/0"
