"""Who renders a page, and who waits: one render of all threads and processes that want it.

`Flight` is one attempt as the threads of this process see it; a lease is the same attempt as
all processes do. Three ways lead to a render:

- `cold`: a visitor waits, renders in his own thread, or joins somebody's flight;
- `behind`: a stale page was served, a thread of the pool renders;
- `on_demand`: renders anew, however many renders that began earlier are still running.
"""

from __future__ import annotations

import threading
import time
import typing as t
from collections.abc import Callable

from .attempt import Attempts
from .attempt import Kind
from .attempt import MAX_BACK_OFF
from .attempt import Outcome
from .dedicated import Line
from .flight import Flight
from .flight import Lane
from .key import PageKey
from .pool import Pool
from .render import RenderError
from .render import rendering
from .rules import Rule
from .state import State
from .state import state_of
from .store import PageStore
from .store.coordination import Held
from .store.coordination import Lease
from .store.coordination import Number
from .store.memory import Entry

#: Pages remembered whose render behind a shell did not succeed.
MAX_FAILED_AHEAD = 1000
#: Seconds before a page whose lease another process holds is tried again.
ELSEWHERE = 0.05
#: Seconds before a page that was put in line, for other processes to render it, is put there again.
IN_LINE = 1.0


class Regeneration:
    """Brings about renders, each page's at most once at a time.

    :param render_timeout: seconds after which a render no longer blocks another attempt.
    :param line: where other processes take stale pages from; ``None``: they are rendered here.
    """

    def __init__(
        self,
        store: PageStore,
        attempts: Attempts,
        pool: Pool,
        clock: Callable[[], float],
        render_timeout: float,
        line: Line | None = None,
    ) -> None:
        self._store = store
        self._attempt = attempts
        self._pool = pool
        self._clock = clock
        self._timeout = render_timeout
        self._line = line
        self._flights: dict[PageKey, Flight] = {}
        self._queued: set[PageKey] = set()
        self._lanes: dict[PageKey, Lane] = {}
        #: Pages whose render behind a shell did not succeed.
        self._failed_ahead: dict[PageKey, None] = {}
        # Guards the tables above. Nothing is rendered, read or written under it.
        self._lock = threading.Lock()

    def _overdue(self, flight: Flight) -> bool:
        return time.monotonic() - flight.started > self._timeout

    def _remaining(self, flight: Flight) -> float:
        return max(0.0, flight.started + self._timeout - time.monotonic())

    # A visitor waits.

    def cold(
        self, key: PageKey, rule: Rule | None, reason: str, stale_will_do: bool = True
    ) -> Outcome:
        """A page that can be served, or why there is none.

        :param stale_will_do: false where only a fresh page is worth anything.
        """
        wanted = (State.FRESH, State.STALE) if stale_will_do else (State.FRESH,)
        collapsed = False
        while True:
            flight, leads = self._join(key)
            if leads:
                outcome = self._fly(key, flight, lambda: self._lead(key, rule, reason, wanted))
                assert outcome is not None
                return outcome._replace(collapsed=outcome.collapsed or collapsed)
            collapsed = True
            flight.done.wait(self._remaining(flight))
            found = flight.outcome
            if found is None or found.kind is Kind.UNSTORED and found.entry is None:
                # It hangs, was not needed after all, or streams its answer to somebody else.
                continue
            if found.entry is not None:
                # A hard invalidation since it began means that this visitor waits for the next.
                self._store.confirm(found.entry)
                if found.stored and self._state(found.entry) not in wanted:
                    continue
            return found._replace(collapsed=True)

    def _join(self, key: PageKey) -> tuple[Flight, bool]:
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not self._overdue(flight):
                return flight, False
            flight = self._flights[key] = Flight()
            return flight, True

    def _fly(
        self, key: PageKey, flight: Flight, work: Callable[[], Outcome | None]
    ) -> Outcome | None:
        outcome = None
        try:
            outcome = work()
            return outcome
        finally:
            # Even a SystemExit lets the others go on.
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.land(None if outcome is None else outcome.shared())

    def _lead(
        self, key: PageKey, rule: Rule | None, reason: str, wanted: tuple[State, ...]
    ) -> Outcome:
        lease, elsewhere = self._await_lease(key, wanted)
        if elsewhere is not None:
            return elsewhere
        outcome = None
        try:
            # Look again: somebody may have stored it before the lease was ours.
            previous = self._store.newest(key)
            if previous is not None and self._state(previous) in wanted:
                return Outcome(Kind.FOUND, previous)
            outcome = self._attempt(key, reason, rule, previous, awaited=True)
            return outcome
        finally:
            self._store.release(lease, outcome.record() if outcome is not None else None)

    def _await_lease(
        self, key: PageKey, wanted: tuple[State, ...]
    ) -> tuple[Lease | None, Outcome | None]:
        """The lease of a page, or what came of the attempt of the one who had it."""
        name = key.name
        deadline = time.monotonic() + self._timeout
        pause, longest = self._store.coordination.watch
        token = None
        while True:
            lease = self._store.acquire(name, self._timeout)
            # What the attempt that was waited for has left counts, also where the lease is free
            # by now: it was over before this visitor could look.
            if token is not None and (left := self._store.outcome(name, token)) is not None:
                outcome = Outcome.from_record(left)
                if outcome is not None:
                    if not isinstance(lease, Held):
                        self._store.release(lease)
                    return None, outcome
            if not isinstance(lease, Held):
                return lease, None
            if time.monotonic() > deadline:
                return None, None
            token = lease.token
            time.sleep(pause)
            pause = min(1.5 * pause, longest)
            entry = self._store.lookup(key, self._clock())
            if entry is not None and self._state(entry) in wanted:
                return None, Outcome(Kind.FOUND, entry, collapsed=True)

    def _state(self, entry: Entry) -> State:
        return state_of(entry.page, entry.mark, self._clock())

    # Nobody waits.

    def behind(self, entry: Entry, rule: Rule | None) -> None:
        """Have a stale page rendered, unless that is under way or was tried a moment ago."""
        key = entry.page.key
        if self._pausing(entry):
            return
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not self._overdue(flight):
                return
            if key in self._lanes:
                return
            queued = key in self._queued
            self._queued.add(key)
        if queued:
            # The job before it may hang by now, and did not yet when this one was put in line.
            self._pool.stand_in()
            return
        # Also to put it in line elsewhere: that is a round trip, for which no visitor waits.
        if not self._pool.submit(lambda: self._hand_over(entry, rule)):
            self._queued.discard(key)

    def _hand_over(self, entry: Entry, rule: Rule | None) -> None:
        if self._line is None or not self._line.put(entry.page.key):
            self._regenerate(entry, rule)
            return
        entry.retry_at = self._clock() + IN_LINE
        self._queued.discard(entry.page.key)

    def regenerate(self, key: PageKey, rule: Rule | None) -> None:
        """Render a page that was put in line elsewhere, if it is still stale."""
        entry = self._store.newest(key) or self._store.borrow(key)
        if entry is None:
            self.cold(key, rule, "miss").discard()
        else:
            self._regenerate(entry, rule)

    def ahead(self, key: PageKey, rule: Rule | None) -> bool:
        """Have a page rendered that is not there yet, while the visitor looks at a shell.

        False if that was tried and came to nothing: whoever looks at a shell would never learn
        why, so the next visitor waits, and gets what the app has to say.
        """
        with self._lock:
            if key in self._failed_ahead:
                del self._failed_ahead[key]
                return False
            if key in self._queued or key in self._flights:
                return True
            self._queued.add(key)

        def render() -> None:
            self._queued.discard(key)
            stored = False
            try:
                outcome = self.cold(key, rule, "miss")
                outcome.discard()
                stored = outcome.stored
            finally:
                if not stored:
                    self._note_failed_ahead(key)

        if not self._pool.submit(render):
            self._queued.discard(key)
        return True

    def _note_failed_ahead(self, key: PageKey) -> None:
        with self._lock:
            while len(self._failed_ahead) >= MAX_FAILED_AHEAD:
                del self._failed_ahead[next(iter(self._failed_ahead))]
            self._failed_ahead[key] = None

    def _pausing(self, entry: Entry) -> bool:
        # A time beyond the longest pause is that of a clock that was set back.
        return 0 < entry.retry_at - self._clock() <= MAX_BACK_OFF

    def _regenerate(self, entry: Entry, rule: Rule | None) -> None:
        key = entry.page.key
        flight, leads = self._join(key)
        self._queued.discard(key)
        if leads:
            self._fly(key, flight, lambda: self._refresh(entry, rule))

    def _refresh(self, entry: Entry, rule: Rule | None) -> Outcome | None:
        """Render a page that is still stale; ``None`` if there was nothing to do."""
        key = entry.page.key
        failure = self._store.failure(entry.page.name)
        if failure is not None:
            # Another process may have failed a moment ago.
            entry.retry_at = failure.retry_at
            if self._pausing(entry):
                return None
        lease = self._store.acquire(entry.page.name, self._timeout)
        if isinstance(lease, Held):
            entry.retry_at = self._clock() + ELSEWHERE
            return None
        outcome = None
        try:
            newest = self._store.newest(key) or entry
            if self._state(newest) is State.FRESH:
                return Outcome(Kind.FOUND, newest)
            outcome = self._attempt(key, "stale", rule, newest)
            outcome.discard()
            return outcome
        finally:
            self._store.release(lease, outcome.record() if outcome is not None else None)

    # Somebody demands it.

    def on_demand(self, key: PageKey, rule: Rule | None, number: Number) -> Outcome:
        """A render that began after an invalidation.

        Of any number of calls at once, one render runs and one more serves all who came since.

        :param number: of the invalidation.
        """
        if key in rendering.get():
            raise RenderError("a page cannot be revalidated by its own render")
        flight, before = self._enter(key, number)
        if before is flight:
            flight.done.wait(2 * self._timeout)
            if flight.outcome is not None:
                return flight.outcome
            error = RenderError(f"no render within render_timeout ({self._timeout} seconds)")
            return Outcome(Kind.FAILED, error=error)
        outcome = None
        try:
            if before is not None:
                before.done.wait(self._remaining(before))
                with self._lock:
                    lane = self._lanes[key]
                    lane.running, lane.waiting = flight, None
                    flight.started = time.monotonic()
            outcome = self._render_after(key, rule, t.cast(Number, flight.number))
            return outcome
        finally:
            self._leave(key, flight)
            flight.land(outcome)

    def _enter(self, key: PageKey, number: Number) -> tuple[Flight, Flight | None]:
        """A flight, and the one to wait for first; itself, if somebody else leads it."""
        with self._lock:
            lane = self._lanes.setdefault(key, Lane())
            if lane.waiting is not None:
                lane.waiting.number = max(
                    t.cast(Number, lane.waiting.number), number, key=_sequence
                )
                return lane.waiting, lane.waiting
            flight = Flight(number)
            if lane.running is not None and not self._overdue(lane.running):
                lane.waiting = flight
                return flight, lane.running
            lane.running = flight
            return flight, None

    def _leave(self, key: PageKey, flight: Flight) -> None:
        with self._lock:
            lane = self._lanes.get(key)
            if lane is None:
                return
            if lane.running is flight:
                lane.running = None
            if lane.waiting is flight:
                lane.waiting = None
            if lane.running is None and lane.waiting is None:
                del self._lanes[key]

    def _render_after(self, key: PageKey, rule: Rule | None, number: Number) -> Outcome:
        deadline = time.monotonic() + self._timeout
        pause, longest = self._store.coordination.watch
        while True:
            lease = self._store.acquire(key.name, self._timeout, on_demand=True)
            if not isinstance(lease, Held) or time.monotonic() > deadline:
                break
            time.sleep(pause)
            pause = min(1.5 * pause, longest)
        lease = None if isinstance(lease, Held) else lease
        try:
            previous = self._store.newest(key)
            if previous is not None and _is_after(previous, number):
                return Outcome(Kind.FOUND, previous)
            outcome = self._attempt(key, "revalidate", rule, previous)
            outcome.discard()
            return outcome
        finally:
            self._store.release(lease)


def _sequence(number: Number) -> int:
    return number.sequence


def _is_after(entry: Entry, number: Number) -> bool:
    """Whether the render of a page began after an invalidation."""
    return entry.page.lineage == number.lineage and entry.page.sequence > number.sequence
