"""Ways in which a render fails, and in which an app withdraws a page, as apps."""

from __future__ import annotations

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


def answers(status: str, *headers: tuple[str, str], body: bytes = b"bad") -> Answer:
    def answer(environ: t.Any, start_response: t.Any) -> t.Any:
        start_response(status, [HTML, *headers])
        return [body]

    return answer


def page_with(*headers: tuple[str, str], **kwargs: t.Any) -> Answer:
    return answers("200 OK", *page_headers(10), *headers, **kwargs)


#: The last good page stays.
FAILURES: dict[str, Answer] = {
    "raises": raises,
    "breaks off": breaks_off,
    "answers 500": answers("500 Internal Server Error"),
    "answers 503 as a page": answers("503 Service Unavailable", *page_headers(10)),
    "answers 408": answers("408 Request Timeout"),
    "answers 425": answers("425 Too Early"),
    "answers 429": answers("429 Too Many Requests"),
    "sends less than its Content-Length": page_with(("Content-Length", "100")),
    "sends more than its Content-Length": page_with(("Content-Length", "1")),
    "has metadata that does not parse": answers("200 OK", ("ISR-Revalidate", "soon")),
}
#: The app decides that this is no page for everybody, for the reason beside it.
WITHDRAWALS: dict[str, tuple[Answer, str]] = {
    "answers 401": (answers("401 Unauthorized", ("WWW-Authenticate", "Basic")), "no-metadata"),
    "answers 403 as a page": (answers("403 Forbidden", *page_headers(10)), "status"),
    "leads to a login": (
        answers("302 Found", ("Location", "http://localhost/login"), body=b""),
        "no-metadata",
    ),
    "redirects without metadata": (
        answers("301 Moved Permanently", ("Location", "http://localhost/new"), body=b""),
        "no-metadata",
    ),
    "is no page": (answers("200 OK"), "no-metadata"),
    "sets a cookie": (page_with(("Set-Cookie", "session=1")), "set-cookie"),
    "says private": (page_with(("Cache-Control", "private")), "cache-control"),
    "varies by an undeclared header": (page_with(("Vary", "User-Agent")), "vary"),
    "is too large": (page_with(body=b"x" * (LIMIT + 1)), "too-large"),
}

failing = pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
withdrawing = pytest.mark.parametrize(("answer", "reason"), WITHDRAWALS.values(), ids=WITHDRAWALS)
