"""`CachelibStore`: any cachelib cache that processes share, memcached above all; best effort.

All there is to build on is ``get``, ``set``, ``delete`` and ``add``. One of all callers succeeds
with ``add``; where it is atomic, as on memcached, a lock can be made of it. Two entries carry the
order of renders and invalidations:

``clock``   lineage, the last number given, the number of the last invalidation
``epochs``  the last invalidation of each label

A server may evict either. Then a new lineage begins, and all pages count as stale. Labels are
bounded by the size of one entry: when the oldest are forgotten, all pages from before them count
as stale.

Nothing compares the clocks of two machines: an entry of a process that lives changes every second,
and who sees one unchanged for longer takes its owner for dead.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
import typing as t
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

from cachelib import BaseCache

from ..threads import start
from . import protocol
from .entries import BRIEF
from .entries import Entries
from .entries import frame
from .entries import Plain
from .entries import unframe
from .epochs import Epochs
from .epochs import replaces
from .protocol import Busy
from .protocol import Invalidation
from .protocol import Number
from .protocol import Record
from .protocol import Stored
from .protocol import TooLarge
from .protocol import Validity

logger = logging.getLogger("wsgi_isr")

KIND = protocol.Kind("cachelib", "network", False, False, False, False, True)
MEMCACHED = KIND._replace(name="memcached", one_render=True)

#: Bytes of the invalidations, written and read as a whole.
MAX_EPOCHS = 256 * 1024
#: Seconds for which a lease may stay unchanged before its owner counts as dead.
TERM = 3.0
#: Seconds between two heartbeats, and from which a process that reports nothing counts as gone.
BEAT, SILENT = 1.0, 60.0
#: Seconds between two looks at the clock, and after which the invalidations are read again, so
#: that the server keeps them.
POLL, REFRESH = 0.5, 30.0


class Clock(t.NamedTuple):
    lineage: str
    sequence: int
    #: Number of the last invalidation.
    changed: int


class CachelibLease:
    """A lease that ends unless its process changes its entry every second."""

    def __init__(self, store: CachelibStore, name: str, seconds: float, demanded: bool) -> None:
        self.token = secrets.token_hex(8)
        self.name, self.demanded = name, demanded
        self.deadline = time.monotonic() + seconds
        self._store = store

    def entry(self, beats: bool = True) -> list[t.Any]:
        left = max(0.0, self.deadline - time.monotonic())
        term = min(TERM, left) if beats else left
        return [self.token, secrets.token_hex(4), self.demanded, term]

    def release(self, outcome: bytes | None = None) -> None:
        # What cannot be said lapses by itself.
        with contextlib.suppress(Exception):
            self._store.end(self, outcome)


class CachelibStore(Plain):
    """Pages and their order in a cache that processes share."""

    def __init__(self, cache: BaseCache, prefix: str, kind: protocol.Kind = KIND) -> None:
        self.kind = kind
        self._entries = Entries(cache, prefix)
        # Not from 0: what a process had in memory before a fork has the parent's numbers.
        self.signal = [secrets.randbits(62), secrets.randbits(62)]
        self._epochs = Epochs("")
        self._refreshed = 0.0
        self._leases: dict[str, CachelibLease] = {}
        self._beating = False
        self._id = secrets.token_hex(8)
        self._reported = False
        # Guards this object. Nothing is asked of the cache under it.
        self._lock = threading.Lock()

    # The order.

    def _clock(self) -> Clock | None:
        record = self._entries.read("clock", 3)
        return None if record is None else Clock(*record)

    def _begin(self) -> Clock:
        """Begin a lineage: all pages count as stale from now on."""
        clock = Clock(secrets.token_hex(8), 0, 0)
        self._save(Epochs(clock.lineage))
        self._entries.write("clock", clock)
        return clock

    def _save(self, epochs: Epochs) -> None:
        limit = min(MAX_EPOCHS, self._entries.limit or MAX_EPOCHS)
        while True:
            items = [[label, *last] for label, last in epochs.labels.items()]
            record = [epochs.lineage, epochs.changed, epochs.floor, items]
            if len(items) <= protocol.MAX_LABELS and len(json.dumps(record)) <= limit:
                return self._entries.write("epochs", record)
            epochs.forget_oldest(len(items) // 2)

    def _load(self, clock: Clock | None) -> Epochs | None:
        """The invalidations up to a time, unless some of them were lost."""
        record = None if clock is None else self._entries.read("epochs", 4)
        if clock is None or record is None:
            return None
        epochs = Epochs(clock.lineage)
        lineage, epochs.changed, epochs.floor, items = record
        if lineage != clock.lineage or epochs.changed < clock.changed:
            return None
        for label, last, expire in items:
            if expire:
                epochs.apply(Invalidation(label, expire, True))
            if last != expire:
                epochs.apply(Invalidation(label, last, False))
        return epochs

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
        late = time.monotonic() - self._refreshed > REFRESH
        if clock is not None and not late:
            if (clock.lineage, clock.changed) == (mine.lineage, mine.changed):
                return mine
        epochs = self._load(clock)
        if epochs is None:
            with self._entries.exclusive("clock"):
                epochs = self._load(self._clock()) or Epochs(self._begin().lineage)
        return self._adopt(epochs)

    def number(self) -> Number:
        with self._entries.exclusive("clock"):
            clock = self._clock() or self._begin()
            self._entries.write("clock", clock._replace(sequence=clock.sequence + 1))
        return Number(clock.lineage, clock.sequence + 1)

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        with self._entries.exclusive("clock"):
            clock = self._clock() or self._begin()
            epochs = self._load(clock)
            if epochs is None:
                clock = self._begin()
                epochs = Epochs(clock.lineage)
            number = clock.sequence + 1
            for label in labels:
                epochs.apply(Invalidation(label, number, expire))
            epochs.changed = number
            # In this order: who finds the number finds the invalidation.
            self._save(epochs)
            self._entries.write("clock", clock._replace(sequence=number, changed=number))
        self._adopt(epochs)
        return Number(clock.lineage, number)

    def changes(self, since: Number) -> protocol.Changes:
        epochs = self._sync()
        at = Number(epochs.lineage, epochs.changed)
        complete = since.lineage == at.lineage and since.sequence >= epochs.floor
        return protocol.Changes(at, complete, epochs.since(since.sequence) if complete else ())

    # Pages.

    def _validity(self, record: Record) -> Validity:
        epochs = self._sync()
        found = epochs.validity(record.labels, record.path, record.number)
        return Validity(found, Number(epochs.lineage, epochs.changed))

    def get(self, name: str) -> Stored | None:
        record = unframe(self._entries.get(f"page:{name}"), name)
        return None if record is None else Stored(record, self._validity(record))

    def put(self, record: Record) -> Validity | None:
        entry = f"page:{record.name}"
        with self._entries.exclusive(entry):
            old = unframe(self._entries.get(entry), record.name)
            validity = self._validity(record)
            if old is not None and not replaces(record.number, old.number, validity.at.lineage):
                return None
            self._entries.set(entry, frame(record))
        self.signal[1] += 1
        # Of invalidations meanwhile, too.
        return self._validity(record)

    def delete(self, name: str) -> None:
        with self._entries.exclusive(f"page:{name}"):
            self._entries.delete(f"page:{name}")
        self.signal[1] += 1

    def records(self, *, build: str | None = None, path: str | None = None) -> Iterator[Stored]:
        raise self._unlisted()

    def _unlisted(self) -> NotImplementedError:
        return NotImplementedError(
            f"a store of the kind {self.kind.name} cannot list what it has; SQLite (a file:// URL) "
            "and Redis can"
        )

    def stored(self, name: str) -> object:
        return self.signal[1]

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> protocol.Lease | Busy:
        lease, entry = CachelibLease(self, name, seconds, demanded), f"lease:{name}"
        if (busy := self._busy(entry, demanded)) is not None:
            return busy
        with self._entries.exclusive(entry):
            if (busy := self._busy(entry, demanded)) is not None:
                return busy
            self._entries.write(entry, lease.entry(self._keep(lease)), BRIEF)
        return lease

    def _busy(self, entry: str, demanded: bool) -> Busy | None:
        """Who has a lease and keeps it."""
        record = self._entries.read(entry, 4)
        if record is None or (demanded and not record[2]):
            return None
        return None if self._entries.is_dead(entry, record, record[3]) else Busy(str(record[0]))

    def _keep(self, lease: CachelibLease) -> bool:
        """Extend a lease from now on; false where threads do not run."""
        with self._lock:
            self._leases[lease.token] = lease
            if not self._beating:
                thread = threading.Thread(target=self._beat, name="wsgi-isr-leases", daemon=True)
                self._beating = start(thread)
            return self._beating

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            with self._lock:
                leases = list(self._leases.values())
                if not leases:
                    self._beating = False
                    return
            for lease in leases:
                # The cache may answer again before the lease has lapsed.
                with contextlib.suppress(Exception):
                    if not self._extend(lease):
                        self._leases.pop(lease.token, None)

    def _extend(self, lease: CachelibLease) -> bool:
        with self._entries.exclusive(f"lease:{lease.name}"):
            alive = lease.token in self._leases and time.monotonic() < lease.deadline
            if alive := alive and self._is_own(lease):
                self._entries.write(f"lease:{lease.name}", lease.entry(), BRIEF)
        return alive

    def _is_own(self, lease: CachelibLease) -> bool:
        record = self._entries.read(f"lease:{lease.name}", 4)
        return record is not None and record[0] == lease.token

    def end(self, lease: CachelibLease, outcome: bytes | None) -> None:
        """Give a lease back, unless another has it."""
        self._leases.pop(lease.token, None)
        with self._entries.exclusive(f"lease:{lease.name}"):
            if self._is_own(lease):
                if outcome is not None:
                    with contextlib.suppress(TooLarge):
                        self._entries.set(f"outcome:{lease.token}", outcome, BRIEF)
                self._entries.delete(f"lease:{lease.name}")

    def outcome(self, token: str) -> bytes | None:
        return self._entries.get(f"outcome:{token}")

    def failure(self, name: str) -> protocol.Failure | None:
        record = self._entries.read(f"failure:{name}", 5)
        return None if record is None else protocol.Failure(*record)

    def set_failure(self, name: str, failure: protocol.Failure | None) -> None:
        if failure is None:
            self._entries.delete(f"failure:{name}")
        else:
            self._entries.write(f"failure:{name}", failure)

    def failures(self) -> Iterator[tuple[str, protocol.Failure]]:
        raise self._unlisted()

    # What exists, what was counted, how much there is.

    def list_path(self, path: str) -> None:
        self._entries.set(f"path:{path}", b"")

    def has_path(self, path: str) -> bool | None:
        # The cache may have evicted it.
        return self._entries.get(f"path:{path}") is not None or None

    def builds(self, build: str) -> list[str]:
        (builds,) = self._entries.read("builds", 1) or [[]]
        if build not in builds:
            with self._entries.exclusive("builds"):
                (builds,) = self._entries.read("builds", 1) or [[]]
                builds = [item for item in builds if item != build][1 - protocol.MAX_BUILDS :]
                builds.append(build)
                self._entries.write("builds", [builds])
        return list(reversed(builds[: builds.index(build)]))

    def add(self, counts: Mapping[str, float]) -> None:
        with self._entries.exclusive("totals"):
            totals = self.totals()
            for name, count in counts.items():
                totals[name] = totals.get(name, 0) + count
            self._entries.write("totals", [totals])

    def totals(self) -> dict[str, float]:
        (totals,) = self._entries.read("totals", 1) or [{}]
        return dict(totals)

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        if process is None and not self._reported:
            return
        with self._entries.exclusive("processes"):
            reports = self._reports()
            reports.pop(self._id, None)
            if process is not None:
                reports[self._id] = [time.time(), process]
            self._entries.write("processes", [reports])
        self._reported = process is not None

    def _reports(self) -> dict[str, t.Any]:
        (reports,) = self._entries.read("processes", 1) or [{}]
        return {key: item for key, item in reports.items() if time.time() - item[0] < SILENT}

    def processes(self) -> list[dict[str, t.Any]]:
        return [process for _, process in self._reports().values()]

    def sizes(self) -> protocol.Sizes:
        return protocol.Sizes(None, None)

    def prune(self, **bounds: t.Any) -> int:
        raise self._unlisted()

    # The process.

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
        for lease in list(self._leases.values()):
            lease.release()
        with contextlib.suppress(Exception):
            self.report(None)
