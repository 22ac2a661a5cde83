"""`PageStore`: the memory level over the shared level, and the one place where a store may fail.

Nothing here raises into a request: a store that is down, slow, full or damaged is a miss.
Invalidations are the exception: one that may be lost is an error for who asked for it.
"""

from __future__ import annotations

import contextlib
import logging
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator

from ..key import PAGE_NAME
from ..key import PageKey
from ..key import path_digest
from ..page import Codec
from ..page import Page
from ..page import page_label
from ..state import Mark
from ..state import replaces
from ..state import State
from ..state import state_of
from .backend import FileStorage
from .backend import NullStorage
from .backend import RECENCY
from .backend import Storage
from .breaker import Breaker
from .coordination import Coordination
from .coordination import Failure
from .coordination import Held
from .coordination import KeepsStats
from .coordination import Lease
from .coordination import Number
from .coordination import Remote
from .coordination import StoreError
from .coordination import TooLarge
from .damage import Damage
from .files import FileCoordination
from .leases import RemoteLease
from .lending import Lending
from .memory import confirmation
from .memory import Entry
from .memory import is_same_render
from .memory import MemoryLevel
from .prune import Pruner

logger = logging.getLogger("wsgi_isr")

T = t.TypeVar("T")


class PageStore:
    """Pages of one site, in memory and in the shared store.

    :param on_error: called with the operation and the error of a store that failed.
    :param previous_builds: builds before this one whose pages are served, as stale ones, until
        this one has its own.
    """

    def __init__(
        self,
        storage: Storage,
        coordination: Coordination,
        memory: MemoryLevel,
        codec: Codec,
        build_id: str,
        on_error: Callable[[str, Exception], None],
        previous_builds: int = 0,
    ) -> None:
        self.storage = storage
        self.coordination = coordination
        self.memory = memory
        #: Keeps files within their bounds; ``None`` for stores that have bounds of their own.
        self.pruner: Pruner | None = None
        if isinstance(storage, FileStorage) and isinstance(coordination, FileCoordination):
            self.pruner = Pruner(storage, coordination)
        #: Called where something happened, while somebody waits for it.
        self.after: Callable[[], None] = lambda: None
        self._codec = codec
        self._build_id = build_id
        probe = coordination.probe if isinstance(coordination, Remote) else None
        self._breaker = Breaker(on_error, probe)
        self._lending = Lending(coordination, self._breaker.call, build_id, previous_builds)
        if previous_builds and not self._lending.is_possible:
            logger.warning("this store does not know of builds: previous_builds has no effect")
        self._damage = Damage()
        #: The last number this process knows of.
        self._last = Number("", 0)

    def ask(self, operation: str, function: Callable[[], T], write: bool = False) -> T | None:
        """What the store answers, or ``None`` if it does not."""
        return self._breaker.call(operation, function, write)

    # Reading.

    def lookup(self, key: PageKey, now: float) -> Entry | None:
        """The page as this process knows it, or as the shared level does if that is newer."""
        entry = self.memory.get(key)
        if entry is None:
            return self.load(key) or self.borrow(key)
        # Before it is confirmed: where nothing else tells of changes this is when they are found.
        self._breaker.call("poll", self.coordination.poll)
        self.confirm(entry)
        if state_of(entry.page, entry.mark, now) is State.FRESH:
            return entry
        if self.is_newest(entry):
            return entry
        return self.newest(key) or self.borrow(key)

    def is_newest(self, entry: Entry) -> bool:
        """Whether the shared level has nothing newer, as far as can be told without a look."""
        return entry.stores == self.coordination.stored(entry.page.name)

    def confirm(self, entry: Entry) -> None:
        """See what invalidations have made of a page, if there were any."""
        generation = self.coordination.signal[0]
        if entry.confirmed[0] != generation:
            if entry.mark is Mark.HARD:
                # It stays so, also where the store has lost the invalidation since.
                entry.confirmed = confirmation(generation, Mark.HARD)
                return
            epochs = self._breaker.call("epochs", self.coordination.epochs)
            if epochs is not None:
                self.memory.lineage = epochs.lineage
                self._note(Number(epochs.lineage, epochs.sequence))
                entry.confirmed = confirmation(generation, epochs.mark(entry.page))

    def _note(self, number: Number) -> None:
        if number.lineage != self._last.lineage or number.sequence > self._last.sequence:
            self._last = number

    def _entry(
        self, page: Page, stores: object, unconfirmed: Mark = Mark.NONE, shared: bool = False
    ) -> Entry:
        """
        :param unconfirmed: what counts while the invalidations cannot be had.
        """
        entry = Entry(page, unconfirmed, None, stores, shared)
        self.confirm(entry)
        return entry

    def load(self, key: PageKey) -> Entry | None:
        """The page of the shared level."""
        # Read before the page is, so that any later change is noticed.
        stores = self.coordination.stored(key.name)
        page = self._read(key.name, key, used=True)
        if page is None:
            return None
        entry = self.memory.put(self._entry(page, stores, Mark.SOFT, shared=True))
        entry.touched = time.time()
        if self._last.lineage in ("", page.lineage) and page.sequence > self._last.sequence:
            self._last = Number(page.lineage, page.sequence)
        return entry

    def used(self, entry: Entry, now: float) -> None:
        """Note that a page is used, also from memory alone; it is one of the last to go."""
        if abs(now - entry.touched) >= RECENCY:
            entry.touched = now
            if self.pruner is not None:
                self.pruner.touch(entry.page.name)

    def newest(self, key: PageKey) -> Entry | None:
        """The page of the level that has the newer one."""
        known = self.memory.get(key)
        stores = self.coordination.stored(key.name)
        loaded = self.load(key)
        if known is None or loaded is None:
            entry = loaded or known
        else:
            newer = replaces(loaded.page, known.page, self.memory.lineage)
            entry = loaded if newer else known
        if entry is not None:
            entry.stores = stores
            self.confirm(entry)
            if loaded is None and self._may_be_superseded(entry):
                self.memory.discard(key, entry)
                return None
        return entry

    def _may_be_superseded(self, entry: Entry) -> bool:
        """Whether a page that is in memory only may have had a newer one, which was removed.

        It was invalidated, and whoever had it rendered again must not get this one. What the
        shared level never had is another matter, and so is one that has lost its lineage.
        """
        marked = entry.mark is not Mark.NONE and entry.page.lineage == self.memory.lineage
        return marked and entry.shared and self._breaker.well

    def borrow(self, key: PageKey) -> Entry | None:
        """The page of an earlier build, as a stale one; it is kept nowhere under this key."""
        page = self._lending.find(key, lambda lender: self._read(lender.name, lender))
        if page is None:
            return None
        entry = self._entry(page, None)
        entry.confirmed = confirmation(entry.confirmed[0], max(entry.mark, Mark.SOFT))
        return None if entry.mark is Mark.HARD else entry

    def note_build(self) -> list[str]:
        """Let later builds know of this one; those before it, the last one first."""
        return self._lending.earlier()

    def _read(self, name: str, key: PageKey | None, used: bool = False) -> Page | None:
        data = self._breaker.call("get", lambda: self.storage.get(name, used))
        if data is None:
            return None
        page = self._codec.decode(data, key)
        if page is None:
            self._damage.report(name, key)
        return page

    def siblings(self, full_path: str) -> list[PageKey]:
        """All known pages of a path, on whatever host, with whatever query or variant."""
        digest = path_digest(full_path)
        keys = {entry.page.key for entry in self.memory if entry.page.key.full_path == full_path}
        try:
            names = self._breaker.call("list", lambda: list(self.storage.names(digest))) or []
        except NotImplementedError:
            names = []
        pages = (self._read(name, None) for name in names)
        keys.update(p.key for p in pages if p is not None and p.key.full_path == full_path)
        return sorted(key for key in keys if key.build == self._build_id)

    def pages(self) -> Iterator[Entry]:
        """All pages of this build, one at a time.

        :raises NotImplementedError: for a backend that cannot list.
        """
        seen = set()
        for name in self.storage.names():
            page = self._read(name, None)
            if page is not None and page.name == name and page.key.build == self._build_id:
                seen.add(page.key)
                yield self._entry(page, None)
        for entry in self.memory:
            if entry.page.key not in seen:
                self.confirm(entry)
                yield entry

    # Writing.

    def put(self, page: Page) -> tuple[Entry, str | None]:
        """Store a finished render, unless a newer one is there.

        Returns the page that counts from now on, and why it was not stored if it was not.
        """
        stores = self.coordination.stored(page.name)

        def accept(data: bytes | None) -> bool:
            old = None if data is None else self._codec.decode(data, page.key)
            return replaces(page, old, self._lineage(page, old))

        data = self._codec.encode(page)
        try:
            stored = self._breaker.call(
                "set", lambda: self.coordination.swap(self.storage, page.name, data, accept), True
            )
        except TooLarge:
            return self.memory.put(self._entry(page, stores)), "too-large"
        if stored is False and (newer := self.newest(page.key)) is not None:
            return newer, None
        alone = isinstance(self.storage, NullStorage)
        kept = self.memory.put(self._entry(page, stores, shared=not alone and stored is not None))
        if stored is None:
            return kept, "store-error"
        if alone and self.memory.get(page.key) is None:
            return kept, "too-large"
        return kept, None

    def recode(self, page: Page) -> None:
        """Add content codings to a stored page; one that is gone or replaced stays so."""

        def accept(data: bytes | None) -> bool:
            old = None if data is None else self._codec.decode(data, page.key)
            return old is not None and is_same_render(page, old)

        if not isinstance(self.storage, NullStorage):
            data = self._codec.encode(page)
            with contextlib.suppress(TooLarge):
                self._breaker.call(
                    "set",
                    lambda: self.coordination.swap(self.storage, page.name, data, accept),
                    True,
                )
        self.memory.recode(page)

    def _lineage(self, page: Page, old: Page | None) -> str | None:
        """The lineage of the store now, where a page and what it may replace have two."""
        if old is not None and old.lineage != page.lineage:
            with contextlib.suppress(Exception):
                return self.coordination.epochs().lineage
        return None

    def drop(self, key: PageKey) -> None:
        """Forget a page everywhere: its URL is no page any more."""
        labels = [page_label(key.name)]
        self._breaker.call("drop", lambda: self.coordination.invalidate(labels, True), True)
        self._breaker.call("drop", lambda: self.coordination.remove(self.storage, key.name), True)
        self.memory.discard(key)

    def invalidate(self, labels: list[str], hard: bool) -> Number:
        """Mark pages, in all processes, before this returns.

        :raises StoreError: if that may not hold everywhere.
        """
        try:
            return self.coordination.invalidate(labels, hard)
        except Exception as error:
            self._breaker.failed("invalidate", error)
            raise StoreError(f"the store did not take the invalidation: {error}") from error

    def clear(self) -> int:
        """Remove all pages of the site, of whatever build, and return how many were stored.

        :raises NotImplementedError: where they cannot be listed; by then they have expired.
        :raises StoreError: if they may not all have.
        """
        # First, so that other processes do not serve what they have in memory.
        self.invalidate(["pattern:/**"], True)
        for entry in self.memory:
            self.memory.discard(entry.page.key)
        names = [name for name in self.storage.names() if PAGE_NAME.fullmatch(name)]
        for name in names:
            self.coordination.remove(self.storage, name)
        if self.pruner is not None:
            self.pruner.sweep()
        return len(names)

    # Coordination; without it every process is on its own.

    def next_number(self) -> Number:
        number = self._breaker.call("number", self.coordination.next_number, True)
        if number is not None:
            self._note(number)
        # Without one the last that is known: it replaces what this process has, and whatever is
        # numbered later replaces it.
        return number or self._last

    def acquire(self, name: str, seconds: float, on_demand: bool = False) -> Lease | Held | None:
        """The lease of a page, who has it, or ``None`` where there is no agreement to be had."""
        return self._breaker.call(
            "lease", lambda: self.coordination.acquire(name, seconds, on_demand), True
        )

    def release(self, lease: Lease | None, outcome: bytes | None = None) -> None:
        if lease is not None:
            if isinstance(lease, RemoteLease):
                # Also while the store is left alone: afterwards nobody would stop extending it.
                lease.let_go()
            sealed = None if outcome is None else self._codec.seal(outcome)
            self._breaker.call("release", lambda: lease.release(sealed), True)
        self.after()

    def outcome(self, name: str, token: str) -> bytes | None:
        sealed = self._breaker.call("outcome", lambda: self.coordination.outcome(name, token))
        payload = self._codec.unseal(sealed)
        return None if payload is None else bytes(payload)

    def failure(self, name: str) -> Failure | None:
        return self._breaker.call("failure", lambda: self.coordination.failure(name))

    def set_failure(self, name: str, failure: Failure | None) -> None:
        self._breaker.call("failure", lambda: self.coordination.set_failure(name, failure), True)

    def poll(self) -> None:
        self._breaker.call("poll", self.coordination.poll)
        self.after()

    # Counters of all processes.

    @property
    def keeps_stats(self) -> bool:
        """Whether other processes see the counters that this one leaves."""
        return isinstance(self.coordination, KeepsStats)

    def leave_stats(self, data: bytes) -> None:
        # Not through the breaker: pages are read even where counters cannot be written.
        if isinstance(self.coordination, KeepsStats) and not self._breaker.open:
            with contextlib.suppress(Exception):
                self.coordination.leave_stats(data)

    def all_stats(self) -> list[bytes]:
        """
        :raises Exception: what the store raises.
        """
        return self.coordination.all_stats() if isinstance(self.coordination, KeepsStats) else []
