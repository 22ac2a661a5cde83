"""Coordination through any cachelib cache that processes share, memcached above all: best effort.

All there is to build on is ``add``, which one of all callers succeeds with; where it is atomic, as
on memcached, a lock can be made of it. Two keys hold the order of renders and invalidations:

``clock``   lineage, the last number given, the number of the last invalidation
``epochs``  the last invalidation of each label

A server may throw either away at any time, and has lost both when it was restarted. Then a new
lineage begins, and pages of the old one count as stale.
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
from collections.abc import Iterator
from collections.abc import Sequence

from cachelib import BaseCache
from cachelib import MemcachedCache

from ..state import Epochs
from ..state import Invalidation
from . import leases
from .backend import CachelibStorage
from .backend import RETENTION
from .clients import own_client
from .coordination import Accept
from .coordination import Failure
from .coordination import Held
from .coordination import Lease
from .coordination import LOST
from .coordination import MAX_LABELS
from .coordination import Number
from .coordination import StoreError
from .coordination import TooLarge
from .following import Follower
from .following import POLL
from .leases import RemoteLease
from .records import format_line
from .records import parse_line

if t.TYPE_CHECKING:
    from .backend import Storage

logger = logging.getLogger("wsgi_isr")

#: Bytes of an entry at the most, by the name of the cache's class.
LIMITS = {"MemcachedCache": 2**20, "DynamoDbCache": 400 * 1024, "MongoDbCache": 16 * 2**20}
#: Bytes that a server adds to an entry: a key, and the head of an item.
OVERHEAD = 512
#: Bytes of the invalidations, written and read as a whole.
MAX_EPOCHS = 256 * 1024
#: Seconds that a lock outlives its holder; memcached counts in whole ones.
LOCK = 2
#: Longest wait for a lock.
LOCK_TIMEOUT = 0.5
#: Seconds by which the clocks of two machines may differ.
SKEW = 5.0
#: Seconds after which the invalidations are read again, so that the server keeps them.
REFRESH = 30.0


class PlainStorage(CachelibStorage):
    """Pages in a cache that may refuse large ones, and loses the old page when it does."""

    def __init__(self, cache: BaseCache, prefix: str) -> None:
        super().__init__(own_client(cache) if isinstance(cache, MemcachedCache) else cache, prefix)
        kinds = (kind.__name__ for kind in type(cache).__mro__)
        self._limit = next((LIMITS[kind] for kind in kinds if kind in LIMITS), None)
        self._asked = False

    @property
    def limit(self) -> int | None:
        """Bytes of a page at the most."""
        client: t.Any = getattr(self._cache, "_client", None)
        if not self._asked and isinstance(self._cache, MemcachedCache) and hasattr(client, "stats"):
            told = client.stats("settings").get(b"item_size_max")
            self._limit = told if isinstance(told, int) else self._limit
        self._asked = True
        return None if self._limit is None else self._limit - OVERHEAD

    def set(self, name: str, data: bytes) -> None:
        limit = self.limit
        if limit is not None and len(data) > limit:
            raise TooLarge(f"{len(data)} bytes are more than the {limit} that the store takes")
        super().set(name, data)

    # Small values beside the pages.

    def read(self, name: str) -> t.Any:
        data = self.get(name)
        return None if data is None else parse_line(data.strip())

    def write(self, name: str, value: object, seconds: float = RETENTION) -> None:
        self._write(name, format_line(value), seconds)

    def _write(self, name: str, data: bytes, seconds: float) -> None:
        if not self._cache.set(self._prefix + name, data, math.ceil(seconds)):
            raise StoreError(f"{type(self._cache).__name__} did not take {name}")

    def add(self, name: str, value: object, seconds: float) -> bool:
        return bool(self._cache.add(self._prefix + name, format_line(value), math.ceil(seconds)))

    def leave(self, name: str, data: bytes, seconds: float) -> None:
        if self.limit is None or len(data) <= self.limit:
            self._write(name, data, seconds)


class Clock(t.NamedTuple):
    lineage: str
    sequence: int
    #: Number of the last invalidation.
    changed: int


class PlainCoordination:
    """Coordination of all processes that share a cache, as well as ``get``, ``set`` and ``add`` go.

    Nothing is connected before it is needed.
    """

    watch = (0.005, 0.05)

    def __init__(self, storage: PlainStorage) -> None:
        self._storage = storage
        # Not from 0: pages that were in memory before a fork know the parent's numbers.
        self._marks = itertools.count(secrets.randbits(62))
        self.signal = [next(self._marks), next(self._marks)]
        self._epochs = Epochs("")
        self._changed = 0
        self._refreshed = 0.0
        # Guards the three above. Nothing is asked of the server under it.
        self._lock = threading.Lock()
        self._follower = Follower(self.follow)
        self._heart = leases.Heart()

    def after_fork(self) -> None:
        """There is nothing from before: each process has its own."""

    @contextlib.contextmanager
    def _exclusive(self, name: str) -> Iterator[None]:
        """A lock over processes. Who is stopped for longer than it lasts may find it taken."""
        key, token = f"lock:{name}", secrets.token_hex(8)
        deadline = time.monotonic() + LOCK_TIMEOUT
        pause = 0.001
        while not self._storage.add(key, token, LOCK):
            if time.monotonic() > deadline:
                raise StoreError("another process holds the lock")
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        try:
            yield
        finally:
            if self._storage.read(key) == token:
                self._storage.delete(key)

    # Renders and invalidations in one order.

    def _clock(self) -> Clock | None:
        record = self._storage.read("clock")
        return Clock(*record) if isinstance(record, list) and len(record) == 3 else None

    def _begin(self) -> Clock:
        """Start anew where something was lost: all that is stored counts as stale from now on."""
        clock = Clock(secrets.token_hex(8), 0, 0)
        self._store(Epochs(clock.lineage))
        self._storage.write("clock", clock)
        return clock

    def _store(self, epochs: Epochs) -> None:
        limit = min(MAX_EPOCHS, self._storage.limit or MAX_EPOCHS)
        while True:
            items = [[label, *numbers] for label, numbers in epochs.items()]
            record = [epochs.lineage, epochs.sequence, epochs.floor, items]
            if len(items) <= MAX_LABELS and len(format_line(record)) <= limit:
                self._storage.write("epochs", record)
                return
            epochs.forget_oldest(len(items) // 2)

    def _load(self, clock: Clock) -> Epochs | None:
        """The invalidations up to a time, unless some of them were lost."""
        record = self._storage.read("epochs")
        if not isinstance(record, list) or record[0] != clock.lineage or record[1] < clock.changed:
            return None
        epochs = Epochs(clock.lineage, record[1])
        epochs.floor = Invalidation(*record[2])
        for label, last, hard in record[3]:
            if hard:
                epochs.apply(hard, label, True)
            epochs.apply(last, label, False)
        return epochs

    def _adopt(self, epochs: Epochs) -> None:
        with self._lock:
            known = self._epochs
            if known.lineage and known.lineage != epochs.lineage:
                logger.warning(LOST)
            if known.lineage != epochs.lineage or known.sequence < epochs.sequence:
                self._epochs = epochs
                self.signal[0] = next(self._marks)
            self._refreshed = time.monotonic()

    def _sync(self) -> None:
        """Take in what others have invalidated."""
        known = self._epochs
        clock = self._clock()
        if (
            clock is None
            or (clock.lineage, clock.changed) != (known.lineage, known.sequence)
            or time.monotonic() - self._refreshed > REFRESH
        ):
            epochs = None if clock is None else self._load(clock)
            if epochs is None:
                with self._exclusive("clock"):
                    clock = self._clock()
                    epochs = None if clock is None else self._load(clock)
                    epochs = epochs or Epochs(self._begin().lineage)
            self._adopt(epochs)
        # Nobody counts the pages that are stored: any of them may have been.
        self.signal[1] = next(self._marks)
        self._follower.looked()

    def epochs(self) -> Epochs:
        if not self._epochs.lineage:
            self._sync()
        self._follower.start()
        return self._epochs

    def next_number(self) -> Number:
        with self._exclusive("clock"):
            clock = self._clock() or self._begin()
            clock = clock._replace(sequence=clock.sequence + 1)
            self._storage.write("clock", clock)
        return Number(clock.lineage, clock.sequence)

    def invalidate(self, labels: Sequence[str], hard: bool) -> Number:
        with self._exclusive("clock"):
            clock = self._clock() or self._begin()
            epochs = self._load(clock)
            if epochs is None:
                clock = self._begin()
                epochs = Epochs(clock.lineage)
            number = clock.sequence + 1
            for label in labels:
                epochs.apply(number, label, hard)
            epochs.sequence = number
            # In this order: who finds the number finds the invalidation.
            self._store(epochs)
            self._storage.write("clock", clock._replace(sequence=number, changed=number))
        self._adopt(epochs)
        return Number(clock.lineage, number)

    # What others do.

    def poll(self) -> None:
        """No round trip, unless the thread that makes it does not run."""
        self._follower.start()
        if self._follower.error is not None:
            raise StoreError(str(self._follower.error)) from self._follower.error
        if self._follower.is_late:
            self._sync()

    def probe(self) -> None:
        """Whether the server takes writes and can be followed."""
        self._storage.write("probe", 1, LOCK)
        self._sync()

    def follow(self) -> None:
        self._sync()
        time.sleep(POLL)

    def stored(self, name: str) -> object:
        return self.signal[1]

    # One render of a page.

    def acquire(self, name: str, seconds: float, on_demand: bool) -> Lease | Held:
        lease = RemoteLease(name, seconds, on_demand, self._extend, self._release)
        held = leases.take(self._heart, lease, seconds, lambda term: self._take(lease, term))
        return lease if held is None else Held(held)

    def _take(self, lease: RemoteLease, term: float) -> str | None:
        """Have the lease, or say who has it."""
        if self._storage.add(f"lease:{lease.name}", _record(lease), term):
            return None
        if (holder := self._holder(lease)) is not None:
            return holder
        with self._exclusive(f"lease:{lease.name}"):
            if (holder := self._holder(lease)) is not None:
                return holder
            self._storage.write(f"lease:{lease.name}", _record(lease), term)
            return None

    def _holder(self, lease: RemoteLease) -> str | None:
        """Who has the lease and may keep it."""
        record = self._storage.read(f"lease:{lease.name}")
        if not isinstance(record, list) or len(record) != 3:
            return None
        token, deadline, on_demand = record
        if time.time() > deadline + SKEW or (lease.on_demand and not on_demand):
            return None
        return str(token)

    def _is_ours(self, lease: RemoteLease) -> bool:
        record = self._storage.read(f"lease:{lease.name}")
        return isinstance(record, list) and record[:1] == [lease.token]

    def _extend(self, lease: RemoteLease, term: float) -> bool:
        if not self._is_ours(lease):
            return False
        self._storage.write(f"lease:{lease.name}", _record(lease), term)
        return True

    def _release(self, lease: RemoteLease, outcome: bytes | None) -> None:
        if self._is_ours(lease):
            if outcome is not None:
                self._storage.leave(f"outcome:{lease.token}", outcome, leases.OUTCOME + 1)
            self._storage.delete(f"lease:{lease.name}")

    def outcome(self, name: str, token: str) -> bytes | None:
        return self._storage.get(f"outcome:{token}")

    # Pages.

    def swap(self, storage: Storage, name: str, data: bytes, accept: Accept) -> bool:
        with self._exclusive(f"page:{name}"):
            if not accept(storage.get(name)):
                return False
            storage.set(name, data)
        self.signal[1] = next(self._marks)
        return True

    def remove(self, storage: Storage, name: str) -> None:
        with self._exclusive(f"page:{name}"):
            storage.delete(name)
        self.signal[1] = next(self._marks)

    def failure(self, name: str) -> Failure | None:
        record = self._storage.read(f"failure:{name}")
        return Failure.from_record(record)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        if failure is None:
            self._storage.delete(f"failure:{name}")
        else:
            self._storage.write(f"failure:{name}", failure, leases.FAILURE)


def _record(lease: RemoteLease) -> list[object]:
    left = lease.deadline - time.monotonic()
    return [lease.token, time.time() + left, lease.on_demand]
