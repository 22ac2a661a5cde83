"""`Pages`: the pages of one process, in memory over the store that it shares with others."""

from __future__ import annotations

import logging
import threading
import time
import typing as t
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..key import PageKey, page_label
from ..metadata import GONE
from ..page import Codec, Head, Invalidated, Page, Size, State, state_of
from .guard import Guard
from .memory import Entry, MemoryLevel
from .protocol import (
    Changes,
    Invalidation,
    Number,
    Record,
    Store,
    Stored,
    StoreError,
    TooLarge,
    Validity,
)

logger = logging.getLogger("wsgi_isr")

#: Seconds by which the time of a page's last use may be wrong.
RECENCY = 60.0
#: Numbers after which a process follows, though it is alone: a store lists `MAX_HISTORY`.
MAX_UNREAD = 500
#: Reports of damaged pages in this process, at most.
MAX_REPORTS = 10
#: Pages of a store that takes no writes that a process does not read any more, at most.
MAX_WITHDRAWN = 10_000


class Listed(t.NamedTuple):
    """A stored page without its bodies."""

    page: Page
    sizes: tuple[Size, ...]
    invalidated: Invalidated
    #: Seconds since 1970 at which it was served last, within a minute or so.
    used: float = 0.0


class Pages:
    """Pages of one build, in memory and in the store.

    Nothing here raises what a store raises, but for `invalidate`: an invalidation that may be lost
    is an error for its caller.

    :param on_error: called with the operation and the error of a store that failed.
    :param previous_builds: builds before this one whose pages are served, as stale ones, until
        this one has its own.
    """

    def __init__(
        self,
        store: Store,
        memory_size: int,
        codec: Codec,
        build_id: str,
        on_error: Callable[[str, Exception], None],
        previous_builds: int = 0,
    ) -> None:
        self.store = store
        self.guard = Guard(store, on_error)
        self.memory = MemoryLevel(memory_size)
        self._codec = codec
        self._build_id = build_id
        self._previous_builds = previous_builds
        self._earlier: list[str] | None = None
        #: Whether another process's invalidation shows in `Store.signal` at once.
        self.is_local = store.kind.shared != "network"
        #: What a hit reads: see `Store.signal`. On a network, a number of this process.
        self.signal: t.Any = store.signal if self.is_local else [0]
        self._reports = 0
        self._used: set[str] = set()
        #: Pages that the app does not offer any more, and that the store may still have.
        self._withdrawn: dict[PageKey, None] = {}
        self._following = threading.Lock()
        self.followed_at = 0.0

    @property
    def lists(self) -> bool:
        """Whether pages can be listed; of a process alone, memory lists what it has."""
        return self.store.kind.lists or self.store.kind.shared == "process"

    # Following what others do.

    def follow(self) -> None:
        """Take in what was invalidated, by whatever process."""
        with self._following:
            self.followed_at = time.monotonic()
            while True:
                signal = self.store.signal
                # Read before the changes are: a later one shows as another number.
                generation = signal[0]
                changes = self.guard.read(self.store.changes, self.memory.at)
                if self.store.signal is signal:
                    break
                # Other counters, whose numbers say nothing about what was confirmed before.
                self.memory.hits.clear()
            if self.is_local:
                self.signal = signal
            # Nothing is confirmed by what could not be asked.
            if changes is not None:
                if not changes.complete or changes.at != self.memory.at:
                    self._take_in(changes)
                if self.is_local:
                    self.memory.generation = generation

    def _take_in(self, changes: Changes) -> None:
        self.memory.apply(changes)
        if not self.is_local:
            self.signal[0] += 1
            self.memory.generation = self.signal[0]

    def catch_up(self) -> None:
        """Follow, if there is anything to follow."""
        if self.memory.generation != self.signal[0]:
            self.follow()

    # Reading.

    def find(self, key: PageKey, now: float) -> Entry | None:
        """The page in memory, or in the store if that is newer."""
        self.catch_up()
        entry = self.memory.get(key)
        if entry is not None:
            self.memory.confirm(entry)
            is_fresh = state_of(entry.page, entry.invalidated, now) is State.FRESH
            if is_fresh or self.is_newest(entry):
                return entry
        return self.newest(key)

    def is_newest(self, entry: Entry) -> bool:
        """Whether no page was stored since the store had nothing newer."""
        return bool(self.store.signal[1] == entry.newest_at != 0)

    def newest(self, key: PageKey) -> Entry | None:
        """The page in memory or in the store, whichever is newer, or that of an earlier build."""
        self.catch_up()
        # Read before the page is: one that is stored later shows as another number.
        now = self.store.signal[1]
        loaded = self._load(key)
        entry = loaded or self.memory.get(key)
        if entry is None:
            return self._borrow(key)
        self.memory.confirm(entry)
        if self.guard.is_well:
            entry.newest_at = now
            known = entry.in_store and entry.page.lineage == self.memory.at.lineage
            if loaded is None and known and entry.invalidated:
                # It may have had a successor, which was removed: nobody gets it who came later.
                self.memory.discard(key, entry)
                return self._borrow(key)
        return entry

    def _load(self, key: PageKey) -> Entry | None:
        """The page in the store, or in memory if that is newer; ``None`` where only that has it."""
        found, here = self._read(key), self.memory.get(key)
        if found is None:
            return None
        page, stored = found
        if here is not None and not here.in_store and here.number == stored.record.number:
            # It was rendered since, while the store gave no numbers.
            return None
        return self._keep(page, stored.validity, True, stored.used or time.time())

    def _read(self, key: PageKey) -> tuple[Page, Stored] | None:
        if key in self._withdrawn:
            return None
        found = self.guard.read(self.store.get, key.name)
        if found is None:
            return None
        head = self._head(found.record)
        if head is not None and head.page.name == key.name:
            page = self._codec.decode(head, found.record.body)
            if page is not None:
                return page, found
        if self._reports < MAX_REPORTS:
            self._reports += 1
            text = "stored page %s is damaged, or signed with another key: it is rendered anew"
            logger.warning(text, key.name)
        return None

    def _head(self, record: Record) -> Head | None:
        """What the sealed head says, if the store's own account of the page is the same."""
        head = self._codec.decode_head(record.head)
        if head is None:
            return None
        own = (head.page.name, (head.page.lineage, head.page.sequence), head.labels)
        return head if (record.name, record.number, record.labels) == own else None

    def _keep(
        self, page: Page, validity: Validity | None, in_store: bool = False, used: float = 0.0
    ) -> Entry:
        invalidated, at = (Invalidated.NO, None) if validity is None else validity
        if at is not None and at.lineage != self.memory.at.lineage:
            # The store has begun anew since: what memory says of its pages is from before that.
            self.follow()
        return self.memory.put(Entry(page, invalidated, in_store, used), at)

    def _borrow(self, key: PageKey) -> Entry | None:
        """The page of an earlier build, as a stale one; it is kept nowhere under this key.

        What is gone is not borrowed: newer code may well have it.
        """
        for build in self.earlier_builds()[: self._previous_builds]:
            found = self._read(key._replace(build=build))
            if found is None or found[0].code in GONE:
                continue
            if found[1].validity.invalidated is not Invalidated.EXPIRED:
                return Entry(replace(found[0], key=key, name=key.name), Invalidated.STALE)
        return None

    def earlier_builds(self) -> list[str]:
        """Let later builds find this one; those before it, the latest first."""
        if self._earlier is None:
            self._earlier = self.guard.write(self.store.builds, self._build_id)
        return self._earlier or []

    def used(self, entry: Entry, now: float) -> None:
        """Note that a page is served, also from memory alone: it is evicted late."""
        if abs(now - entry.used_at) >= RECENCY:
            entry.used_at = now
            if entry.in_store:
                self._used.add(entry.page.name)

    def tell(self) -> None:
        """Tell the store which pages were served, and what it did not remove when it was asked."""
        if self._used:
            names, self._used = self._used, set()
            self.guard.write(self.store.used, names)
        # It stops where the store does not answer.
        all(self.guard.write(self._withdraw, key) for key in list(self._withdrawn))

    # Listing.

    def listed(
        self,
        build: str | None = None,
        path: str | None = None,
        after: str = "",
        matches: Callable[[Record], object] = lambda record: True,
    ) -> Iterator[tuple[str, Listed | None]]:
        """Pages without their bodies, by their names; ``None`` for one that does not match.

        First those of the store, then those that only memory has, in the order of names each.

        :param path: the full path of all of them; ``None`` for any.
        :param after: begin behind the page of this name.
        :raises NotImplementedError: where pages cannot be listed.
        :raises Exception: what the store raises.
        """
        self.catch_up()
        seen, kind = set(), self.store.kind
        # Of a process alone, memory lists what it has.
        alone = kind.shared == "process" and not kind.lists
        records = () if alone else self.store.records(build=build, path=path, after=after)
        for record, validity, used in records:
            seen.add(record.name)
            head = self._head(record) if matches(record) else None
            listed = head and Listed(head.page, head.sizes, validity.invalidated, used)
            yield record.name, listed
        entries = self.memory if path is None else self.memory.of_path(path)
        # What was in the store and is not listed was removed since.
        left = {e.page.name: e for e in entries if alone or not e.in_store}
        for name in sorted(left.keys() - seen):
            entry, page = left[name], left[name].page
            if name > after:
                self.memory.confirm(entry)
                sizes = tuple((coding, len(body)) for coding, body in page.bodies.items())
                listed = Listed(page, sizes, entry.invalidated, entry.used_at)
                yield name, listed if matches(_record(page)) else None

    # Writing.

    def number(self) -> Number:
        """The number of a render that begins now.

        Without the store it is the last that was seen: its page replaces what this process has,
        and whatever gets a number later replaces it.
        """
        number = self.guard.write(self.store.number)
        if number is None:
            at = self.memory.at
            seen = (e.page.sequence for e in self.memory if e.page.lineage == at.lineage)
            number = at._replace(sequence=max((self.memory.changed, *seen)))
        return number

    def put(self, page: Page) -> tuple[Entry, str | None]:
        """Store a finished render, unless a later one is there.

        Gives the page that counts from now on, and why it was not stored if it was not.
        """
        validity, refusal = self.guard.write(self._put, page) or (None, "store-error")
        if refusal == "too-large":
            return Entry(page, Invalidated.NO), refusal
        if refusal is not None:
            return self._keep(page, None), refusal
        self._withdrawn.pop(page.key, None)
        if validity is None:
            stale = Validity(Invalidated.STALE, self.memory.at)
            return self._load(page.key) or self._keep(page, stale), None
        alone = self.store.kind.name == "memory"
        entry = self._keep(page, validity, not alone, time.time())
        return entry, "too-large" if alone and self.memory.get(page.key) is None else None

    def _put(self, page: Page) -> tuple[Validity | None, str | None]:
        try:
            return self.store.put(_record(page, *self._codec.encode(page))), None
        except TooLarge:
            return None, "too-large"

    def recode(self, page: Page) -> None:
        """Add content codings to a stored page; one that is gone or replaced stays so."""
        found, here = self._read(page.key), self.memory.get(page.key)
        stored = found[0] if found else here.page if here else None
        if stored is not None and stored.render == page.render:
            self.put(page)

    def withdraw(self, key: PageKey) -> None:
        """Remove a page for all processes, before anybody is served it again.

        Where the store does not remove it, at least this process does not read it any more.
        """
        # Earlier builds do not lend it any more.
        for build in (key.build, *self.earlier_builds()[: self._previous_builds]):
            self._withdrawn[key._replace(build=build)] = None
            self.guard.write(self._withdraw, key._replace(build=build))
        if len(self._withdrawn) > MAX_WITHDRAWN:
            self._withdrawn.pop(next(iter(self._withdrawn)), None)
        # Last: until then another thread may read it again.
        self.memory.discard(key)

    def _withdraw(self, key: PageKey) -> bool:
        # Invalidated first: others have it in their memory.
        self.store.invalidate([page_label(key.name)], True)
        self.store.delete(key.name)
        self._withdrawn.pop(key, None)
        return True

    def forget_outdated(self, entry: Entry) -> None:
        """Remove a page that nobody gets yet, if its path was named since its render began."""
        key = entry.page.key
        self.follow()
        if self.memory.is_named(key, entry.number):
            self.guard.write(self.store.delete, key.name)
            self.memory.discard(key, entry)

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        """Invalidate pages in all processes, before this returns.

        It holds in this process, whatever the store does.

        :raises StoreError: if it may not hold elsewhere.
        """
        try:
            number = self.guard.demand(self.store.invalidate, labels, expire)
        except Exception as error:
            self.memory.invalidate(labels, expire)
            raise StoreError(f"the store did not take the invalidation: {error}") from error
        with self._following:
            known, before = self.memory.at, self.memory.generation
            # What others invalidated before it is followed later.
            at = known if known.lineage == number.lineage else Number(number.lineage, 0)
            made = (Invalidation(label, number.sequence, expire) for label in labels)
            self._take_in(Changes(at, True, tuple(made)))
            now = self.signal[0]
            alone = at is known and self.signal is self.store.signal and before == now - 1
            if self.is_local and alone and number.sequence < at.sequence + MAX_UNREAD:
                # Nobody else invalidated anything since this process followed.
                self.memory.generation = now
        if self.memory.generation is None:
            self.follow()
        return number


def _record(page: Page, head: bytes = b"", body: bytes = b"") -> Record:
    number, path = Number(page.lineage, page.sequence), page.key.full_path or "/"
    gone = page.code in GONE
    return Record(page.name, page.labels, number, page.key.build, path, gone, head, body)
