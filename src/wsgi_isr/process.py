"""What a middleware has in each process anew: its store, its threads, its counters.

Nothing is opened or started before the first request, and all of it again in a forked child:
locks, threads and connections of the parent are of no use there.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from . import signals
from .attempt import Attempts
from .dedicated import Line
from .known import Known
from .known import NotPages
from .page import Codec
from .pool import Pool
from .regeneration import Regeneration
from .render import Renderer
from .site import Site
from .stats import Stats
from .store import PageStore
from .store.coordination import KeepsJobs
from .store.memory import MemoryLevel
from .store.opening import Opener
from .upkeep import Upkeep

logger = logging.getLogger("wsgi_isr")

#: Seconds between two looks at what others do: each page that is asked for is renewed by itself.
LOOK = 0.1
#: Mount points remembered.
MAX_MOUNTS = 16


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
        self._looked = 0.0
        self._renewing = threading.Lock()
        #: Mount points that were seen, for paths that are named outside of a request.
        self.mounts: set[str] = {""} if before is None else before.mounts
        if before is not None:
            for entry in before.memory:
                entry.targets = ()
                self.memory.put(entry)

    def renew(self, known: Known, now: float) -> bool:
        """Let an answer hold for another second, if its page may still be served."""
        entry = known.entry
        if entry is None:
            return False
        self.look(now)
        entry.referenced = True
        self.store.confirm(entry)
        self.store.used(entry, now)
        return self.make_anew(known, now)

    def make_anew(self, known: Known, now: float) -> bool:
        """The same, without a look at anything."""
        # Of two at once one may not know yet of what has happened, and their fields would mix.
        with self._renewing:
            return known.renew(now)

    def look(self, now: float) -> None:
        """See what others have done, unless that was a moment ago."""
        if not 0.0 <= now - self._looked < LOOK:
            self._looked = now
            self.store.poll()

    def see_mount(self, mount: str) -> None:
        if mount not in self.mounts and len(self.mounts) < MAX_MOUNTS:
            self.mounts.add(mount)

    def _store_failed(self, operation: str, error: Exception) -> None:
        self.stats.store_errors += 1
        signals.send(signals.store_failed, self._sender, operation=operation, error=error)
