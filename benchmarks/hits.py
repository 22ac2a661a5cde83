"""Part ``hits``: what a hit costs in process, beside a hand-written dictionary cache and peers."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import tempfile
import typing as t
from collections.abc import Iterator
from pathlib import Path

from wsgi_isr import ISRMiddleware

from .peers.packages import MODULES, PACKAGES
from .processes import redis_server
from .results import Table, note
from .subjects import (
    BODY,
    GZIP,
    App,
    DictCache,
    Environ,
    InTheWay,
    LookUp,
    PathCache,
    Response,
    Watch,
    app,
    request,
    start_response,
)
from .turns import Turn, add_ratios, by_turns, nothing, repeat, without

BY_HAND, AGAIN = "by hand", "by hand, again"
APP, NOT_A_PAGE = "app alone", "not a page"
#: The same by hand, step by step.
STEPS: dict[str, t.Callable[[App], App]] = {
    "not a page, class in the way": InTheWay,
    "not a page, looked up by hand": LookUp,
    "not a page, by hand": Watch,
}


def ready(subject: App, environ: Environ) -> Response:
    """Ask until the page is there."""
    for _ in range(3):
        answer = Response(subject, environ)
    assert answer.status[:3] in ("200", "304"), answer.status
    return answer


def is_hit(answer: Response) -> bool:
    return answer.headers.get("Cache-Status", "").startswith("isr; hit; ttl=")


def breaks(environ: Environ, start_response: t.Any) -> t.Any:
    """The site, but what has become stale cannot be rendered any more."""
    if environ.get("wsgi_isr.reason") == "stale":
        raise RuntimeError("the database is down")
    return app(environ, start_response)


@contextlib.contextmanager
def hits(cache: str, name: str) -> Iterator[dict[str, Turn]]:
    """All kinds of requests that find a page."""
    isr = ISRMiddleware(breaks, cache)
    stale = request("/page/stale")
    ready(isr, stale)
    isr.invalidate("/page/stale")
    etag = ready(isr, request()).headers["ETag"]
    requests = {
        name: request(),
        f"{name}, gzip": request(HTTP_ACCEPT_ENCODING="gzip, br"),
        f"{name}, cookie": request(HTTP_COOKIE="a=1; session=abcdef"),
        f"{name}, query": request(QUERY_STRING="utm_source=newsletter"),
        f"{name}, 304": request(HTTP_IF_NONE_MATCH=etag),
        f"{name}, HEAD": request(REQUEST_METHOD="HEAD"),
        f"{name}, stale": stale,
    }
    for kind, environ in requests.items():
        answer = ready(isr, environ)
        assert is_hit(answer), (kind, answer.headers)
    assert ready(isr, stale).headers["Cache-Status"] == "isr; hit; ttl=0"
    yield {kind: repeat(isr, environ, start_response) for kind, environ in requests.items()}
    isr.close()


@contextlib.contextmanager
def not_a_page(folder: Path) -> Iterator[dict[str, Turn]]:
    """A request that is none, through the middleware and past it."""
    isr = ISRMiddleware(app, f"file://{folder}")
    other = request("/other")
    assert ready(isr, other).body == BODY
    yield {
        APP: repeat(app, other, start_response),
        NOT_A_PAGE: repeat(isr, other, start_response),
        **{name: repeat(step(app), other, start_response) for name, step in STEPS.items()},
    }
    isr.close()


def peer(subject: App, environ: Environ) -> Turn:
    """Peers write into the environ, and answer with what has to be read and closed."""

    def whole() -> None:
        answer = subject(environ.copy(), start_response)
        for _ in answer:
            pass
        if hasattr(answer, "close"):
            answer.close()

    return repeat(whole)


def peers(folder: Path) -> dict[str, Turn]:
    turns: dict[str, Turn] = {}
    for name, make in PACKAGES.items():
        if importlib.util.find_spec(MODULES[name]) is None:
            note(f"{name} is not installed")
            continue
        subject = make(folder / name)
        for kind, environ in {
            name: request(),
            f"{name}, gzip": request(HTTP_ACCEPT_ENCODING=GZIP),
        }.items():
            answer = ready(subject, environ)
            if kind == name or "Content-Encoding" in answer.headers:
                turns[kind] = peer(subject, environ)
    return turns


def measure(quick: bool) -> Table:
    # What it says of renders that fail.
    logging.getLogger("wsgi_isr").addHandler(logging.NullHandler())
    by_hand, again, path_alone = DictCache(app), DictCache(app), PathCache(app)
    for subject in (by_hand, again, path_alone):
        ready(subject, request())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subjects: dict[str, Turn] = {
            "": repeat(nothing, request(), start_response),
            BY_HAND: repeat(by_hand, request(), start_response),
            AGAIN: repeat(again, request(), start_response),
            "by hand, path alone": repeat(path_alone, request(), start_response),
        }
        subjects |= stack.enter_context(hits("memory://", "memory://"))
        subjects |= stack.enter_context(hits(f"file://{folder}/files", "file://"))
        redis = stack.enter_context(redis_server())
        if redis is None:
            note("redis-server or its client is not installed")
        else:
            subjects |= stack.enter_context(hits(redis, "redis://"))
        subjects |= stack.enter_context(not_a_page(folder / "others"))
        subjects |= peers(folder)
        table = by_turns(subjects, 20 if quick else 400)
    return add_ratios(without(table, ""), BY_HAND)
