"""Who renders a page, and who waits: one render of all that want the page at one moment.

A `Flight` is one render as the threads of this process see it. A lease of the store is the same
render as all processes see it. `Renders.get` is the one way to a render, for a visitor who waits,
for `prerender` and for `revalidate`; `Renders.start` is for those who do not wait.

A request joins a flight unless the flight is *outdated*: something was invalidated since the
flight took its number that may be about its page. The next flight then begins, and all who come
later join that one.
"""

from __future__ import annotations

import json
import math
import threading
import time
import typing as t
from collections.abc import Callable

from . import tracing
from .attempt import MAX_BACK_OFF, Attempts
from .config import Config
from .key import PageKey
from .outcome import Kind, Outcome
from .page import Invalidated, State, state_of
from .render import RenderError, RenderTimeout, rendering
from .rules import Rule, compile_pattern
from .store.memory import Entry
from .store.pages import Pages
from .store.protocol import Busy, Changes, Lease, Number, Wanted
from .threads import Background

#: Seconds before a page whose lease another process has is tried again.
ELSEWHERE = 0.05
#: Seconds before a page that another process was asked to render is asked for again.
ASKED = 1.0
#: Seconds between two reads while another process renders, at first and at most: on one machine,
#: and over a network.
PAUSES = {True: (0.001, 0.005), False: (0.005, 0.05)}

#: Whether a page is what the caller of a render needs.
Accept: t.TypeAlias = "Callable[[Entry], bool]"


class Flight:
    """One render of a page in this process."""

    def __init__(self, after: Flight | None = None) -> None:
        #: Whether it was begun because another flight was outdated. One such flight waits for
        #: the one before it, so that many calls lead to two renders at a time.
        self.is_successor = after is not None
        self.follows = after if after is not None and after.is_successor else None
        #: When it began; 0.0 while it waits for a thread.
        self.began = 0.0
        #: Whether it has taken a number, or is about to.
        self.is_numbered = False
        self.number: Number | None = None
        #: The span of the request that caused it.
        self.cause = tracing.current()
        #: The sequence of the last invalidation that may be about its page.
        self.invalidated = 0.0
        self.outcome: Outcome | None = None
        self.done = threading.Event()

    @property
    def is_outdated(self) -> bool:
        """Whether something was invalidated since it began that may be about its page."""
        return self.invalidated > (0 if self.number is None else self.number.sequence)


class Renders:
    """Starts renders, one at a time for each page."""

    def __init__(
        self,
        config: Config,
        pages: Pages,
        attempts: Attempts,
        background: Background,
        clock: Callable[[], float],
        seal: Callable[[bytes], bytes],
        unseal: Callable[[bytes | None], bytes | None],
        on_no_page: Callable[[PageKey, Rule | None, str], object],
    ) -> None:
        self._config = config
        self._pages = pages
        self._attempt = attempts
        self._background = background
        self._clock = clock
        self._seal, self._unseal = seal, unseal
        self._on_no_page = on_no_page
        self._timeout = config.render_timeout
        self._flights: dict[PageKey, Flight] = {}
        #: Requests that wait for a render.
        self.waiting = 0
        # Guards the table. Nothing is rendered, read or written under it.
        self._lock = threading.Lock()

    @property
    def running(self) -> list[PageKey]:
        """The pages that this process renders now."""
        return [key for key, flight in list(self._flights.items()) if flight.is_numbered]

    def invalidated(self, changes: Changes) -> None:
        """Let flights know that something was invalidated."""
        for key, flight in list(self._flights.items()):
            if flight.is_numbered:
                flight.invalidated = max(flight.invalidated, _last_about(changes, key))

    # Somebody waits.

    def get(
        self,
        key: PageKey,
        rule: Rule | None,
        reason: str,
        *,
        only_fresh: bool = False,
        after: Number | None = None,
    ) -> Outcome:
        """A page that can be served, or why there is none.

        :param only_fresh: a stale page is rendered, too.
        :param after: an invalidation; a page whose render began before it is of no use.
        :raises RenderError: for a page that would wait for itself.
        """
        if key in rendering.get():
            raise RenderError("a page cannot wait for its own render")
        wanted = (State.FRESH,) if only_fresh else (State.FRESH, State.STALE)

        def accept(entry: Entry) -> bool:
            if after is not None:
                return _is_after(entry.number, after)
            return self._state(entry) in wanted

        deadline = time.monotonic() + 2 * self._timeout
        collapsed = False
        while True:
            flight, leads = self._join(key)
            if leads:
                self._await_turn(flight)
                outcome = self._fly(key, flight, rule, reason, accept, after is not None)
                assert outcome is not None
                return outcome._replace(collapsed=outcome.collapsed or collapsed)
            collapsed = True
            self.waiting += 1
            try:
                flight.done.wait(self._remaining(flight))
            finally:
                self.waiting -= 1
            found = flight.outcome
            if found is not None and self._serves(found, flight, after):
                return found.shared()._replace(collapsed=True)
            if found is not None and found.kind is Kind.UNSTORED and after is None:
                # It sends its answer to another visitor, block by block. So will the next: nobody
                # waits for that.
                return self._attempt(key, reason, rule, None, self._pages.number())
            if time.monotonic() > deadline:
                error = RenderTimeout(f"no render within render_timeout ({self._timeout} seconds)")
                return Outcome(Kind.FAILED, error=error)

    def _serves(self, found: Outcome, flight: Flight, after: Number | None) -> bool:
        """Whether what a flight came to is of use to a request that has waited for it."""
        if found.kind is Kind.UNSTORED and found.entry is None:
            # It sends its answer to another visitor, block by block.
            return False
        if after is None:
            # What was rendered while they waited is good, however short it lasts.
            if found.kind is not Kind.FOUND or found.collapsed or found.entry is None:
                return True
            return self._state(found.entry) is not State.EXPIRED
        if found.entry is not None:
            return _is_after(found.entry.number, after)
        return flight.number is not None and _is_after(flight.number, after)

    def _join(self, key: PageKey) -> tuple[Flight, bool]:
        """The flight that a request takes part in, and whether it leads it."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is None or self._is_overdue(flight):
                flight = self._flights[key] = Flight()
            elif flight.began and not flight.is_outdated:
                return flight, False
            elif flight.began:
                flight = self._flights[key] = Flight(after=flight)
            # Otherwise it waits for a thread, and this one is here.
            flight.began = time.monotonic()
            return flight, True

    def _await_turn(self, flight: Flight) -> None:
        before = flight.follows
        if before is not None:
            before.done.wait(self._remaining(before))
            flight.began = time.monotonic()

    def _is_overdue(self, flight: Flight) -> bool:
        return bool(flight.began) and time.monotonic() - flight.began > self._timeout

    def _remaining(self, flight: Flight) -> float:
        return max(0.0, flight.began + self._timeout - time.monotonic())

    def _fly(
        self,
        key: PageKey,
        flight: Flight,
        rule: Rule | None,
        reason: str,
        accept: Accept,
        demanded: bool = False,
        waits: bool = True,
    ) -> Outcome | None:
        """Render a page, unless another process has done so; ``None`` if another does so now."""
        outcome = lease = None
        try:
            lease, outcome = self._lease(key, accept, demanded, waits)
            if outcome is None and not isinstance(lease, Busy):
                # Another process may have stored it before the lease was ours.
                previous = self._pages.newest(key)
                if previous is not None and accept(previous):
                    outcome = Outcome(Kind.FOUND, previous, status=previous.page.code)
                else:
                    # First: what is invalidated from now on has a later number.
                    flight.is_numbered = True
                    flight.number = number = self._pages.number()
                    with tracing.span(flight.cause, key.url, reason) as note:
                        outcome = self._attempt(key, reason, rule, previous, number)
                        note(outcome.kind.value, outcome.status, outcome.error)
            return outcome
        finally:
            # Even a SystemExit lets the others go on.
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.outcome = outcome
            if lease is not None and not isinstance(lease, Busy):
                record = None if outcome is None else outcome.record()
                lease.release(None if record is None else self._seal(record))
            flight.done.set()

    def _lease(
        self, key: PageKey, accept: Accept, demanded: bool, waits: bool
    ) -> tuple[Lease | Busy | None, Outcome | None]:
        """The lease of a page, or what came of the render that had it.

        Neither where there is no agreement to be had: each process is then on its own.
        """
        store, guard, name = self._pages.store, self._pages.guard, key.name
        deadline = time.monotonic() + self._timeout
        pause, longest = PAUSES[self._pages.is_local]
        token = before = None
        while True:
            lease = guard.ask(
                "lease", lambda: store.lease(name, self._timeout, demanded), write=True
            )
            if token is not None:
                outcome = self._outcome_elsewhere(key, accept, token, demanded, before)
                if outcome is not None:
                    if lease is not None and not isinstance(lease, Busy):
                        lease.release()
                    return None, outcome
            if not isinstance(lease, Busy) or not waits:
                return lease, None
            if token is None:
                entry = self._pages.find(key, self._clock())
                before = None if entry is None else entry.number
            elif time.monotonic() > deadline:
                return None, None
            token = lease.token
            self.waiting += 1
            time.sleep(pause)
            self.waiting -= 1
            pause = min(1.5 * pause, longest)

    def _outcome_elsewhere(
        self, key: PageKey, accept: Accept, token: str, demanded: bool, before: Number | None
    ) -> Outcome | None:
        """What came of the render of another process that this request has waited for."""
        entry = self._pages.find(key, self._clock())
        if entry is not None:
            # A render that takes longer than its page lasts is good for those who waited.
            rendered = entry.number != before and entry.invalidated is not Invalidated.EXPIRED
            if accept(entry) or (rendered and not demanded):
                return Outcome(Kind.FOUND, entry, collapsed=True, status=entry.page.code)
        if demanded:
            # That render may have begun too early.
            return None
        pages = self._pages
        left = self._unseal(pages.guard.ask("outcome", lambda: pages.store.outcome(token)))
        return None if left is None else Outcome.from_record(left)

    def _state(self, entry: Entry) -> State:
        return state_of(entry.page, entry.invalidated, self._clock())

    # Nobody waits.

    def start(self, key: PageKey, rule: Rule | None, entry: Entry | None) -> bool:
        """Have a page rendered after the answer, unless that is under way or was just tried.

        :param entry: the stale page; ``None`` for a page that is not stored.
        :returns: false where too much waits to be rendered.
        """
        if entry is not None and self._is_pausing(entry):
            return True
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not self._is_overdue(flight):
                if not flight.began:
                    # The threads may hang by now, and did not when it was submitted.
                    self._background.stand_in()
                return True
            flight = self._flights[key] = Flight()
        if self._background.submit(lambda: self._run(key, flight, rule, entry)):
            return True
        with self._lock:
            if self._flights.get(key) is flight and not flight.began:
                del self._flights[key]
        return False

    def _run(self, key: PageKey, flight: Flight, rule: Rule | None, entry: Entry | None) -> None:
        with self._lock:
            if flight.began:
                # A visitor who came meanwhile renders it.
                return
            flight.began = time.monotonic()
        if entry is not None and self._is_done_elsewhere(key, entry):
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.done.set()
            return
        self._refresh(key, flight, rule, entry)

    def _is_done_elsewhere(self, key: PageKey, entry: Entry) -> bool:
        """Whether another process renders a stale page, or has just failed to."""
        pages = self._pages
        failure = pages.guard.ask("failure", lambda: pages.store.failure(key.name))
        if failure is not None:
            entry.retry_at = failure.retry_at
            if self._is_pausing(entry):
                return True
        if self._config.workers == 0 and self.hand_over(key):
            entry.retry_at = self._clock() + ASKED
            return True
        return False

    def hand_over(self, key: PageKey) -> bool:
        """Have a page rendered by a process of ``regenerate``; false if that will not be."""
        if not self._pages.store.kind.wants or not self._config.is_canonical(key):
            return False
        data = self._seal(json.dumps(key).encode())
        wanted = Wanted(key.name, data)
        pages = self._pages
        return bool(
            pages.guard.ask("want", lambda: pages.store.want(key.build, wanted), write=True)
        )

    def _refresh(
        self, key: PageKey, flight: Flight, rule: Rule | None, entry: Entry | None
    ) -> None:
        stale = entry is not None
        wanted = (State.FRESH,) if stale else (State.FRESH, State.STALE)
        outcome = self._fly(
            key,
            flight,
            rule,
            "stale" if stale else "miss",
            lambda found: self._state(found) in wanted,
            waits=False,
        )
        if outcome is not None:
            outcome.discard()
            if outcome.kind is Kind.NOT_A_PAGE or outcome.detail == "too-large":
                # Otherwise a visitor who gets a shell would get it again and again.
                self._on_no_page(key, rule, outcome.detail)
        elif entry is not None:
            entry.retry_at = self._clock() + ELSEWHERE

    def regenerate(self, key: PageKey) -> None:
        """Render a page that another process has handed over, if it is still stale."""
        pages = self._pages
        entry = pages.newest(key)
        flight, leads = self._join(key)
        if leads:
            self._refresh(key, flight, self._config.rule_of(key), entry)

    def _is_pausing(self, entry: Entry) -> bool:
        # A time beyond the longest pause comes from a clock that was set back.
        return 0 < entry.retry_at - self._clock() <= MAX_BACK_OFF


def _is_after(number: Number, after: Number) -> bool:
    """Whether a render began after an invalidation."""
    return number.lineage == after.lineage and number.sequence > after.sequence


def _last_about(changes: Changes, key: PageKey) -> float:
    """The sequence of the last invalidation that may be about a page; 0 for none.

    A page that is being rendered: its tags are in its answer, which is not there yet.
    """
    if not changes.complete:
        return math.inf
    path = key.full_path or "/"
    own = (key.path_label, key.host_label, f"page:{key.name}")
    last = 0
    for label, sequence, _ in changes.invalidations:
        kind, _, name = label.partition(":")
        if kind == "tag" or label in own:
            last = max(last, sequence)
        elif kind == "pattern" and compile_pattern(name).fullmatch(path):
            last = max(last, sequence)
    return last
