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


def open_signal(folder: str) -> t.Any:
    """Two counters that all processes of the machine and user see change."""
    digest = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:24]
    path = os.path.join(SHARED_MEMORY, f"wsgi-isr-{os.geteuid()}-{digest}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return StatSignal(folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return StatSignal(folder)
        if status.st_size < 16:
            os.ftruncate(descriptor, 16)
        return memoryview(mmap.mmap(descriptor, 16)).cast("Q")
    except (OSError, ValueError):
        return StatSignal(folder)
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
