"""Ways in which a render fails, as apps."""

from __future__ import annotations

import sys
import typing as t
from collections.abc import Callable

import pytest

from wsgi_isr import page_headers

Answer = Callable[[t.Any, t.Any], t.Any]

HTML = ("Content-Type", "text/html")
LIMIT = 1000


def raises(environ: t.Any, start_response: t.Any) -> t.Any:
    raise ZeroDivisionError("the render failed")


def breaks_off(environ: t.Any, start_response: t.Any) -> t.Any:
    start_response("200 OK", [HTML, *page_headers(10)])
    yield b"<p>the first half"
    raise ZeroDivisionError("the render broke off")


def gives_up_after_it_began(environ: t.Any, start_response: t.Any) -> t.Any:
    start_response("200 OK", [HTML, *page_headers(10)])
    try:
        raise ZeroDivisionError("too late")
    except ZeroDivisionError:
        start_response("200 OK", [HTML, *page_headers(10)], sys.exc_info())
    return [b"<p>something went wrong"]


def answers(status: str, *headers: tuple[str, str], body: bytes = b"bad") -> Answer:
    def answer(environ: t.Any, start_response: t.Any) -> t.Any:
        start_response(status, [HTML, *headers])
        return [body]

    return answer


def page_with(*headers: tuple[str, str], **kwargs: t.Any) -> Answer:
    return answers("200 OK", *page_headers(10), *headers, **kwargs)


FAILURES: dict[str, Answer] = {
    "raises": raises,
    "breaks off": breaks_off,
    "gives up after it began": gives_up_after_it_began,
    "answers 500": answers("500 Internal Server Error"),
    "answers 500 as a page": answers("500 Internal Server Error", *page_headers(10)),
    "answers 503": answers("503 Service Unavailable"),
    "answers 403": answers("403 Forbidden"),
    "sends less than its Content-Length": page_with(("Content-Length", "100")),
    "sends more than its Content-Length": page_with(("Content-Length", "1")),
    "sets a cookie": page_with(("Set-Cookie", "session=1")),
    "says private": page_with(("Cache-Control", "private")),
    "says no-store": page_with(("Cache-Control", "no-store")),
    "says no-cache": page_with(("Cache-Control", "no-cache, max-age=60")),
    "varies by an undeclared header": page_with(("Vary", "User-Agent")),
    "is partial": answers("206 Partial Content", *page_headers(10)),
    "has metadata that does not parse": answers("200 OK", ("ISR-Revalidate", "soon")),
    "is too large": page_with(body=b"x" * (LIMIT + 1)),
}

failing = pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
