"""Storage of bytes under names: adapters over cachelib, and files.

Names are digests, never bytes of a request, and values are bytes, never pickled. A storage
raises what its engine raises; the page store above it is the one place that catches.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import os
import secrets
import stat
import threading
import time
import typing as t
import weakref
from collections.abc import Iterator

from cachelib import BaseCache
from cachelib import FileSystemCache
from cachelib import SimpleCache

from ..metadata import GONE
from ..metadata import status_code
from ..page import peek
from .bounds import Bounds
from .bounds import Growth
from .coordination import StoreError
from .records import LITTER_AGE
from .records import replace_file

logger = logging.getLogger("wsgi_isr")

#: cachelib's timeout is loss of data, not staleness, and its 0 means "evict first": ten years,
#: which fit the 32 bits that some backends have for the date.
RETENTION = 10 * 365 * 24 * 3600
#: A longer file is no entry of ours.
MAX_ENTRY = 512 * 2**20
#: Seconds for which the time of a file's last use may be wrong.
RECENCY = 60.0
#: Permissions of a page, and of one that is gone (404, 410): reading a folder tells them apart.
MODES = (0o600, 0o400)


class Storage(t.Protocol):
    def get(self, name: str, used: bool = False) -> bytes | None:
        """The bytes under a name; ``None`` for none, and for what cannot be ours.

        :param used: they are for a visitor, and hence among the last to go.
        """

    def set(self, name: str, data: bytes) -> None:
        """Keep bytes under a name.

        :raises Exception: if they are not kept; what was there before then still is.
        """

    def delete(self, name: str) -> None: ...

    def names(self, path_digest: str | None = None) -> Iterator[str]:
        """All names, or those of one path.

        :raises NotImplementedError: for a backend that cannot list.
        """

    def after_fork(self) -> None: ...


class NullStorage:
    """Keeps nothing: the memory level alone."""

    def get(self, name: str, used: bool = False) -> bytes | None:
        return None

    def set(self, name: str, data: bytes) -> None:
        pass

    def delete(self, name: str) -> None:
        pass

    def names(self, path_digest: str | None = None) -> Iterator[str]:
        return iter(())

    def after_fork(self) -> None:
        pass


class RawSerializer:
    """Bytes as they are, for cachelib: its own serializers execute what they read (pickle)."""

    def dumps(self, value: object) -> bytes:
        # FileSystemCache keeps the number of its files through the serializer, too.
        return value if isinstance(value, bytes) else b"%d" % t.cast(int, value)

    def loads(self, data: object) -> object:
        if isinstance(data, bytes) and data.isdigit() and len(data) < 10:
            return int(data)
        return data

    def dump(self, value: object, file: t.BinaryIO) -> None:
        file.write(self.dumps(value))

    def load(self, file: t.BinaryIO) -> object:
        return self.loads(file.read())


class CachelibStorage:
    """Any cachelib cache.

    The cache handed over stays as it is; a copy of it, which shares its data, gets the
    serializer for raw bytes.
    """

    def __init__(self, cache: BaseCache, prefix: str) -> None:
        self._cache = copy.copy(cache)
        self._prefix = prefix
        self._cache.serializer = RawSerializer()  # type: ignore[attr-defined]

    def get(self, name: str, used: bool = False) -> bytes | None:
        data = self._cache.get(self._prefix + name)
        return data if isinstance(data, bytes) else None

    def set(self, name: str, data: bytes) -> None:
        # Some backends answer None or False instead of raising.
        if not self._cache.set(self._prefix + name, data, RETENTION):
            raise StoreError(f"{type(self._cache).__name__} did not take {len(data)} bytes")

    def delete(self, name: str) -> None:
        self._cache.delete(self._prefix + name)

    def names(self, path_digest: str | None = None) -> Iterator[str]:
        raise NotImplementedError(
            f"{type(self._cache).__name__} cannot list what it stores; files and Redis can"
        )

    def after_fork(self) -> None:
        """Connections of most clients do not survive a fork; hand over a callable for those."""


_simple_locks: weakref.WeakKeyDictionary[SimpleCache, tuple[int, t.Any]] = (
    weakref.WeakKeyDictionary()
)


class SimpleCacheStorage(CachelibStorage):
    """cachelib's cache in the memory of one process, which can be listed."""

    _cache: SimpleCache

    def __init__(self, cache: SimpleCache, prefix: str) -> None:
        super().__init__(cache, prefix)
        self._original = cache

    def names(self, path_digest: str | None = None) -> Iterator[str]:
        start = self._prefix + (path_digest or "")
        with self._cache._lock:
            keys = list(self._cache._cache)
        return (key.removeprefix(self._prefix) for key in keys if key.startswith(start))

    def after_fork(self) -> None:
        # Another thread may have held the lock at the moment of the fork. All who share the
        # cache get the same new one.
        if _simple_locks.get(self._original, (0, None))[0] != os.getpid():
            _simple_locks[self._original] = (os.getpid(), threading.RLock())
        self._original._lock = self._cache._lock = _simple_locks[self._original][1]


class FileStorage:
    """Files in a folder of our own, which all workers of a machine share.

    Unlike `cachelib.FileSystemCache` it does not wait sixteen seconds for a file that belongs
    to somebody else, cleans up after killed writers, and can be listed. A file's time of change
    is that of its last use.

    :param folder: it is created, for its owner alone.
    :param bounds: of all its files; `wsgi_isr.store.prune` keeps them.
    :raises OSError: where the folder cannot be written.
    """

    def __init__(self, folder: str, bounds: Bounds | None = None) -> None:
        self._folder = folder
        self.bounds = bounds or Bounds()
        #: What was added since the last pruning, by whatever process.
        self.growth = Growth(f"{folder}.growth", self.bounds)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._probe()
        self.sweep()

    def _probe(self) -> None:
        """Raise now if nothing can be written here, and not at the first page."""
        path = os.path.join(self._folder, f"probe.{secrets.token_hex(8)}.tmp")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)

    def sweep(self) -> int:
        """Remove temporary files of writers that were killed, and return how many there were."""
        limit = time.time() - LITTER_AGE
        count = 0
        for entry in self.scan():
            if entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < limit:
                        os.unlink(entry.path)
                        count += 1
        return count

    def path(self, name: str) -> str:
        # 256 folders by path: the variants of a page stand together, and listing them is quick.
        return f"{self._folder}/{name[:2]}/{name}"

    def get(self, name: str, used: bool = False) -> bytes | None:
        try:
            # Not blocking, should somebody have put a named pipe there.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self.path(name), flags)
        except FileNotFoundError:
            return None
        except OSError as error:
            # A symbolic link, or somebody else's file: none of ours, and it can be replaced.
            if error.errno in (errno.ELOOP, errno.EACCES, errno.ENXIO):
                return b""
            raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_ENTRY:
                return b""
            if used and not _is_recent(status):
                with contextlib.suppress(OSError):
                    os.utime(descriptor)
            return os.read(descriptor, status.st_size)
        finally:
            os.close(descriptor)

    def set(self, name: str, data: bytes) -> None:
        path = self.path(name)
        temporary = f"{path}.{secrets.token_hex(8)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        gone = is_gone(data)
        try:
            descriptor = os.open(temporary, flags, MODES[gone])
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            descriptor = os.open(temporary, flags, MODES[gone])
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                if file.write(data) != len(data):
                    raise StoreError("the disk is full")
            before = _size(path)
            replace_file(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self.growth.add(before, len(data))

    def touch(self, name: str) -> None:
        """Note that a page is used, to the minute; where that is not possible, it is not."""
        path = self.path(name)
        with contextlib.suppress(OSError):
            if not _is_recent(os.stat(path)):
                os.utime(path)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name))

    def names(self, path_digest: str | None = None) -> Iterator[str]:
        for entry in self.scan(path_digest and path_digest[:2]):
            if not entry.name.endswith(".tmp") and entry.name.startswith(path_digest or ""):
                yield entry.name

    def scan(self, bucket: str | None = None) -> Iterator[os.DirEntry[str]]:
        for folder in [bucket] if bucket else sorted(os.listdir(self._folder)):
            try:
                with os.scandir(os.path.join(self._folder, folder)) as entries:
                    yield from entries
            except (FileNotFoundError, NotADirectoryError):
                continue

    def after_fork(self) -> None:
        pass


def is_gone(data: bytes) -> bool:
    """Whether an entry is of a page that is not there (404, 410): made-up URLs have those."""
    head = peek(data)
    return head is not None and status_code(str(head.get("status"))) in GONE


def _is_recent(status: os.stat_result) -> bool:
    return 0 <= time.time() - status.st_mtime < RECENCY


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def adapt(cache: BaseCache, prefix: str) -> Storage:
    """The storage adapter of a cachelib cache."""
    threshold = getattr(cache, "_threshold", 0)
    if isinstance(cache, SimpleCache | FileSystemCache) and threshold == 500:
        logger.warning(
            "%s keeps 500 entries by default and is slow when it is full; give it a threshold%s",
            type(cache).__name__,
            " of 0" if isinstance(cache, FileSystemCache) else "",
        )
    if isinstance(cache, SimpleCache):
        return SimpleCacheStorage(cache, prefix)
    return CachelibStorage(cache, prefix)
