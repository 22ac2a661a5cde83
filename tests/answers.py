"""Apps that answer one thing, and a server that calls an app without any checks."""

from __future__ import annotations

import typing as t

import pytest
from werkzeug.test import create_environ

from wsgi_isr import Rule, page_headers

App = t.Callable[..., t.Any]

PLAIN = ("Content-Type", "text/plain")
#: A page at ``/x``, of which the library hears from a rule or from the answer alone.
BOTH = pytest.mark.parametrize("rules", [None, {"/x": Rule()}], ids=["undeclared", "declared"])


def answer(*headers: tuple[str, str], status: str = "200 OK", body: bytes = b"an answer") -> App:
    """An app with one answer; it has a content type of its own, or is plain text."""
    own = any(name == "Content-Type" for name, _ in headers)

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response(status, [*([] if own else [PLAIN]), *headers])
        return [body]

    return app


def page(*headers: tuple[str, str], status: str = "200 OK", body: bytes = b"a page") -> App:
    """The same, of a page."""
    return answer(*page_headers(60), *headers, status=status, body=body)


class Sent(t.NamedTuple):
    status: str
    headers: list[tuple[str, str]]
    body: bytes


def run(app: App, path: str = "/x", **environ: t.Any) -> Sent:
    """Call an app as a server that checks nothing, and read its answer to the end."""
    started: list[t.Any] = []
    body = app({**create_environ(path), **environ}, lambda *args: started.extend(args))
    try:
        text = b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    return Sent(started[0], started[1], text)


def renew(client: t.Any, clock: t.Any, path: str = "/x") -> t.Any:
    """Have a page of a minute rendered behind a visitor; gives the next one's answer."""
    clock.advance(61)
    client.get(path)
    client.isr.close()
    return client.get(path)


def app_of(body: t.Any, *headers: tuple[str, str], status: str = "200 OK") -> t.Any:
    def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
        start_response(status, [PLAIN, *headers])
        return body() if callable(body) else body

    return app


class Server:
    """Calls an app as a server does, one block at a time."""

    def __init__(self, app: t.Any, **environ: t.Any) -> None:
        self.sent: list[t.Any] = []
        self.written: list[bytes] = []
        self.result = app({**create_environ("/x"), **environ}, self._start_response)

    def read(self) -> bytes:
        try:
            return b"".join(self.result)
        finally:
            if hasattr(self.result, "close"):
                self.result.close()

    def _start_response(self, status: str, headers: t.Any, exc_info: t.Any = None) -> t.Any:
        assert exc_info is not None or not self.sent
        if exc_info is not None and self.written:
            raise exc_info[1].with_traceback(exc_info[2])
        self.sent.append((status, headers))
        return self.written.append
