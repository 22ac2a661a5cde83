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

from .protocol import StoreError

#: Longest wait for the lock: a frozen process may have it.
LOCK_TIMEOUT = 1.0
#: Where memory that processes share by name is found, on Linux.
SHARED_MEMORY = "/dev/shm"
# Both counters, and the identity of the file: an inode is used again, and says nothing.
_LAYOUT = struct.Struct("=QQQ")
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Counters:
    """Two counters that all processes of the machine and user see change.

    :param folder: it need not exist yet.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        name = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:24]
        self._shared = os.path.join(SHARED_MEMORY, f"{_prefix()}{name}")
        self._path = ""
        self._identity = -1
        #: Read ``[0]`` and ``[1]``. `check` replaces it.
        self.values: t.Any = (0, 0)

    @property
    def opened(self) -> bool:
        return bool(self._path)

    def check(self) -> None:
        """Use the counters that the neighbours have, if these are other ones."""
        if not self._path or _identity_at(self._path) != self._identity:
            self._open()

    def bump(self, index: int) -> None:
        """Change a counter, under the lock of all writers."""
        self.check()
        if self._path:
            self.values[index] = (self.values[index] + 1) % 2**63

    def close(self) -> None:
        self._path, self.values = "", (0, 0)

    def _open(self) -> None:
        self._path = ""
        for path in (self._shared, os.path.join(self._folder, "counters")):
            with contextlib.suppress(OSError, ValueError):
                self._use(path)
                return
        self.values = (0, 0)

    def _use(self, path: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDWR | _FLAGS)
        except FileNotFoundError:
            self._make(path)
            descriptor = os.open(path, os.O_RDWR | _FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise ValueError("somebody else's file")
            if status.st_size < _LAYOUT.size:
                os.unlink(path)
                raise ValueError("a truncated file")
            identity = _LAYOUT.unpack(os.pread(descriptor, _LAYOUT.size, 0))[2]
            if path == self._shared:
                values: t.Any = memoryview(mmap.mmap(descriptor, _LAYOUT.size)).cast("Q")
            else:
                values = _FileCounters(os.dup(descriptor))
        finally:
            os.close(descriptor)
        self._path, self._identity, self.values = path, identity, values

    def _make(self, path: str) -> None:
        """Begin counters anywhere, so that they differ from those that were there before."""
        content = _LAYOUT.pack(*(secrets.randbits(62) for _ in range(3)))
        temporary = f"{path}.{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            os.write(descriptor, content + os.path.realpath(self._folder).encode())
            # Nobody sees a file half made, and the first of two wins.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.close(descriptor)
            os.unlink(temporary)


def _prefix() -> str:
    return f"wsgi-isr-{os.geteuid()}-"


def _identity_at(path: str) -> int:
    content = _read(path)[: _LAYOUT.size]
    return _LAYOUT.unpack(content)[2] if len(content) == _LAYOUT.size else -2


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, 2**13, 0)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def sweep() -> None:
    """Remove the counters of this user's folders that are gone."""
    with contextlib.suppress(OSError):
        for name in os.listdir(SHARED_MEMORY):
            path = os.path.join(SHARED_MEMORY, name)
            folder = _read(path)[_LAYOUT.size :] if name.startswith(_prefix()) else b""
            # A process that comes to use them now notices within a second.
            if folder and not os.path.lexists(folder):
                os.unlink(path)


class _FileCounters:
    """The same counters, read from the file each time: slower, and safe where it is truncated."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def __getitem__(self, index: int) -> int:
        try:
            return int.from_bytes(os.pread(self._descriptor, 8, index * 8), "little")
        except OSError:
            return -1

    def __setitem__(self, index: int, value: int) -> None:
        os.pwrite(self._descriptor, value.to_bytes(8, "little"), index * 8)


class Lock:
    """The one lock of all writers, over threads and processes; it ends with its process.

    :param path: of its file, in a folder that exists when it is taken.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.threads = threading.RLock()
        self._descriptor = -1

    @property
    def taken(self) -> bool:
        return self._descriptor >= 0

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """
        :raises StoreError: if it is not to be had in time.
        """
        if not self.threads.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError("another thread has the lock of the cache folder")
        try:
            if self.taken:
                yield
                return
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._descriptor = descriptor
            try:
                for _ in pauses():
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                else:
                    raise StoreError("another process has the lock of the cache folder")
                try:
                    yield
                finally:
                    # Closing is not enough: a child forked meanwhile has the descriptor too.
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            finally:
                self._descriptor = -1
                os.close(descriptor)
        finally:
            self.threads.release()

    def after_fork(self) -> None:
        """Have no part in what the parent's threads were doing."""
        if self.taken:
            os.close(self._descriptor)
        self._descriptor, self.threads = -1, threading.RLock()


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

    @property
    def present(self) -> bool:
        return self._descriptor >= 0

    def ensure(self) -> None:
        """Be there for others.

        :raises OSError: if that is not possible.
        """
        path = os.path.join(self._folder, self.token)
        if self._descriptor >= 0:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(self._descriptor)):
                    return
            self._release()
        os.makedirs(self._folder, 0o700, exist_ok=True)
        temporary = f"{path}.new"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Locked before others can find it, so that nobody takes it for that of a dead one.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(temporary, path)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def alive(self, token: str) -> bool:
        """Whether a process still runs; what it left in the folder is removed if not."""
        if token == self.token:
            return True
        path = os.path.join(self._folder, token)
        try:
            descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            # A shared lock: two who ask at once do not take each other for it.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.unlink(path)
            return False
        except FileNotFoundError:
            return False
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove what killed processes left."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):
                self.alive(name)

    def close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._folder, self.token))
            self._release()

    def after_fork(self) -> None:
        """Be another process than the parent, whose lock ends with the parent alone."""
        self._release()
        self.token = secrets.token_hex(8)

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # Not unlocked: the lock is shared with the parent of a fork.
            os.close(descriptor)
