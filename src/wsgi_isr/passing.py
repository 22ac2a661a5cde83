"""The other way out of a request: the app's own answer to a visitor.

It passes unread and unbuffered, as the very iterable that the app returned. Only an answer that
has metadata, for a URL that was not declared, is put aside.
"""

from __future__ import annotations

import itertools
import typing as t
from collections.abc import Callable, Iterable, Iterator
from types import MethodType

from .answer import NotPage
from .key import Origin
from .metadata import (
    HARMLESS,
    Headers,
    declares_page,
    is_isr_header,
    remove_isr,
    status_code,
    without_isr,
)
from .render import Capture, Response, close, current_origin, is_endless

if t.TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PRIVATE = "private, no-store"
#: Headers that caches obey before ``Cache-Control`` (RFC 9213 and its forerunners).
_FOR_CACHES = frozenset(
    {
        "cache-control",
        "edge-control",
        "surrogate-control",
        "x-accel-expires",
        "x-litespeed-cache-control",
    }
)

# Bound once: every request calls them.
_enter, _leave = current_origin.set, current_origin.reset

#: What to do with an answer that was put aside; gives what is sent instead.
Discover: t.TypeAlias = "Callable[[Response], Iterable[bytes]]"


def with_status(headers: Headers, member: str | None, private: bool) -> Headers:
    """The headers of an answer that was not stored, with what there is to say of it.

    :param member: of ``Cache-Status``.
    :param private: whether it is for this visitor alone: a CDN must not keep what we refuse.
    """
    result = without_isr(headers)
    if private:
        result = [item for item in result if not _is_for_caches(item[0].lower())]
        result.append(("Cache-Control", PRIVATE))
    if member is not None:
        before = [value for name, value in result if name.lower() == "cache-status"]
        result = [item for item in result if item[0].lower() != "cache-status"]
        result.append(("Cache-Status", ", ".join([*before, member])))
    return result


def _is_for_caches(name: str) -> bool:
    # Each network has a header of its own, as Cloudflare-CDN-Cache-Control.
    return name in _FOR_CACHES or name.endswith("cdn-cache-control")


class Passing:
    """``start_response`` of one request that goes to the app as it is.

    :param member: ``Cache-Status`` of an answer that has metadata; ``None`` where the request has
        nothing to do with pages.
    :param private: whether such an answer is for this visitor alone.
    :param always: whether that goes for every answer: its URL is declared.
    :param discover: called with an answer that has metadata.
    :param not_a_page: called with an answer that is no page: the reason of a refusal or ``""``, and
        the status.
    :param origin: where the request came in.
    """

    def __init__(
        self,
        start_response: StartResponse,
        member: str | None = None,
        private: bool = False,
        always: bool = False,
        discover: Discover | None = None,
        not_a_page: Callable[[str, int], None] | None = None,
        origin: Origin | None = None,
        limit: int = 0,
    ) -> None:
        self._start_response = start_response
        self._member = member
        self._private = private
        self._always = always
        self._discover = discover
        self._not_a_page = not_a_page
        self._limit = limit
        self.origin = origin
        self._started = False
        self._capture: Capture | None = None

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if self._capture is not None:
            return self._capture.start_response(status, headers, exc_info)
        page = declares_page(headers)
        first = not self._started
        if page and first and self._discover is not None:
            if not is_endless(headers):
                self._capture = Capture(self._limit)
                return self._capture.start_response(status, headers)
            self._member = "isr; fwd=uri-miss; detail=stream"
            if self._not_a_page is not None:
                self._not_a_page("stream", status_code(status))
        if not page and first and self._not_a_page is not None:
            self._not_a_page("", status_code(status))
        self._started = True
        if page or self._always:
            headers = with_status(headers, self._member, self._private)
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

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
        if self._started:
            return iterable
        return self.replace(iterable) if self.put_aside else _Late(self, iterable)

    @property
    def put_aside(self) -> bool:
        return self._capture is not None

    def replace(self, iterable: Iterable[bytes]) -> Iterable[bytes]:
        """What goes to the server in place of an answer that was put aside."""
        assert self._capture is not None and self._discover is not None
        return self._discover(self._capture.collect(iterable, check_length=False))


class PassThrough:
    """The way of requests to URLs that are remembered as no pages.

    :param become_page: how an answer goes on that has metadata after all.
    """

    def __init__(
        self,
        app: WSGIApplication,
        middleware: object,
        become_page: Callable[[WSGIEnvironment, StartResponse, NotPage], Passing],
    ) -> None:
        self._app = app
        self._middleware = middleware
        self._become_page = become_page

    def serve(
        self, environ: WSGIEnvironment, start_response: StartResponse, not_page: NotPage
    ) -> Iterable[bytes]:
        # Written out, because a loop takes longer than all of it.
        if (
            "HTTP_ISR_REVALIDATE" in environ
            or "HTTP_ISR_EXPIRE" in environ
            or "HTTP_ISR_TAGS" in environ
            or "wsgi_isr.reason" in environ
        ):
            remove_isr(environ)
        environ["wsgi_isr.middleware"] = self._middleware
        # A method of a list: an instance of a class of ours, or a closure, takes longer.
        request: _Request = [start_response, None, self._become_page, environ, not_page]
        app = self._app
        token = _enter(not_page.origin)
        try:
            iterable = app(environ, MethodType(_watch, request))
        finally:
            _leave(token)
        if request[1] is True:
            return iterable
        return _passing_of(request).finish(iterable)


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
    start_response, passing, become_page, environ, not_page = request
    if not isinstance(passing, Passing):
        passing = become_page(environ, start_response, not_page)
        request[:2] = passing.start_response, passing
    return t.cast(Passing, passing)


class _Late:
    """An answer of an app that calls ``start_response`` only while it is iterated."""

    def __init__(self, passing: Passing, iterable: Iterable[bytes]) -> None:
        self._passing = passing
        self._iterable: object = iterable
        self._iterator = iter(iterable)
        self._first = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunks = self._next()
        if self._first:
            self._first = False
            if self._passing.put_aside:
                aside = Closing(itertools.chain(chunks, self._iterator), self._iterable)
                replacement = self._passing.replace(aside)
                self._iterable = replacement
                self._iterator = iter(replacement)
                chunks = self._next()
        if not chunks:
            raise StopIteration
        return chunks[0]

    def _next(self) -> list[bytes]:
        """The app's next block, if there is one; its code may ask where the request came in."""
        token = current_origin.set(self._passing.origin)
        try:
            return list(itertools.islice(self._iterator, 1))
        finally:
            current_origin.reset(token)

    def close(self) -> None:
        close(self._iterable)


class Closing:
    """An iterator that closes the iterable it came from."""

    def __init__(self, iterator: Iterator[bytes], iterable: object) -> None:
        self._iterator = iterator
        self._iterable = iterable

    def __iter__(self) -> Iterator[bytes]:
        return self._iterator

    def close(self) -> None:
        close(self._iterable)


class Afterwards:
    """An answer with work that is done when the server has sent it."""

    def __init__(self, answer: Iterable[bytes], work: Callable[[], None]) -> None:
        self._answer = answer
        self._work = work

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._answer)

    def close(self) -> None:
        try:
            close(self._answer)
        finally:
            self._work()


def deliver(
    response: Response, start_response: StartResponse, member: str, private: bool, head: bool
) -> Iterable[bytes]:
    """Send a collected response that was not stored."""
    start_response(response.status, with_status(response.headers, member, private))
    if head:
        response.discard()
        return ()
    if response.rest is None:
        return (response.body,)
    return Closing(itertools.chain((response.body,), response.rest), response.rest)
