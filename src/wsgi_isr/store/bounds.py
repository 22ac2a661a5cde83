"""How many pages there may be in files, and how many were added since somebody counted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import typing as t
from collections.abc import Iterator
from urllib.parse import parse_qsl

from .coordination import StoreError
from .records import lock_within
from .records import open_file

#: Of all pages, one in so many may be gone.
GONE_SHARE = 10
#: Thousandths of a bound that are added until somebody prunes.
DUE = 50


class Bounds(t.NamedTuple):
    """What the files of a site may be, at the most.

    :param pages: files, of all builds.
    :param size: bytes in them.
    """

    pages: int = 100_000
    size: int = 2 * 2**30

    @property
    def gone(self) -> int:
        """Pages that are 404 or 410."""
        return max(1, self.pages // GONE_SHARE)

    @classmethod
    def from_query(cls, query: str) -> Bounds:
        """
        :raises ValueError: for what is no option of a file URL, with the remedy.
        """
        names = {"max_pages": "pages", "max_bytes": "size"}
        found: dict[str, int] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in names:
                raise ValueError(
                    f"files have the options max_pages and max_bytes, not {name!r}; "
                    "a ? in a folder's name is written %3F"
                )
            if names[name] in found:
                raise ValueError(f"{name} is given twice")
            if not re.fullmatch(r"0*[1-9][0-9]{0,17}", value, re.ASCII):
                raise ValueError(f"{name} takes a whole number, 1 or more, not {value!r}")
            found[names[name]] = int(value)
        return cls(**found)


class Growth:
    """What all processes have added since the last pruning, in thousandths of a bound.

    :param path: a file that has a byte for each of them, and is locked by who prunes.
    """

    def __init__(self, path: str, bounds: Bounds) -> None:
        self._path = path
        self._bounds = bounds
        #: Whether it is time to prune.
        self.due = False

    def add(self, before: int | None, after: int) -> None:
        """Count a file that was written.

        :param before: bytes of the file that it took the place of, ``None`` for none.
        """
        part = max(0, after - (before or 0)) / self._bounds.size
        if before is None:
            part += 1 / self._bounds.pages
        # Rounded by chance: right on average, without a count that ends with the process.
        thousandths = int(1000 * part + random.random())
        if thousandths:
            with contextlib.suppress(OSError):
                self._tell(min(thousandths, DUE))

    def _tell(self, thousandths: int) -> None:
        descriptor = open_file(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, b"+" * thousandths)
            if os.fstat(descriptor).st_size >= DUE:
                self.due = True
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def pruning(self, wait: float) -> Iterator[bool]:
        """Whether this process is the one that prunes; it counts anew from now on.

        :param wait: seconds to wait for another one that does.
        """
        self.due = False
        descriptor = open_file(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            try:
                lock_within(descriptor, wait)
            except StoreError:
                yield False
                return
            os.ftruncate(descriptor, 0)
            try:
                yield True
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)
