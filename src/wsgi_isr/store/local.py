"""`LocalStore`: one process, all in its memory; its pages, if it keeps any, in a cachelib cache.

The memory level keeps the pages of ``memory://``, so there is no second copy of them here.

A child goes on with what the parent had when it forked, under locks of its own. A cache may have
locks that nobody else can renew, so a child keeps new pages in a new `cachelib.SimpleCache`.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import typing as t
from collections import deque
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass

from cachelib import BaseCache
from cachelib import SimpleCache

from ..freshness import Invalidated
from .entries import Entries
from .entries import frame
from .entries import Plain
from .entries import unframe
from .epochs import Epochs
from .epochs import replaces
from .protocol import Busy
from .protocol import Changes
from .protocol import Failure
from .protocol import Invalidation
from .protocol import Kind
from .protocol import Lease
from .protocol import MAX_BUILDS
from .protocol import MAX_FAILURES
from .protocol import MAX_HISTORY
from .protocol import MAX_LABELS
from .protocol import Number
from .protocol import Record
from .protocol import Sizes
from .protocol import Stored
from .protocol import Validity

KIND = Kind("local", "process", True, True, True, False, False)
#: That of a store without a cache.
MEMORY = KIND._replace(name="memory")
#: Outcomes that are kept for those who wait for a render.
MAX_OUTCOMES = 1000
#: Pages in the index before it forgets those that the cache has evicted.
SWEEP = 1000


@dataclass(slots=True)
class Indexed:
    """A page without its bytes, and what invalidations up to a number have made of it."""

    record: Record
    size: int
    invalidated: Invalidated
    at: int


class LocalLease:
    def __init__(self, store: LocalStore, name: str, seconds: float, demanded: bool) -> None:
        self.token = secrets.token_hex(8)
        self.name, self.demanded = name, demanded
        self.deadline = time.monotonic() + seconds
        self._store = store

    def release(self, outcome: bytes | None = None) -> None:
        self._store.end(self, outcome)


class LocalStore(Plain):
    """Pages and their order, for the threads of one process.

    :param cache: keeps the pages; without it this store keeps none, and accepts all.
    """

    kind = KIND

    def __init__(self, cache: BaseCache | None = None, prefix: str = "") -> None:
        if cache is None:
            self.kind = MEMORY
        self._pid, self._prefix = os.getpid(), prefix
        self._entries = None if cache is None else Entries(cache, prefix)
        if cache is None:
            # It keeps the order of events; the pages are in the memory of the process.
            self.kind = self.kind._replace(name="memory")
        # Not from 0: what a process had in memory before a fork has the parent's numbers.
        self.signal = [secrets.randbits(62), secrets.randbits(62)]
        self._sequence = 0
        self._epochs = Epochs(secrets.token_hex(8))
        self._history: deque[Invalidation] = deque()
        #: `changes` gives all later invalidations.
        self._complete_since = 0
        #: Those used least recently come first.
        self._index: dict[str, Indexed] = {}
        self._sweep_at = SWEEP
        self._leases: dict[str, LocalLease] = {}
        self._outcomes: dict[str, bytes] = {}
        self._failures: dict[str, Failure] = {}
        self._paths: set[str] = set()
        self._builds: list[str] = []
        self._totals: dict[str, float] = {}
        self._report: dict[str, t.Any] | None = None
        self._lock = threading.RLock()

    def after_fork(self) -> None:
        """Make this the store of a child, with nothing that a thread of the parent may have."""
        if self._pid != os.getpid():
            self._lock, self._leases = threading.RLock(), {}
            if self._entries is not None:
                self._entries, self._index = Entries(SimpleCache(), self._prefix), {}
            self._pid = os.getpid()

    # Pages.

    def _read(self, name: str) -> tuple[Record, Indexed] | None:
        record = self._entries and unframe(self._entries.get(f"page:{name}"), name)
        if not record:
            self._index.pop(name, None)
            return None
        indexed = self._index.get(name)
        if indexed is None or indexed.record.number != record.number:
            indexed = self._add_to_index(record)
        return record, indexed

    def _add_to_index(self, record: Record) -> Indexed:
        found = self._epochs.validity(record.labels, record.path, record.number)
        size = len(record.head) + len(record.body)
        bare = record._replace(head=b"", body=b"")
        self._index.pop(record.name, None)
        self._index[record.name] = indexed = Indexed(bare, size, found, self._epochs.changed)
        return indexed

    def _validity(self, indexed: Indexed) -> Validity:
        at = Number(self._epochs.lineage, indexed.at)
        later = self._epochs.validity(indexed.record.labels, indexed.record.path, at)
        indexed.invalidated = max(indexed.invalidated, later)
        indexed.at = self._epochs.changed
        return Validity(indexed.invalidated, self._at())

    def _at(self) -> Number:
        return Number(self._epochs.lineage, self._epochs.changed)

    def get(self, name: str) -> Stored | None:
        with self._lock:
            found = self._read(name)
            return None if found is None else Stored(found[0], self._validity(found[1]))

    def put(self, record: Record) -> Validity | None:
        with self._lock:
            old = self._read(record.name)
            lineage = self._epochs.lineage
            if old is not None and not replaces(record.number, old[0].number, lineage):
                return None
            self.signal[1] += 1
            if self._entries is None:
                found = self._epochs.validity(record.labels, record.path, record.number)
                return Validity(found, self._at())
            self._entries.set(f"page:{record.name}", frame(record))
            validity = self._validity(self._add_to_index(record))
            if len(self._index) > self._sweep_at:
                for name in list(self._index):
                    self._read(name)
                self._sweep_at = max(SWEEP, 2 * len(self._index))
            return validity

    def delete(self, name: str) -> None:
        with self._lock:
            self._index.pop(name, None)
            if self._entries is not None:
                self._entries.delete(f"page:{name}")
            self.signal[1] += 1

    def records(self, *, build: str | None = None, path: str | None = None) -> Iterator[Stored]:
        with self._lock:
            names = [
                name
                for name, indexed in self._index.items()
                if build in (None, indexed.record.build) and path in (None, indexed.record.path)
            ]
        for name in names:
            if (stored := self.get(name)) is not None:
                yield stored._replace(record=stored.record._replace(body=b""))

    def used(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in names:
                if (indexed := self._index.pop(name, None)) is not None:
                    self._index[name] = indexed

    def stored(self, name: str) -> object:
        return self.signal[1]

    # The order.

    def number(self) -> Number:
        with self._lock:
            self._sequence += 1
            return Number(self._epochs.lineage, self._sequence)

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        with self._lock:
            self._sequence += 1
            for label in labels:
                invalidation = Invalidation(label, self._sequence, expire)
                self._epochs.apply(invalidation)
                self._history.append(invalidation)
            while len(self._history) > MAX_HISTORY:
                self._complete_since = self._history.popleft().sequence
            self._epochs.changed = self._sequence
            if len(self._epochs.labels) > MAX_LABELS:
                for indexed in self._index.values():
                    self._validity(indexed)
                # A tenth at a time, for it takes a while.
                self._epochs.forget_oldest(MAX_LABELS * 9 // 10)
            self.signal[0] += 1
            return self._at()

    def changes(self, since: Number) -> Changes:
        with self._lock:
            at = self._at()
            if since.lineage != at.lineage or since.sequence < self._complete_since:
                return Changes(at, False, ())
            later = [item for item in self._history if item.sequence > since.sequence]
            return Changes(at, True, tuple(later))

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> Lease | Busy:
        with self._lock:
            found = self._leases.get(name)
            if found is not None and time.monotonic() < found.deadline:
                if found.demanded or not demanded:
                    return Busy(found.token)
            lease = self._leases[name] = LocalLease(self, name, seconds, demanded)
            return lease

    def end(self, lease: LocalLease, outcome: bytes | None) -> None:
        """Give a lease back, unless another has it."""
        with self._lock:
            if self._leases.get(lease.name) is not lease:
                return
            del self._leases[lease.name]
            if outcome is not None:
                _keep(self._outcomes, lease.token, outcome, MAX_OUTCOMES)

    def outcome(self, token: str) -> bytes | None:
        return self._outcomes.get(token)

    def failure(self, name: str) -> Failure | None:
        return self._failures.get(name)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        with self._lock:
            self._failures.pop(name, None)
            if failure is not None:
                _keep(self._failures, name, failure, MAX_FAILURES)

    def failures(self) -> Iterator[tuple[str, Failure]]:
        with self._lock:
            return iter(list(self._failures.items()))

    # What exists, what was counted, how much there is.

    def list_path(self, path: str) -> None:
        self._paths.add(path)

    def has_path(self, path: str) -> bool:
        return path in self._paths

    def builds(self, build: str) -> list[str]:
        with self._lock:
            if build not in self._builds:
                self._builds.append(build)
                del self._builds[:-MAX_BUILDS]
            return list(reversed(self._builds[: self._builds.index(build)]))

    def add(self, counts: Mapping[str, float]) -> None:
        with self._lock:
            for name, count in counts.items():
                self._totals[name] = self._totals.get(name, 0) + count

    def totals(self) -> dict[str, float]:
        with self._lock:
            return dict(self._totals)

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        self._report = None if process is None else dict(process)

    def processes(self) -> list[dict[str, t.Any]]:
        report = self._report
        return [] if report is None else [dict(report)]

    def sizes(self) -> Sizes:
        # The cache may have evicted some of these.
        return Sizes(None if self._entries is None else len(self._index), None)

    def prune(
        self,
        *,
        max_pages: int | None = None,
        max_bytes: int | None = None,
        keep_builds: Sequence[str] | None = None,
        everything: bool = False,
    ) -> int:
        with self._lock:
            pages = sorted(self._index.values(), key=lambda indexed: not indexed.record.gone)
        doomed = [
            page
            for page in pages
            if everything or (keep_builds is not None and page.record.build not in keep_builds)
        ]
        rest = [page for page in pages if page not in doomed]
        while (max_pages is not None and len(rest) > max_pages) or (
            max_bytes is not None and sum(page.size for page in rest) > max_bytes
        ):
            doomed.append(rest.pop(0))
        for page in doomed:
            self.delete(page.record.name)
        return len(doomed)

    # The process.

    def listen(self, seconds: float) -> bool:
        return False

    def probe(self) -> None:
        """Memory reads and writes."""

    def close(self) -> None:
        """Others in this process may share it, and there is nothing to give back."""


_Value = t.TypeVar("_Value")


def _keep(table: dict[str, _Value], name: str, value: _Value, most: int) -> None:
    table[name] = value
    if len(table) > most:
        del table[next(iter(table))]
