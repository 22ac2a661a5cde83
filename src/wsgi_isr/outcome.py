"""One render, what comes of it, and what is remembered of pages that fail or are refused."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import re
import sys
import threading
import time
import typing as t
from collections.abc import Callable
from dataclasses import dataclass, field

from . import signals
from .config import Config
from .key import PageKey
from .metadata import is_sound
from .metrics import Counters
from .refusals import Refusal
from .render import RenderError, Response
from .signals import fields
from .store.memory import Entry
from .store.pages import Pages
from .store.protocol import Busy, Failure, Lease, Number

logger = logging.getLogger("wsgi_isr")

#: Bytes of an error page that all who wait for one render share.
MAX_SHARED_ERROR = 2**20
#: Longest pause between attempts at a failing page, in seconds.
MAX_BACK_OFF = 30.0
#: Seconds between two log lines about one page and reason.
QUIET = 60.0
#: Log lines of the last minute that a process remembers.
MAX_LOGGED = 1000
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


#: Of these nothing is stored, so they are left for those who wait in other processes.
_LEFT = (Kind.NOT_A_PAGE, Kind.FAILED)


class Outcome(t.NamedTuple):
    """What came of a render."""

    kind: Kind
    entry: Entry | None = None
    #: Why it was refused, in the words of ``Cache-Status``.
    detail: str = ""
    #: The app's error page, or an answer that was not collected to its end.
    response: Response | None = None
    error: Exception | None = None
    #: Whether the render was another request's.
    collapsed: bool = False
    #: Whether a stored page was removed.
    withdrawn: bool = False

    @property
    def stored(self) -> bool:
        return self.kind in (Kind.STORED, Kind.FOUND)

    @property
    def status(self) -> int | None:
        """What the app answered."""
        if self.entry is not None:
            return self.entry.page.code
        return None if self.response is None else self.response.code

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
        """What those need who waited in other processes."""
        if self.kind not in _LEFT or self.collapsed:
            return None
        response = self.shared().response if self.kind is Kind.FAILED else None
        answer = () if response is None else (response.status, response.headers)
        error = f"{type(self.error).__name__}: {self.error}"
        head = json.dumps([self.kind.value, self.detail, error, *answer])
        return head.encode() + b"\n" + (b"" if response is None else response.body)

    @classmethod
    def from_record(cls, data: bytes) -> Outcome | None:
        """As with a page, nobody who can write to the store splits a response."""
        text, _, body = data.partition(b"\n")
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            kind, detail, error, *answer = json.loads(text)
            response = None
            if answer:
                status, lines = answer
                headers = [(name, value) for name, value in lines]
                response = Response(status, headers, body)
                if not all(is_sound(*line) for line in (*headers, ("Status", status))):
                    return None
                if response.code < 200:
                    return None
            if Kind(kind) in _LEFT and _DETAIL.fullmatch(detail):
                raised = RenderError(f"the render failed in another process: {error}")
                return cls(Kind(kind), None, detail, response, raised, collapsed=True)
        return None


def _current_span() -> t.Any:
    """What names the current span; ``None`` where the app has not imported OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    return trace.get_current_span().get_span_context()


@dataclass(eq=False)
class Flight:
    """One render of a page in this process.

    :param is_successor: whether it was begun because another flight was outdated.
    :param follows: what it waits for: a successor waits for the one before it, so that many calls
        lead to two renders at a time.
    :param began: when, by the monotonic clock; 0.0 while it waits for a thread.
    :param cause: the span of the request that caused it.
    """

    key: PageKey
    reason: str
    is_successor: bool = False
    follows: Flight | None = None
    began: float = 0.0
    number: Number | None = None
    lease: Lease | Busy | None = None
    outcome: Outcome | None = None
    cause: t.Any = field(default_factory=_current_span)
    done: threading.Event = field(default_factory=threading.Event)


def traced(flight: Flight, work: Callable[[], Outcome]) -> Outcome:
    """Render in a span of OpenTelemetry, linked to the span of the request that caused it.

    It is no child of that span: nothing that a visitor sends gets into a page, their trace neither.
    """
    if flight.cause is None:
        return work()
    from opentelemetry import context, trace

    with trace.get_tracer("wsgi_isr").start_as_current_span(
        "isr.render",
        context.Context(),
        attributes={"url.full": flight.key.url, "isr.reason": flight.reason},
        links=[trace.Link(flight.cause)] if flight.cause.is_valid else [],
    ) as span:
        outcome = work()
        span.set_attribute("isr.outcome", outcome.kind.value)
        if outcome.status is not None:
            span.set_attribute("http.response.status_code", outcome.status)
        if outcome.error is not None:
            span.record_exception(outcome.error)
            span.set_status(trace.Status(trace.StatusCode.ERROR, str(outcome.error)))
        return outcome


@dataclass(eq=False)
class Failures:
    """Renders that give no page: what is remembered, signalled and logged of them."""

    _config: Config
    _pages: Pages
    counters: Counters
    _clock: Callable[[], float]
    _logged: dict[str, float] = field(default_factory=dict)

    def find(self, name: str) -> Failure | None:
        """What is remembered of a page, or under a `refusal_name`."""
        return self._pages.guard.read(self._pages.store.failure, name)

    def _set(self, name: str, failure: Failure | None) -> None:
        self._pages.guard.write(self._pages.store.set_failure, name, failure)

    def failed(
        self,
        flight: Flight,
        previous: Entry | None,
        raised: BaseException,
        response: Response | None,
    ) -> Outcome:
        """A render failed: the old page stays, and the next visitor tries again.

        They do so at once; from the second failure on after 1, 2, 4 ... seconds. Where nothing is
        stored, each visitor is a new attempt.
        """
        key, error, detail = flight.key, _as_failure(raised, flight.reason), ""
        if response is not None:
            detail = getattr(error, "detail", "")
            if detail in ("metadata", "header"):
                self.reject(key, Refusal(detail, str(error)))
            # For all who wait: its cookies would be one session for all of them.
            lines = response.headers
            response.headers = [line for line in lines if line[0].lower() != "set-cookie"]
            if not detail:
                # What cannot be judged is no page.
                response.discard()
                response = None
        self.counters.failures += 1
        kind, last = type(error).__name__, self.find(key.name)
        count, retry_at = 1 if last is None else last.times + 1, self._clock()
        if previous is not None:
            retry_at += 0.0 if count == 1 else min(2.0 ** min(count - 2, 10), MAX_BACK_OFF)
            previous.retry_at = retry_at
        text = (str(error) or kind)[:500]
        self._set(key.name, Failure(count, retry_at, text, key.url, key.build))
        signals.send(
            signals.regeneration_failed,
            self._config.middleware,
            url=key.url,
            error=error,
            failures=count,
        )
        # What a cold render raises reaches the server, which logs it.
        is_ours = previous is not None or flight.reason in ("stale", "prerender")
        if is_ours and self._is_new("failed", key.name, kind):
            stays = "" if previous is None else "; the last good page stays"
            facts = {"url": key.url, "reason": flight.reason, "failures": count}
            extra = fields("failed", **facts, error=str(error))
            logger.error("render of %s failed%s", key.url, stays, exc_info=error, extra=extra)
        return Outcome(Kind.FAILED, None, detail, response, error)

    def forget(self, name: str) -> None:
        """The app has answered, so its last render did not fail, whichever process saw it do so."""
        self._set(name, None)

    def refused(
        self, flight: Flight, previous: Entry | None, response: Response, refusal: Refusal
    ) -> Outcome:
        """The app has decided that its answer is no page: what is stored is withdrawn."""
        key, detail = flight.key, refusal.detail
        self.reject(key, refusal)
        self.forget(key.name)
        if previous is not None or flight.reason == "revalidate":
            self._pages.withdraw(key)
        if previous is not None:
            text = "%s is withdrawn: its app no longer offers it (%s)"
            extra = fields("withdrawn", url=key.url, detail=detail)
            logger.warning(text, key.url, refusal, extra=extra)
            signals.send(
                signals.page_withdrawn, self._config.middleware, url=key.url, reason=detail
            )
        kind = Kind.UNSTORED if detail == "too-large" else Kind.NOT_A_PAGE
        if kind is Kind.NOT_A_PAGE:
            # The visitor's own request goes to the app instead.
            response.discard()
        error = RenderError(f"{response.status}: not stored ({refusal})")
        return Outcome(kind, None, detail, response, error, withdrawn=previous is not None)

    def reject(self, key: PageKey, refusal: Refusal) -> None:
        """Count a refusal; one line for each page and reason, once a minute, and for `explain`."""
        self.counters.rejections += 1
        signals.send(
            signals.page_rejected, self._config.middleware, url=key.url, reason=refusal.detail
        )
        if self._is_new("refused", key.name, refusal.detail):
            extra = fields("refused", url=key.url, detail=refusal.detail, culprit=refusal.culprit)
            text = "%s is not stored (%s): %s"
            logger.warning(text, key.url, refusal, refusal.remedy, extra=extra)
            why = Failure(0, self._clock(), str(refusal)[:500], key.url, key.build)
            self._set(refusal_name(key.name), why)

    def _is_new(self, *what: str) -> bool:
        """Whether nobody on the site has logged that in the last minute."""
        name, now = ":".join(what), time.monotonic()
        if now < self._logged.get(name, 0.0):
            return False
        if len(self._logged) >= MAX_LOGGED:
            self._logged.clear()
        self._logged[name] = now + QUIET
        return self._pages.guard.write(self._pages.store.once, name, QUIET) is not False


def refusal_name(name: str) -> str:
    """The name under which a store remembers why a page was refused last, as a `Failure`.

    It has no times: nobody waits before they try again.
    """
    return f"refused:{name}"


def _as_failure(raised: BaseException, reason: str) -> Exception:
    """What a render raised, where an app that exits ends its render and nothing else.

    :raises BaseException: on the main thread, for what may come from a signal that ends the
        process: Ctrl-C, and `SystemExit` while a visitor is served.
    """
    if isinstance(raised, Exception):
        return raised
    if threading.current_thread() is threading.main_thread():
        if isinstance(raised, KeyboardInterrupt) or reason in ("miss", "stale"):
            raise raised
    error = RenderError(f"the app raised {raised!r}")
    error.__cause__ = raised
    return error
