"""The memory level: `Entry` objects, bounded in bytes. A hit copies, locks and pickles nothing."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator

from ..key import PageKey
from ..page import Page
from ..sharing import shared
from ..state import Mark
from ..state import replaces

#: All of a request that a hit depends on, as it came in, before anything is parsed: path, query,
#: host, scheme, mount point, accepted content codings.
Target: t.TypeAlias = "tuple[str, str, str, str, str, str | None]"

#: A longer target is parsed each time: clients choose it, and nothing counts its bytes.
MAX_TARGET_LENGTH = 512
#: Spellings of one page that are found without parsing; undeclared parameters make many.
MAX_TARGETS = 16
#: What a page costs beyond its bodies and headers: its objects, and its places in the tables.
OVERHEAD = 3072


def confirmation(generation: object, mark: Mark) -> tuple[object, Mark]:
    """That a page has this mark under this generation, as most pages do."""
    return shared((generation, mark))


class Entry:
    """A page with what this process knows of it. Its fields change; the page never does."""

    __slots__ = (
        "answers",
        "confirmed",
        "page",
        "referenced",
        "retry_at",
        "shared",
        "size",
        "stores",
        "targets",
        "touched",
    )

    def __init__(
        self, page: Page, mark: Mark, generation: object, stores: object, shared: bool = False
    ) -> None:
        self.page = page
        #: The generation under which the page was last confirmed, and what invalidations had
        #: made of it then. One value, so that no thread sees the one without the other.
        self.confirmed = confirmation(generation, mark)
        #: The signal under which the shared level had nothing newer.
        self.stores = stores
        #: Whether the shared level has had the page.
        self.shared = shared
        #: Seconds since 1970 before which no regeneration is started.
        self.retry_at = 0.0
        #: Whether it was served since its turn came last; not yet, so that a flood of pages that
        #: are asked for once drives out no other.
        self.referenced = False
        #: Seconds since 1970 at which the shared level was last told that the page is used.
        self.touched = 0.0
        # Tuples, because most have one member, and it shows in what a page takes of memory.
        #: Ready-made answers, one for each content coding that was asked for.
        self.answers: tuple[t.Any, ...] = ()
        #: Request targets by which a hit finds them.
        self.targets: tuple[Target, ...] = ()
        self.size = OVERHEAD + page.size + page.weight

    @property
    def mark(self) -> Mark:
        return self.confirmed[1]

    def __repr__(self) -> str:
        return f"<Entry {self.page.key.url} {self.mark.name} {self.page.sequence}>"


class MemoryLevel:
    """Pages by key, within a number of bytes.

    Eviction is second chance (CLOCK): a hit sets one flag and takes no lock, and the next page
    in line whose flag is not set goes.

    :param limit: bytes; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        #: The lineage of the store, as far as it is known.
        self.lineage: str | None = None
        #: Ready-made answers by request target: what a hit looks up. And what is known of other
        #: requests, which `NotPages` keeps here, so that each needs one look-up.
        self.known: dict[Target, t.Any] = {}
        self._entries: dict[PageKey, Entry] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def get(self, key: PageKey) -> Entry | None:
        return self._entries.get(key)

    def put(self, entry: Entry) -> Entry:
        """Keep an entry, if there is no newer page; returns the one that is kept."""
        key = entry.page.key
        with self._lock:
            old = self._entries.get(key)
            if old is not None:
                newer = replaces(entry.page, old.page, self.lineage)
                if not newer or is_same_render(entry.page, old.page, with_codings=True):
                    return old
                self._remove(old)
            self._add(entry)
        return entry

    def recode(self, page: Page) -> None:
        """Keep a page in place of one of the same render; nothing, where there is none."""
        with self._lock:
            old = self._entries.get(page.key)
            if old is not None and is_same_render(page, old.page):
                generation, mark = old.confirmed
                entry = Entry(page, mark, generation, old.stores, old.shared)
                entry.retry_at = old.retry_at
                self._remove(old)
                self._add(entry)

    def _add(self, entry: Entry) -> None:
        if entry.size <= self.limit:
            while self.size + entry.size > self.limit:
                self._evict()
            self._entries[entry.page.key] = entry
            self.size += entry.size

    def let_hit(self, entry: Entry, target: Target, answer: object) -> None:
        """Let a hit find an answer of an entry by a request as it came in."""
        key = entry.page.key
        if self._entries.get(key) is not entry or is_long(target):
            return
        with self._lock:
            if self._entries.get(key) is not entry:
                return
            if target not in entry.targets:
                if len(entry.targets) >= MAX_TARGETS:
                    self.known.pop(entry.targets[0], None)
                    entry.targets = entry.targets[1:]
                target = _slim(target, key.path)
                entry.targets += (target,)
            self.known[target] = answer

    def discard(self, key: PageKey, only: Entry | None = None) -> None:
        """Forget the page of a key.

        :param only: unless another one has taken its place by now.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and only in (None, entry):
                self._remove(entry)

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.page.key]
        self.size -= entry.size
        # They refer to it: without them it is freed as soon as nobody is being served.
        entry.answers = ()
        for target in entry.targets:
            self.known.pop(target, None)

    def _evict(self) -> None:
        while True:
            entry = next(iter(self._entries.values()))
            if not entry.referenced:
                self._remove(entry)
                return
            entry.referenced = False
            self._entries[entry.page.key] = self._entries.pop(entry.page.key)


def _slim(target: Target, path: str) -> Target:
    """A target of texts that others have, too."""
    own, query, *others = target
    return t.cast(Target, (path if own == path else own, query, *map(shared, others)))


def is_long(target: Target) -> bool:
    """Whether a request is parsed each time, because it is not worth being remembered."""
    return sum(len(part) for part in target if part) > MAX_TARGET_LENGTH


def is_same_render(one: Page, other: Page, with_codings: bool = False) -> bool:
    """Whether two pages are of one render.

    :param with_codings: and have the same content codings.
    """
    return (one.lineage, one.sequence, one.generated_at, one.digest) == (
        other.lineage,
        other.sequence,
        other.generated_at,
        other.digest,
    ) and (not with_codings or one.codings == other.codings)
