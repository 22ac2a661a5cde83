"""Stores over any cachelib cache: `CachelibStore` for one that processes share, memcached above
all, and `LocalCacheStore` for one in a process.

All there is to build on is ``get``, ``set``, ``delete`` and ``add``; where ``add`` is atomic, as on
memcached, it makes a lock. Two entries of a shared cache carry the order of events:

``clock``   lineage, the last number given, the number of the last invalidation
``epochs``  the last invalidation of each label

A server may evict either. Then a new lineage begins. Labels are bounded by the size of one entry:
when the oldest are forgotten, all pages from before them count as stale.

Nothing compares the clocks of two machines: an entry of a process that lives changes every second,
and whoever sees one unchanged for longer takes its owner for dead.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import os
import pickle
import pickletools
import secrets
import struct
import threading
import time
import typing as t
import zlib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

from cachelib import BaseCache
from cachelib import MemcachedCache
from cachelib import SimpleCache

from ..threads import start
from . import protocol
from .epochs import Epochs
from .epochs import replaces
from .local import KIND as MEMORY
from .local import Lease
from .local import LocalStore
from .local import Plain
from .protocol import Busy
from .protocol import Invalidation
from .protocol import Number
from .protocol import Record
from .protocol import Stored
from .protocol import StoreError
from .protocol import TooLarge
from .protocol import Validity

logger = logging.getLogger("wsgi_isr")

KIND = protocol.Kind("cachelib", "network", False, False, False, False, True)
MEMCACHED = KIND._replace(name="memcached", one_render=True)
LOCAL = MEMORY._replace(name="local", exact=False, lists=False)

_MAGIC = b"isr2"
#: cachelib takes a timeout of 0 for "evict first", and some servers a date of 32 bits: ten years.
RETENTION = 10 * 365 * 24 * 3600
#: Seconds for which locks, leases and outcomes are kept; they end by other means.
BRIEF = 3600
#: Bytes of an entry at most, by the name of the cache's class, and what a server adds to it.
LIMITS = {"MemcachedCache": 2**20, "DynamoDbCache": 400 * 1024, "MongoDbCache": 16 * 2**20}
OVERHEAD = 512
#: Bytes of an entry that every cache takes; one that refuses larger ones alone has a limit.
SMALL = 1024
#: Bytes of the invalidations, written and read as a whole.
MAX_EPOCHS = 256 * 1024
#: Seconds for which a lock, and a lease, may stay unchanged before its owner counts as dead.
LOCK, TERM = 2.0, 3.0
#: Longest wait for a lock.
LOCK_TIMEOUT = 0.5
#: Entries whose age is observed.
MAX_SEEN = 1000
#: Seconds between two heartbeats, and from which a process that reports nothing counts as gone.
BEAT, SILENT = 1.0, 60.0
#: Seconds between two reads of the clock, and after which the invalidations are read again, so
#: that the server keeps them.
POLL, REFRESH = 0.5, 30.0


class RawSerializer:
    """Bytes as they are, for cachelib: its own serializers execute what they read (pickle)."""

    def dumps(self, value: object) -> bytes:
        # FileSystemCache keeps the number of its files through the serializer, too.
        return value if isinstance(value, bytes) else pickle.dumps(value)

    def loads(self, data: object) -> object:
        if not isinstance(data, bytes) or data.startswith(_MAGIC):
            return data
        # That number, read and not executed.
        with contextlib.suppress(ValueError):
            for code, value, _ in pickletools.genops(data):
                if code.name.startswith(("BININT", "LONG1")):
                    return value
        return 0

    def dump(self, value: object, file: t.BinaryIO) -> None:
        file.write(self.dumps(value))

    def load(self, file: t.BinaryIO) -> object:
        return self.loads(file.read())


def frame(record: Record) -> bytes:
    """A page as one value."""
    fields = json.dumps([*record[:6], len(record.head)]).encode()
    head = struct.pack(">II", len(fields), zlib.crc32(fields))
    return b"".join((head, fields, record.head, record.body))


def unframe(data: bytes | None, name: str) -> Record | None:
    """The page of a value; ``None`` for what is damaged, foreign or another page's."""
    data = data or b""
    try:
        size, check = struct.unpack_from(">II", data)
        fields, rest = data[8 : 8 + size], data[8 + size :]
        found, labels, number, build, path, gone, length = json.loads(fields)
        number = Number(*number)
    except (struct.error, ValueError, TypeError):
        return None
    if found != name or zlib.crc32(fields) != check:
        return None
    return Record(name, tuple(labels), number, build, path, gone, rest[:length], rest[length:])


class Entries:
    """Bytes under names in a cache; what the app keeps in it stays readable for the app."""

    def __init__(self, cache: BaseCache, prefix: str) -> None:
        self._cache = cache
        if hasattr(cache, "serializer"):
            # A copy has the same data.
            self._cache = copy.copy(cache)
            t.cast(t.Any, self._cache).serializer = RawSerializer()
        self._prefix = prefix
        names = (kind.__name__ for kind in type(cache).__mro__)
        self._limit = next((LIMITS[name] for name in names if name in LIMITS), None)
        #: Whether one of all callers succeeds with ``add``.
        self._is_atomic = self._ask = isinstance(cache, MemcachedCache)
        #: When an entry was first seen as it is.
        self._seen: dict[str, tuple[object, float]] = {}
        self._lock = threading.Lock()

    def _key(self, name: str) -> str:
        # Any prefix and name fit into any cache, and no two share a key.
        return hashlib.sha256(json.dumps([self._prefix, name]).encode()).hexdigest()

    @property
    def limit(self) -> float:
        """Bytes of an entry at most, as far as that is said."""
        if self._ask:
            client = next((v for v in vars(self._cache).values() if hasattr(v, "stats")), None)
            size = client and client.stats("settings").get(b"item_size_max")
            self._limit, self._ask = size if isinstance(size, int) else self._limit, False
        return math.inf if self._limit is None else self._limit - OVERHEAD

    def get(self, name: str) -> bytes | None:
        data = self._cache.get(self._key(name))
        ours = isinstance(data, bytes) and data.startswith(_MAGIC)
        return bytes(data[len(_MAGIC) :]) if ours else None

    def set(self, name: str, data: bytes, seconds: int = RETENTION) -> None:
        if len(data) > self.limit:
            raise TooLarge(f"{len(data)} bytes are more than the {self.limit} that the cache takes")
        # Some caches answer None or False instead of raising.
        if not self._cache.set(self._key(name), _MAGIC + data, seconds):
            small = self._cache.set(self._key("probe"), _MAGIC, BRIEF)
            if len(data) > SMALL and small:
                raise TooLarge(f"the cache takes entries, but not one of {len(data)} bytes")
            raise StoreError(f"{type(self._cache).__name__} does not take an entry")

    def add(self, name: str, data: bytes) -> bool:
        return bool(self._cache.add(self._key(name), _MAGIC + data, BRIEF))

    def delete(self, name: str) -> None:
        self._cache.delete(self._key(name))

    def page(self, name: str) -> Record | None:
        return unframe(self.get(f"page:{name}"), name)

    def read(self, name: str, length: int) -> list[t.Any] | None:
        """A list of so many items, unless the entry is something else."""
        try:
            value = json.loads(self.get(name) or b"null")
        except ValueError:
            return None
        return value if isinstance(value, list) and len(value) == length else None

    def write(self, name: str, value: Sequence[t.Any], seconds: int = RETENTION) -> None:
        self.set(name, json.dumps(value).encode(), seconds)

    def is_dead(self, name: str, entry: object, seconds: float) -> bool:
        """Whether an entry has been the same for so long."""
        now = time.monotonic()
        with self._lock:
            seen = self._seen.pop(name, None)
            if seen is None or seen[0] != entry:
                seen = entry, now
            self._seen[name] = seen
            if len(self._seen) > MAX_SEEN:
                del self._seen[next(iter(self._seen))]
            return now - seen[1] > seconds

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """A lock over processes. A process that stops for longer than `LOCK` may lose it."""
        key, token = f"lock:{name}", secrets.token_hex(8).encode()
        deadline, pause = time.monotonic() + LOCK_TIMEOUT, 0.001
        # Where `add` is not atomic, the last of two writers has it.
        while not (self.add(key, token) and (self._is_atomic or self.get(key) == token)):
            owner = self.get(key)
            # FileSystemCache refuses to add where an expired entry lies.
            if not self._is_atomic if owner is None else self.is_dead(key, owner, LOCK):
                self.delete(key)
            if time.monotonic() > deadline:
                raise StoreError("another process has the lock, or the cache takes no entry")
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        try:
            yield
        finally:
            if self.get(key) == token:
                self.delete(key)


class LocalCacheStore(LocalStore):
    """The order in memory, and pages in a cache, of one process.

    A child goes on in a new cache: that of its parent may have locks that nobody gives back there.
    """

    kind = LOCAL

    def __init__(self, cache: BaseCache, prefix: str) -> None:
        super().__init__()
        self._prefix, self._entries = prefix, Entries(cache, prefix)

    def after_fork(self) -> None:
        if self._pid != os.getpid():
            self._entries = Entries(SimpleCache(), self._prefix)
        super().after_fork()

    records, prune = Plain.records, Plain.prune

    def get(self, name: str) -> Stored | None:
        with self._lock:
            record = self._entries.page(name)
            return None if record is None else Stored(record, self._validity(record))

    def put(self, record: Record) -> Validity | None:
        with self._lock:
            old = self._entries.page(record.name)
            if old and not replaces(record.number, old.number, self._epochs.lineage):
                return None
            self._entries.set(f"page:{record.name}", frame(record))
            return super().put(record)

    def delete(self, name: str) -> None:
        with self._lock:
            self._entries.delete(f"page:{name}")
            super().delete(name)


class Clock(t.NamedTuple):
    lineage: str
    sequence: int
    #: Number of the last invalidation.
    changed: int


class CachelibStore(Plain):
    """Pages and their order in a cache that processes share."""

    def __init__(self, cache: BaseCache, prefix: str, kind: protocol.Kind = KIND) -> None:
        super().__init__()
        self.kind = kind
        self._entries = Entries(cache, prefix)
        self._epochs = Epochs("")
        self._refreshed = 0.0
        self._leases: dict[str, Lease] = {}
        self._beating = False
        self._id = secrets.token_hex(8)
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
        while True:
            record = [epochs.lineage, epochs.changed, epochs.floor, epochs.since(0)]
            size = len(json.dumps(record))
            if size <= min(MAX_EPOCHS, self._entries.limit):
                return self._entries.write("epochs", record)
            epochs.forget_oldest(len(epochs.labels) // 2)

    def _load(self, clock: Clock | None) -> Epochs | None:
        """The invalidations up to a time, unless some of them were lost."""
        record = None if clock is None else self._entries.read("epochs", 4)
        if clock is None or record is None:
            return None
        epochs = Epochs(clock.lineage)
        lineage, epochs.changed, epochs.floor, invalidations = record
        if lineage != clock.lineage or epochs.changed < clock.changed:
            return None
        for invalidation in invalidations:
            epochs.apply(Invalidation(*invalidation))
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
        if clock is not None and not late and clock == (mine.lineage, clock[1], mine.changed):
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
            clock = self._clock()
            epochs = self._load(clock)
            if clock is None or epochs is None:
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
        record = self._entries.page(name)
        return None if record is None else Stored(record, self._validity(record))

    def put(self, record: Record) -> Validity | None:
        with self._entries.exclusive(f"page:{record.name}"):
            old, lineage = self._entries.page(record.name), self._sync().lineage
            if old and not replaces(record.number, old.number, lineage):
                return None
            self._entries.set(f"page:{record.name}", frame(record))
        self.signal[1] += 1
        return self._validity(record)

    def delete(self, name: str) -> None:
        with self._entries.exclusive(f"page:{name}"):
            self._entries.delete(f"page:{name}")
        self.signal[1] += 1

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> protocol.Lease | Busy:
        lease = Lease(self._end, name, seconds, demanded)
        # First without the lock: many may ask.
        if (busy := self._busy(lease)) is None:
            with self._entries.exclusive(f"lease:{name}"):
                if (busy := self._busy(lease)) is None:
                    self._write(lease, self._keep(lease))
        return busy or lease

    def _busy(self, lease: Lease) -> Busy | None:
        """Who else has a lease and keeps it."""
        record = self._entries.read(entry := f"lease:{lease.name}", 4)
        if record is None or (lease.demanded and not record[2]):
            return None
        return None if self._entries.is_dead(entry, record, record[3]) else Busy(record[0])

    def _write(self, lease: Lease, beats: bool) -> None:
        left = max(0.0, lease.deadline - time.monotonic())
        term = min(TERM, left) if beats else left
        record = [lease.token, secrets.token_hex(4), lease.demanded, term]
        self._entries.write(f"lease:{lease.name}", record, BRIEF)

    def _keep(self, lease: Lease) -> bool:
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
                with contextlib.suppress(Exception), self._entries.exclusive(f"lease:{lease.name}"):
                    alive = lease.token in self._leases and time.monotonic() < lease.deadline
                    if alive and self._is_own(lease):
                        self._write(lease, True)
                    else:
                        self._leases.pop(lease.token, None)

    def _is_own(self, lease: Lease) -> bool:
        record = self._entries.read(f"lease:{lease.name}", 4)
        return record is not None and record[0] == lease.token

    def _end(self, lease: Lease, outcome: bytes | None) -> None:
        self._leases.pop(lease.token, None)
        with self._entries.exclusive(f"lease:{lease.name}"):
            # Unless another has taken it over.
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

    # What exists, and what was counted.

    def list_path(self, path: str) -> None:
        self._entries.set(f"path:{path}", b"")

    def has_path(self, path: str) -> bool | None:
        # The cache may have evicted it.
        return self._entries.get(f"path:{path}") is not None or None

    def _value(self, name: str, empty: t.Any) -> t.Any:
        return (self._entries.read(name, 1) or [empty])[0]

    @contextlib.contextmanager
    def _change(self, name: str, empty: t.Any) -> Iterator[t.Any]:
        """A value, to be changed in place."""
        with self._entries.exclusive(name):
            yield (value := self._value(name, empty))
            self._entries.write(name, [value])

    def builds(self, build: str) -> list[str]:
        builds: list[str] = self._value("builds", [])
        if build not in builds:
            with self._change("builds", []) as builds:
                builds.append(build)
                del builds[: -protocol.MAX_BUILDS]
        return builds[: builds.index(build)][::-1]

    def add(self, counts: Mapping[str, float]) -> None:
        with self._change("totals", {}) as totals:
            for name, count in counts.items():
                totals[name] = totals.get(name, 0) + count

    def totals(self) -> dict[str, float]:
        return dict(self._value("totals", {}))

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        if process is None and self._id not in self._value("processes", {}):
            return
        with self._change("processes", {}) as reports:
            reports[self._id] = [time.time(), process]
            for key in [key for key, item in reports.items() if not _is_running(*item)]:
                del reports[key]

    def processes(self) -> list[dict[str, t.Any]]:
        return [item[1] for item in self._value("processes", {}).values() if _is_running(*item)]

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


def _is_running(reported: float, process: object) -> bool:
    return process is not None and time.time() - reported < SILENT
