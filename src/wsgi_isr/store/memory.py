"""The pages in this process's memory, bounded in bytes. A hit copies, locks and parses nothing."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator

from ..key import PageKey
from ..metadata import intern
from ..page import Invalidated, Page
from .epochs import Epochs, Last, replaces
from .protocol import MAX_HISTORY, Changes, Invalidation, Number

#: What a request says of the page that it is for, before anything is parsed: path, query, host,
#: scheme, mount point, accepted content codings.
Fingerprint: t.TypeAlias = "tuple[str, str, str, str, str, str | None]"

#: A longer fingerprint is not kept: clients choose it.
MAX_LENGTH = 512
#: Fingerprints kept for a page; undeclared parameters make many.
MAX_FINGERPRINTS = 16
#: Bytes that a page takes beyond its bodies and words: its objects, and its places in tables.
OVERHEAD = 3072
#: Bytes that a fingerprint takes beyond its words.
FINGERPRINT_OVERHEAD = 160


class Entry:
    """A page, and what this process keeps about it. The page itself never changes."""

    __slots__ = (
        "confirmed",
        "fingerprints",
        "hits",
        "in_store",
        "newest_at",
        "page",
        "referenced",
        "retry_at",
        "size",
        "used_at",
    )

    def __init__(
        self, page: Page, invalidated: Invalidated, in_store: bool = False, used_at: float = 0.0
    ) -> None:
        self.page = page
        #: A generation of the memory level, and what invalidations up to it made of the page. One
        #: value, so that no thread sees one without the other.
        self.confirmed: tuple[object, Invalidated] = (None, invalidated)
        #: The second number of `Store.signal` when the store had nothing newer.
        self.newest_at = 0
        #: Whether the store has had the page.
        self.in_store = in_store
        #: Seconds since 1970 before which no regeneration is started.
        self.retry_at = 0.0
        #: Whether it was served since its turn to be evicted came last. Not yet: a flood of pages
        #: that are asked for once evicts no other.
        self.referenced = False
        #: Seconds since 1970 at which the store was last told that the page is used.
        self.used_at = used_at
        # Tuples, because most have one member.
        self.hits: tuple[t.Any, ...] = ()
        self.fingerprints: tuple[Fingerprint, ...] = ()
        self.size = OVERHEAD + page.size + page.weight + len(page.history)

    @property
    def invalidated(self) -> Invalidated:
        return self.confirmed[1]

    @property
    def number(self) -> Number:
        return Number(self.page.lineage, self.page.sequence)

    def __repr__(self) -> str:
        return f"<Entry {self.page.key.url} {self.invalidated.name} {self.page.sequence}>"


class MemoryLevel:
    """Pages by key, within a number of bytes.

    Eviction is second chance (CLOCK): a hit sets one flag and takes no lock.

    Invalidations are kept in `_recent` and applied to a page when it is next used. When there are
    many, they are applied to all pages and forgotten.

    :param limit: bytes; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        #: Ready answers by fingerprint, and what is remembered of requests that are for no page.
        self.hits: dict[Fingerprint, t.Any] = {}
        #: What `Store.signal` said when all that `at` says had been applied. ``None`` before.
        self.generation: object = None
        #: The lineage of the store, and the number of the last invalidation applied here.
        self.at = Number("", 0)
        self._recent = Epochs("")
        #: A page whose validity is from before this number may miss an invalidation.
        self._base = 0
        self._entries: dict[PageKey, Entry] = {}
        #: The same by full path.
        self._paths: dict[str, list[Entry]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def get(self, key: PageKey) -> Entry | None:
        return self._entries.get(key)

    def of_path(self, path: str) -> list[Entry]:
        """The pages of a full path."""
        with self._lock:
            return list(self._paths.get(path, ()))

    # Invalidations.

    @property
    def changed(self) -> int:
        """The number of the last invalidation that was applied, this process's own among them."""
        return max(self.at.sequence, self._base, self._recent.changed)

    def apply(self, changes: Changes) -> None:
        """Take in what was invalidated. Nothing is confirmed before `generation` is set anew."""
        with self._lock:
            at, complete, invalidations = changes
            is_shown, self.generation = self.generation != 0, None
            if at.lineage != self.at.lineage:
                # Pages of the old lineage count as stale; what made them expired still holds.
                self._confirm_all(at.lineage, 0)
            elif not complete:
                for entry in self:
                    self._remove(entry)
                self._confirm_all(at.lineage, at.sequence)
            for invalidation in invalidations:
                self._recent.apply(invalidation)
            self.at = at
            # A signal that stays 0 shows nothing: no page would be confirmed again.
            if len(self._recent.labels) > MAX_HISTORY or not is_shown:
                self._confirm_all(at.lineage, max(at.sequence, self._recent.changed))

    def _confirm_all(self, lineage: str, base: int) -> None:
        """Apply what is in `_recent` to all pages, and begin it anew."""
        for entry in self._entries.values():
            entry.confirmed = self.generation, self._validity(entry)
        self._recent, self._base = Epochs(lineage), base

    def invalidate(self, labels: t.Iterable[str], expire: bool) -> None:
        """Invalidate what is here, whatever the store says: it could not be reached."""
        epochs = Epochs("")
        for label in labels:
            epochs.apply(Invalidation(label, 1, expire))
        with self._lock:
            for entry in self._entries.values():
                page = entry.page
                if made := epochs.validity(page.labels, page.key.full_path, Number("", 0)):
                    entry.confirmed = (entry.confirmed[0], max(entry.invalidated, made))
                    self._forget_hits(entry)

    def confirm(self, entry: Entry) -> None:
        """Apply to a page what was invalidated since it was last confirmed."""
        if entry.confirmed[0] != self.generation:
            with self._lock:
                entry.confirmed = self.generation, self._validity(entry)

    def _validity(self, entry: Entry) -> Invalidated:
        page, made = entry.page, entry.invalidated
        if made is not Invalidated.EXPIRED and self._recent.lineage:
            made = max(made, self._recent.validity(page.labels, page.key.full_path, entry.number))
        return made

    def is_outdated(self, key: PageKey, number: Number) -> bool:
        """Whether something was invalidated since a render began that may be about its page.

        Its tags are in its answer, which is not there yet: each may be one of them.
        """
        with self._lock:
            recent = self._recent
            if number.sequence < self._base or recent.validity(key.labels, key.full_path, number):
                return True
            tags = (last for label, last in recent.labels.items() if label.startswith("tag:"))
            return any(last.any > number.sequence for last in tags)

    def is_named(self, key: PageKey, number: Number) -> bool:
        """Whether the path of a page was invalidated since its render began."""
        with self._lock:
            last = max(self._recent.labels.get(label, Last()).any for label in key.labels)
            is_ours = number.lineage == self.at.lineage and number.sequence >= self._base
            return not is_ours or last > number.sequence

    # Pages.

    def take_over(self, before: MemoryLevel) -> None:
        """Keep the pages of another level, which nobody uses any more."""
        # Without its lock: after a fork, a thread that was not copied may have it.
        for old in before:
            self.put(Entry(old.page, before._validity(old), old.in_store, old.used_at))

    def put(self, entry: Entry, at: Number | None = None) -> Entry:
        """Keep an entry unless there is a later render; gives the one that counts.

        :param at: the last invalidation that its validity takes into account. Where later ones
            were forgotten here, it counts as stale, and is not kept.
        """
        key = entry.page.key
        with self._lock:
            if at is not None and at.lineage == self.at.lineage and at.sequence < self._base:
                entry.confirmed = (None, max(entry.invalidated, Invalidated.STALE))
                return entry
            old = self._entries.get(key)
            if old is not None:
                is_same = entry.page.render == old.page.render
                if not replaces(entry.number, old.number, self.at.lineage) or (
                    is_same and entry.page.codings == old.page.codings
                ):
                    return old
                self._remove(old)
            made = entry.invalidated if at == self.at else self._validity(entry)
            entry.confirmed = self.generation, made
            self._add(entry)
        return entry

    def add_hit(self, entry: Entry, fingerprint: Fingerprint, hit: t.Any) -> None:
        """Let a request find a ready answer without being parsed."""
        key = entry.page.key
        if self._entries.get(key) is not entry or is_long(fingerprint):
            return
        with self._lock:
            if self._entries.get(key) is not entry:
                return
            if fingerprint not in entry.fingerprints:
                if len(entry.fingerprints) >= MAX_FINGERPRINTS:
                    self._forget_hits(entry)
                own, *others = fingerprint
                fingerprint = (key.path if key.path == own else own, *map(intern, others))  # type: ignore[assignment]
                entry.fingerprints += (fingerprint,)
                entry.size += weight_of(fingerprint)
                self.size += weight_of(fingerprint)
                while self.size > self.limit:
                    self._evict()
                if self._entries.get(key) is not entry:
                    return
            self.hits[fingerprint] = hit

    def discard(self, key: PageKey, only: Entry | None = None) -> None:
        """Forget the page of a key.

        :param only: unless another page has replaced it by now.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and only in (None, entry):
                self._remove(entry)

    def _forget_hits(self, entry: Entry) -> None:
        """Forget the answers of a page that is kept, and the requests that find them."""
        for hit in entry.hits:
            hit.until = 0.0
        for fingerprint in entry.fingerprints:
            self.hits.pop(fingerprint, None)
            entry.size -= weight_of(fingerprint)
            self.size -= weight_of(fingerprint)
        # They refer to the entry: without them it is freed as soon as nobody is being served.
        entry.hits = entry.fingerprints = ()

    def _add(self, entry: Entry) -> None:
        if entry.size <= self.limit:
            while self.size + entry.size > self.limit:
                self._evict()
            key = entry.page.key
            self._entries[key] = entry
            self._paths.setdefault(key.full_path or "/", []).append(entry)
            self.size += entry.size

    def _remove(self, entry: Entry) -> None:
        key = entry.page.key
        del self._entries[key]
        path = key.full_path or "/"
        self._paths[path].remove(entry)
        if not self._paths[path]:
            del self._paths[path]
        self._forget_hits(entry)
        self.size -= entry.size

    def _evict(self) -> None:
        while True:
            entry = next(iter(self._entries.values()))
            if not entry.referenced:
                self._remove(entry)
                return
            entry.referenced = False
            self._entries[entry.page.key] = self._entries.pop(entry.page.key)


def weight_of(fingerprint: Fingerprint) -> int:
    """Bytes of memory that a fingerprint takes: its path and query are its own."""
    return FINGERPRINT_OVERHEAD + len(fingerprint[0]) + len(fingerprint[1])


def is_long(fingerprint: Fingerprint) -> bool:
    """Whether a request is parsed each time, because its words are not worth keeping."""
    return sum(len(part) for part in fingerprint if part) > MAX_LENGTH
