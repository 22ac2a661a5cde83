"""A file per process with its counters, locked while the process lives.

The lock tells who is alive, not the process id: containers that share a volume have ids of their
own, and the kernel frees the lock of a process that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
import typing as t
import weakref
import zlib

from .records import is_at
from .records import open_file
from .redis_pages import match_prefix

#: Seconds for which an empty file without a lock stays: its owner may be about to lock it.
YOUNG = 10.0
#: Seconds after which a file is old where locks do not work at all, as on some networks.
OLD = 24 * 3600.0
#: Seconds for which a server has the counters of a process that does not renew them any more, and
#: between two renewals: nothing else tells who is alive.
FORGOTTEN, RENEWAL = 30, 10.0


class WorkerFiles:
    """The file of this process among those of all.

    :param folder: it is made with the first file.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._path = ""
        self._finalizer: weakref.finalize[..., t.Any] | None = None

    def after_fork(self) -> None:
        self._close()

    def leave(self, data: bytes) -> None:
        """Write the counters; nothing is made where the folder of the site is gone.

        :param data: without line ends.
        """
        descriptor = self._descriptor
        if descriptor is None or not is_at(descriptor, self._path):
            descriptor = self._open()
        line = b"%08x %s\n" % (zlib.crc32(data), data)
        # In place, so that the lock stays on it; readers know half a line by its checksum.
        os.pwrite(descriptor, line, 0)
        os.ftruncate(descriptor, len(line))

    def _close(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._descriptor = self._finalizer = None

    def _open(self) -> int:
        self._close()
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        self._path = os.path.join(self._folder, f"{os.getpid()}-{secrets.token_hex(8)}")
        descriptor = open_file(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._descriptor = descriptor
        self._finalizer = weakref.finalize(self, _close, descriptor, self._path, os.getpid())
        return descriptor

    def all(self) -> list[bytes]:
        """What the processes left that are alive; what others left is removed."""
        return [data for path in self._paths() if (data := _read_if_alive(path))]

    def sweep(self) -> int:
        """Remove the files of dead processes, and return how many there were."""
        return sum(_read_if_alive(path) is None for path in self._paths())

    def _paths(self) -> list[str]:
        try:
            return [os.path.join(self._folder, name) for name in sorted(os.listdir(self._folder))]
        except FileNotFoundError:
            return []


class WorkerKeys:
    """The same on a Redis server, which forgets a process that does not renew its key.

    :param prefix: of its keys.
    """

    def __init__(self, client: t.Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._key = prefix + secrets.token_hex(8)
        self._data: bytes | None = None
        self._kept_at = 0.0

    def leave(self, data: bytes) -> None:
        self._client.set(self._key, data, ex=FORGOTTEN)
        self._data, self._kept_at = data, time.monotonic()

    def keep(self) -> None:
        """Leave the same again, so that all know that this process lives."""
        data = self._data
        if data is not None and time.monotonic() - self._kept_at > RENEWAL:
            self.leave(data)

    def all(self) -> list[bytes]:
        keys = set(self._client.scan_iter(match=match_prefix(self._prefix), count=1000))
        return [data for key in sorted(keys) if (data := self._client.get(key)) is not None]


def _close(descriptor: int, path: str, pid: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)
        # A forked child closes what it inherited; the file and its lock are the parent's.
        if os.getpid() == pid:
            os.unlink(path)


def _read_if_alive(path: str) -> bytes | None:
    """The counters in a file, ``b""`` while there are none; ``None`` if it was removed."""
    try:
        descriptor = open_file(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        data = _read(descriptor)
        age = time.time() - os.fstat(descriptor).st_mtime
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # The owner locks it before he writes.
            dead = bool(data) or age > YOUNG
        except BlockingIOError:
            dead = False
        except OSError:
            dead = age > OLD
        if dead:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return None if dead else data
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> bytes:
    for _attempt in range(3):
        line = os.pread(descriptor, 2**16, 0).partition(b"\n")[0]
        check, _, data = line.partition(b" ")
        if data and check == b"%08x" % zlib.crc32(data):
            return data
    return b""
