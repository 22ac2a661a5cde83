"""What comes of an attempt at a page, for the one who made it and for all who waited."""

from __future__ import annotations

import enum
import json
import re
import typing as t

from .metadata import is_sound
from .render import RenderError, Response
from .store.memory import Entry

#: Bytes of an error page that all who wait for one render share.
MAX_SHARED_ERROR = 2**20
_DETAIL = re.compile(r"[a-z-]*")


class Kind(enum.Enum):
    STORED = "stored"
    #: Another render had stored it meanwhile.
    FOUND = "found"
    #: A good answer that is not kept: it is too large, or the store failed.
    UNSTORED = "unstored"
    #: Refused for what it is: the visitor's own request goes to the app.
    NOT_A_PAGE = "not-a-page"
    FAILED = "failed"


class Outcome(t.NamedTuple):
    """What came of an attempt.

    :param detail: the reason of a refusal, in the words of ``Cache-Status``.
    :param response: the app's error page, or an answer that was not collected to its end.
    :param collapsed: whether the attempt was another request's.
    :param withdrawn: whether a stored page was removed.
    """

    kind: Kind
    entry: Entry | None = None
    detail: str = ""
    response: Response | None = None
    error: Exception | None = None
    collapsed: bool = False
    withdrawn: bool = False
    status: int | None = None

    @property
    def stored(self) -> bool:
        return self.kind in (Kind.STORED, Kind.FOUND)

    def discard(self) -> None:
        """Close an answer that was not collected to its end, where no visitor waits for it."""
        if self.response is not None:
            self.response.discard()

    def shared(self) -> Outcome:
        """What a request gets that waited: the error page, or an error of its own."""
        response = self.response
        if self.kind is not Kind.FAILED:
            return self
        # Not ``rest``: the visitor who rendered it may have read it to its end.
        if response is not None and (not response.detail or response.code >= 400):
            if not response.detail and len(response.body) <= MAX_SHARED_ERROR:
                return self
            headers = [("Content-Type", "text/plain; charset=utf-8")]
            body = f"{response.status}\n".encode("latin-1", "replace")
            return self._replace(response=Response(response.status, headers, body))
        error = RenderError(f"the render that this request waited for failed: {self.error}")
        error.__cause__ = self.error
        return self._replace(response=None, error=error)

    def record(self) -> bytes | None:
        """What those need who waited in other processes, of an outcome without a page."""
        if self.kind not in (Kind.NOT_A_PAGE, Kind.FAILED):
            return None
        head: dict[str, t.Any] = {"kind": self.kind.value, "detail": self.detail}
        body = b""
        response = self.shared().response
        if self.kind is Kind.FAILED and response is not None:
            head |= {"status": response.status, "headers": response.headers}
            body = response.body
        elif self.error is not None:
            head["error"] = f"{type(self.error).__name__}: {self.error}"
        return json.dumps(head).encode() + b"\n" + body

    @classmethod
    def from_record(cls, data: bytes) -> Outcome | None:
        text, _, body = data.partition(b"\n")
        try:
            head = json.loads(text)
            kind, detail, response, error = Kind(head["kind"]), head["detail"], None, None
            if "status" in head:
                headers = [(str(name), str(value)) for name, value in head["headers"]]
                response = Response(str(head["status"]), headers, body)
                # As with a page: nobody who can write to the store splits a response.
                if not all(is_sound(*item) for item in (*headers, ("Status", response.status))):
                    return None
            elif "error" in head:
                error = RenderError(f"the render failed in another process: {head['error']}")
            if not _DETAIL.fullmatch(detail):
                return None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if kind is Kind.FAILED and error is None and (response is None or response.code < 200):
            return None
        if kind not in (Kind.NOT_A_PAGE, Kind.FAILED):
            return None
        return cls(kind, None, detail, response, error, collapsed=True)
