"""Real servers, started by the tests on free ports: Redis, memcached, and a slow network."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest

#: Seconds for a server to come up, or to end.
PATIENCE = 10.0


def find(program: str) -> str:
    """Where a server program is; without it the test is skipped, but fails in CI."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """A server program on a port of this machine."""

    def __init__(self, command: list[str], port: int, ask: bytes, answer: bytes) -> None:
        self.port = port
        self._command = command
        self._ask, self._answer = ask, answer
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, f"{self._command[0]} has ended"
            assert time.monotonic() < deadline, f"{self._command[0]} does not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                sock.sendall(self._ask)
                return sock.recv(100).startswith(self._answer)
        except OSError:
            return False

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            process.wait(PATIENCE)

    def stop(self) -> None:
        """SIGTERM: it ends as it would for its administrator."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: it has no chance to save anything."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: its kernel takes connections, nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()


class Redis(Server):
    """A Redis server with nothing in it, bounded as the documentation advises.

    :param options: as on its command line, ``"--appendonly yes"``; without them it keeps nothing
        on its disk.
    """

    OPTIONS = "--databases 10000 --maxmemory 1gb --maxmemory-policy volatile-lru"

    def __init__(self, folder: t.Any, options: str = "--save ''") -> None:
        port = free_port()
        words = [word.strip("'") for word in f"{self.OPTIONS} {options}".split()]
        self.database = 0
        command = [find("redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
        command += ["--dir", str(folder), *words]
        super().__init__(command, port, b"PING\r\n", b"+PONG")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/{self.database}"

    def client(self) -> t.Any:
        redis = pytest.importorskip("redis")
        return redis.Redis(port=self.port, db=self.database)

    def do(self, *command: object) -> t.Any:
        with contextlib.closing(self.client()) as client:
            return client.execute_command(*command)


class Memcached(Server):
    """A memcached server.

    :param options: as on its command line, ``"-I 2m"``.
    """

    def __init__(self, options: str = "") -> None:
        port = free_port()
        command = [find("memcached"), "-p", str(port), "-l", "127.0.0.1", "-U", "0"]
        if os.geteuid() == 0:
            command += ["-u", "nobody"]
        super().__init__([*command, *options.split()], port, b"version\r\n", b"VERSION")

    @property
    def url(self) -> str:
        return f"memcached://127.0.0.1:{self.port}"

    def pooled_client(self, seconds: float = 2.0) -> t.Any:
        """One as users hand over."""
        base = pytest.importorskip("pymemcache.client.base")
        return base.PooledClient(("127.0.0.1", self.port), timeout=seconds, connect_timeout=seconds)

    def flush(self) -> None:
        with contextlib.closing(self.pooled_client()) as client:
            client.flush_all(noreply=False)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.kill()


class SlowNetwork:
    """A way to a server that each message takes a while for.

    :param delay: seconds, one way.
    :param listen: port of the near end.
    """

    def __init__(self, port: int, delay: float, listen: int = 0) -> None:
        self._target = port
        self.delay = delay
        self._listener = socket.create_server(("127.0.0.1", listen))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [client, server]
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.delay)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def __enter__(self) -> SlowNetwork:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def eventually(check: t.Callable[[], t.Any], seconds: float) -> t.Any:
    """The first true value of a check, or the last one when time is up."""
    deadline = time.monotonic() + seconds
    while not (value := check()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


@contextlib.contextmanager
def listening(store: t.Any) -> Iterator[None]:
    """Call `Store.listen` in a thread, again and again."""
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            store.listen(0.1)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
