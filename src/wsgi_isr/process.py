"""What a middleware has in each process anew: its store, its threads, its counters.

Nothing is opened or started before the first request, and all of it again in a forked child:
locks, threads and connections of the parent are of no use there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import typing as t
from collections.abc import Callable

from . import signals
from .attempt import Attempts
from .dedicated import Line
from .key import Origin
from .key import PageKey
from .page import Codec
from .pool import Pool
from .regeneration import Regeneration
from .render import Renderer
from .respond import FreshAnswer
from .site import Site
from .stats import Stats
from .store import PageStore
from .store.coordination import KeepsJobs
from .store.memory import is_long
from .store.memory import MemoryLevel
from .store.memory import Target
from .store.opening import Opener
from .upkeep import Upkeep

logger = logging.getLogger("wsgi_isr")

#: Seconds for which a URL counts as "not a page".
NOT_A_PAGE = 60.0
#: Mount points remembered.
MAX_MOUNTS = 16
#: URLs remembered as such.
MAX_NOT_PAGES = 10_000


class NotPage:
    """A URL that is no page, for a minute and as long as nothing is invalidated.

    :param since: seconds since 1970.
    :param detail: why; ``""`` where its answer just did not call itself a page.
    """

    __slots__ = ("detail", "end", "generation", "key", "origin", "since")

    #: No time at which there is an answer without the app.
    until = 0.0

    def __init__(self, key: PageKey, since: float, generation: object, detail: str) -> None:
        self.key = key
        self.since = since
        self.end = since + NOT_A_PAGE
        self.generation = generation
        self.detail = detail
        self.origin: Origin | None = None


class NotPages:
    """URLs whose answers are no pages, for a minute or until something is invalidated.

    :param signal: of the store's coordination.
    :param known: what is known of requests as they come in.
    """

    def __init__(
        self, signal: t.Any, known: dict[Target, t.Any], clock: Callable[[], float]
    ) -> None:
        self._signal = signal
        self._clock = clock
        self._urls: dict[PageKey, NotPage] = {}
        self._known = known
        #: The targets in it that are ours: those whose answers just did not call themselves pages.
        self._targets: dict[Target, None] = {}

    def get(self, key: PageKey) -> str | None:
        """Why a URL is no page; ``""`` where its answer just did not say so."""
        found = self._urls.get(key)
        if found is None:
            return None
        if not found.since <= self._clock() < found.end or found.generation != self._signal[0]:
            self.discard(key)
            return None
        return found.detail

    def add(self, key: PageKey, detail: str = "") -> None:
        # A new object each time, so that no target holds longer, or for another reason.
        self.discard(key)
        if len(self._urls) >= MAX_NOT_PAGES:
            _drop_first(self._urls)
        self._urls[key] = NotPage(key, self._clock(), self._signal[0], detail)

    def add_target(self, target: Target, key: PageKey, origin: Origin) -> None:
        """Let a request be known by what it came in as, as long as its URL is."""
        found = self._urls.get(key)
        if found is None or is_long(target):
            return
        if target not in self._targets and len(self._targets) >= MAX_NOT_PAGES:
            self._known.pop(_drop_first(self._targets), None)
        found.origin = origin
        self._targets[target] = None
        self._known[target] = found

    def discard(self, key: PageKey) -> None:
        """Forget a URL that has become a page."""
        found = self._urls.pop(key, None)
        if found is not None:
            found.end = 0.0


def _drop_first(table: dict[t.Any, t.Any]) -> t.Any:
    with contextlib.suppress(StopIteration, KeyError, RuntimeError):
        # Another thread may be doing the same.
        first = next(iter(table))
        del table[first]
        return first


class Process:
    """Everything of a middleware that belongs to one process."""

    def __init__(
        self,
        site: Site,
        open_store: Opener,
        render: Renderer,
        codec: Codec,
        memory_size: int,
        open_pool: Callable[[], Pool],
        render_timeout: float,
        is_dedicated: bool,
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
            storage,
            coordination,
            self.memory,
            codec,
            site.build_id,
            self._store_failed,
            site.previous_builds,
        )
        self.pool = open_pool()
        #: Stale pages wait there for processes that do nothing but render.
        self.line: Line | None = None
        if isinstance(coordination, KeepsJobs):
            self.line = Line(self.store, coordination.jobs, codec, site)
        elif is_dedicated:
            logger.warning(
                "workers=0 leaves renders to other processes, which this store cannot tell of "
                "them: pages are rendered here; files and Redis can"
            )
        self.attempts = Attempts(site, render, self.store, self.stats, self.pool.submit)
        self.regeneration = Regeneration(
            self.store,
            self.attempts,
            self.pool,
            site.clock,
            render_timeout,
            self.line if is_dedicated else None,
        )
        self.upkeep = Upkeep(self.store, self.pool, self.stats, site.build_id)
        self.store.after = self.upkeep.look
        self.not_pages = NotPages(self.signal, self.memory.known, site.clock)
        #: Mount points that were seen, for paths that are named outside of a request.
        self.mounts: set[str] = {""} if before is None else before.mounts
        if before is not None:
            for entry in before.memory:
                entry.targets = []
                self.memory.put(entry)

    def renew(self, answer: FreshAnswer, now: float) -> bool:
        """Let an answer hold for another second, if its page is still fresh."""
        self.store.poll()
        entry = answer.entry
        entry.referenced = True
        self.store.confirm(entry)
        self.store.used(entry, now)
        return answer.renew(now)

    def see_mount(self, mount: str) -> None:
        if mount not in self.mounts and len(self.mounts) < MAX_MOUNTS:
            self.mounts.add(mount)

    def _store_failed(self, operation: str, error: Exception) -> None:
        self.stats.store_errors += 1
        signals.send(signals.store_failed, self._sender, operation=operation, error=error)
