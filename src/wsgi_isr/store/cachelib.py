"""`CachelibStore`: any cachelib cache, memcached above all; best effort where processes share it.

All there is to build on is ``get``, ``set``, ``delete``, ``add`` and timeouts; where ``add`` is
atomic, as on memcached, it makes a lock. Two entries carry the order of events:

``clock``   lineage, the last number given, the number of the last invalidation
``epochs``  the last invalidation of each label

A server may evict either. Then a new lineage begins. Labels are bounded by the size of one entry:
when the oldest are forgotten, all pages from before them count as stale.

Where all who share the cache are in one process, its memory has both, and nothing is evicted.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import secrets
import threading
import time
import typing as t
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cachelib import BaseCache

from . import protocol
from .entries import BRIEF, WEEK, Entries, MemoryEntries, frame, unframe
from .epochs import Epochs, replaces
from .leases import Lease, Leases
from .protocol import Busy, Changes, Failure, Invalidation, Number, Record, Stored, Validity

logger = logging.getLogger("wsgi_isr")

KIND = protocol.Kind("cachelib", "network", False, False, False, False, True)
MEMCACHED = KIND._replace(name="memcached", one_render=True)
#: Pages are in the memory level alone.
MEMORY = protocol.Kind("memory", "process", True, True, True, False, False)
#: A cache in one process. When it forgets the oldest labels, all pages from before count as stale.
LOCAL = MEMORY._replace(name="local", lists=False)

#: Seconds from which a process that reports nothing counts as gone.
SILENT = 60.0
#: Seconds between two reads of the clock, and after which the invalidations are read again, so
#: that the server keeps them.
POLL, REFRESH = 0.5, 30.0


class Clock(t.NamedTuple):
    lineage: str
    sequence: int
    #: Number of the last invalidation.
    changed: int


class Claim(t.NamedTuple):
    token: str
    demanded: bool


class Value(t.NamedTuple):
    value: t.Any


class CachelibStore:
    """Pages and their order in a cache.

    :param kind: with ``shared="process"`` the order is in this process's memory.
    :param before: the store of the process that forked this one, whose order then goes on.
    """

    def __init__(
        self,
        cache: BaseCache,
        prefix: str,
        kind: protocol.Kind = KIND,
        before: CachelibStore | None = None,
    ) -> None:
        self.kind = kind
        self._entries = self._pages = Entries(cache, prefix)
        self._memory: MemoryEntries | None = None
        if kind.shared == "process":
            self._memory = MemoryEntries(None if before is None else before._memory)
            self._entries = self._memory
        # Not from 0: what a process had in memory before a fork has the parent's numbers.
        self._next = itertools.count(secrets.randbits(62)).__next__
        self.signal = [self._next(), self._next()]
        self._epochs = Epochs("")
        #: The last invalidation that `signal` has shown.
        self._at = Number("", 0)
        self._refreshed = 0.0
        self._leases = Leases(self._extend if self._memory is None else None, self._end)
        #: The last minute whose totals this process left.
        self._minute = 0
        self._id = secrets.token_hex(8)
        # Guards this object. Nothing is asked of the cache under it.
        self._lock = threading.Lock()

    # The order.

    def _order(self) -> tuple[Clock, Epochs] | None:
        """The clock and the invalidations, unless one was lost, or the latest of them."""
        clock, epochs = self._entries.read("clock", Clock), self._entries.read("epochs", Epochs)
        if clock and epochs and epochs.lineage == clock.lineage and epochs.changed >= clock.changed:
            return clock, epochs
        return None

    def _locked_order(self) -> tuple[Clock, Epochs]:
        """The same under the lock, because it begins a lineage if need be: all pages are stale."""
        lineage = secrets.token_hex(8)
        return self._order() or self._save(Clock(lineage, 0, 0), Epochs(lineage))

    def _save(self, clock: Clock, epochs: Epochs) -> tuple[Clock, Epochs]:
        while True:
            with contextlib.suppress(protocol.TooLarge):
                # In this order: who finds the number finds the invalidation.
                self._entries.write("epochs", epochs)
                break
            epochs.forget_oldest(len(epochs.labels) // 2)
        self._entries.write("clock", clock)
        return clock, epochs

    def _adopt(self, epochs: Epochs) -> Epochs:
        with self._lock:
            before, at = self._at, Number(epochs.lineage, epochs.changed)
            if before.lineage != at.lineage or before.sequence < at.sequence:
                self._epochs, self._at, self.signal[0] = epochs, at, self._next()
            self._refreshed = time.monotonic()
        if before.lineage not in ("", at.lineage):
            logger.warning(
                "the cache has lost invalidations: it was emptied, or evicted them; all pages "
                "count as stale and are rendered again"
            )
        return self._epochs

    def _sync(self) -> Epochs:
        """The invalidations up to now."""
        clock = self._entries.read("clock", Clock)
        if clock and (clock.lineage, clock.changed) == self._at:
            if time.monotonic() - self._refreshed < REFRESH:
                return self._epochs
        if (order := self._order()) is None:
            with self._entries.exclusive("clock"):
                order = self._locked_order()
        return self._adopt(order[1])

    def number(self) -> Number:
        with self._entries.exclusive("clock"):
            clock = self._entries.read("clock", Clock) or self._locked_order()[0]
            self._entries.write("clock", clock._replace(sequence=clock.sequence + 1))
        return Number(clock.lineage, clock.sequence + 1)

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        with self._entries.exclusive("clock"):
            clock, epochs = self._locked_order()
            # The number of one that was not written to its end is not given again.
            number = max(clock.sequence, epochs.changed) + 1
            with self._lock:
                epochs.changed = number
                for label in labels:
                    epochs.apply(Invalidation(label, number, expire))
            self._save(Clock(clock.lineage, number, number), epochs)
            self._adopt(epochs)
        return Number(clock.lineage, number)

    def changes(self, since: Number) -> Changes:
        epochs = self._sync()
        with self._lock:
            at = Number(epochs.lineage, epochs.changed)
            if since.lineage != at.lineage:
                return Changes(at, False, ())
            # In place of those that were forgotten.
            all_older = Invalidation("pattern:/**", epochs.floor, False)
            forgotten = (all_older,) if since.sequence < epochs.floor else ()
            return Changes(at, True, (*forgotten, *epochs.since(since.sequence)))

    # Pages.

    def _validity(self, record: Record) -> Validity:
        epochs = self._sync()
        with self._lock:
            found = epochs.validity(record.labels, record.path, record.number)
            return Validity(found, Number(epochs.lineage, epochs.changed))

    def _page(self, name: str) -> Record | None:
        return unframe(self._pages.get(f"page:{name}"), name)

    def get(self, name: str) -> Stored | None:
        record = self._page(name)
        return None if record is None else Stored(record, self._validity(record))

    def put(self, record: Record) -> Validity | None:
        with self._entries.exclusive(f"page:{record.name}"):
            old, lineage = self._page(record.name), self._sync().lineage
            if old and not replaces(record.number, old.number, lineage):
                return None
            self._pages.set(f"page:{record.name}", frame(record))
            self.signal[1] = self._next()
        return self._validity(record)

    def delete(self, name: str) -> None:
        with self._entries.exclusive(f"page:{name}"):
            self._pages.delete(f"page:{name}")
            self.signal[1] = self._next()

    def used(self, names: Iterable[str]) -> None:
        """The cache itself sees what is read."""

    def records(self, **where: t.Any) -> t.Any:
        if self.kind.lists:
            # The memory level lists what it has.
            return iter(())
        raise NotImplementedError(
            f"a store of the kind {self.kind.name} cannot list what it has; SQLite (a file:// URL) "
            "and Redis can"
        )

    def prune(self, **bounds: t.Any) -> int:
        return len(list(self.records()))

    def sizes(self) -> protocol.Sizes:
        return protocol.Sizes(None, None)

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> Lease | Busy:
        lease, entry = Lease(self._leases, name, seconds, demanded), f"lease:{name}"
        with self._entries.exclusive(entry):
            there = self._entries.read(entry, Claim)
            if there and (there.demanded or not demanded):
                if not self._leases.has_lapsed(there.token):
                    return Busy(there.token)
            try:
                self._claim(lease, self._leases.add(lease))
            except Exception:
                self._leases.drop(lease)
                raise
        return lease

    def _claim(self, lease: Lease, term: float) -> None:
        # Caches count whole seconds, and the first of them may be nearly over.
        seconds = math.ceil(term) + 1
        self._entries.write(f"lease:{lease.name}", Claim(lease.token, lease.demanded), seconds)

    def _is_own(self, lease: Lease) -> bool:
        """Whether no other has taken it over."""
        claim = self._entries.read(f"lease:{lease.name}", Claim)
        return claim is not None and claim.token == lease.token

    def _extend(self, lease: Lease, term: float) -> bool:
        with self._entries.exclusive(f"lease:{lease.name}"):
            if is_own := self._is_own(lease):
                self._claim(lease, term)
            return is_own

    def _end(self, lease: Lease) -> None:
        with self._entries.exclusive(f"lease:{lease.name}"):
            if self._is_own(lease):
                if lease.outcome is not None:
                    with contextlib.suppress(protocol.TooLarge):
                        self._entries.set(f"outcome:{lease.token}", lease.outcome, BRIEF)
                self._entries.delete(f"lease:{lease.name}")

    def outcome(self, token: str) -> bytes | None:
        return self._entries.get(f"outcome:{token}")

    def failure(self, name: str) -> Failure | None:
        return self._entries.read(f"failure:{name}", Failure)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        if failure is None:
            self._entries.delete(f"failure:{name}")
        else:
            with contextlib.suppress(protocol.TooLarge):
                self._entries.write(f"failure:{name}", failure, WEEK)

    def failures(self) -> t.Any:
        if self._memory is None:
            return self.records()
        found = ((name, self.failure(name)) for name in self._memory.names("failure:"))
        return ((name, failure) for name, failure in found if failure is not None)

    def want(self, build: str, wanted: protocol.Wanted) -> bool:
        return False

    def take(self, build: str, seconds: float) -> protocol.Wanted | None:
        return None

    def done(self, build: str, name: str) -> None:
        """Nothing was taken."""

    # What exists, what was counted, how much there is.

    def list_path(self, path: str) -> None:
        self._entries.set(f"path:{path}", b"")

    def has_path(self, path: str) -> bool | None:
        # Where the order may be lost, a path may be, too.
        return self._entries.get(f"path:{path}") is not None or (False if self.kind.exact else None)

    def _value(self, name: str, empty: t.Any) -> t.Any:
        return (self._entries.read(name, Value) or Value(empty)).value

    @contextlib.contextmanager
    def _change(self, name: str, empty: t.Any) -> Iterator[t.Any]:
        """A value, to be changed in place; of a list too large for the cache the end is cut off."""
        with self._entries.exclusive(name):
            # A copy: others may be reading it.
            yield (value := type(empty)(self._value(name, empty)))
            while True:
                try:
                    return self._entries.write(name, Value(value))
                except protocol.TooLarge:
                    if not isinstance(value, list) or not value:
                        raise
                    del value[len(value) // 2 :]

    def builds(self, build: str) -> list[str]:
        with self._change("builds", []) as builds:
            builds += [build] if build not in builds else []
            del builds[: -protocol.MAX_BUILDS]
            earlier: list[str] = builds[: builds.index(build)][::-1]
        return earlier

    def add(self, counts: Mapping[str, float]) -> None:
        with self._change("totals", {}) as totals:
            for name, count in counts.items():
                totals[name] = totals.get(name, 0) + count
        minute = int(self.time() // 60)
        if minute != self._minute:
            with self._change("minutes", []) as minutes:
                if minute not in dict(minutes):
                    minutes.insert(0, [minute, self.totals()])
                del minutes[protocol.MAX_MINUTES :]
            self._minute = minute

    def totals(self) -> dict[str, float]:
        return dict(self._value("totals", {}))

    def minutes(self) -> dict[int, dict[str, float]]:
        first = self.time() // 60 - protocol.MAX_MINUTES
        found = reversed(self._value("minutes", []))
        return {minute: totals for minute, totals in found if minute > first}

    def log(self, *entries: bytes) -> None:
        with self._change("journal", []) as journal:
            journal[:0] = [entry.decode("latin-1") for entry in reversed(entries)]
            del journal[protocol.MAX_JOURNAL :]

    def journal(self) -> list[bytes]:
        return [entry.encode("latin-1") for entry in self._value("journal", [])]

    def once(self, name: str, seconds: float) -> bool:
        with self._entries.exclusive(entry := f"once:{name}"):
            now, asked = self.time(), self._value(entry, 0)
            if is_first := not 0 <= now - asked < seconds:
                self._entries.write(entry, Value(now), WEEK)
            return is_first

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        with self._change("processes", {}) as reports:
            now = time.time()
            reports[self._id] = [process, now + SILENT if process is not None else 0]
            for key in [key for key, (_, end) in reports.items() if end < now]:
                del reports[key]

    def processes(self) -> list[dict[str, t.Any]]:
        reports = list(self._value("processes", {}).values())
        return [process for process, end in reports if end >= time.time()]

    # The process.

    def time(self) -> float:
        return time.time()

    def listen(self, seconds: float) -> bool:
        """Ask twice a second: nothing is announced."""
        if self._memory is not None:
            return False
        before, deadline = self.signal[0], time.monotonic() + seconds
        while self.signal[0] == before and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(POLL, left))
            self._sync()
            # Nobody counts the pages that are stored: any of them may have been.
            self.signal[1] = self._next()
        return True

    def probe(self) -> None:
        self._pages.set("probe", b"", BRIEF)
        self._sync()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if self._id in self._value("processes", {}):
                self.report(None)
        # Others in this process may go on with what is in its memory.
        if self._memory is None:
            self._leases.close()
