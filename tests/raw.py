"""Server programs, and requests to them as bytes: no client library corrects what is sent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from attacks import HOST
from steps import PATIENCE, wait_until

HERE = Path(__file__).parent
#: Seconds for which a server that is asked for more than it takes is listened to.
MOMENT = 0.25

#: What starts a server of ``mirror:application`` on a port.
SERVERS: dict[str, t.Callable[[int], list[str]]] = {
    "gunicorn": lambda port: [
        "gunicorn",
        "--config=gunicorn.conf.py",
        "--threads=8",
        f"--bind=127.0.0.1:{port}",
    ],
    "waitress": lambda port: ["waitress", "--threads=8", f"--listen=127.0.0.1:{port}"],
    "cheroot": lambda port: ["cheroot", "--threads=8", f"--bind=127.0.0.1:{port}"],
    "granian": lambda port: [
        "granian",
        "--interface=wsgi",
        "--blocking-threads=8",
        f"--port={port}",
    ],
}


class Answer(t.NamedTuple):
    """
    :param status: 0 where the server gave none.
    """

    status: int
    headers: dict[str, str]
    body: str
    raw: bytes


def parse(raw: bytes) -> Answer:
    """The first answer in what a server has sent."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split()
    status = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
    fields = (line.partition(":") for line in lines[1:])
    headers = {name.lower(): value.strip() for name, _, value in fields}
    return Answer(status, headers, body.decode("latin-1"), raw)


class Program:
    """A server program, alone on its port."""

    def __init__(self, name: str, log: Path) -> None:
        pytest.importorskip(name)
        # It would take a client that has no more to say for one that has gone.
        self._half_closes = name != "granian"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = log
        # Later versions open a socket in the home directory, for all servers of the user.
        (log.parent / "gunicorn.conf.py").write_text("control_socket_disable = True\n")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *SERVERS[name](self.port), "mirror:application"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
                start_new_session=True,
            )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"it did not start:\n{self._log.read_text()}"
        with contextlib.suppress(OSError):
            return self.get("/undeclared/ready").status == 200
        return False

    def _send(self, data: bytes, patience: float, half_closes: bool = False) -> Answer:
        """Send bytes on a connection of their own, and read until the server closes it."""
        received = b""
        with contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", self.port), patience) as connection:
                connection.sendall(data)
                if half_closes:
                    connection.shutdown(socket.SHUT_WR)
                while block := connection.recv(65536):
                    received += block
        return parse(received)

    def attack(self, data: bytes) -> Answer:
        """Send what a server may take for half a request."""
        return self._send(data, PATIENCE if self._half_closes else MOMENT, self._half_closes)

    def get(self, path: str, method: str = "GET") -> Answer:
        """A clean visitor."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", "Connection: close", "", ""]
        return self._send("\r\n".join(lines).encode(), PATIENCE)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
