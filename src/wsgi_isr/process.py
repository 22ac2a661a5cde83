"""What a middleware has in each process anew: its store, its threads, its counters.

Nothing is opened or started before the first request, and all of it again in a forked child:
locks, threads and connections of the parent are of no use there.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from . import signals
from .attempt import Attempts
from .key import Origin
from .key import PageKey
from .page import Codec
from .pool import WorkerPool
from .regeneration import Regeneration
from .render import Renderer
from .site import Site
from .stats import Stats
from .store import PageStore
from .store.memory import MAX_TARGET_LENGTH
from .store.memory import MemoryLevel
from .store.memory import Target
from .store.opening import Opener
from .upkeep import Upkeep

#: Seconds for which a URL counts as "not a page".
NOT_A_PAGE = 60.0
#: Mount points remembered.
MAX_MOUNTS = 16
#: URLs remembered as such.
MAX_NOT_PAGES = 10_000


class NotPage:
    """A URL that is no page, until a time and as long as nothing is invalidated.

    :param until: by the monotonic clock.
    :param detail: why; ``""`` where its answer just did not call itself a page.
    """

    __slots__ = ("detail", "generation", "key", "origin", "until")

    def __init__(self, key: PageKey, until: float, generation: object, detail: str) -> None:
        self.key = key
        self.until = until
        self.generation = generation
        self.detail = detail
        self.origin: Origin | None = None


class NotPages:
    """URLs whose answers are no pages, for a minute or until something is invalidated.

    :param signal: of the store's coordination.
    """

    def __init__(self, signal: t.Any) -> None:
        self._signal = signal
        self._known: dict[PageKey, NotPage] = {}
        #: By a request as it came in: those whose answers just did not call themselves pages.
        self.targets: dict[Target, NotPage] = {}

    def get(self, key: PageKey) -> str | None:
        """Why a URL is no page; ``""`` where its answer just did not say so."""
        found = self._known.get(key)
        if found is None:
            return None
        if time.monotonic() >= found.until or found.generation != self._signal[0]:
            self.discard(key)
            return None
        return found.detail

    def add(self, key: PageKey, detail: str = "") -> None:
        # A new object each time, so that no target holds longer, or for another reason.
        self.discard(key)
        _make_room(self._known)
        until = time.monotonic() + NOT_A_PAGE
        self._known[key] = NotPage(key, until, self._signal[0], detail)

    def add_target(self, target: Target, key: PageKey, origin: Origin) -> None:
        """Let a request be known by what it came in as, as long as its URL is."""
        found = self._known.get(key)
        if found is None or sum(map(len, target)) > MAX_TARGET_LENGTH:
            return
        if target not in self.targets:
            _make_room(self.targets)
        found.origin = origin
        self.targets[target] = found

    def discard(self, key: PageKey) -> None:
        """Forget a URL that has become a page."""
        found = self._known.pop(key, None)
        if found is not None:
            found.until = 0.0


def _make_room(table: dict[t.Any, t.Any]) -> None:
    if len(table) >= MAX_NOT_PAGES:
        with contextlib.suppress(StopIteration, KeyError, RuntimeError):
            # Another thread may be doing the same.
            del table[next(iter(table))]


class Process:
    """Everything of a middleware that belongs to one process."""

    def __init__(
        self,
        site: Site,
        open_store: Opener,
        render: Renderer,
        codec: Codec,
        memory_size: int,
        workers: int,
        render_timeout: float,
        before: Process | None,
    ) -> None:
        self.pid = os.getpid()
        self.stats = Stats()
        self._sender = site.middleware
        storage, coordination = open_store()
        if before is not None:
            storage.after_fork()
            coordination.after_fork()
        self.signal = coordination.signal
        self.memory = MemoryLevel(memory_size)
        self.store = PageStore(
            storage, coordination, self.memory, codec, site.build_id, self._store_failed
        )
        self.pool = WorkerPool(workers, render_timeout)
        self.attempts = Attempts(site, render, self.store, self.stats, self.pool.submit)
        self.regeneration = Regeneration(
            self.store, self.attempts, self.pool, site.clock, render_timeout
        )
        self.upkeep = Upkeep(self.store, self.pool, self.stats, site.build_id)
        self.store.after = self.upkeep.look
        self.not_pages = NotPages(self.signal)
        #: Mount points that were seen, for paths that are named outside of a request.
        self.mounts: set[str] = {""} if before is None else before.mounts
        if before is not None:
            for entry in before.memory:
                entry.targets = []
                self.memory.put(entry)

    def see_mount(self, mount: str) -> None:
        if mount not in self.mounts and len(self.mounts) < MAX_MOUNTS:
            self.mounts.add(mount)

    def _store_failed(self, operation: str, error: Exception) -> None:
        self.stats.store_errors += 1
        signals.send(signals.store_failed, self._sender, operation=operation, error=error)
