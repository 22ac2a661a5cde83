"""Who renders a page, and who waits: see "One render" in ``docs/architecture.md``."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from . import signals
from .answer import compress, is_compressible
from .config import Config
from .key import PageKey
from .outcome import MAX_BACK_OFF, Failures, Flight, Kind, Outcome, traced
from .page import Codec, Invalidated, Page, State, state_of
from .refusals import Refusal, judge
from .render import RenderError, RenderTimeout, render, rendering
from .signals import fields
from .store.memory import Entry
from .store.pages import Pages
from .store.protocol import Busy, Number, Wanted
from .threads import Background

logger = logging.getLogger("wsgi_isr")

#: Seconds before a page whose lease another process has is tried again.
ELSEWHERE = 0.05
#: Seconds before a page that another process was asked to render is asked for again.
ASKED = 1.0
#: Seconds between two reads while another process renders, at first and at most: on one machine,
#: and over a network.
PAUSES = {True: (0.001, 0.005), False: (0.005, 0.05)}
#: Bytes of a body that is compressed while a visitor waits: a millisecond or two.
COMPRESSED_AT_ONCE = 32 * 1024


@dataclass(eq=False)
class Renders:
    """Starts renders, one at a time for each page."""

    _config: Config
    _pages: Pages
    _codec: Codec
    _failures: Failures
    _background: Background
    _clock: Callable[[], float]
    _on_no_page: Callable[[PageKey, str], object]
    #: The pages that requests wait for now, one for each request.
    waiting: list[PageKey] = field(default_factory=list)
    _flights: dict[PageKey, Flight] = field(default_factory=dict)
    # Guards the table. Nothing is rendered, read or written under it.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def running(self) -> list[PageKey]:
        """The pages that this process renders now."""
        return [key for key, flight in list(self._flights.items()) if flight.number is not None]

    # Somebody waits.

    def get(self, key: PageKey, reason: str, after: Number | None = None) -> Outcome:
        """A fresh page, or why there is none.

        :param after: an invalidation; a page whose render began before it is of no use.
        :raises RenderError: for a page that would wait for itself.
        """
        if key in rendering.get():
            raise RenderError("a page cannot wait for its own render")
        deadline = time.monotonic() + 2 * self._config.render_timeout
        collapsed = False
        while True:
            flight, leads = self._join(key, reason)
            if leads:
                if flight.follows is not None:
                    flight.follows.done.wait(self._remaining(flight.follows))
                    # Without it no chain of flights grows.
                    flight.follows, flight.began = None, time.monotonic()
                outcome = self._fly(flight, after)
                assert outcome is not None
                return outcome._replace(collapsed=outcome.collapsed or collapsed)
            collapsed = True
            self._wait(flight, self._remaining(flight))
            found = flight.outcome
            if found is not None and self._serves(found, flight, after):
                return found.shared()._replace(collapsed=True)
            if found is not None and found.kind is Kind.UNSTORED and after is None:
                return self.alone(key, reason)
            if time.monotonic() > deadline:
                error = RenderTimeout(
                    f"no render within render_timeout ({self._config.render_timeout} seconds)"
                )
                return Outcome(Kind.FAILED, error=error)

    def alone(self, key: PageKey, reason: str) -> Outcome:
        """A render for one visitor, to whom the answer is sent block by block: nobody waits."""
        flight = Flight(key, reason)
        flight.number = self._pages.number()
        return traced(flight, lambda: self._attempt(flight, None))

    def _serves(self, found: Outcome, flight: Flight, after: Number | None) -> bool:
        """Whether what a flight came to is of use to a request that has waited for it."""
        if found.entry is not None:
            # What was rendered while they waited is good, however short it lasts.
            is_new = after is None and (found.kind is not Kind.FOUND or found.collapsed)
            return is_new or self._suits(found.entry, after)
        if found.kind is Kind.UNSTORED:
            return False
        return after is None or (flight.number is not None and _is_after(flight.number, after))

    def _suits(self, entry: Entry, after: Number | None) -> bool:
        """Whether a page is what the caller of a render needs."""
        if after is not None:
            return _is_after(entry.number, after)
        return state_of(entry.page, entry.invalidated, self._clock()) is State.FRESH

    def _wait(self, flight: Flight, seconds: float) -> None:
        self.waiting.append(flight.key)
        try:
            flight.done.wait(seconds)
        finally:
            self.waiting.remove(flight.key)

    def _join(self, key: PageKey, reason: str) -> tuple[Flight, bool]:
        """The flight that a request takes part in, and whether it leads it."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and (not flight.began or self._is_overdue(flight)):
                # One that has not begun waits for a thread, and this one is here.
                flight = None
            if flight is not None and not self._is_outdated(flight):
                return flight, False
            new = self._flights[key] = Flight(key, reason, flight is not None)
            new.follows = flight if flight is not None and flight.is_successor else None
            new.began = time.monotonic()
            return new, True

    def _is_outdated(self, flight: Flight) -> bool:
        """Whether something was invalidated since it began that may be about its page."""
        number = flight.number
        return number is not None and self._pages.memory.is_outdated(flight.key, number)

    def _is_overdue(self, flight: Flight) -> bool:
        return bool(flight.began) and time.monotonic() - flight.began > self._config.render_timeout

    def _remaining(self, flight: Flight) -> float:
        return max(0.0, flight.began + self._config.render_timeout - time.monotonic())

    def _fly(self, flight: Flight, after: Number | None, waits: bool = True) -> Outcome | None:
        """Render a page, unless another process has done so; ``None`` if another does so now."""
        outcome: Outcome | None = None
        try:
            entry, outcome = self._lease(flight, after, waits)
            if outcome is None and (waits or not isinstance(flight.lease, Busy)):
                # First: what is invalidated from now on has a later number.
                flight.number = self._pages.number()
                outcome = traced(flight, lambda: self._attempt(flight, entry))
            return outcome
        finally:
            # Even a SystemExit lets the others go on.
            if flight.lease is not None and not isinstance(flight.lease, Busy):
                record = None if outcome is None else outcome.record()
                flight.lease.release(None if record is None else self._codec.seal(record))
            self._land(flight, outcome)

    def _land(self, flight: Flight, outcome: Outcome | None) -> None:
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
        flight.outcome = outcome
        flight.done.set()

    def _lease(
        self, flight: Flight, after: Number | None, waits: bool
    ) -> tuple[Entry | None, Outcome | None]:
        """What is stored of a page, and what came of it elsewhere; its flight may get the lease."""
        store, guard, key = self._pages.store, self._pages.guard, flight.key
        seconds, demanded = self._config.render_timeout, after is not None
        deadline = time.monotonic() + seconds
        pause, longest = PAUSES[self._pages.is_local]
        busy: Busy | None = None
        before: Number | None = None
        while True:
            flight.lease = lease = guard.write(store.lease, key.name, seconds, demanded)
            # On demand, a render that was waited for may have begun too early.
            waited = busy is not None and not demanded
            # Another process may have stored it before the lease was this one's.
            entry, outcome = self._pages.find(key, self._clock()), None
            if entry is not None:
                # A render that takes longer than its page lasts is good for those who waited.
                is_new = entry.number != before and entry.invalidated is not Invalidated.EXPIRED
                if self._suits(entry, after) or (waited and is_new):
                    outcome = Outcome(Kind.FOUND, entry, collapsed=busy is not None)
            if outcome is None and busy is not None and waited:
                outcome = self._left(busy.token)
            is_over = not waits or time.monotonic() > deadline
            if outcome is not None or not isinstance(lease, Busy) or is_over:
                return entry, outcome
            if busy is None:
                before = None if entry is None else entry.number
            busy = lease
            self._wait(flight, pause)
            pause = min(1.5 * pause, longest)

    def _left(self, token: str) -> Outcome | None:
        """What came of a render of another process that stored nothing."""
        payload = self._codec.unseal(self._pages.guard.read(self._pages.store.outcome, token))
        return None if payload is None else Outcome.from_record(payload)

    # Nobody waits.

    def start(self, key: PageKey, entry: Entry | None) -> None:
        """Have a stale page, or one that is not stored, rendered after the answer.

        Nothing happens where that is under way, or has just failed.
        """
        if entry is not None and self._is_pausing(entry):
            return
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not self._is_overdue(flight):
                if not flight.began:
                    # The threads may hang by now, and did not when it was submitted.
                    self._background.provide()
                return
            flight = self._flights[key] = Flight(key, "miss" if entry is None else "stale")
        if not self._background.submit(lambda: self._run(flight, entry)):
            # Too much waits; the next visitor asks again.
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]

    def _run(self, flight: Flight, entry: Entry | None) -> None:
        with self._lock:
            if self._flights.get(flight.key) is not flight:
                # A visitor who came meanwhile renders it.
                return
            flight.began = time.monotonic()
        if entry is not None and self._is_done_elsewhere(flight.key, entry):
            self._land(flight, None)
            return
        outcome = self._fly(flight, None, waits=False)
        if outcome is not None:
            outcome.discard()
            if outcome.kind is Kind.NOT_A_PAGE or outcome.detail == "too-large":
                # Otherwise a visitor who gets a shell would get it again and again.
                self._on_no_page(flight.key, outcome.detail)
        elif entry is not None:
            entry.retry_at = self._clock() + ELSEWHERE

    def _is_done_elsewhere(self, key: PageKey, entry: Entry) -> bool:
        """Whether a process of ``regenerate`` renders a page, or its render has just failed."""
        failure = self._failures.find(key.name)
        if failure is not None:
            entry.retry_at = failure.retry_at
            if self._is_pausing(entry):
                return True
        pages = self._pages
        if self._config.workers or not pages.store.kind.wants or not self._config.is_canonical(key):
            return False
        wanted = Wanted(key.name, self._codec.seal(json.dumps(key).encode()))
        if pages.guard.write(pages.store.want, key.build, wanted):
            entry.retry_at = self._clock() + ASKED
            return True
        return False

    def _is_pausing(self, entry: Entry) -> bool:
        # A time beyond the longest pause comes from a clock that was set back.
        return 0 < entry.retry_at - self._clock() <= MAX_BACK_OFF

    # The render itself.

    def _attempt(self, flight: Flight, previous: Entry | None) -> Outcome:
        """Render a page, judge the app's answer, and store it or say why not."""
        key, reason, number = flight.key, flight.reason, flight.number
        before = None if previous is None else previous.page
        began, started = self._clock(), time.perf_counter()
        response = None
        try:
            try:
                response = render(self._config, key, reason)
            finally:
                seconds = time.perf_counter() - started
                self._failures.counters.rendered(seconds)
            extra = fields(
                "rendered", url=key.url, status=response.code, seconds=seconds, reason=reason
            )
            text, millis = "rendered %s %s in %.0f ms (%s)", 1000 * seconds
            logger.debug(text, key.url, response.code, millis, reason, extra=extra)
            made = judge(self._config, key, before, response)
        except BaseException as raised:
            return self._failures.failed(flight, previous, raised, response)
        if isinstance(made, Refusal):
            return self._failures.refused(flight, previous, response, made)
        assert number is not None
        made.rendered(began, seconds, reason, before)
        made.sequence, made.lineage = number.sequence, number.lineage
        return self._store(flight, previous, made) or self._failures.refused(
            flight, previous, response, Refusal("too-large")
        )

    def _store(self, flight: Flight, previous: Entry | None, page: Page) -> Outcome | None:
        """Store a page; ``None`` if it is too large for the store."""
        reason = flight.reason
        awaited = reason in ("miss", "stale") and len(page.bodies["identity"]) > COMPRESSED_AT_ONCE
        if not awaited:
            page = compress(page)
        entry, detail = self._pages.put(page)
        if detail == "too-large":
            return None
        had_none = previous is None or previous.invalidated is Invalidated.EXPIRED
        if had_none and entry.number == flight.number and entry.invalidated:
            # Those who came before the call get it, and nobody else.
            self._pages.forget_outdated(entry)
        if awaited and is_compressible(page):
            # The visitor who waits gets it as it is.
            self._background.submit(lambda: self._pages.recode(compress(page)))
        self._failures.forget(page.name)
        if detail is not None:
            return Outcome(Kind.UNSTORED, entry, detail)
        sender, url = self._config.middleware, page.key.url
        signals.send(signals.page_stored, sender, url=url, status=page.code, reason=reason)
        return Outcome(Kind.STORED, entry)


def _is_after(number: Number, after: Number) -> bool:
    """Whether a render began after an invalidation."""
    return number.lineage == after.lineage and number.sequence > after.sequence
