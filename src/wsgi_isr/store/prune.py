"""Bounds of the pages in files: what was not used for longest goes, and made-up URLs go first.

Crawlers invent URLs. Their answers (404, 410) have a bound of their own, a tenth of the pages,
and make room before any real page does. Nobody counts files while visitors wait: each process
tells what it added in thousandths of a bound, a byte each in a file that all append to, and when
that file is long enough one of them prunes, on a thread behind the visitors.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import re
import time
import typing as t
from array import array
from collections.abc import Iterable
from collections.abc import Iterator
from urllib.parse import parse_qsl

from ..key import PAGE_NAME
from ..page import peek
from . import shared
from .coordination import StoreError
from .records import lock_within
from .records import open_file

if t.TYPE_CHECKING:
    from .backend import FileStorage
    from .files import FileCoordination

logger = logging.getLogger("wsgi_isr")

#: Of all pages, one in so many may be gone.
GONE_SHARE = 10
#: So much of that is left after pruning. It is refilled fast, and a new look at all files for
#: every few of them would cost more than their renders.
GONE_ROOM = 0.4
#: Thousandths of a bound that are added until somebody prunes.
DUE = 50
#: Pruning begins over the first part of a bound and ends under the second, so that what is added
#: until the next time fits in.
FULL, ROOM = 0.9, 0.85
#: Seconds after which pruning behind the visitors leaves the rest to the next time.
PATIENCE = 30.0
#: Files removed under one lock, which renders wait for.
BATCH = 20
#: Seconds between two looks for what killed processes left.
SWEEP_INTERVAL = 600.0
#: Seconds after which nobody waits for an outcome any more, or writes a temporary file.
LITTER_AGE = 3600.0

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\Z")


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


class Pruned(t.NamedTuple):
    """What was removed.

    :param pages: those of them that were gone are not counted here but in ``gone``.
    :param size: bytes of both.
    :param litter: files that are no pages: what killed processes left, failures of pages that
        are no more.
    """

    pages: int = 0
    gone: int = 0
    size: int = 0
    litter: int = 0

    def __add__(self, other: object) -> Pruned:
        assert isinstance(other, Pruned)
        return Pruned(*(a + b for a, b in zip(self, other, strict=True)))


class File(t.NamedTuple):
    name: str
    path: str
    used: int
    size: int
    gone: bool


class Pruner:
    """Prunes the folder of one site."""

    def __init__(self, storage: FileStorage, coordination: FileCoordination) -> None:
        self.bounds = storage.bounds
        self._storage = storage
        self._coordination = coordination
        self._sweep_at = 0.0

    @property
    def due(self) -> bool:
        """Whether so much was added that it is time for `behind`."""
        return self._storage.growth.due

    def touch(self, name: str) -> None:
        """Note that a page is used; it is one of the last to go."""
        self._storage.touch(name)

    def behind(self) -> Pruned:
        """Make room for what comes until the next time, unless another process is doing it.

        :raises OSError: and `StoreError`, where the folder is in no state to be pruned.
        """
        with self._storage.growth.pruning(0.0) as mine:
            if not mine:
                return Pruned()
            deadline = time.monotonic() + PATIENCE
            pruned = self._fit(self.bounds, FULL, ROOM, GONE_ROOM, deadline)
            if time.monotonic() >= self._sweep_at:
                self._sweep_at = time.monotonic() + SWEEP_INTERVAL
                pruned += self.sweep()
        if pruned.pages:
            logger.warning(
                "%s: the %d pages used least were removed to keep within max_pages=%d and "
                "max_bytes=%d; raise them if those are worth keeping",
                self._coordination.folder,
                pruned.pages,
                *self.bounds,
            )
        return pruned

    def now(self, bounds: Bounds, keep_builds: int | None = None, build: str = "") -> Pruned:
        """Prune to some bounds exactly.

        :param keep_builds: remove all pages but those of so many builds: the current one, and
            those that were used last.
        :param build: the current one.
        :raises StoreError: if another process prunes for longer than a minute.
        """
        with self._storage.growth.pruning(60.0) as mine:
            if not mine:
                raise StoreError("another process is pruning")
            pruned = Pruned()
            if keep_builds is not None:
                pruned = self._drop_builds(keep_builds, build)
            return pruned + self._fit(bounds, 1.0, 1.0, 1.0, float("inf")) + self.sweep()

    def _files(self) -> Iterator[File]:
        for entry in self._storage.scan():
            if not PAGE_NAME.fullmatch(entry.name):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            gone = not status.st_mode & 0o200
            yield File(entry.name, entry.path, status.st_mtime_ns, status.st_size, gone)

    # Least recently used.

    def _fit(
        self, bounds: Bounds, full: float, room: float, gone_room: float, deadline: float
    ) -> Pruned:
        survey = Survey(self._files(), bounds)
        if not survey.over(full, gone_room):
            return Pruned()
        cuts = survey.cuts(room, gone_room)
        left = {gone: count for gone, (count, _) in cuts.items()}

        def unused() -> Iterator[File]:
            for file in self._files():
                # As many as were counted, even if a restored backup gave all the same time.
                if left[file.gone] and file.used <= cuts[file.gone][1]:
                    left[file.gone] -= 1
                    yield file

        return self._remove(unused(), deadline)

    def _remove(self, files: Iterable[File], deadline: float) -> Pruned:
        pruned = Pruned()
        batch: list[File] = []
        for file in files:
            batch.append(file)
            if len(batch) == BATCH:
                pruned += self._remove_batch(batch)
                batch = []
                if time.monotonic() > deadline:
                    self._storage.growth.due = True
                    return pruned
                # Threads that serve visitors come first.
                time.sleep(0)
        return pruned + self._remove_batch(batch)

    def _remove_batch(self, batch: list[File]) -> Pruned:
        pruned = Pruned()
        # Under the lock nobody stores a page: none is removed that was rendered meanwhile.
        with self._coordination.exclusive():
            for file in batch:
                with contextlib.suppress(OSError):
                    if os.stat(file.path, follow_symlinks=False).st_mtime_ns == file.used:
                        os.unlink(file.path)
                        pruned += Pruned(not file.gone, file.gone, file.size)
        return pruned

    # Older builds.

    def _drop_builds(self, keep: int, current: str) -> Pruned:
        newest: dict[str, int] = {current: 0}
        for file in self._files():
            build = self._build_of(file)
            if build is not None:
                newest[build] = max(newest.get(build, 0), file.used)
        others = sorted(newest.keys() - {current}, key=lambda build: -newest[build])
        dropped = frozenset(others[max(0, keep - 1) :])
        if not dropped:
            return Pruned()
        files = (file for file in self._files() if self._build_of(file) in dropped)
        return self._remove(files, float("inf"))

    def _build_of(self, file: File) -> str | None:
        try:
            with open(file.path, "rb") as stream:
                start = stream.read(2**12)
                head = peek(start)
                if head is None and file.size > len(start):
                    head = peek(start + stream.read())
            return None if head is None else str(head["key"][6])
        except (OSError, LookupError, TypeError):
            return None

    # What is no page.

    def sweep(self) -> Pruned:
        """Remove what killed processes left, and what was said of pages that are no more."""
        folder = self._coordination.folder
        count = self._storage.sweep() + self._coordination.sweep_stats() + shared.sweep()
        for path in _old(os.path.join(folder, "leases")):
            count += self._coordination.drop_dead_lease(path)
        count += sum(map(_unlink, _old(os.path.join(folder, "outcomes"))))
        # What replaces a file as a whole is written beside it first.
        count += sum(_unlink(path) for path in _old(folder) if _TEMPORARY.search(path))
        failures = os.path.join(folder, "failures")
        for name in _names(failures):
            if not os.path.exists(self._storage.path(name)):
                count += _unlink(os.path.join(failures, name))
        return Pruned(litter=count)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _old(folder: str) -> Iterator[str]:
    for name in _names(folder):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path, follow_symlinks=False).st_mtime > LITTER_AGE:
                yield path


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


class Survey:
    """Times and sizes of all files, in little memory.

    :param files: all of them.
    """

    def __init__(self, files: Iterable[File], bounds: Bounds) -> None:
        self._bounds = bounds
        self._used = {False: array("q"), True: array("q")}
        self._sizes = {False: array("q"), True: array("q")}
        self._bytes = 0
        for file in files:
            self._used[file.gone].append(file.used)
            self._sizes[file.gone].append(file.size)
            self._bytes += file.size

    def over(self, part: float, gone_part: float) -> bool:
        pages, gone = len(self._used[False]), len(self._used[True])
        return (
            pages + gone > part * self._bounds.pages
            or gone > gone_part * self._bounds.gone
            or self._bytes > part * self._bounds.size
        )

    def cuts(self, part: float, gone_part: float) -> dict[bool, tuple[int, int]]:
        """For real pages (false) and others: how many go, and when the last of them was used."""
        used, sizes = self._used, self._sizes
        gone = len(used[True])
        count = gone + len(used[False])
        left = self._bytes
        newest = max((max(times) for times in used.values() if times), default=0)
        cuts = {False: (0, 0), True: (0, 0)}
        for kind in (True, False):
            order = sorted(range(len(used[kind])), key=used[kind].__getitem__)
            if order and used[kind][order[-1]] == newest:
                # Never the newest, whatever its size.
                order.pop()
            for at in order:
                fits = count <= part * self._bounds.pages and left <= part * self._bounds.size
                if fits and not (kind and gone > gone_part * self._bounds.gone):
                    break
                cuts[kind] = (cuts[kind][0] + 1, used[kind][at])
                count -= 1
                gone -= kind
                left -= sizes[kind][at]
        return cuts
