"""The site that real servers serve in tests: posts in a folder, and each answer names its process.

``GET /NAME``           a post; ``renders`` in the folder gets a line for each time
``POST /do/OPERATION``  calls a method of the middleware
"""

from __future__ import annotations

import json
import os
import time
import typing as t
from collections.abc import Callable
from pathlib import Path

from wsgi_isr import ISRMiddleware, RevalidationError, Rule, page_headers

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
