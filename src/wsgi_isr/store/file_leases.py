"""Leases in files: a file is locked by its holder, and says until when and for whom he has it."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
import typing as t

from .records import format_line
from .records import parse_line

if t.TYPE_CHECKING:
    from .files import FileCoordination


class LeaseRecord(t.NamedTuple):
    """What the file of a lease says.

    :param deadline: seconds since 1970 after which somebody else may take it over.
    """

    token: str
    deadline: float
    on_demand: bool


def parse_lease(data: bytes) -> LeaseRecord | None:
    value = parse_line(data.partition(b"\n")[0])
    if not isinstance(value, list) or len(value) != 3 or type(value[1]) not in (int, float):
        return None
    return LeaseRecord(str(value[0]), value[1], bool(value[2]))


class FileLease:
    """A lease that this process has.

    :param descriptor: of its file, locked; it belongs to the lease from now on.
    """

    def __init__(
        self,
        owner: FileCoordination,
        path: str,
        descriptor: int,
        seconds: float,
        on_demand: bool,
    ) -> None:
        self.token = secrets.token_hex(8)
        self._owner = owner
        self._path = path
        self._descriptor = descriptor
        record = format_line([self.token, time.time() + seconds, on_demand])
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, record, 0)

    def release(self, outcome: bytes | None = None) -> None:
        try:
            # First, so that it is there for whoever finds the lease free.
            if outcome is not None:
                self._owner.leave_outcome(os.path.basename(self._path), self.token, outcome)
            self._owner.drop_lease(self._path, self._descriptor)
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
