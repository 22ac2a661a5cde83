"""What processes share besides the database: two counters, a lock, and who is alive.

The counters are in memory that processes share by name: what a hit costs is reading one. They are
not in the cache folder, because touching mapped memory of a truncated file kills the process.
Where there is no such memory, a file in the folder stands in, which is read and never mapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import secrets
import stat
import struct
import threading
import time
import typing as t
import weakref
from collections.abc import Iterator

from .protocol import ReadOnly, StoreError
from .schema import translate, unwritable

#: Longest wait for the lock: a frozen process may have it.
LOCK_TIMEOUT = 1.0
#: Where memory that processes share by name is found, on Linux.
SHARED_MEMORY = "/dev/shm"
_LAYOUT = struct.Struct("=QQ")
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Counters:
    """Two counters that all processes of the machine and user see change.

    :param folder: it need not exist yet.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.realpath(folder)
        name = hashlib.sha256(self._folder.encode()).hexdigest()[:24]
        self._paths = (os.path.join(SHARED_MEMORY, _prefix() + name), f"{self._folder}/counters")
        self.used: tuple[str, os.stat_result] | None = None
        #: Read ``[0]`` and ``[1]``. `check` replaces it.
        self.values: t.Any = (0, 0)

    def check(self) -> None:
        """Use the counters that the neighbours have, if these are other ones."""
        if self.used is not None:
            with contextlib.suppress(OSError):
                # An inode is not used again while it is open here.
                status = os.stat(self.used[0])
                if os.path.samestat(status, self.used[1]) and status.st_size >= _LAYOUT.size:
                    return
        self.close()
        for path in self._paths:
            with contextlib.suppress(OSError, ValueError):
                self._open(path)
                return

    def bump(self, index: int) -> None:
        """Change a counter, under the lock of all writers."""
        self.check()
        if self.used is not None:
            self.values[index] = (self.values[index] + 1) % 2**63

    def close(self) -> None:
        self.used, self.values = None, (0, 0)

    def _open(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise ValueError("somebody else's file")
            if status.st_size < _LAYOUT.size:
                # They begin anywhere, so that they differ from those that were there before.
                content = _LAYOUT.pack(secrets.randbits(62), secrets.randbits(62))
                os.pwrite(descriptor, content + self._folder.encode(), 0)
            if path == self._paths[0]:
                self.values = memoryview(mmap.mmap(descriptor, _LAYOUT.size)).cast("Q")
            else:
                self.values = _FileCounters(os.dup(descriptor))
        finally:
            os.close(descriptor)
        self.used = path, status


class _FileCounters:
    """The same counters, read from the file each time: slower, and safe where it is truncated."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def __getitem__(self, index: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, 8, index * 8), "little")

    def __setitem__(self, index: int, value: int) -> None:
        os.pwrite(self._descriptor, value.to_bytes(8, "little"), index * 8)


def _prefix() -> str:
    return f"wsgi-isr-{os.geteuid()}-"


def sweep() -> None:
    """Remove the counters of this user's folders that are gone."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHARED_MEMORY):
            if entry.name.startswith(_prefix()) and entry.is_file(follow_symlinks=False):
                with open(entry.path, "rb") as file:
                    folder = file.read(2**13)[_LAYOUT.size :]
                # A process that comes to use them now notices within a second.
                if folder and not os.path.lexists(folder):
                    os.unlink(entry.path)


class Lock:
    """The one lock of all writers, over threads and processes; it ends with its process.

    As a context manager it raises `ReadOnly` if the folder cannot be written, and `StoreError` if
    the lock is not to be had in time.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.threads = threading.RLock()
        self._depth, self._descriptor = 0, -1

    @property
    def taken(self) -> bool:
        """Whether this thread has it; for one that has ``threads``."""
        return self._depth > 0

    def __enter__(self) -> None:
        if not self.threads.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError("another thread has the lock of the cache folder")
        try:
            if not self._depth:
                self._wait()
            self._depth += 1
        except BaseException as error:
            self.threads.release()
            if isinstance(error, OSError):
                raise translate(error) from error
            raise

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            # Closing is not enough: a child forked meanwhile has the descriptor too.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.threads.release()

    def _wait(self) -> None:
        for _ in pauses():
            locked = False
            if self._descriptor < 0:
                if reason := unwritable(self._folder):
                    raise ReadOnly(f"{self._folder}: {reason}")
                path = os.path.join(self._folder, "lock")
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            if not os.fstat(self._descriptor).st_nlink:
                # The folder was removed; the lock of a new one is another.
                self.close()
            elif locked:
                return
        raise StoreError("another process has the lock of the cache folder")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def after_fork(self) -> None:
        """Have no part in what the parent's threads were doing."""
        self.close()
        self._depth, self.threads = 0, threading.RLock()


def pauses() -> Iterator[bool]:
    """Short pauses until the longest wait is over."""
    deadline, pause = time.monotonic() + LOCK_TIMEOUT, 0.0001
    yield True
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.002)
        yield True


class Presence:
    """A locked file of this process: where its lock is free, the process is gone.

    :param folder: of the store.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, "processes")
        self._descriptor = -1
        self.token = secrets.token_hex(8)

    def ensure(self) -> None:
        """Be there for others; under the lock of all writers, so that nobody sees it unlocked.

        :raises OSError: if that is not possible.
        """
        path = os.path.join(self._folder, self.token)
        if self._descriptor >= 0 and os.path.exists(path):
            return
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        os.makedirs(self._folder, 0o700, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def alive(self, token: str) -> bool:
        """Whether a process still runs."""
        if token == self.token:
            return True
        try:
            descriptor = os.open(os.path.join(self._folder, token), os.O_RDONLY | _FLAGS)
        except OSError as error:
            return not isinstance(error, FileNotFoundError)
        try:
            # A shared lock: two who ask at once do not take each other for it.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except OSError:
            return True
        finally:
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove what killed processes left; under the lock of all writers."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):
                if not self.alive(name):
                    os.unlink(os.path.join(self._folder, name))

    def close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._folder, self.token))
            self.after_fork()

    def after_fork(self) -> None:
        """Be another process than the parent, whose lock ends with the parent alone."""
        if self._descriptor >= 0:
            # Not unlocked: the lock is shared with the parent of a fork.
            os.close(self._descriptor)
        self._descriptor, self.token = -1, secrets.token_hex(8)
