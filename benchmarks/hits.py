"""What a hit costs in process, beside a hand-written dictionary cache.

Subjects take turns, round after round, so that a machine that changes its speed changes it for
all of them; medians are taken over rounds, and the cost of an empty call is subtracted. Absolute
numbers belong to one machine: the ratios are what counts.

    python benchmarks/hits.py [ROUNDS]
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
import typing as t
from collections.abc import Callable

from wsgi_isr import ISRMiddleware
from wsgi_isr import page_headers

CALLS = 5_000
BODY = (b"<p>" + b"The quick brown fox jumps over the lazy dog. " * 10 + b"</p>\n") * 44
Environ = dict[str, t.Any]
App = Callable[[Environ, t.Any], t.Any]


def app(environ: Environ, start_response: t.Any) -> t.Any:
    if environ["PATH_INFO"].startswith("/page/"):
        start_response("200 OK", [("Content-Type", "text/html"), *page_headers(3600)])
        return [BODY]
    start_response("200 OK", [("Content-Type", "text/html")])
    return [BODY]


class DictCache:
    """What one writes by hand: a path, a time, a copy of a list."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._pages: dict[str, tuple[float, list[tuple[str, str]], bytes]] = {}

    def __call__(self, environ: Environ, start_response: t.Any) -> t.Any:
        page = self._pages.get(environ["PATH_INFO"])
        if page is not None and time.time() < page[0]:
            start_response("200 OK", page[1].copy())
            return [page[2]]
        body = b"".join(self._app(environ, lambda *args: None))
        headers = [("Content-Type", "text/html"), ("Content-Length", str(len(body)))]
        self._pages[environ["PATH_INFO"]] = (time.time() + 3600, headers, body)
        start_response("200 OK", headers.copy())
        return [body]


def environ(path: str = "/page/1", **more: str) -> Environ:
    """What gunicorn makes of a browser's request: 33 keys."""
    made: Environ = {
        "wsgi.errors": sys.stderr,
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": None,
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


def empty(environ: Environ, start_response: t.Any) -> None:
    return None


def start_response(status: str, headers: list[tuple[str, str]], exc_info: t.Any = None) -> None:
    return None


def subjects(folder: str) -> dict[str, tuple[App, Environ]]:
    """Name -> app and environ; each is called until its page is there."""
    memory = ISRMiddleware(app, "memory://")
    files = ISRMiddleware(app, f"file://{folder}")
    by_hand, again = DictCache(app), DictCache(app)
    warm = environ()
    gzip = environ(HTTP_ACCEPT_ENCODING="gzip, deflate, br")
    cookie = environ(HTTP_COOKIE="a=1; session=abcdef")
    query = environ(QUERY_STRING="utm_source=newsletter")
    head = environ(REQUEST_METHOD="HEAD")
    plain = environ("/other")
    for request in (warm, gzip, cookie, query, plain):
        for subject in (memory, files, by_hand, again, by_hand):
            for _ in range(3):
                subject(dict(request), start_response)
    found: list[str] = []
    files(dict(warm), lambda status, headers: found.extend(v for k, v in headers if k == "ETag"))
    return {
        "by hand": (by_hand, warm),
        "by hand, again": (again, warm),
        "memory://": (memory, warm),
        "file://": (files, warm),
        "file://, gzip": (files, gzip),
        "file://, cookie": (files, cookie),
        "file://, query": (files, query),
        "file://, 304": (files, environ(HTTP_IF_NONE_MATCH=found[0])),
        "file://, HEAD": (files, head),
        "app alone": (app, plain),
        "not a page": (files, plain),
    }


def measure(rounds: int) -> dict[str, float]:
    """Median nanoseconds of a call, less those of an empty one."""
    with tempfile.TemporaryDirectory() as folder:
        table = subjects(folder)
        times: dict[str, list[float]] = {name: [] for name in ("", *table)}
        for _ in range(rounds):
            for name, (subject, request) in {"": (empty, environ()), **table}.items():
                begun = time.perf_counter_ns()
                for _ in range(CALLS):
                    subject(request, start_response)
                times[name].append((time.perf_counter_ns() - begun) / CALLS)
    nothing = statistics.median(times.pop(""))
    return {name: statistics.median(values) - nothing for name, values in times.items()}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 41
    measured = measure(rounds)
    base = measured["by hand"]
    print(f"{'':<18}{'ns':>8}{'x by hand':>11}   (body {len(BODY)} bytes, {rounds} rounds)")
    for name, nanoseconds in measured.items():
        print(f"{name:<18}{nanoseconds:>8.0f}{nanoseconds / base:>11.2f}")


if __name__ == "__main__":
    main()
