"""What processes share besides the database: a lock with two counters, and who is alive.

The counters are the bytes of the locked file, mapped into each process, so that a hit reads one
without a system call.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import struct
import threading
import time
import typing as t

from .protocol import ReadOnly, StoreError
from .tables import translate

#: Longest wait for a lock: a frozen process may have it.
LOCK_TIMEOUT = 1.0
_COUNTER = struct.Struct("=Q")
_SIZE = 2 * _COUNTER.size


def unwritable(folder: str) -> str | None:
    """Why the folder cannot be written, if it cannot; it is made if it is not there."""
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        owner = os.stat(folder).st_uid
    except OSError as error:
        return str(error.strerror)
    if os.geteuid() == 0 and owner != 0:
        # Root would leave files that the folder's owner can neither read nor replace.
        return f"it belongs to user {owner}; run as that user"
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return "it cannot be written"
    return None


class LockedFile:
    """A file that one process at a time locks, until it gives the lock back, closes it or ends."""

    def __init__(self, path: str) -> None:
        self.path, self.descriptor = path, -1

    def open(self) -> None:
        os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self.descriptor = os.open(self.path, flags, 0o600)

    def is_there(self) -> bool:
        """Whether the file that is open is the one at the path."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except OSError:
            return False

    def lock(self) -> bool:
        """Lock the file, which is made where it is not there; false if another process has it."""
        if self.descriptor < 0:
            self.open()
        is_locked = _flock(self.descriptor, fcntl.LOCK_EX)
        if self.is_there():
            return is_locked
        # The lock of the file that is there now is another. Closing is not enough to give this one
        # back: mapped memory and children that were forked meanwhile keep the file open.
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self.close()
        return False

    def close(self) -> None:
        """Have no part in it. After a fork the lock is still the parent's, and ends with it."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Lock(LockedFile):
    """The one lock of all writers, over threads and processes."""

    #: Two numbers that all processes see change, in another object where another file is. Empty
    #: while no file is open.
    counters: t.Any

    def __init__(self, folder: str) -> None:
        super().__init__(os.path.join(folder, "lock"))
        self.after_fork()

    def after_fork(self) -> None:
        """Have no part in what the parent's threads were doing."""
        self.close()
        self.threads = threading.RLock()
        #: How often this thread has it; for one that has ``threads``.
        self._depth = 0

    def open(self) -> None:
        folder = os.path.dirname(self.path)
        if reason := unwritable(folder):
            raise ReadOnly(f"{folder}: {reason}")
        super().open()
        try:
            if os.fstat(self.descriptor).st_size < _SIZE:
                # They begin anywhere, so that they differ from those that were there before.
                os.pwrite(self.descriptor, secrets.token_bytes(_SIZE), 0)
            mapped = mmap.mmap(self.descriptor, _SIZE, prot=mmap.PROT_READ)
        except BaseException:
            self.close()
            raise
        self.counters = memoryview(mapped).cast("Q")

    def close(self) -> None:
        super().close()
        self.counters = ()

    def check(self) -> t.Any:
        """Have the file that the neighbours have; gives its counters."""
        if not self.is_there():
            with self.threads, contextlib.suppress(OSError, StoreError):
                if not self.is_there():
                    self.close()
                    self.open()
        return self.counters or (0, 0)

    def bump(self, index: int) -> None:
        """Change a counter; for one who has the lock."""
        # Writing to mapped memory kills a process whose disk is full.
        value = _COUNTER.pack((self.counters[index] + 1) % 2**64)
        os.pwrite(self.descriptor, value, index * _COUNTER.size)

    def __enter__(self) -> None:
        if not self.threads.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError("another thread has the lock of the cache folder")
        deadline, pause = time.monotonic() + LOCK_TIMEOUT, 0.0001
        try:
            while not (self._depth or self.lock()):
                if time.monotonic() > deadline:
                    raise StoreError("another process has the lock of the cache folder")
                time.sleep(pause)
                pause = min(2 * pause, 0.002)
        except BaseException as error:
            self.threads.release()
            if isinstance(error, OSError):
                raise translate(error) from error
            raise
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self.threads.release()


class Presence(LockedFile):
    """A locked file of this process: where its lock is free, the process is gone."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, "processes")
        super().__init__("")
        self.after_fork()

    def ensure(self) -> str:
        """Let other processes see this one; for one who has the lock of all writers."""
        while not self.lock():
            # Should a copy of the folder be in its place: what that says of this process is over.
            self.after_fork()
        return self.token

    def alive(self, token: str) -> bool:
        """Whether a process still runs."""
        if token == self.token:
            return self.is_there()
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
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.after_fork()

    def after_fork(self) -> None:
        """Be another process than the parent."""
        self.close()
        self.token = secrets.token_hex(8)
        self.path = os.path.join(self._folder, self.token)
