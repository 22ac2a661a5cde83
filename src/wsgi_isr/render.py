"""Runs an app on a `PageKey` in a clean room and collects its whole response (PEP 3333)."""

from __future__ import annotations

import contextvars
import itertools
import logging
import math
import tempfile
import time
import typing as t
from collections.abc import Callable, Iterable, Iterator

from . import tracing
from .key import Origin, PageKey
from .metadata import ENDLESS, Headers, status_code

if t.TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

#: Where the request came in that is being answered in this context.
current_origin: contextvars.ContextVar[Origin | None] = contextvars.ContextVar(
    "wsgi_isr.origin", default=None
)
#: Keys that are being rendered in this context, so that a page cannot wait for itself.
rendering: contextvars.ContextVar[tuple[PageKey, ...]] = contextvars.ContextVar(
    "wsgi_isr.rendering", default=()
)


class RenderError(Exception):
    """A render that did not give a whole response; the message says why."""


class RenderTimeout(RenderError):
    """A render that did not end within ``render_timeout``, and was stopped."""


class Response:
    """A whole response of an app, or the beginning of one that is not collected to its end.

    :param rest: what follows ``body`` where that is not all; closing it closes the app's iterable.
    :param detail: why it was not collected to its end: ``"too-large"``, ``"too-slow"``,
        ``"stream"``.
    """

    __slots__ = ("body", "detail", "error", "headers", "rest", "status")

    def __init__(
        self,
        status: str,
        headers: Headers,
        body: bytes,
        rest: Iterable[bytes] | None = None,
        detail: str = "",
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.rest = rest
        self.detail = detail
        #: What the app raised, where it made this response of an exception and says so.
        self.error: BaseException | None = None

    @property
    def code(self) -> int:
        return status_code(self.status)

    def discard(self) -> None:
        """Close what nobody reads."""
        if self.rest is not None:
            close(self.rest)
            self.rest = None


class Capture:
    """``start_response`` and ``write`` of one response that is collected (PEP 3333).

    :param limit: bytes that are kept in memory.
    :param seconds: after which collecting stops between two blocks; ``None``: never.
    """

    def __init__(self, limit: int, seconds: float | None = None) -> None:
        self.status: str | None = None
        self.headers: Headers = []
        self._limit = limit
        self._ends = math.inf if seconds is None else time.monotonic() + seconds
        self._chunks: list[bytes] = []
        self._size = 0
        #: What ``write()`` was given beyond the limit.
        self._overflow: t.IO[bytes] | None = None

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if exc_info is None and self.status is not None:
            raise AssertionError("start_response was called twice without exc_info")
        if not isinstance(status, str):
            raise TypeError(f"a WSGI app's status is a string, not {status!r}")
        # Nothing was sent yet, so this replaces what was collected.
        self._chunks, self._size = [], 0
        if self._overflow is not None:
            self._overflow.close()
            self._overflow = None
        self.status = status
        self.headers = list(headers)
        return self._write

    def _write(self, chunk: bytes) -> None:
        if time.monotonic() > self._ends:
            raise RenderTimeout("the app still writes after render_timeout")
        if self._overflow is None and self._size + len(chunk) > self._limit:
            # The app's call cannot be stopped here, so the rest waits on disk.
            self._overflow = tempfile.TemporaryFile()
        if self._overflow is None:
            self._add(chunk)
        else:
            self._overflow.write(chunk)

    def _add(self, chunk: bytes) -> None:
        if not isinstance(chunk, bytes):
            raise TypeError(f"a WSGI app yields bytes, not {type(chunk).__name__}")
        self._chunks.append(chunk)
        self._size += len(chunk)

    def collect(self, iterable: Iterable[bytes], check_length: bool = True) -> Response:
        """Read a response to its end, or until it is too large, too slow, or has no end.

        :param check_length: false where the declared length is not that of this body, as in the
            answer to a HEAD, or does not matter.
        :raises RenderError: for a response that is not whole.
        """
        iterator = iter(iterable)
        detail = ""
        try:
            if self._overflow is not None:
                detail = "too-large"
            elif self.status is not None and is_endless(self.headers):
                detail = "stream"
            while not detail:
                for chunk in itertools.islice(iterator, 1):
                    self._add(chunk)
                    break
                else:
                    break
                if is_endless(self.headers):
                    detail = "stream"
                elif self._size > self._limit or self._overflow is not None:
                    detail = "too-large"
                elif time.monotonic() > self._ends:
                    detail = "too-slow"
            if self.status is None:
                raise RenderError("the app did not call start_response")
            if detail == "too-slow" and not self._size:
                raise RenderTimeout("the app sent nothing within render_timeout")
        except BaseException:
            close(iterable)
            raise
        body = b"".join(self._chunks)
        if detail:
            rest = _Rest(self._overflow, iterator, iterable)
            return Response(self.status, self.headers, body, rest, detail)
        close(iterable)
        if check_length:
            self._check_length(len(body))
        return Response(self.status, self.headers, body)

    def _check_length(self, length: int) -> None:
        declared = [value for name, value in self.headers if name.lower() == "content-length"]
        if declared and any(value.strip() != str(length) for value in declared):
            raise RenderError(
                f"the app declared a Content-Length of {declared[0]} and sent {length} bytes"
            )


def is_endless(headers: Headers) -> bool:
    """Whether a body has no end: it is passed on, block by block."""
    kinds = (value.lower() for name, value in headers if name.lower() == "content-type")
    return any(kind.startswith(ENDLESS) for kind in kinds)


class _Rest:
    """What is left of a response that was not collected to its end."""

    def __init__(
        self, written: t.IO[bytes] | None, iterator: Iterator[bytes], iterable: Iterable[bytes]
    ) -> None:
        self._written = written
        self._iterator = iterator
        self._iterable = iterable

    def __iter__(self) -> Iterator[bytes]:
        if self._written is not None:
            self._written.seek(0)
            yield from iter(lambda: self._written.read(2**16), b"")  # type: ignore[union-attr]
        yield from self._iterator

    def close(self) -> None:
        if self._written is not None:
            self._written.close()
        close(self._iterable)


def close(iterable: object) -> None:
    """Close a WSGI response; an error in it concerns the log, the response is complete."""
    if (method := getattr(iterable, "close", None)) is not None:
        try:
            method()
        except Exception:
            logger.exception("close() of a response failed")


#: Where the extension of a framework that makes a page of every exception leaves the exception.
ERROR = "wsgi_isr.error"


class Renderer:
    """Renders pages of an app.

    :param middleware: what the app finds at ``environ["wsgi_isr.middleware"]``.
    :param limit: bytes of a body that may be stored.
    :param seconds: after which a render is stopped between two blocks.
    """

    def __init__(
        self, app: WSGIApplication, middleware: object, limit: int, seconds: float
    ) -> None:
        self._app = app
        self._middleware = middleware
        self._limit = limit
        self._seconds = seconds

    def __call__(self, key: PageKey, reason: str) -> Response:
        """The app's answer to the canonical request of a key.

        It runs in an empty context: Flask would otherwise share ``g`` between the request that
        caused the render and the page.

        :raises Exception: whatever the app raises.
        :raises RenderError: for a response that is not whole.
        """
        environ = key.to_environ(reason, self._middleware)
        context = contextvars.Context()
        context.run(rendering.set, (*rendering.get(), key))
        context.run(current_origin.set, Origin(key.scheme, key.host, key.mount))
        tracing.hand_over(context)
        response: Response = context.run(self._run, environ)
        response.error = environ.get(ERROR)
        if response.rest is not None:
            response.rest = _InContext(context, response.rest)
        return response

    def _run(self, environ: WSGIEnvironment) -> Response:
        capture = Capture(self._limit, self._seconds)
        return capture.collect(self._app(environ, capture.start_response))


class _InContext:
    """An iterable that runs in the context it began in."""

    def __init__(self, context: contextvars.Context, iterable: Iterable[bytes]) -> None:
        self._context = context
        self._iterable = iterable
        self._iterator = iter(iterable)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._context.run(next, self._iterator)

    def close(self) -> None:
        self._context.run(close, self._iterable)
