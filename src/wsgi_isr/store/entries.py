"""`Entries`: pages, values and locks under names, in any cachelib cache or in one process."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import math
import pickle
import pickletools
import random
import secrets
import threading
import time
import typing as t
import zlib
from collections.abc import Callable, Iterable, Iterator

from cachelib import BaseCache, MemcachedCache, NullCache

from .protocol import Number, Record, StoreError, TooLarge

T = t.TypeVar("T")

_MAGIC = b"isr2"
#: cachelib takes a timeout of 0 for "evict first", and some servers a date of 32 bits: ten years.
RETENTION = 10 * 365 * 24 * 3600
#: Seconds for which outcomes are kept, and what is remembered of failures.
BRIEF, WEEK = 3600, 7 * 24 * 3600
#: Bytes of an entry at most, by the name of the cache's class, and what a server adds to it.
LIMITS = {"MemcachedCache": 2**20, "DynamoDbCache": 400 * 1024, "MongoDbCache": 16 * 2**20}
OVERHEAD = 512
#: Bytes of an entry that every cache takes; one that refuses larger ones alone has a limit.
SMALL = 1024
#: Bytes of a value, which is written and read as a whole.
MAX_VALUE = 256 * 1024
#: Seconds for which a lock is its owner's, who may have died, at most.
LOCK = 3
#: Longest wait for a lock that one owner keeps, and for one that goes from hand to hand.
PATIENCE, LONGEST = 0.5, 5.0
#: Seconds between two attempts to get one, and attempts that fail though nobody has it.
PAUSE, MAX_REFUSALS = (0.001, 0.01), 10
#: Values for a week or less that a process keeps.
MAX_BRIEF = 20_000


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
    return b"%08x%s\n%s%s" % (zlib.crc32(fields), fields, record.head, record.body)


def unframe(data: bytes | None, name: str) -> Record | None:
    """The page of a value; ``None`` for what is damaged, foreign or another page's."""
    fields, _, rest = (data or b"").partition(b"\n")
    try:
        if int(fields[:8], 16) != zlib.crc32(fields[8:]):
            return None
        found, labels, number, build, path, gone, length = json.loads(fields[8:])
        if found != name:
            return None
        where = (Number(*number), build, path, gone)
        return Record(name, tuple(labels), *where, rest[:length], rest[length:])
    except (ValueError, TypeError):
        return None


class Entries:
    """Bytes and values in a cache; what the app keeps in it stays readable for the app."""

    def __init__(self, cache: BaseCache, prefix: str) -> None:
        self._cache = cache
        if hasattr(cache, "serializer"):
            # A copy has the same data.
            self._cache = copy.copy(cache)
            t.cast(t.Any, self._cache).serializer = RawSerializer()
        self._prefix = prefix

    def _key(self, name: str) -> str:
        # Any prefix and name fit into any cache, and no two share a key.
        return hashlib.sha256(json.dumps([self._prefix, name]).encode()).hexdigest()

    @functools.cached_property
    def limit(self) -> float:
        """Bytes of an entry at most, as far as that is said."""
        names = (kind.__name__ for kind in type(self._cache).__mro__)
        limit: float = next((LIMITS[name] for name in names if name in LIMITS), math.inf)
        if isinstance(self._cache, MemcachedCache):
            client = next((it for it in vars(self._cache).values() if hasattr(it, "stats")), None)
            size = client and client.stats("settings").get(b"item_size_max")
            limit = size if isinstance(size, int) else limit
        return limit - OVERHEAD

    def get(self, name: str) -> bytes | None:
        data = self._cache.get(self._key(name))
        ours = isinstance(data, bytes) and data.startswith(_MAGIC)
        return bytes(data[len(_MAGIC) :]) if ours else None

    def set(self, name: str, data: bytes, seconds: int = RETENTION) -> None:
        if len(data) > self.limit:
            raise TooLarge(f"{len(data)} bytes are more than the {self.limit} that the cache takes")
        # Some caches answer None or False instead of raising.
        if not self._cache.set(self._key(name), _MAGIC + data, seconds):
            if len(data) > SMALL and self._cache.set(self._key("probe"), _MAGIC, BRIEF):
                raise TooLarge(f"the cache takes entries, but not one of {len(data)} bytes")
            raise StoreError(f"{type(self._cache).__name__} does not take an entry")

    def delete(self, name: str) -> None:
        self._cache.delete(self._key(name))

    def read(self, name: str, make: Callable[..., T]) -> T | None:
        """What `write` left, made again from its parts; ``None`` for anything else."""
        try:
            return make(*json.loads(self.get(name) or b"0"))
        except (ValueError, TypeError):
            return None

    def write(self, name: str, value: Iterable[t.Any], seconds: int = RETENTION) -> None:
        """
        :raises TooLarge: for a value over `MAX_VALUE` bytes, too.
        """
        data = json.dumps([*value]).encode()
        if len(data) > MAX_VALUE:
            raise TooLarge(f"{name} has {len(data)} bytes")
        self.set(name, data, seconds)

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """A lock over processes. A process that stops for longer than `LOCK` may lose it."""
        lock, token = f"lock:{name}", secrets.token_hex(8).encode()
        last: bytes | None = b""
        began = changed = time.monotonic()
        refusals = 0
        while True:
            self._cache.add(self._key(lock), _MAGIC + token, LOCK)
            # Where `add` is not atomic, the last of two writers has it. A client may have tried
            # twice. And FileSystemCache refuses to add where an expired entry lies.
            if (owner := self.get(lock)) == token:
                break
            refusals = 0 if owner else refusals + 1
            if refusals > MAX_REFUSALS:
                self.delete(lock)
            now = time.monotonic()
            if owner != last:
                last, changed = owner, now
            if now - changed > PATIENCE or now - began > LONGEST:
                raise StoreError("another process has the lock, or the cache takes no entry")
            time.sleep(random.uniform(*PAUSE))
        try:
            yield
        finally:
            if self.get(lock) == token:
                self.delete(lock)


class MemoryEntries(Entries):
    """Values in the memory of one process: they are kept as they are, and all locks are one.

    :param before: those of the process before, which go on; of the brief ones, failures.
    """

    def __init__(self, before: MemoryEntries | None) -> None:
        super().__init__(NullCache(), "")
        self._lasting: dict[str, t.Any] = {} if before is None else dict(before._lasting)
        #: With the times at which they end.
        self._brief: dict[str, tuple[t.Any, float]] = {}
        if before is not None:
            brief = before._brief.copy().items()
            self._brief = {name: item for name, item in brief if name.startswith("failure:")}
        self._mutex = threading.RLock()

    def get(self, name: str) -> t.Any:
        value, end = self._brief.get(name, (None, 0))
        return value if end > time.monotonic() else self._lasting.get(name)

    def read(self, name: str, make: Callable[..., T]) -> T | None:
        return t.cast("T | None", self.get(name))

    def set(self, name: str, data: t.Any, seconds: int = RETENTION) -> None:
        if seconds == RETENTION:
            self._lasting[name] = data
            return
        with self._mutex:
            self._brief[name] = data, time.monotonic() + seconds
            if len(self._brief) > MAX_BRIEF:
                del self._brief[next(iter(self._brief))]

    write = set  # type: ignore[assignment]

    def delete(self, name: str) -> None:
        self._brief.pop(name, None)

    def names(self, kind: str) -> list[str]:
        """The names of brief values of a kind."""
        return [name.removeprefix(kind) for name in list(self._brief) if name.startswith(kind)]

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        with self._mutex:
            yield
