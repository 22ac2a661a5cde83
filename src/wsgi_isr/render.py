"""The clean room: runs an app on a `PageKey` and collects its whole response (PEP 3333)."""

from __future__ import annotations

import contextvars
import io
import itertools
import logging
import math
import sys
import tempfile
import time
import typing as t
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from werkzeug.wsgi import ClosingIterator

from .config import Config
from .key import Origin, PageKey
from .metadata import ENDLESS, Headers, status_code

if t.TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_isr")

#: Where the request came in that is being answered in this context.
current_origin: contextvars.ContextVar[Origin | None] = contextvars.ContextVar(
    "wsgi_isr.origin", default=None
)
#: Keys that are being rendered in this context, so that a page cannot wait for itself.
rendering: contextvars.ContextVar[tuple[PageKey, ...]] = contextvars.ContextVar(
    "wsgi_isr.rendering", default=()
)
#: Where the extension of a framework that makes a page of every exception leaves the exception.
ERROR = "wsgi_isr.error"


class RenderError(Exception):
    """A render that did not give a whole response; the message says why."""

    #: The same of an answer of the app, in the words of ``Cache-Status``.
    detail = "status"


class RenderTimeout(RenderError):
    """A render that did not end within ``render_timeout``, and was stopped."""

    detail = "too-slow"


@dataclass(slots=True)
class Response:
    """A whole response of an app, or the beginning of one that is not collected to its end.

    :param rest: what follows ``body`` where that is not all; closing it closes the app's iterable.
    :param detail: why it was not collected to its end: ``"too-large"``, ``"too-slow"``,
        ``"stream"``.
    :param error: what the app raised, where it made this response of an exception and says so.
    """

    status: str
    headers: Headers
    body: bytes
    rest: ClosingIterator | None = None
    detail: str = ""
    error: BaseException | None = None

    @property
    def code(self) -> int:
        return status_code(self.status)

    def discard(self) -> None:
        """Close what nobody reads."""
        if self.rest is not None:
            self.rest.close()
            self.rest = None


class Capture:
    """``start_response`` and ``write`` of one response that is collected (PEP 3333).

    :param limit: bytes that are kept in memory.
    :param seconds: after which collecting stops between two blocks.
    """

    def __init__(self, limit: int, seconds: float = math.inf) -> None:
        self.status: str | None = None
        self.headers: Headers = []
        self._limit = limit
        self._ends = time.monotonic() + seconds
        self._file: t.IO[bytes] = io.BytesIO()

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if exc_info is None and self.status is not None:
            raise AssertionError("start_response was called twice without exc_info")
        if not isinstance(status, str):
            raise TypeError(f"a WSGI app's status is a string, not {status!r}")
        # Nothing was sent yet, so this replaces what was collected.
        self._file.close()
        self._file = io.BytesIO()
        self.status = status
        self.headers = list(headers)
        return self._write

    def _write(self, chunk: bytes) -> None:
        if time.monotonic() > self._ends:
            raise RenderTimeout("the app still writes after render_timeout")
        if isinstance(self._file, io.BytesIO) and self._file.tell() > self._limit:
            # The app's call cannot be stopped here, so the rest waits on disk.
            written = self._file.getvalue()
            self._file = tempfile.TemporaryFile()
            self._file.write(written)
        self._file.write(chunk)

    def collect(self, iterable: Iterable[bytes], check_length: bool = True) -> Response:
        """Read a response to its end, or until it is too large, too slow, or has no end.

        :param check_length: false where the declared length is not that of this body, as in the
            answer to a HEAD, or does not matter.
        :raises RenderError: for a response that is not whole.
        """
        iterator = iter(iterable)
        try:
            detail = self._why_no_more()
            if not detail:
                for chunk in iterator:
                    self._file.write(chunk)
                    late = time.monotonic() > self._ends
                    if detail := self._why_no_more() or ("too-slow" if late else ""):
                        break
            if self.status is None:
                raise RenderError("the app did not call start_response")
            file, size = self._file, self._file.tell()
            if detail == "too-slow" and not size:
                raise RenderTimeout("the app sent nothing within render_timeout")
            file.seek(0)
            body = file.read(self._limit if detail else -1)
        except BaseException:
            self._file.close()
            close(iterable)
            raise
        if detail:
            written = iter(lambda: file.read(2**16), b"")
            ends = [file.close, lambda: close(iterable)]
            rest = ClosingIterator(itertools.chain(written, iterator), ends)
            return Response(self.status, self.headers, body, rest, detail)
        file.close()
        close(iterable)
        declared = [value for name, value in self.headers if name.lower() == "content-length"]
        if check_length and any(value.strip() != str(size) for value in declared):
            raise RenderError(
                f"the app declared a Content-Length of {declared[0]} and sent {size} bytes"
            )
        return Response(self.status, self.headers, body)

    def _why_no_more(self) -> str:
        if self._file.tell() > self._limit:
            return "too-large"
        return "stream" if self.status is not None and is_endless(self.headers) else ""


def is_endless(headers: Headers) -> bool:
    """Whether a body has no end: it is passed on, block by block."""
    kinds = (value.lower() for name, value in headers if name.lower() == "content-type")
    return any(kind.startswith(ENDLESS) for kind in kinds)


def close(iterable: object) -> None:
    """Close a WSGI response; an error in it concerns the log, the response is complete."""
    if (method := getattr(iterable, "close", None)) is not None:
        try:
            method()
        except Exception:
            logger.exception("close() of a response failed")


def render(config: Config, key: PageKey, reason: str) -> Response:
    """The app's answer to the canonical request of a key.

    It runs in an empty context: Flask would otherwise share ``g`` between the request that caused
    the render and the page. Of OpenTelemetry, the span of the render is the current one there.

    :raises Exception: whatever the app raises.
    :raises RenderError: for a response that is not whole.
    """
    environ = key.to_environ(reason, config.middleware)
    context = contextvars.Context()
    context.run(rendering.set, (*rendering.get(), key))
    context.run(current_origin.set, Origin(key.scheme, key.host, key.mount))
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry import context as telemetry
        from opentelemetry import trace

        span = trace.set_span_in_context(trace.get_current_span(), telemetry.Context())
        context.run(telemetry.attach, span)
    response: Response = context.run(_run, config, environ)
    response.error = environ.get(ERROR)
    if (rest := response.rest) is not None:
        blocks = iter(lambda: context.run(next, rest, None), None)
        response.rest = ClosingIterator(blocks, [lambda: context.run(rest.close)])
    return response


def _run(config: Config, environ: WSGIEnvironment) -> Response:
    capture = Capture(config.max_body_size, config.render_timeout)
    return capture.collect(config.app(environ, capture.start_response))
