"""The site that real servers serve in tests: posts in a folder, and each answer names its process.

``GET /NAME``           a post; ``renders`` in the folder gets a line for each time
``POST /do/OPERATION``  calls a method of the middleware
"""

from __future__ import annotations

import io
import json
import os
import time
import typing as t
from collections.abc import Callable
from pathlib import Path

from wsgi_isr import ISRMiddleware
from wsgi_isr import page_headers
from wsgi_isr import RevalidationError
from wsgi_isr import Rule

FOLDER = Path(os.environ["SITE_FOLDER"])
#: Seconds after which what is held goes on: far later than any test waits.
HOLD = 30


def site(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    if path == "/-/ready":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ready"]
    if environ["REQUEST_METHOD"] == "POST":
        return operate(environ, start_response, path.removeprefix("/do/"))
    return post(path.removeprefix("/"), start_response)


def post(name: str, start_response: t.Any) -> list[bytes]:
    # First the content, then the note: who reads the note knows which content it was.
    try:
        found = json.loads((FOLDER / "posts" / name).read_text())
    except FileNotFoundError:
        found = {"text": "no such post", "status": "404 Not Found"}
    note("renders", f"{name} {os.getpid()}\n")
    wait_while((FOLDER / "hold" / name).exists)
    headers = page_headers(
        found.get("revalidate", False), found.get("expire"), found.get("tags", ())
    )
    start_response(found.get("status", "200 OK"), [("Content-Type", "text/plain"), *headers])
    return [found["text"].encode()]


def operate(environ: dict[str, t.Any], start_response: t.Any, operation: str) -> list[bytes]:
    length = int(environ["CONTENT_LENGTH"])
    args, kwargs = json.loads(environ["wsgi.input"].read(length))
    status = "200 OK"
    try:
        getattr(environ["wsgi_isr.middleware"], operation)(*args, **kwargs)
    except RevalidationError:
        status = "500 Internal Server Error"
    start_response(status, [("Content-Type", "text/plain")])
    return [b"done"]


def note(name: str, line: str) -> None:
    """Append to a file; with O_APPEND, lines of several processes do not mix."""
    descriptor = os.open(FOLDER / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def wait_while(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HOLD
    while condition() and time.monotonic() < deadline:
        time.sleep(0.002)


# In the middle of a write.


def stall(where: str) -> None:
    """Stop here, if the test wants that, until it kills the process."""
    try:
        if (FOLDER / "stall").read_text() != where:
            return
    except FileNotFoundError:
        return
    note("stalled", str(os.getpid()))
    time.sleep(HOLD)


class HalfWritten(io.FileIO):
    """A file whose writer is slow."""

    def write(self, data: t.Any, /) -> int:
        half = len(data) // 2
        super().write(data[:half])
        stall("half")
        return half + super().write(data[half:])


def is_page(path: str) -> bool:
    return "/pages/" in path


def fdopen(descriptor: int, mode: str = "r", *args: t.Any, **kwargs: t.Any) -> t.Any:
    if mode == "wb" and is_page(os.readlink(f"/proc/self/fd/{descriptor}")):
        return HalfWritten(descriptor, "wb")
    return _fdopen(descriptor, mode, *args, **kwargs)


def replace(source: t.Any, target: t.Any, **kwargs: t.Any) -> None:
    if is_page(os.fspath(target)):
        stall("before-rename")
    _replace(source, target, **kwargs)


_fdopen, os.fdopen = os.fdopen, fdopen  # type: ignore[assignment]
_replace, os.replace = os.replace, replace  # type: ignore[assignment]


def marked(app: t.Any) -> t.Any:
    """Outside of the library, so that stored answers, too, tell who gave them."""

    def application(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
        def start(status: str, headers: t.Any, *args: t.Any) -> t.Any:
            return start_response(status, [*headers, ("X-Worker", str(os.getpid()))], *args)

        return app(environ, start)

    return application


isr = ISRMiddleware(site, f"file://{FOLDER}/cache", rules={"/-/**": None, "/**": Rule()})
application = marked(isr)

if "WARM" in os.environ:
    # With gunicorn's --preload this is the parent: store, locks and threads are there at the fork.
    from werkzeug.test import Client

    visitor = Client(isr)
    visitor.get(f"/{os.environ['WARM']}")
    isr.invalidate("/**")
    visitor.get(f"/{os.environ['WARM']}")
