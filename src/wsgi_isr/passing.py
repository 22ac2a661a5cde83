"""The other way out of a request: the app's own answer to a visitor.

It passes unread and unbuffered, as the very iterable that the app returned. Only an answer that
has metadata, for a URL that was not declared, is put aside.
"""

from __future__ import annotations

import itertools
import re
import typing as t
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import MethodType

from werkzeug.wsgi import ClosingIterator

from .answer import Answer
from .key import Origin
from .metadata import (
    HARMLESS,
    Headers,
    declares_page,
    is_isr_header,
    prepare,
    status_code,
    without_isr,
)
from .metrics import Counters
from .render import Capture, Response, close, current_origin, is_endless

if t.TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PRIVATE = "private, no-store"
#: Headers that caches obey before ``Cache-Control`` (RFC 9213 and its forerunners). Each network
#: has one of its own, as Cloudflare-CDN-Cache-Control.
_FOR_CACHES = re.compile(
    r"cache-control|edge-control|surrogate-control|x-accel-expires|x-litespeed-cache-control"
    r"|.*cdn-cache-control",
    re.IGNORECASE,
)

# Bound once: every request calls them.
_enter, _leave = current_origin.set, current_origin.reset


def with_status(headers: Headers, member: str | None, private: bool = True) -> Headers:
    """The headers of an answer that was not stored, with what there is to say of it.

    :param member: of ``Cache-Status``; ``None`` for an answer that has nothing to do with pages.
    :param private: whether it is for this visitor alone: a CDN must not keep what we refuse.
    """
    result = without_isr(headers)
    if member is None:
        return result
    if private:
        result = [item for item in result if not _FOR_CACHES.fullmatch(item[0])]
        result.append(("Cache-Control", PRIVATE))
    before = [value for name, value in result if name.lower() == "cache-status"]
    result = [item for item in result if item[0].lower() != "cache-status"]
    result.append(("Cache-Status", ", ".join([*before, member])))
    return result


class Discovery(t.NamedTuple):
    """What is done with the answer of a URL that nobody declared.

    :param limit: bytes of it that are kept in memory.
    :param page: gives what is sent in place of one that has metadata, which was put aside.
    :param no_page: called with why another one is no page, or ``""``, and its status.
    """

    limit: int
    page: Callable[[Response], Iterable[bytes]]
    no_page: Callable[[str, int], None]


@dataclass
class Passing:
    """``start_response`` of one request that goes to the app as it is, and what the server gets.

    :param to_server: the server's ``start_response``.
    :param origin: where the request came in.
    :param member: ``Cache-Status`` of an answer that has metadata; ``None`` where the request has
        nothing to do with pages.
    :param private: whether such an answer is for this visitor alone.
    :param always: whether that goes for every answer: its URL is declared.
    """

    to_server: StartResponse
    origin: Origin | None
    member: str | None = None
    private: bool = True
    always: bool = False
    discovery: Discovery | None = None
    has_started: bool = False
    _capture: Capture | None = None
    _iterable: Iterable[bytes] = ()

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if self._capture is not None:
            return self._capture.start_response(status, headers, exc_info)
        has_metadata = declares_page(headers)
        if self.discovery is not None and not self.has_started:
            if has_metadata and not is_endless(headers):
                self._capture = Capture(self.discovery.limit)
                return self._capture.start_response(status, headers)
            if has_metadata:
                self.member = "isr; fwd=uri-miss; detail=stream"
            self.discovery.no_page("stream" if has_metadata else "", status_code(status))
        self.has_started = True
        if has_metadata or self.always:
            headers = with_status(headers, self.member, self.private)
        if exc_info is None:
            return self.to_server(status, headers)
        return self.to_server(status, headers, exc_info)

    def run(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes]:
        """Ask the app; what goes to the server is mostly the very object that it returns."""
        token = _enter(self.origin)
        try:
            iterable = app(environ, self.start_response)
        finally:
            _leave(token)
        return self.finish(iterable)

    def finish(self, iterable: Iterable[bytes]) -> Iterable[bytes]:
        """What goes to the server in place of an iterable of the app."""
        if self.has_started:
            return iterable
        if self._capture is not None:
            return self._replace(self._capture, iterable)
        self._iterable = iterable
        return self

    def _replace(self, capture: Capture, iterable: Iterable[bytes]) -> Iterable[bytes]:
        """What goes to the server in place of an answer that was put aside."""
        assert self.discovery is not None
        return self.discovery.page(capture.collect(iterable, check_length=False))

    # The answer of an app that calls `start_response` only while it is iterated.

    def __iter__(self) -> Iterator[bytes]:
        app_iterable = self._iterable
        blocks = iter(app_iterable)
        first = self._next(blocks)
        if self._capture is not None:
            aside = ClosingIterator(itertools.chain(first, blocks), lambda: close(app_iterable))
            self._iterable = self._replace(self._capture, aside)
            yield from self._iterable
            return
        while first:
            yield first[0]
            first = self._next(blocks)

    def _next(self, blocks: Iterator[bytes]) -> list[bytes]:
        """The app's next block, if there is one; its code may ask where the request came in."""
        token = _enter(self.origin)
        try:
            return list(itertools.islice(blocks, 1))
        finally:
            _leave(token)

    def close(self) -> None:
        close(self._iterable)


def make_pass_through(
    app: WSGIApplication,
    middleware: object,
    become_page: Callable[[WSGIEnvironment, StartResponse, Answer], Passing],
) -> Callable[[WSGIEnvironment, StartResponse, Answer, Counters], Iterable[bytes]]:
    """The way of requests to URLs that are remembered as no pages.

    :param become_page: how an answer goes on that has metadata after all.
    """

    def pass_through(
        environ: WSGIEnvironment,
        start_response: StartResponse,
        no_page: Answer,
        counters: Counters,
    ) -> Iterable[bytes]:
        # Written out, because a loop takes longer than all of it.
        if (
            "HTTP_ISR_REVALIDATE" in environ
            or "HTTP_ISR_EXPIRE" in environ
            or "HTTP_ISR_TAGS" in environ
            or "wsgi_isr.reason" in environ
        ):
            prepare(environ, middleware)
        environ["wsgi_isr.middleware"] = middleware
        # A method of a list: an instance of a class of ours, or a closure, takes longer.
        request: _Request = [start_response, None, become_page, environ, no_page]
        token = _enter(no_page.origin)
        try:
            iterable = app(environ, MethodType(_watch, request))
        finally:
            _leave(token)
        if request[1] is True:
            counters.passed += 1
            return iterable
        return _passing_of(request).finish(iterable)

    return pass_through


#: ``start_response``; ``True`` once it was called, or the `Passing` that it goes through by now;
#: and what that is made of.
_Request: t.TypeAlias = "list[t.Any]"


def _watch(
    request: _Request, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
) -> Callable[[bytes], object]:
    """``start_response`` of an answer that is not expected to have metadata."""
    for name, _ in headers:
        if name not in HARMLESS and is_isr_header(name):
            _passing_of(request)
    request[1] = request[1] or True
    start: StartResponse = request[0]
    return start(status, headers) if exc_info is None else start(status, headers, exc_info)


def _passing_of(request: _Request) -> Passing:
    start_response, passing, become_page, environ, no_page = request
    if not isinstance(passing, Passing):
        has_started = passing is True
        passing = become_page(environ, start_response, no_page)
        passing.has_started = has_started
        request[:2] = passing.start_response, passing
    return t.cast(Passing, passing)


def deliver(
    response: Response, start_response: StartResponse, member: str, private: bool, head: bool
) -> Iterable[bytes]:
    """Send a collected response that was not stored."""
    start_response(response.status, with_status(response.headers, member, private))
    if head:
        response.discard()
        return ()
    rest = response.rest
    if rest is None:
        return (response.body,)
    return ClosingIterator(itertools.chain((response.body,), rest), lambda: close(rest))


# What a visitor gets at once for a page that is not stored, where its rule says so.

FALLBACK = "isr; fwd=uri-miss; detail=fallback"
#: Seconds after which a browser that got a shell asks for the page.
REFRESH = "1"
#: Crawlers that wait for the whole page, as in Next.js: they do not come back for it. Those whose
#: names begin with Googlebot's do not render.
_CRAWLERS = re.compile(
    r"-google|google-|googlebot(?!-)|googleweblight|applebot|baiduspider|bingbot|bingpreview"
    r"|bitlybot|chrome-lighthouse|discordbot|duckduckbot|facebookcatalog|facebookexternalhit"
    r"|ia_archiver|linkedinbot|quora link preview|redditbot|skypeuripreview|slackbot|slurp|sogou"
    r"|tumblr|twitterbot|vkshare|whatsapp|yandex|yeti",
    re.IGNORECASE,
)
#: Characters of a ``User-Agent`` that are read; clients choose its length.
_MAX_AGENT = 1024


def is_crawler(environ: WSGIEnvironment) -> bool:
    """Whether a request comes from a crawler, by its ``User-Agent``."""
    return _CRAWLERS.search(environ.get("HTTP_USER_AGENT", "")[:_MAX_AGENT]) is not None


def refreshing(start_response: StartResponse) -> StartResponse:
    """``start_response`` of a shell: a browser asks again when the page may be there."""

    def start(status: str, headers: Headers, *exc_info: t.Any) -> t.Any:
        if not any(name.lower() == "refresh" for name, _ in headers):
            headers = [*headers, ("Refresh", REFRESH)]
        return start_response(status, headers, *exc_info)

    return start


def not_found(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer 404 without asking the app."""
    body = b"Not Found\n"
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response("404 Not Found", with_status(headers, FALLBACK))
    return () if environ["REQUEST_METHOD"] == "HEAD" else (body,)
