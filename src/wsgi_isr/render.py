"""Runs an app on a `PageKey` in a clean room and collects its whole response (PEP 3333)."""

from __future__ import annotations

import contextvars
import logging
import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator

from .key import Origin
from .key import PageKey
from .metadata import Headers
from .metadata import status_code

if t.TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication
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


class RenderError(Exception):
    """A render that did not give a whole response; the message says why."""


class Response:
    """A whole response of an app, or the beginning of one that is larger than the limit.

    :param rest: what follows ``body`` where that is not all; its end closes the app's iterable.
    :param failure: why the render failed, although there is a response.
    """

    __slots__ = ("body", "failure", "headers", "rest", "status")

    def __init__(
        self,
        status: str,
        headers: Headers,
        body: bytes,
        rest: Iterable[bytes] | None = None,
        failure: str | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.rest = rest
        self.failure = failure

    @property
    def code(self) -> int:
        return status_code(self.status)


class Capture:
    """``start_response`` and ``write`` of one response that is collected."""

    def __init__(self) -> None:
        self.status: str | None = None
        self.headers: Headers = []
        self.failure: str | None = None
        self.chunks: list[bytes] = []
        self.size = 0

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if exc_info is not None:
            # Nothing has been sent, so the replacement counts; but the render went wrong.
            self.failure = f"the app replaced its response because of {exc_info[1]!r}"
        elif self.status is not None:
            raise AssertionError("start_response was called twice without exc_info")
        self.status = status
        self.headers = list(headers)
        return self.add

    def add(self, chunk: bytes) -> None:
        if not isinstance(chunk, bytes):
            raise TypeError(f"a WSGI app yields bytes, not {type(chunk).__name__}")
        self.chunks.append(chunk)
        self.size += len(chunk)

    def collect(self, iterable: Iterable[bytes], limit: int, check_length: bool = True) -> Response:
        """Read a response to its end, or to the limit.

        :param check_length: false where the declared length is not that of this body, as in the
            answer to a HEAD, or does not concern us.
        :raises RenderError: for one that is not whole.
        """
        iterator = iter(iterable)
        whole = False
        try:
            for chunk in iterator:
                self.add(chunk)
                if self.size > limit:
                    break
            else:
                whole = True
            if self.status is None:
                raise RenderError("the app did not call start_response")
        except BaseException:
            close(iterable)
            raise
        body = b"".join(self.chunks)
        if not whole:
            return Response(
                self.status, self.headers, body, _Rest(iterator, iterable), self.failure
            )
        close(iterable)
        if check_length:
            self._check_length(len(body))
        return Response(self.status, self.headers, body, None, self.failure)

    def _check_length(self, length: int) -> None:
        declared = [value for name, value in self.headers if name.lower() == "content-length"]
        if declared and any(value.strip() != str(length) for value in declared):
            raise RenderError(
                f"the app declared a Content-Length of {declared[0]} and sent {length} bytes"
            )


class _Rest:
    """What is left of a response that is too large to be stored."""

    def __init__(self, iterator: Iterator[bytes], iterable: Iterable[bytes]) -> None:
        self._iterator = iterator
        self._iterable = iterable

    def __iter__(self) -> Iterator[bytes]:
        return self._iterator

    def close(self) -> None:
        close(self._iterable)


def close(iterable: object) -> None:
    """Close a WSGI response; an error in it concerns the log, the response is complete."""
    if (method := getattr(iterable, "close", None)) is not None:
        try:
            method()
        except Exception:
            logger.exception("close() of a response failed")


#: Where the extension of a framework that makes a page of every exception leaves it.
ERROR = "wsgi_isr.error"


class Renderer:
    """Renders pages of an app.

    :param middleware: what the app finds at ``environ["wsgi_isr.middleware"]``.
    :param limit: bytes of a body that may be stored.
    """

    def __init__(self, app: WSGIApplication, middleware: object, limit: int) -> None:
        self._app = app
        self._middleware = middleware
        self._limit = limit

    def __call__(self, key: PageKey, reason: str) -> Response:
        """The app's answer to the canonical request of a key.

        It runs in an empty context: Flask would otherwise share ``g`` between the request that
        caused the render and the page.

        :raises Exception: whatever the app raises.
        :raises RenderError: for a response that is not whole.
        """
        environ = key.to_environ(reason, self._middleware)
        parents = rendering.get()
        context = contextvars.Context()
        context.run(rendering.set, (*parents, key))
        context.run(current_origin.set, Origin(key.scheme, key.host, key.mount))
        response: Response = context.run(self._run, environ)
        error = environ.get(ERROR)
        if error is not None and response.code >= 500 and response.failure is None:
            response.failure = f"{response.status}: {type(error).__name__}: {error}"
        if response.rest is not None:
            response.rest = _InContext(context, response.rest)
        return response

    def _run(self, environ: WSGIEnvironment) -> Response:
        capture = Capture()
        return capture.collect(self._app(environ, capture.start_response), self._limit)


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
