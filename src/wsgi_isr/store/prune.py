"""Bounds of the pages in files: what was not used for longest goes, and made-up URLs go first.

Crawlers invent URLs. Their answers (404, 410) have a bound of their own, a tenth of the pages,
and make room before any real page does. Nobody counts files while visitors wait: each process
tells what it added in thousandths of a bound, a byte each in a file that all append to, and when
that file is long enough one of them prunes, on a thread behind the visitors.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import stat
import time
import typing as t
from array import array
from collections.abc import Iterable
from collections.abc import Iterator

from ..key import PAGE_NAME
from ..page import peek
from . import shared
from .bounds import Bounds
from .coordination import StoreError
from .records import LITTER_AGE

if t.TYPE_CHECKING:
    from .backend import FileStorage
    from .files import FileCoordination

logger = logging.getLogger("wsgi_isr")

#: Seconds after which pruning behind the visitors leaves the rest to the next time.
PATIENCE = 30.0
#: Files removed under one lock, which renders wait for.
BATCH = 20
#: Seconds between two looks for what killed processes left.
SWEEP_INTERVAL = 600.0

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\Z")


class Limits(t.NamedTuple):
    """Parts of the bounds: over ``full`` pages go until ``room`` is left of the bound.

    :param gone: what is left of those that are gone.
    """

    full: float
    room: float
    gone: float


#: Leaves room for what is added until the next time; of what is gone that may be half the bound,
#: because a look at all files for every few of them would cost more than their renders.
BEHIND = Limits(full=0.9, room=0.85, gone=0.4)
EXACT = Limits(1, 1, 1)


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
            pruned = self._fit(self.bounds, BEHIND, deadline)
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
            return pruned + self._fit(bounds, EXACT, math.inf) + self.sweep()

    def _files(self) -> Iterator[File]:
        for entry in self._storage.scan():
            if not PAGE_NAME.fullmatch(entry.name):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            gone = not status.st_mode & 0o200
            yield File(entry.name, entry.path, status.st_mtime_ns, status.st_size, gone)

    # Least recently used.

    def _fit(self, bounds: Bounds, limits: Limits, deadline: float) -> Pruned:
        cuts = Survey(self._files(), bounds).cuts(limits)
        left = {gone: count for gone, (count, _) in cuts.items()}
        if not any(left.values()):
            return Pruned()

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
        return self._remove(files, math.inf)

    def _build_of(self, file: File) -> str | None:
        head = _head_of(file)
        try:
            return None if head is None else str(head["key"][6])
        except (LookupError, TypeError):
            return None

    def heads(self) -> Iterator[dict[str, t.Any]]:
        """What all entries say of themselves, unchecked: to count pages without reading them."""
        for file in self._files():
            head = _head_of(file)
            if head is not None:
                yield head

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
        count += self._coordination.jobs.sweep()
        failures = os.path.join(folder, "failures")
        for name in _names(failures):
            if not os.path.exists(self._storage.path(name)):
                count += _unlink(os.path.join(failures, name))
        return Pruned(litter=count)


def _head_of(file: File) -> dict[str, t.Any] | None:
    try:
        with open(file.path, "rb") as stream:
            start = stream.read(2**12)
            head = peek(start)
            if head is None and file.size > len(start):
                head = peek(start + stream.read())
            return head
    except OSError:
        return None


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
        for file in files:
            self._used[file.gone].append(file.used)
            self._sizes[file.gone].append(file.size)
        self._count = sum(map(len, self._used.values()))
        self._bytes = sum(map(sum, self._sizes.values()))

    def _within(self, part: float) -> bool:
        fits = self._count <= part * self._bounds.pages
        return fits and self._bytes <= part * self._bounds.size

    def cuts(self, limits: Limits) -> dict[bool, tuple[int, int]]:
        """For real pages (false) and others: how many go, and when the last of them was used."""
        newest = max((max(times) for times in self._used.values() if times), default=0)
        gone = len(self._used[True])
        cuts = {False: (0, 0), True: (0, 0)}
        for kind in (True, False):
            # What is gone may be all the room that is needed: then no real page goes.
            part = limits.room if not self._within(limits.full) else math.inf
            used, sizes = self._used[kind], self._sizes[kind]
            order = sorted(range(len(used)), key=used.__getitem__)
            if order and used[order[-1]] == newest:
                # Never the newest, whatever its size.
                order.pop()
            for number, at in enumerate(order, 1):
                too_many = kind and gone > limits.gone * self._bounds.gone
                if self._within(part) and not too_many:
                    break
                cuts[kind] = (number, used[at])
                self._count -= 1
                self._bytes -= sizes[at]
                gone -= kind
        return cuts
