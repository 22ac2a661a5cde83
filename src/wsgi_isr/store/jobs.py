"""Pages that wait to be rendered by processes that do nothing else: on files, and on Redis.

A job that was taken is gone: should its process be killed, the page's next visitor puts it in
line again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
import typing as t

from .records import LITTER_AGE
from .records import write_file

#: Jobs in a line, at the most; beyond it the next visitor of a page asks again.
LIMIT = 1000
#: Bytes of a job, at the most.
MAX_JOB = 2**16
#: Seconds after which a line that nobody has said to serve counts as abandoned.
ABANDONED = 5


class JobFiles:
    """A folder per line, a file per job, taken in the order of their times.

    :param folder: it is made with the first job.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def put(self, line: str, data: bytes) -> None:
        folder = os.path.join(self._folder, line)
        path = os.path.join(folder, hashlib.sha256(data).hexdigest()[:32])
        if not os.path.exists(path) and len(_names(folder)) < LIMIT:
            # Two who do this at once write the same.
            write_file(path, data)

    def take(self, line: str) -> bytes | None:
        folder = os.path.join(self._folder, line)
        for name in sorted(_names(folder), key=lambda name: _age(folder, name), reverse=True):
            path = os.path.join(folder, name)
            if "." in name:
                # Of a writer at work, or of one that was killed.
                if _age(folder, name) > LITTER_AGE:
                    _remove(path)
                continue
            data = _read(path)
            if _remove(path):
                return data
        return None

    def serve(self, line: str) -> None:
        path = os.path.join(self._folder, f"{line}.served")
        try:
            os.utime(path)
        except FileNotFoundError:
            write_file(path, b"")

    def abandon(self, line: str) -> None:
        # Those who are left say within a second that they are.
        _remove(os.path.join(self._folder, f"{line}.served"))

    def is_served(self, line: str) -> bool:
        return abs(_age(self._folder, f"{line}.served")) < ABANDONED


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _age(folder: str, name: str) -> float:
    try:
        return time.time() - os.stat(os.path.join(folder, name), follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return float("inf")


def _read(path: str) -> bytes:
    """What is in a job's file; ``b""`` for what is no such file."""
    try:
        # Not blocking, should somebody have put a named pipe there.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags)
    except OSError:
        return b""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JOB:
            return b""
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def _remove(path: str) -> bool:
    """Remove a file; false if somebody else has."""
    try:
        os.unlink(path)
        return True
    except IsADirectoryError:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        return False
    except OSError:
        return False


_PUT = """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[2])
then
    redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
end
"""


class JobKeys:
    """A sorted set per line on a Redis or Valkey server.

    :param client: of redis-py or valkey-py.
    :param prefix: of its keys.
    """

    def __init__(self, client: t.Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix

    def put(self, line: str, data: bytes) -> None:
        self._client.eval(_PUT, 1, self._prefix + line, data, LIMIT, time.time())

    def take(self, line: str) -> bytes | None:
        taken = self._client.zpopmin(self._prefix + line)
        return t.cast(bytes, taken[0][0]) if taken else None

    def serve(self, line: str) -> None:
        self._client.set(f"{self._prefix}{line}:served", b"1", ex=ABANDONED)

    def abandon(self, line: str) -> None:
        self._client.delete(f"{self._prefix}{line}:served")

    def is_served(self, line: str) -> bool:
        return bool(self._client.exists(f"{self._prefix}{line}:served"))
