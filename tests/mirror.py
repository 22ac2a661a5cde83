"""A site that reflects all it can see of a request, into the body and into headers.

It stands behind the library, with URLs that are declared and others that are not, and behind a
naive cache, which shows that the attacks are real.

``GET /declared/NAME``, ``/undeclared/NAME``  a page; ``X-Render`` counts its renders
``GET /naive/NAME``                           the same, cached by its path
``POST /-/OPERATION/PATH``                    calls a method of the middleware
"""

from __future__ import annotations

import collections
import itertools
import json
import typing as t
from urllib.parse import quote

from wsgi_isr import ISRMiddleware, Rule, page_headers

#: Bytes of a header that every server takes.
LONGEST = 3000

renders: dict[str, t.Iterator[int]] = collections.defaultdict(lambda: itertools.count(1))


def seen(environ: dict[str, t.Any]) -> str:
    """All of a request: headers, cookies, query, host, scheme, addresses, variables, the body."""
    plain = {
        name: value
        for name, value in environ.items()
        # Which of its own reasons there was for a render, the library alone says.
        if isinstance(value, str | bytes | int | float | tuple) and name != "wsgi_isr.reason"
    }
    body = b""
    if environ.get("CONTENT_LENGTH") or environ.get("HTTP_TRANSFER_ENCODING"):
        try:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 4096))
        except (OSError, ValueError):
            body = b"unreadable"
    return json.dumps([sorted(plain.items()), body.decode("latin-1")], default=repr)


def mirror(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    if path.startswith("/-/"):
        _, _, operation, name = path.split("/", 3)
        options = {"expire": True} if operation == "expire" else {}
        method = {"expire": "invalidate"}.get(operation, operation)
        getattr(environ["wsgi_isr.middleware"], method)(f"/{name}", **options)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]
    text = seen(environ)
    page = f"{environ['wsgi.url_scheme']}://{environ.get('HTTP_HOST')}{path}"
    start_response(
        "200 OK",
        [
            ("Content-Type", "text/plain"),
            ("X-Render", str(next(renders[page]) if "wsgi_isr.reason" in environ else 0)),
            ("X-Seen", quote(text)[:LONGEST]),
            ("Content-Language", quote(environ.get("HTTP_ACCEPT_LANGUAGE", "en"))[:LONGEST]),
            ("Link", f"<{quote(environ.get('HTTP_HOST', ''))[:LONGEST]}>; rel=canonical"),
            *page_headers(revalidate=False),
        ],
    )
    return [text.encode()]


class Naive:
    """What one writes in an afternoon: the first answer to a path is the answer to that path."""

    def __init__(self, app: t.Any) -> None:
        self._app = app
        self._answers: dict[str, t.Any] = {}

    def __call__(self, environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
        path = environ["PATH_INFO"]
        if path not in self._answers:
            head: list[t.Any] = []
            body = self._app(environ, lambda *args: head.extend(args))
            self._answers[path] = (head[0], head[1], body)
        status, headers, body = self._answers[path]
        start_response(status, [*headers])
        return body


isr = ISRMiddleware(mirror, "memory://", rules={"/declared/**": Rule()})
naive = Naive(mirror)


def application(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
    app = naive if environ["PATH_INFO"].startswith("/naive/") else isr
    return app(environ, start_response)
