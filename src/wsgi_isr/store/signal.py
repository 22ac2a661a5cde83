"""What processes share besides the database: two counters, a lock, and who is alive.

The counters are in memory that processes share by name: what a hit costs is reading one. They are
not in the cache folder, because touching mapped memory of a truncated file kills the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import mmap
import os
import secrets
import stat
import tempfile
import threading
import time
import typing as t

from .protocol import ReadOnly, StoreError
from .schema import translate, unwritable

#: Longest wait for a lock: a frozen process may have it.
LOCK_TIMEOUT = 1.0
#: Where memory that processes share by name is found, on Linux; elsewhere a temporary file is used.
SHARED_MEMORY = "/dev/shm"
#: Bytes of two counters.
_SIZE = 16


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    return os.open(path, flags, 0o600)


def _place() -> str:
    """What the paths of counters begin with."""
    is_there = os.access(SHARED_MEMORY, os.W_OK)
    folder = SHARED_MEMORY if is_there else tempfile.gettempdir()
    return os.path.join(folder, f"wsgi-isr-{os.geteuid()}-")


class Counters:
    """Two counters that all processes of the machine and user see change.

    :param folder: it need not exist yet.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.realpath(folder).encode()
        self._name = hashlib.sha256(self._folder).hexdigest()[:24]
        self.used: tuple[str, os.stat_result] | None = None
        #: Read ``[0]`` and ``[1]``. `check` replaces it.
        self.values: t.Any = (0, 0)

    def check(self) -> None:
        """Use the counters that the neighbours have, if these are other ones."""
        with contextlib.suppress(OSError, ValueError):
            if self.used is not None:
                # An inode is not used again while it is mapped here.
                status = os.stat(self.used[0])
                if os.path.samestat(status, self.used[1]) and status.st_size >= _SIZE:
                    return
        self.close()
        with contextlib.suppress(OSError, ValueError):
            self._map(_place() + self._name)

    def bump(self, index: int) -> None:
        """Change a counter, under the lock of all writers."""
        self.check()
        if self.used is not None:
            self.values[index] = (self.values[index] + 1) % 2**63

    def close(self) -> None:
        self.used, self.values = None, (0, 0)

    def _map(self, path: str) -> None:
        descriptor = _open(path)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise ValueError("somebody else's file")
            if status.st_size < _SIZE:
                # They begin anywhere, so that they differ from those that were there before.
                os.pwrite(descriptor, secrets.token_bytes(_SIZE) + self._folder, 0)
            self.values = memoryview(mmap.mmap(descriptor, _SIZE)).cast("Q")
            self.used = path, status
        finally:
            os.close(descriptor)


def sweep() -> None:
    """Remove the counters of this user's folders that are gone."""
    for path in glob.glob(f"{_place()}*"):
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as file:
                    folder = file.read()[_SIZE:]
                # A process that comes to use them now notices within a second.
                if folder and not os.path.lexists(folder):
                    os.unlink(path)


class LockedFile:
    """A file that one process at a time locks, until it gives the lock back, closes it or ends."""

    def __init__(self, path: str) -> None:
        self.path, self._descriptor = path, -1

    def lock(self) -> bool:
        """Lock the file, which is made where it is not there; false if another process has it.

        :raises OSError: if that is not possible.
        """
        if self._descriptor < 0:
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            self._descriptor = _open(self.path)
        is_locked = _flock(self._descriptor, fcntl.LOCK_EX)
        if os.fstat(self._descriptor).st_nlink:
            return is_locked
        # The folder was removed; the lock of a new one is another.
        self.close()
        return False

    def close(self) -> None:
        """Have no part in it. After a fork the lock is still the parent's, and ends with it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Lock(LockedFile):
    """The one lock of all writers, over threads and processes.

    As a context manager it raises `ReadOnly` if the folder cannot be written, and `StoreError` if
    the lock is not to be had in time.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(os.path.join(folder, "lock"))
        self.after_fork()

    def __enter__(self) -> None:
        if not self.threads.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError("another thread has the lock of the cache folder")
        try:
            if not self.depth:
                self._wait()
            self.depth += 1
        except BaseException as error:
            self.threads.release()
            if isinstance(error, OSError):
                raise translate(error) from error
            raise

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth:
            # Closing is not enough: a child forked meanwhile has the descriptor too.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.threads.release()

    def _wait(self) -> None:
        deadline, pause = time.monotonic() + LOCK_TIMEOUT, 0.0001
        folder = os.path.dirname(self.path)
        if self._descriptor < 0 and (reason := unwritable(folder)):
            raise ReadOnly(f"{folder}: {reason}")
        while not self.lock():
            if time.monotonic() > deadline:
                raise StoreError("another process has the lock of the cache folder")
            time.sleep(pause)
            pause = min(2 * pause, 0.002)

    def after_fork(self) -> None:
        """Have no part in what the parent's threads were doing."""
        self.close()
        self.threads = threading.RLock()
        #: How often this thread has it; for one that has ``threads``.
        self.depth = 0


class Presence(LockedFile):
    """A locked file of this process: where its lock is free, the process is gone.

    :param folder: of the store.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, "processes")
        super().__init__("")
        self.after_fork()

    def ensure(self) -> None:
        """Let other processes see this one. Call it under the lock of all writers.

        :raises OSError: if that is not possible.
        """
        while not self.lock():
            pass

    def alive(self, token: str) -> bool:
        """Whether a process still runs."""
        if token == self.token:
            return True
        try:
            with open(os.path.join(self._folder, token), "rb") as file:
                # A shared lock: two who ask at once do not take each other for it.
                return not _flock(file.fileno(), fcntl.LOCK_SH)
        except OSError as error:
            return not isinstance(error, FileNotFoundError)

    def sweep(self) -> None:
        """Remove what killed processes left; under the lock of all writers."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):
                if not self.alive(name):
                    os.unlink(os.path.join(self._folder, name))

    def leave(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.after_fork()

    def after_fork(self) -> None:
        """Be another process than the parent."""
        self.close()
        self.token = secrets.token_hex(8)
        self.path = os.path.join(self._folder, self.token)
