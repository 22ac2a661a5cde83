"""Files of pages that wait to be rendered by processes that do nothing else.

A file is locked by the process that renders its page: a killed one leaves it to others at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time

from .coordination import ABANDONED
from .coordination import CLAIM
from .coordination import MAX_JOBS
from .records import is_at
from .records import LITTER_AGE
from .records import write_file

#: Bytes of a job, at the most.
MAX_JOB = 2**16
#: Seconds between two looks at an empty folder.
LOOK = 0.03


class FileJob:
    """A job that this process does, by the lock on its file."""

    def __init__(self, descriptor: int, path: str, data: bytes) -> None:
        self.data = data
        self._descriptor = descriptor
        self._path = path

    def keep(self) -> None:
        os.utime(self._descriptor)

    def done(self) -> None:
        if is_at(self._descriptor, self._path):
            _remove(self._path)
        self.leave()

    def leave(self) -> None:
        """Let others do it."""
        # Closing is not enough: a child forked meanwhile has the descriptor too.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


class JobFiles:
    """A folder per line, a file per job, taken in the order of their times.

    :param folder: it is made with the first job.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def put(self, line: str, data: bytes) -> bool:
        if abs(time.time() - _mtime(os.path.join(self._folder, f"{line}.served"))) > ABANDONED:
            return False
        folder = os.path.join(self._folder, line)
        path = os.path.join(folder, hashlib.sha256(data).hexdigest()[:32])
        if not os.path.exists(path) and len(_names(folder)) < MAX_JOBS:
            # Two who do this at once write the same.
            write_file(path, data)
            with contextlib.suppress(FileNotFoundError):
                # The kernel's own times are those of its last tick.
                os.utime(path, (time.time(), time.time()))
        return True

    def take(self, line: str) -> FileJob | None:
        folder = os.path.join(self._folder, line)
        for name in sorted(_names(folder), key=lambda name: _mtime(os.path.join(folder, name))):
            path = os.path.join(folder, name)
            if "." in name:
                # Of a writer at work, or of one that was killed.
                if time.time() - _mtime(path) > LITTER_AGE:
                    _remove(path)
                continue
            job = _claim(path)
            if job is not None:
                return job
        return None

    def wait(self, line: str, seconds: float) -> None:
        time.sleep(min(seconds, LOOK))

    def serve(self, line: str) -> None:
        path = os.path.join(self._folder, f"{line}.served")
        try:
            os.utime(path)
        except FileNotFoundError:
            write_file(path, b"")

    def sweep(self) -> int:
        """Remove what was left in lines from which nobody takes any more."""
        count = 0
        for folder, _, names in os.walk(self._folder, topdown=False):
            paths = [os.path.join(folder, name) for name in names]
            count += sum(_remove(p) for p in paths if time.time() - _mtime(p) > LITTER_AGE)
            with contextlib.suppress(OSError):
                if folder != self._folder:
                    os.rmdir(folder)
        return count


def _claim(path: str) -> FileJob | None:
    """A job that nobody does yet; what is none makes way."""
    try:
        # Not blocking, should somebody have put a named pipe there.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags)
    except OSError:
        _remove(path)
        return None
    job = FileJob(descriptor, path, b"")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JOB:
            job.done()
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hangs = abs(time.time() - status.st_mtime) > CLAIM
            if hangs and is_at(descriptor, path):
                write_file(path, os.read(descriptor, MAX_JOB))
            os.close(descriptor)
            return _claim(path) if hangs else None
        except OSError:
            # No locks on this file system: two may do it, and leave it to the page's lease.
            pass
        if not is_at(descriptor, path):
            job.leave()
            return None
        job.keep()
        job.data = os.read(descriptor, MAX_JOB)
        return job
    except BaseException:
        job.leave()
        raise


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _mtime(path: str) -> float:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(path: str) -> bool:
    try:
        os.unlink(path)
        return True
    except IsADirectoryError:
        with contextlib.suppress(OSError):
            os.rmdir(path)
    except OSError:
        pass
    return False
