"""`Entries`: bytes, JSON lists and locks under names in any cachelib cache; pages as bytes."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import pickle
import pickletools
import secrets
import struct
import threading
import time
import typing as t
import zlib
from collections.abc import Iterator, Sequence

from cachelib import BaseCache, MemcachedCache

from .protocol import Number, Record, StoreError, TooLarge

_MAGIC = b"isr2"
#: cachelib takes a timeout of 0 for "evict first", and some servers a date of 32 bits: ten years.
RETENTION = 10 * 365 * 24 * 3600
#: Seconds for which locks, leases and outcomes are kept, which end by other means; and failures.
BRIEF, WEEK = 3600, 7 * 24 * 3600
#: Bytes of an entry at most, by the name of the cache's class, and what a server adds to it.
LIMITS = {"MemcachedCache": 2**20, "DynamoDbCache": 400 * 1024, "MongoDbCache": 16 * 2**20}
OVERHEAD = 512
#: Bytes of an entry that every cache takes; one that refuses larger ones alone has a limit.
SMALL = 1024
#: Seconds for which a lock may stay unchanged before its owner counts as dead.
LOCK = 2.0
#: Longest wait for a lock.
LOCK_TIMEOUT = 0.5
#: Entries whose age is observed.
MAX_SEEN = 1000


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
        # Where `add` is not atomic, the last of two writers has it. A client may have tried twice.
        while not (self.add(key, token) and self._is_atomic) and (owner := self.get(key)) != token:
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
