"""Small files of one line with a checksum, and locks on them.

They are read by processes while others write them, or are killed while they do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
import time
import typing as t
import zlib

from .coordination import StoreError

#: Seconds after which nobody waits for an outcome any more, or writes a temporary file.
LITTER_AGE = 3600.0


class NoFile(OSError):
    """Something else than a file of ours has its name: a directory, a link, a pipe."""


def open_file(path: str, flags: int) -> int:
    """Open a file of ours; a folder that was deleted meanwhile is made again.

    What has its name and is no file makes way where it is to be written, and never blocks.

    :raises NoFile: where it is to be read.
    """
    try:
        return _open(path, flags)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    except NoFile:
        if not flags & os.O_CREAT:
            raise
        set_aside(path)
    return _open(path, flags)


def _open(path: str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        # A directory, a symbolic link, a pipe that nobody reads.
        if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise NoFile(error.errno, "not a file", path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NoFile(errno.EINVAL, "not a file", path)
    return descriptor


def set_aside(path: str) -> None:
    """Let a file have the name of what is no file; whatever it is, it is kept."""
    with contextlib.suppress(FileNotFoundError):
        # Another process may have done so by now.
        if stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode):
            return
        os.rename(path, f"{path}.{secrets.token_hex(8)}.tmp")


def read_file(path: str) -> bytes | None:
    try:
        with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
            return file.read()
    except OSError:
        return None


def write_file(path: str, data: bytes) -> None:
    """Replace a file as a whole: readers see the old one or the new one."""
    temporary = f"{path}.{secrets.token_hex(8)}"
    descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        replace_file(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def replace_file(temporary: str, path: str) -> None:
    try:
        os.replace(temporary, path)
    except IsADirectoryError:
        set_aside(path)
        os.replace(temporary, path)


def is_at(descriptor: int, path: str) -> bool:
    """Whether the open file is still the one that the path names."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return there.st_ino == os.fstat(descriptor).st_ino


def lock_within(descriptor: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    pause = 0.0001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreError("another process holds the lock of the cache folder") from None
        time.sleep(pause)
        pause = min(2 * pause, 0.002)


def format_line(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse_line(line: bytes) -> t.Any:
    """The value of a line with its checksum; ``None`` for any other."""
    check, _, text = line.partition(b" ")
    if check != b"%08x" % zlib.crc32(text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
