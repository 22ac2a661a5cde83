"""What cachelib has not: one order of renders and invalidations, leases, and failure records.

`Coordination` is the protocol; each kind of store has its own implementation, with the means of
its engine. `LocalCoordination`, for stores that live in one process, is here.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import typing as t
from collections.abc import Callable
from collections.abc import Sequence

from ..state import Epochs
from . import builds

if t.TYPE_CHECKING:
    from .backend import Storage

#: Labels that a store remembers; beyond it the oldest half counts as invalidated.
MAX_LABELS = 100_000
#: Seconds between two looks at another process's render, where looking costs microseconds.
WATCH = (0.001, 0.005)

#: Jobs in a line, at the most; beyond it the next visitor of a page asks again.
MAX_JOBS = 1000
#: Seconds after which a line that nobody has said to serve counts as abandoned.
ABANDONED = 5
#: Seconds for which a job is its taker's: a killed one's lease has lapsed by then.
CLAIM = 8

#: Told where the order of renders and invalidations begins anew.
LOST = (
    "the store has lost its invalidations: it was emptied, came back without its last data, or "
    "evicted them; all pages count as stale and are rendered again behind their visitors"
)

Accept: t.TypeAlias = "Callable[[bytes | None], bool]"


class StoreError(Exception):
    """The shared store could not do what was asked; the message says why."""


class TooLarge(StoreError):
    """The entry is larger than the store takes; what was there before still is."""


class WritesRefused(StoreError):
    """The store answers, but takes no writes: it is full, or a replica."""


class Number(t.NamedTuple):
    """The place of a render in the order of all renders and invalidations of a store."""

    lineage: str
    sequence: int


class Failure(t.NamedTuple):
    """What is known of a page whose renders fail.

    :param times: failures in a row.
    :param retry_at: seconds since 1970 before which no visitor starts another attempt.
    """

    times: int
    retry_at: float
    error: str

    @classmethod
    def from_record(cls, record: object) -> Failure | None:
        """What a store has kept, unless it is something else: it is computed with."""
        if not isinstance(record, list) or len(record) != 3:
            return None
        times, retry_at, error = record
        sound = type(times) is int and type(retry_at) in (int, float) and isinstance(error, str)
        return cls(times, retry_at, error) if sound else None


class Held(t.NamedTuple):
    """Somebody else renders the page; ``token`` names that attempt."""

    token: str


class Lease(t.Protocol):
    """The right to render a page, until it is released or its deadline has passed."""

    token: str

    def release(self, outcome: bytes | None = None) -> None:
        """Give the right back.

        :param outcome: what those who waited get where nothing was stored.
        """


class Coordination(t.Protocol):
    """The agreement of all who share a store.

    All methods may raise `StoreError` or `OSError`; nobody but the page store calls them.
    """

    #: ``[0]`` changes with every invalidation, ``[1]`` with every stored page. Reading it is what
    #: a hit costs, so it is a plain index into memory wherever that is possible.
    signal: t.Any
    #: Seconds between two looks at the render of another process: at first, and at the most.
    watch: tuple[float, float]

    def stored(self, name: str) -> object:
        """What changes when a page is stored; as with ``signal[1]``, other pages may do it too."""

    def epochs(self) -> Epochs:
        """The invalidations up to now."""

    def next_number(self) -> Number:
        """The number of a render that begins now."""

    def invalidate(self, labels: Sequence[str], hard: bool) -> Number:
        """Mark all pages that have one of the labels; holds everywhere when it returns."""

    def acquire(self, name: str, seconds: float, on_demand: bool) -> Lease | Held:
        """The lease of a page, or who has it.

        :param seconds: after which somebody else may take it over.
        :param on_demand: takes it from a render that nobody demanded, for that one began too
            early.
        """

    def outcome(self, name: str, token: str) -> bytes | None:
        """What an attempt left for those who waited, if it is over."""

    def swap(self, storage: Storage, name: str, data: bytes, accept: Accept) -> bool:
        """Compare and store in one step: ``accept`` judges what is there now."""

    def remove(self, storage: Storage, name: str) -> None: ...

    def failure(self, name: str) -> Failure | None: ...

    def set_failure(self, name: str, failure: Failure | None) -> None: ...

    def poll(self) -> None:
        """Look for changes that the signal did not carry; called about once a second."""

    def after_fork(self) -> None:
        """Replace what a fork may have left locked."""


@t.runtime_checkable
class Remote(t.Protocol):
    """What a coordination over the network does besides."""

    def probe(self) -> None:
        """Find out whether the store is there, and catch up with it.

        :raises WritesRefused: if it is there but takes no writes.
        """


@t.runtime_checkable
class KnowsBuilds(t.Protocol):
    """What a coordination may do besides: remember in which order builds were first seen."""

    def note_build(self, build: str) -> list[str]:
        """Note that a build is in use; all that were seen before it was, the last one first."""


class Job(t.Protocol):
    """A page to be rendered, which nobody else renders for `CLAIM` seconds."""

    data: bytes

    def keep(self) -> None:
        """Tell that it is still being done; said again each second."""

    def done(self) -> None:
        """Take it from the line."""


class Jobs(t.Protocol):
    """Lines of pages to be rendered, which processes put there and others take from.

    All methods may raise what the store raises.
    """

    def put(self, line: str, data: bytes) -> bool:
        """Put a job in line, unless it is there already, or the line is full.

        False if nobody takes from it.
        """

    def take(self, line: str) -> Job | None:
        """The job that has been in line longest, of those that nobody does."""

    def wait(self, line: str, seconds: float) -> None:
        """Wait for a job, at most that many seconds; it may be less, also without one."""

    def serve(self, line: str) -> None:
        """Tell that somebody takes from the line; said again each second."""


@t.runtime_checkable
class KeepsJobs(t.Protocol):
    """What a coordination of several processes may do besides: let some render for all."""

    jobs: Jobs


@t.runtime_checkable
class KeepsStats(t.Protocol):
    """What a coordination of several processes may do besides: keep the counters of each."""

    def leave_stats(self, data: bytes) -> None:
        """Keep the counters of this process in place of those that it left before."""

    def all_stats(self) -> list[bytes]:
        """What each process that still runs left last."""


class LocalLease:
    def __init__(self, owner: LocalCoordination, name: str, seconds: float, on_demand: bool):
        self.token = secrets.token_hex(8)
        self.deadline = time.monotonic() + seconds
        self.on_demand = on_demand
        self._owner = owner
        self._name = name

    def release(self, outcome: bytes | None = None) -> None:
        self._owner.release(self._name, self, outcome)


class LocalCoordination:
    """Coordination of the threads of one process."""

    #: Outcomes and failures that are kept, at the most.
    MAX_RECORDS = 10_000
    watch = WATCH

    def __init__(self) -> None:
        self.signal = [0, 0]
        self._epochs = Epochs(secrets.token_hex(8))
        self._sequence = 0
        self._leases: dict[str, LocalLease] = {}
        self._outcomes: dict[str, tuple[str, bytes]] = {}
        self._failures: dict[str, Failure] = {}
        self._builds: list[str] = []
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def after_fork(self) -> None:
        # Several middlewares may share this: only the first one in a child resets it.
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.RLock()
            self._leases.clear()

    def stored(self, name: str) -> object:
        return self.signal[1]

    def epochs(self) -> Epochs:
        return self._epochs

    def next_number(self) -> Number:
        with self._lock:
            self._sequence += 1
            return Number(self._epochs.lineage, self._sequence)

    def invalidate(self, labels: Sequence[str], hard: bool) -> Number:
        with self._lock:
            number = self.next_number()
            for label in labels:
                self._epochs.apply(number.sequence, label, hard)
            if len(self._epochs) > MAX_LABELS:
                self._epochs.forget_oldest(MAX_LABELS // 2)
            self.signal[0] += 1
            return number

    def acquire(self, name: str, seconds: float, on_demand: bool) -> Lease | Held:
        with self._lock:
            held = self._leases.get(name)
            if held is not None and time.monotonic() < held.deadline:
                if held.on_demand or not on_demand:
                    return Held(held.token)
            self._leases[name] = lease = LocalLease(self, name, seconds, on_demand)
            return lease

    def release(self, name: str, lease: LocalLease, outcome: bytes | None) -> None:
        with self._lock:
            if self._leases.get(name) is not lease:
                return
            del self._leases[name]
            if outcome is not None:
                _put_bounded(self._outcomes, name, (lease.token, outcome), self.MAX_RECORDS // 100)

    def outcome(self, name: str, token: str) -> bytes | None:
        left = self._outcomes.get(name)
        return left[1] if left is not None and left[0] == token else None

    def swap(self, storage: Storage, name: str, data: bytes, accept: Accept) -> bool:
        with self._lock:
            if not accept(storage.get(name)):
                return False
            storage.set(name, data)
            self.signal[1] += 1
            return True

    def remove(self, storage: Storage, name: str) -> None:
        with self._lock:
            storage.delete(name)
            self.signal[1] += 1

    def failure(self, name: str) -> Failure | None:
        return self._failures.get(name)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        with self._lock:
            if failure is None:
                self._failures.pop(name, None)
            else:
                _put_bounded(self._failures, name, failure, self.MAX_RECORDS)

    def note_build(self, build: str) -> list[str]:
        with self._lock:
            self._builds = builds.add(self._builds, build)
            return builds.before(self._builds, build)

    def poll(self) -> None:
        """All changes are carried by the signal."""


def _put_bounded(table: dict[str, t.Any], key: str, value: t.Any, limit: int) -> None:
    table.pop(key, None)
    while len(table) >= limit:
        del table[next(iter(table))]
    table[key] = value
