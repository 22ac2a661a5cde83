"""`CachelibStore`: any cachelib cache that processes share, memcached above all; best effort.

All there is to build on is ``get``, ``set``, ``delete`` and ``add``; where ``add`` is atomic, as on
memcached, it makes a lock. Two entries carry the order of events:

``clock``   lineage, the last number given, the number of the last invalidation
``epochs``  the last invalidation of each label

A server may evict either. Then a new lineage begins. Labels are bounded by the size of one entry:
when the oldest are forgotten, all pages from before them count as stale.

Nothing compares the clocks of two machines: an entry of a process that lives changes every second,
and one that stays unchanged for longer is that of a dead process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
import typing as t
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cachelib import BaseCache

from . import protocol
from .entries import BRIEF, WEEK, Entries, frame
from .epochs import Epochs, replaces
from .leases import Lease, Leases
from .protocol import Busy, Changes, Failure, Invalidation, Number, Record, Stored, Validity

logger = logging.getLogger("wsgi_isr")

KIND = protocol.Kind("cachelib", "network", False, False, False, False, True)
MEMCACHED = KIND._replace(name="memcached", one_render=True)

#: Bytes of the invalidations, written and read as a whole.
MAX_EPOCHS = 256 * 1024
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


class CachelibStore:
    """Pages and their order in a cache that processes share."""

    def __init__(self, cache: BaseCache, prefix: str, kind: protocol.Kind = KIND) -> None:
        self.kind = kind
        self._entries = self._pages = Entries(cache, prefix)
        # Not from 0: what a process had in memory before a fork has the parent's numbers.
        self.signal = [secrets.randbits(62), secrets.randbits(62)]
        self._epochs = Epochs("")
        self._refreshed = 0.0
        self._leases = Leases(self._extend, self._end)
        #: The last minute whose totals this process left.
        self._minute = 0
        self._id = secrets.token_hex(8)
        # Guards this object. Nothing is asked of the cache under it.
        self._lock = threading.Lock()

    # The order.

    def _clock(self) -> Clock | None:
        record = self._entries.read("clock", 3)
        return None if record is None else Clock(*record)

    def _order(self) -> tuple[Clock, Epochs]:
        """The clock and the invalidations; under the lock, because it begins a lineage if need be.

        All pages count as stale then.
        """
        clock, record = self._clock(), self._entries.read("epochs", 4)
        if clock and record and record[0] == clock.lineage and record[1] >= clock.changed:
            epochs = Epochs(clock.lineage)
            _, epochs.changed, epochs.floor, invalidations = record
            for invalidation in invalidations:
                epochs.apply(Invalidation(*invalidation))
            return clock, epochs
        clock = Clock(secrets.token_hex(8), 0, 0)
        return self._save(clock, Epochs(clock.lineage))

    def _save(self, clock: Clock, epochs: Epochs) -> tuple[Clock, Epochs]:
        while True:
            record = [epochs.lineage, epochs.changed, epochs.floor, epochs.since(0)]
            if len(json.dumps(record)) <= min(MAX_EPOCHS, self._entries.limit):
                break
            epochs.forget_oldest(len(epochs.labels) // 2)
        # In this order: who finds the number finds the invalidation.
        self._entries.write("epochs", record)
        self._entries.write("clock", clock)
        return clock, epochs

    def _adopt(self, epochs: Epochs) -> Epochs:
        with self._lock:
            mine = self._epochs
            lost = mine.lineage not in ("", epochs.lineage)
            if lost or not mine.lineage or mine.changed < epochs.changed:
                self._epochs = epochs
                self.signal[0] += 1
            self._refreshed = time.monotonic()
        if lost:
            logger.warning(
                "the cache has lost invalidations: it was emptied, or evicted them; all pages "
                "count as stale and are rendered again"
            )
        return self._epochs

    def _sync(self) -> Epochs:
        """The invalidations up to now."""
        mine, clock = self._epochs, self._clock()
        if clock and (clock.lineage, clock.changed) == (mine.lineage, mine.changed):
            if time.monotonic() - self._refreshed < REFRESH:
                return mine
        with self._entries.exclusive("clock"):
            return self._adopt(self._order()[1])

    def number(self) -> Number:
        with self._entries.exclusive("clock"):
            clock = self._clock() or self._order()[0]
            self._entries.write("clock", clock._replace(sequence=clock.sequence + 1))
        return Number(clock.lineage, clock.sequence + 1)

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        with self._entries.exclusive("clock"):
            clock, epochs = self._order()
            epochs.changed = number = clock.sequence + 1
            for label in labels:
                epochs.apply(Invalidation(label, number, expire))
            self._save(Clock(clock.lineage, number, number), epochs)
            self._adopt(epochs)
        return Number(clock.lineage, number)

    def changes(self, since: Number) -> Changes:
        epochs = self._sync()
        at = Number(epochs.lineage, epochs.changed)
        if since.lineage == at.lineage and since.sequence >= epochs.floor:
            found = epochs.since(since.sequence)
            if len(found) <= protocol.MAX_HISTORY:
                return Changes(at, True, found)
        return Changes(at, False, ())

    # Pages.

    def _validity(self, record: Record) -> Validity:
        epochs = self._sync()
        found = epochs.validity(record.labels, record.path, record.number)
        return Validity(found, Number(epochs.lineage, epochs.changed))

    def get(self, name: str) -> Stored | None:
        record = self._pages.page(name)
        return None if record is None else Stored(record, self._validity(record))

    def put(self, record: Record) -> Validity | None:
        with self._entries.exclusive(f"page:{record.name}"):
            old, lineage = self._pages.page(record.name), self._sync().lineage
            if old and not replaces(record.number, old.number, lineage):
                return None
            self._pages.set(f"page:{record.name}", frame(record))
            self.signal[1] += 1
        return self._validity(record)

    def delete(self, name: str) -> None:
        with self._entries.exclusive(f"page:{name}"):
            self._pages.delete(f"page:{name}")
            self.signal[1] += 1

    def used(self, names: Iterable[str]) -> None:
        """The cache itself sees what is read."""

    def records(self, **where: t.Any) -> t.Any:
        raise NotImplementedError(
            f"a store of the kind {self.kind.name} cannot list what it has; SQLite (a file:// URL) "
            "and Redis can"
        )

    failures = prune = records

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> Lease | Busy:
        lease = Lease(self._leases, name, seconds, demanded)
        # First without the lock: many may ask.
        if (busy := self._busy(lease)) is None:
            with self._entries.exclusive(f"lease:{name}"):
                if (busy := self._busy(lease)) is None:
                    self._write(lease, self._leases.add(lease))
        return busy or lease

    def _busy(self, lease: Lease) -> Busy | None:
        """Who else has a lease and keeps it."""
        record = self._entries.read(entry := f"lease:{lease.name}", 4)
        if record is None or (lease.demanded and not record[2]):
            return None
        if own := self._leases.own.get(record[0]):
            dead = own.left <= 0
        else:
            dead = self._entries.is_dead(entry, record, record[3])
        return None if dead else Busy(record[0])

    def _write(self, lease: Lease, term: float) -> None:
        record = [lease.token, secrets.token_hex(4), lease.demanded, term]
        self._entries.write(f"lease:{lease.name}", record, BRIEF)

    def _extend(self, lease: Lease, term: float) -> bool:
        with self._entries.exclusive(f"lease:{lease.name}"):
            if is_own := self._is_own(lease):
                self._write(lease, term)
            return is_own

    def _is_own(self, lease: Lease) -> bool:
        record = self._entries.read(f"lease:{lease.name}", 4)
        return record is not None and record[0] == lease.token

    def _end(self, lease: Lease) -> None:
        with self._entries.exclusive(f"lease:{lease.name}"):
            # Unless another has taken it over.
            if self._is_own(lease):
                if lease.outcome is not None:
                    with contextlib.suppress(protocol.TooLarge):
                        self._entries.set(f"outcome:{lease.token}", lease.outcome, BRIEF)
                self._entries.delete(f"lease:{lease.name}")

    def outcome(self, token: str) -> bytes | None:
        return self._entries.get(f"outcome:{token}")

    def failure(self, name: str) -> Failure | None:
        record = self._entries.read(f"failure:{name}", 5)
        return None if record is None else Failure(*record)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        if failure is None:
            self._entries.delete(f"failure:{name}")
        else:
            self._entries.write(f"failure:{name}", failure, WEEK)

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
        # The cache may have evicted it.
        return self._entries.get(f"path:{path}") is not None or None

    def _value(self, name: str, empty: t.Any) -> t.Any:
        return (self._entries.read(name, 1) or [empty])[0]

    @contextlib.contextmanager
    def _change(self, name: str, empty: t.Any) -> Iterator[t.Any]:
        """A value, to be changed in place; of a list too large for the cache the end is cut off."""
        with self._entries.exclusive(name):
            yield (value := self._value(name, empty))
            if isinstance(value, list):
                while len(json.dumps([value])) > self._entries.limit:
                    del value[len(value) // 2 :]
            self._entries.write(name, [value])

    def builds(self, build: str) -> list[str]:
        builds: list[str] = self._value("builds", [])
        if build not in builds:
            with self._change("builds", []) as builds:
                builds += [build] if build not in builds else []
                del builds[: -protocol.MAX_BUILDS]
        return builds[: builds.index(build)][::-1]

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
            now, asked = self.time(), (self._entries.read(entry, 1) or [0])[0]
            if is_first := not 0 <= now - asked < seconds:
                self._entries.write(entry, [now], WEEK)
            return is_first

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        if process is not None or self._id in self._value("processes", {}):
            with self._change("processes", {}) as reports:
                reports[self._id] = [time.time(), process]
                for key in [key for key, item in reports.items() if not _is_running(*item)]:
                    del reports[key]

    def processes(self) -> list[dict[str, t.Any]]:
        reports = list(self._value("processes", {}).values())
        return [process for at, process in reports if _is_running(at, process)]

    def sizes(self) -> protocol.Sizes:
        return protocol.Sizes(None, None)

    # The process.

    def time(self) -> float:
        return time.time()

    def listen(self, seconds: float) -> bool:
        """Ask twice a second: nothing is announced."""
        before, deadline = self.signal[0], time.monotonic() + seconds
        while self.signal[0] == before and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(POLL, left))
            self._sync()
            # Nobody counts the pages that are stored: any of them may have been.
            self.signal[1] += 1
        return True

    def probe(self) -> None:
        self._entries.set("probe", b"", BRIEF)
        self._sync()

    def close(self) -> None:
        self._leases.close()
        with contextlib.suppress(Exception):
            self.report(None)


def _is_running(reported: float, process: object) -> bool:
    return process is not None and time.time() - reported < SILENT
