"""Real WSGI servers around ``served.py``: started, waited for, stopped, killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

from steps import PATIENCE, wait_until

HERE = Path(__file__).parent
#: Part of every page's key; the port changes with each start.
HOST = "site.example"


class Answer(t.NamedTuple):
    """An answer as it came over the wire.

    :param worker: id of the process that gave it.
    """

    status: int
    told: str
    body: str
    worker: int


class Folder:
    """Where the site of ``served.py`` has its posts, and notes what it does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("posts", "hold"):
            (path / name).mkdir(parents=True)

    def write(self, name: str, text: str, **metadata: t.Any) -> None:
        """Change a post; whoever renders it from now on sees it whole."""
        temporary = self.path / f"{name}.{threading.get_ident()}"
        temporary.write_text(json.dumps({"text": text, **metadata}))
        temporary.replace(self.path / "posts" / name)

    def delete(self, name: str) -> None:
        (self.path / "posts" / name).unlink()

    def renders(self, name: str) -> list[int]:
        """The process of each render of a post, in their order."""
        try:
            lines = (self.path / "renders").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [int(line.split()[1]) for line in lines if line.split()[0] == name]

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Renders of a post that begin meanwhile end only afterwards."""
        path = self.path / "hold" / name
        path.touch()
        try:
            yield
        finally:
            path.unlink()


class Server:
    """A server program in a process group of its own.

    :param command: gets the port and the folder, and returns what to start.
    """

    def __init__(
        self,
        command: Callable[[int, Path], list[str]],
        folder: Folder,
        workers: int,
        **environ: str,
    ) -> None:
        self._command = command
        self._environ = environ
        self.folder = folder
        self.workers = workers
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder.path / "log"

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self.port, self.folder.path),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=HERE,
                env={**os.environ, "SITE_FOLDER": str(self.folder.path), **self._environ},
                # So that all of it can be killed, and a Ctrl-C reaches the tests alone.
                start_new_session=True,
            )
        wait_until(self._answers)
        self.all_workers()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it did not start:\n{self._log.read_text()}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def stop(self) -> None:
        """As on a deploy: SIGTERM, and what runs may end."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            finally:
                self.kill()

    def kill(self) -> None:
        """As in a power failure: SIGKILL to all of its processes."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE)
            self._process = None

    def kill_worker(self, pid: int) -> None:
        """SIGKILL, and wait until it is gone: it accepts no connection any more."""
        assert self._process is not None and pid != self._process.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _runs(pid))

    # Visitors.

    def request(self, method: str, path: str, body: str | None = None) -> Answer:
        """One request on a connection of its own, so that any worker may get it.

        :raises OSError: if the server breaks it off.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3 * PATIENCE)
        try:
            connection.request(method, path, body, {"Connection": "close", "Host": HOST})
            # It takes the socket over, since the connection is not kept.
            with connection.getresponse() as response:
                try:
                    text = response.read().decode()
                except http.client.IncompleteRead as error:
                    raise ConnectionResetError("the answer broke off") from error
                told = response.headers.get("Cache-Status", "")
                return Answer(response.status, told, text, int(response.headers["X-Worker"]))
        except http.client.RemoteDisconnected as error:
            raise ConnectionResetError("no answer") from error
        finally:
            connection.close()

    def get(self, name: str) -> Answer:
        return self.request("GET", f"/{name}")

    def do(self, operation: str, *args: str, **kwargs: t.Any) -> Answer:
        """Call a method of the middleware in whatever worker the request reaches."""
        answer = self.request("POST", f"/do/{operation}", json.dumps([args, kwargs]))
        assert answer.status == 200, answer
        return answer

    def from_all_workers(self, name: str) -> dict[int, Answer]:
        """The first answer that each of the workers gives to a visitor who comes now."""
        answers: dict[int, Answer] = {}

        def visit() -> bool:
            # Several at once, so that the kernel has a reason to wake more than one worker.
            with contextlib.suppress(ConnectionResetError):
                answer = self.get(name)
                answers.setdefault(answer.worker, answer)
            return len(answers) >= self.workers

        crowd = [threading.Thread(target=wait_until, args=[visit], daemon=True) for _ in range(4)]
        for visitor in crowd:
            visitor.start()
        for visitor in crowd:
            visitor.join()
        assert len(answers) == self.workers, f"only {len(answers)} workers answer"
        return answers

    def all_workers(self) -> set[int]:
        """Wait until all of them serve, and give their process ids."""
        return set(self.from_all_workers("-/ready"))


def _runs(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # What nobody has asked for its exit status yet does not run either.
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def gunicorn(
    folder: Folder,
    worker_class: str = "gthread",
    preload: bool = False,
    max_requests: int = 0,
    workers: int = 4,
    **environ: str,
) -> Server:
    """gunicorn with some workers.

    :param max_requests: that a worker serves before another takes its place; 0: any number.
    """

    def command(port: int, path: Path) -> list[str]:
        # A name of its own: Python may take one of the same second for compiled already.
        config = path / f"gunicorn-{port}.conf.py"
        config.write_text(
            f"bind = '127.0.0.1:{port}'\n"
            f"workers = {workers}\n"
            f"worker_class = {worker_class!r}\n"
            f"threads = {1 if worker_class == 'sync' else 16}\n"
            f"preload_app = {preload}\n"
            f"max_requests = {max_requests}\n"
            "graceful_timeout = 30\n"
            # Later versions open one in the home directory, for all servers of the user.
            "control_socket_disable = True\n"
        )
        return [sys.executable, "-m", "gunicorn", "-c", str(config), "served:application"]

    return Server(command, folder, workers, **environ)
