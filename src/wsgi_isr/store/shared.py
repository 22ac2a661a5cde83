"""Two counters that all processes of a machine see change: what a hit costs is reading one.

They are in memory that processes share by name. They are not in the cache folder: touching mapped
memory of a truncated file kills the process. Where there is no such memory, ``stat`` stands in.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import stat
import typing as t

from .records import is_at
from .records import open_file

#: Where memory that processes share by name is found, on Linux.
SHARED_MEMORY = "/dev/shm"
#: Bytes of the counters.
COUNTERS = 16


def open_signal(folder: str) -> t.Any:
    """Two counters that all processes of the machine and user see change.

    :param folder: it exists; its path stands in the file too, so that `sweep` can tell.
    """
    real = os.path.realpath(folder).encode()
    path = os.path.join(SHARED_MEMORY, f"{_prefix()}{hashlib.sha256(real).hexdigest()[:24]}")
    try:
        descriptor = _open_locked(path)
    except OSError:
        return StatSignal(folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return StatSignal(folder)
        if status.st_size < COUNTERS + len(real):
            os.ftruncate(descriptor, COUNTERS)
            os.pwrite(descriptor, real, COUNTERS)
        return memoryview(mmap.mmap(descriptor, COUNTERS)).cast("Q")
    except (OSError, ValueError):
        return StatSignal(folder)
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _prefix() -> str:
    return f"wsgi-isr-{os.geteuid()}-"


def _open_locked(path: str) -> int:
    """Open a file of counters, and keep `sweep` from removing it meanwhile."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def sweep() -> int:
    """Remove the counters of this user's folders that are gone, and return how many there were."""
    try:
        names = [name for name in os.listdir(SHARED_MEMORY) if name.startswith(_prefix())]
    except OSError:
        return 0
    return sum(_remove_if_gone(os.path.join(SHARED_MEMORY, name)) for name in names)


def _remove_if_gone(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = os.pread(descriptor, 2**16, COUNTERS)
        # Only now: who opens counters has made the folder before.
        if not folder or os.path.lexists(folder):
            return False
        os.unlink(path)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


class StatSignal:
    """The same two values from ``stat``: slower, and right without shared memory."""

    def __init__(self, folder: str) -> None:
        self._paths = (os.path.join(folder, "generation"), os.path.join(folder, "stores"))

    def __getitem__(self, index: int) -> int:
        try:
            return os.stat(self._paths[index]).st_size
        except OSError:
            return -1

    def __setitem__(self, index: int, value: int) -> None:
        # Each change is one more byte of a sparse file: sizes never repeat, as times may.
        descriptor = open_file(self._paths[index], os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(descriptor, max(value, os.fstat(descriptor).st_size + 1))
        finally:
            os.close(descriptor)
