"""The page that all subjects serve, the request that asks for it, and a cache written by hand."""

from __future__ import annotations

import io
import random
import sys
import time
import typing as t
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from wsgiref.util import FileWrapper

from wsgi_isr import page_headers

Environ = dict[str, t.Any]
App = Callable[[Environ, t.Any], t.Any]

#: The repository.
ROOT = Path(__file__).parents[1]

WORDS = """
    lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut
    labore et dolore magna aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris
    nisi aliquip ex ea commodo consequat duis aute irure in reprehenderit voluptate velit esse
    cillum fugiat nulla pariatur excepteur sint occaecat cupidatat non proident sunt culpa qui
    officia deserunt mollit anim id est laborum perspiciatis unde omnis iste natus error
""".split()
_choose = random.Random(20)
#: What is on the page, the same in every run and for every subject.
PARAGRAPHS = [" ".join(_choose.choices(WORDS, k=60)) for _ in range(49)]
#: 20 KB of HTML that is compressed about as well as prose is.
BODY = "".join(f"<p>{paragraph}</p>\n" for paragraph in PARAGRAPHS).encode()
HTML = ("Content-Type", "text/html; charset=utf-8")

#: What browsers send.
GZIP = "gzip, deflate, br"


def app(environ: Environ, start_response: t.Any) -> t.Any:
    """``/page/...`` are pages; whatever else there is, is not."""
    if environ["PATH_INFO"].startswith("/page/"):
        start_response("200 OK", [HTML, *page_headers(3600)])
        return [BODY]
    start_response("200 OK", [HTML])
    return [BODY]


class DictCache:
    """What one writes by hand: method, path and query, a time, a copy of a list."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._pages: dict[tuple[str, str], tuple[float, list[tuple[str, str]], bytes]] = {}

    def __call__(self, environ: Environ, start_response: t.Any) -> t.Any:
        if environ["REQUEST_METHOD"] != "GET":
            return self._app(environ, start_response)
        # PEP 3333 lets an empty query be absent, and bjoern leaves it out.
        key = (environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
        page = self._pages.get(key)
        if page is not None and time.time() < page[0]:
            start_response("200 OK", page[1].copy())
            return [page[2]]
        headers, body = rendered(self._app, environ)
        self._pages[key] = (time.time() + 3600, headers, body)
        start_response("200 OK", headers.copy())
        return [body]


class PathCache:
    """The least that answers at all: for any method, whatever the query."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._pages: dict[str, tuple[float, list[tuple[str, str]], bytes]] = {}

    def __call__(self, environ: Environ, start_response: t.Any) -> t.Any:
        page = self._pages.get(environ["PATH_INFO"])
        if page is not None and time.time() < page[0]:
            start_response("200 OK", page[1].copy())
            return [page[2]]
        headers, body = rendered(self._app, environ)
        self._pages[environ["PATH_INFO"]] = (time.time() + 3600, headers, body)
        start_response("200 OK", headers.copy())
        return [body]


def rendered(app: App, environ: Environ) -> tuple[list[tuple[str, str]], bytes]:
    """The headers of an answer, with its length, and its body."""
    kept: dict[str, str] = {}

    def keep(status: str, headers: list[tuple[str, str]], exc_info: t.Any = None) -> None:
        kept.update(headers)

    body = b"".join(app(environ, keep))
    kept["Content-Length"] = str(len(body))
    return [item for item in kept.items() if not item[0].startswith("ISR-")], body


# What a request costs that is no page, step by step, as one would write it by hand.


class InTheWay:
    """Middleware that does nothing."""

    def __init__(self, app: App) -> None:
        self._app = app

    def __call__(self, environ: Environ, start_response: t.Any) -> t.Any:
        return self._app(environ, start_response)


class LookUp:
    """It knows by all that a page depends on that there is none, for a time."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._known: dict[tuple[str, ...], float] = {}

    def __call__(self, environ: Environ, start_response: t.Any) -> t.Any:
        key = (
            environ["PATH_INFO"],
            environ.get("QUERY_STRING", ""),
            environ["HTTP_HOST"],
            environ["wsgi.url_scheme"],
            environ["SCRIPT_NAME"],
        )
        if time.time() >= self._known.get(key, 0.0):
            self._known[key] = time.time() + 3600
        return self._app(environ, start_response)


class Watch(LookUp):
    """And it would notice an answer that has become a page; the app can ask where it is."""

    def __init__(self, app: App) -> None:
        super().__init__(self._watched)
        self._watched_app = app
        self._origin: ContextVar[str] = ContextVar("origin")

    def _watched(self, environ: Environ, start_response: t.Any) -> t.Any:
        def start(status: str, headers: list[tuple[str, str]], exc_info: t.Any = None) -> t.Any:
            for name, _ in headers:
                if name.lower() == "isr-revalidate":
                    raise NotImplementedError("it has become a page")
            return start_response(status, headers, exc_info)

        token = self._origin.set(environ["HTTP_HOST"])
        try:
            return self._watched_app(environ, start)
        finally:
            self._origin.reset(token)


def request(path: str = "/page/1", **more: str) -> Environ:
    """What gunicorn makes of a browser's request: 33 keys."""
    made: Environ = {
        "wsgi.errors": sys.stderr,
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
        "wsgi.input": io.BytesIO(),
        "wsgi.url_scheme": "http",
        "SERVER_SOFTWARE": "gunicorn",
        "gunicorn.socket": None,
        "REQUEST_METHOD": "GET",
        "QUERY_STRING": "",
        "RAW_URI": path,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "www.example.com",
        "HTTP_CONNECTION": "keep-alive",
        "HTTP_CACHE_CONTROL": "max-age=0",
        "HTTP_SEC_CH_UA": '"Chromium";v="156"',
        "HTTP_SEC_CH_UA_MOBILE": "?0",
        "HTTP_SEC_CH_UA_PLATFORM": '"Linux"',
        "HTTP_UPGRADE_INSECURE_REQUESTS": "1",
        "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
        "HTTP_ACCEPT": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "HTTP_SEC_FETCH_SITE": "none",
        "HTTP_SEC_FETCH_MODE": "navigate",
        "HTTP_ACCEPT_LANGUAGE": "en-GB,en;q=0.9",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "40112",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
    }
    return made | more


def start_response(status: str, headers: list[tuple[str, str]], exc_info: t.Any = None) -> None:
    """A server that does nothing with an answer."""


class Response:
    """One answer, whole."""

    def __init__(self, app: App, environ: Environ) -> None:
        self.status = ""
        self.headers: dict[str, str] = {}

        def start(status: str, headers: list[tuple[str, str]], exc_info: t.Any = None) -> None:
            self.status = status
            self.headers = dict(headers)

        answer = app(dict(environ), start)
        try:
            self.body = b"".join(answer)
        finally:
            if hasattr(answer, "close"):
                answer.close()
