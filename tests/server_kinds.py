"""The WSGI servers that `test_servers.py` tries, each as its documentation starts it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import HERE, Folder, Server, gunicorn

APP = "served:application"


class Kind(t.NamedTuple):
    """A server in one of its modes.

    :param needs: module or program without which it is not there.
    :param start: makes it around a folder.
    :param preloads: whether it serves requests before it forks.
    :param recycles: how many requests a worker serves; 0: any number.
    :param threads: whether threads run while no request is served.
    """

    needs: str
    start: Callable[..., Server]
    preloads: bool = False
    recycles: int = 0
    threads: bool = True

    @property
    def is_there(self) -> bool:
        if self.needs.startswith("/"):
            return Path(self.needs).exists()
        return bool(importlib.util.find_spec(self.needs) or shutil.which(_program(self.needs)))


def _program(name: str) -> str:
    """A program of this environment, or of the machine."""
    here = Path(sys.executable).with_name(name)
    return str(here) if here.exists() else name


def _run(workers: int, *command: str) -> Callable[..., Server]:
    """A server by its command line; ``{port}`` is replaced."""

    def start(folder: Folder, **environ: str) -> Server:
        def fill(port: int, path: Path) -> list[str]:
            return [word.format(port=port, path=path) for word in command]

        return Server(fill, folder, workers, **environ)

    return start


def _gunicorn(**options: t.Any) -> Callable[..., Server]:
    return lambda folder, **environ: gunicorn(folder, workers=2, **options, **environ)


def _uwsgi(*options: str, workers: int = 2, program: tuple[str, ...] = ()) -> Callable[..., Server]:
    return _run(
        workers,
        *(program or (_program("uwsgi"),)),
        "--http-socket=127.0.0.1:{port}",
        f"--module={APP}",
        "--master",
        f"--processes={workers}",
        "--die-on-term",
        "--need-app",
        "--worker-reload-mercy=3",
        # Each goes before those that were named before it.
        *(f"--pythonpath={path}" for path in reversed(sys.path) if path),
        f"--pythonpath={HERE}",
        *options,
    )


def _python(*lines: str) -> Callable[..., Server]:
    """A server that is a library: a program of a few lines starts it."""
    return _run(1, sys.executable, "-c", "\n".join(("from served import application", *lines)))


KINDS: dict[str, Kind] = {
    "gunicorn sync": Kind("gunicorn", _gunicorn(worker_class="sync")),
    "gunicorn sync, preloaded": Kind(
        "gunicorn", _gunicorn(worker_class="sync", preload=True), preloads=True
    ),
    "gunicorn gthread": Kind("gunicorn", _gunicorn()),
    "gunicorn gthread, preloaded": Kind("gunicorn", _gunicorn(preload=True), preloads=True),
    "gunicorn gthread, recycled": Kind("gunicorn", _gunicorn(max_requests=20), recycles=20),
    "gunicorn gevent": Kind("gevent", _gunicorn(worker_class="gevent")),
    "gunicorn gevent, preloaded": Kind(
        "gevent", _gunicorn(worker_class="gevent", preload=True), preloads=True
    ),
    "uWSGI": Kind("uwsgi", _uwsgi(), threads=False),
    # Threads are frozen between requests, unlike in later versions.
    "uWSGI 2.0.21": Kind(
        "/usr/bin/uwsgi", _uwsgi(program=("/usr/bin/uwsgi", "--plugin=python3")), threads=False
    ),
    "uWSGI --enable-threads": Kind("uwsgi", _uwsgi("--enable-threads")),
    # Threads of the master, as a request before the fork leaves them, hang workers otherwise.
    "uWSGI --py-call-uwsgi-fork-hooks, warm": Kind(
        "uwsgi", _uwsgi("--enable-threads", "--py-call-uwsgi-fork-hooks"), preloads=True
    ),
    "uWSGI --threads": Kind("uwsgi", _uwsgi("--threads=8", workers=1)),
    "uWSGI --lazy-apps, recycled": Kind(
        "uwsgi",
        _uwsgi("--enable-threads", "--lazy-apps", "--max-requests=20", "--min-worker-lifetime=1"),
        recycles=20,
    ),
    "granian": Kind(
        "granian",
        _run(
            2,
            sys.executable,
            "-m",
            "granian",
            "--interface=wsgi",
            "--workers=2",
            "--blocking-threads=8",
            "--host=127.0.0.1",
            "--port={port}",
            "--workers-kill-timeout=5",
            APP,
        ),
    ),
    "waitress": Kind(
        "waitress",
        _python(
            "import sys, waitress",
            "waitress.serve(application, host='127.0.0.1', port={port}, threads=8)",
        ),
    ),
    "cheroot": Kind(
        "cheroot",
        _python(
            "import signal, threading",
            "from cheroot.wsgi import Server",
            "server = Server(('127.0.0.1', {port}), application, numthreads=8)",
            "end = lambda *args: threading.Thread(target=server.stop).start()",
            "signal.signal(signal.SIGTERM, end)",
            "server.start()",
        ),
    ),
    "bjoern": Kind(
        "bjoern",
        _python("import bjoern", "bjoern.run(application, '127.0.0.1', {port})"),
    ),
    "Werkzeug's reloader": Kind(
        "werkzeug",
        _run(
            1,
            sys.executable,
            "-m",
            "flask",
            "--app=reloaded",
            "run",
            "--host=127.0.0.1",
            "--port={port}",
            "--reload",
        ),
    ),
}


def skip_unless_there(name: str) -> None:
    if not KINDS[name].is_there:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
