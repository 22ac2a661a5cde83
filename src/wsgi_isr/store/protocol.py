"""`Store`: where pages are kept, and the order of events that all who share a store agree on.

**Numbers.** A store has a counter. A render takes the next number before it begins, and an
invalidation when it happens. A page carries the number of its render and its *labels*: its path,
its host and path, its own name, its tags. Two rules follow, without a clock:

- A page is invalidated exactly if one of its labels, or a pattern that matches its path, was
  invalidated under a later number than the page's.
- A render replaces a stored page exactly if its number is not lower. One that began before
  `revalidate()` and ends after it loses, in whatever process it ran.

**Lineage.** The counter has a random name, its *lineage*. A store that loses its counter begins a
new lineage. Pages of another lineage count as stale, because nobody knows what happened to them
since. A store that goes back to an earlier state as a whole (a power loss, a restored copy) keeps
its lineage: pages and invalidations go back together.

**Epochs.** A store remembers the last invalidation of each label and pattern. When there are too
many, it applies the oldest to the pages that have them, and forgets them. A page that is put with
a number from before those counts as stale.

**Following.** A process applies to the pages in its memory what `Store.changes` gives it: all
invalidations after the last one that it has taken into account. ``signal[0]`` changes with each,
so that reading one integer shows whether there is anything to follow.

**Leases.** A lease is the right to render one page. It ends with its release, with the process
that has it, or after its time. What cannot be said to the store now is said later, and lapses by
itself otherwise.

**Failing.** Each method is one atomic step and may raise `StoreError`, or whatever its engine
raises; `wsgi_isr.store.guard` catches it. `Store.invalidate` either holds everywhere when it
returns, or raises.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..page import Invalidated

#: Labels and patterns whose last invalidation a store remembers.
MAX_LABELS = 100_000
#: Invalidations that `Store.changes` can give; a process further behind reads its pages again.
MAX_HISTORY = 1000
#: Pages that wait to be rendered elsewhere, at most, in each build.
MAX_WANTED = 1000
#: Seconds after its last sign of life from which a process of ``regenerate`` counts as gone.
ABANDONED = 5.0
#: Failures that are remembered; the oldest are forgotten first.
MAX_FAILURES = 10_000
#: Builds whose order is remembered.
MAX_BUILDS = 100
#: Entries of the journal; the oldest are forgotten first.
MAX_JOURNAL = 200
#: Minutes of which the totals are kept.
MAX_MINUTES = 61


class StoreError(Exception):
    """The store could not do what was asked; the message says why."""


class TooLarge(StoreError):
    """The page is larger than the store takes. What was stored before still is."""


class ReadOnly(StoreError):
    """The store answers, but takes no writes: it is full, read-only or a replica."""


class Number(t.NamedTuple):
    """A place in the order of all renders and invalidations of a store."""

    lineage: str
    sequence: int


class Record(t.NamedTuple):
    """A page as a store keeps it. The store never looks into ``head`` and ``body``.

    :param name: of the page, unique over all builds; ASCII.
    :param labels: what the page can be invalidated by; the first one is its ``path:`` label.
    :param number: of its render.
    :param build: the build it belongs to.
    :param path: the full path in WSGI's spelling (latin-1 code points for bytes), which patterns
        match.
    :param gone: whether it is a 404 or 410, which makes room before other pages.
    :param head: sealed, and small: everything but the bodies.
    :param body: the bodies.
    """

    name: str
    labels: tuple[str, ...]
    number: Number
    build: str
    path: str
    gone: bool
    head: bytes
    body: bytes


class Validity(t.NamedTuple):
    """What invalidations have made of a page."""

    invalidated: Invalidated
    #: The number of the last invalidation of the store that this takes into account.
    at: Number


class Stored(t.NamedTuple):
    """A page and its validity, read in one step.

    A record whose labels or number differ from those in its sealed head counts as damaged.

    :param used: seconds since 1970 at which it was used last, as far as the store was told; 0
        where `Store.get` does not say. What is gone is evicted first, then what was used longest
        ago.
    """

    record: Record
    validity: Validity
    used: float = 0.0


class Invalidation(t.NamedTuple):
    """Pages with a label become stale, or expired."""

    #: ``path:…``, ``host:…``, ``page:…``, ``tag:…`` or ``pattern:…``.
    label: str
    sequence: int
    expire: bool


class Changes(t.NamedTuple):
    """What was invalidated since a process last followed.

    :param at: the number of the last invalidation, and the lineage of the store now.
    :param complete: false where the lineage is another one, or the process is too far behind: all
        that it has is then to be read again.
    """

    at: Number
    complete: bool
    invalidations: tuple[Invalidation, ...]


class Failure(t.NamedTuple):
    """What is remembered of a page whose renders fail.

    :param times: failures in a row; 0 for an answer that was refused, and is no failure.
    :param retry_at: seconds since 1970 before which no visitor starts another attempt.
    :param error: why, at most 500 characters.
    :param url: the page's URL, so that a page that never rendered well can be listed.
    :param build: the build it belongs to.
    """

    times: int
    retry_at: float
    error: str
    url: str = ""
    build: str = ""


class Busy(t.NamedTuple):
    """Another render of the page has the lease; ``token`` names that render."""

    token: str


class Lease(t.Protocol):
    """The right to render a page."""

    token: str

    def release(self, outcome: bytes | None = None) -> None:
        """Give the right back. It never raises.

        :param outcome: what those who wait for this render get where it stored nothing.
        """


class Wanted(t.NamedTuple):
    """A page that waits to be rendered by a process of ``regenerate``."""

    name: str
    #: What names it, as it was given to `Store.want`.
    data: bytes


class Sizes(t.NamedTuple):
    """How much is stored, and how much may be; ``None`` where the store does not say.

    :param bytes: of the pages; on a server, of all that it has in memory. So is ``max_bytes``.
    """

    pages: int | None
    bytes: int | None
    max_pages: int | None = None
    max_bytes: int | None = None


class Kind(t.NamedTuple):
    """What a kind of store promises. The table of all kinds is `wsgi_isr.store.opening.KINDS`.

    :param shared: ``"process"``, ``"machine"`` or ``"network"``: who sees the same pages.
    :param exact: whether the order of events is exact. If not, invalidations may be lost; pages
        then count as stale.
    :param one_render: whether one process renders a page at a time; if not, that is best effort.
    :param lists: whether pages can be listed.
    :param wants: whether ``workers=0`` works: the store hands pages over to ``regenerate``.
    :param durable: whether pages outlive a restart of the app.
    """

    name: str
    shared: t.Literal["process", "machine", "network"]
    exact: bool
    one_render: bool
    lists: bool
    wants: bool
    durable: bool


class Store(t.Protocol):
    """Pages and their order. An object belongs to one process, and may be used from any thread."""

    kind: Kind

    @property
    def signal(self) -> t.Any:
        """Two numbers that show changes; a hit reads the first one.

        ``[0]`` changes with every invalidation, ``[1]`` with every stored or deleted page, whatever
        process did it; each stays 0 where that does not show. On a network both belong to this
        process, and `listen` says when something happened. `changes` may replace the object by
        another one, whose numbers are others.
        """

    # Pages.

    def get(self, name: str) -> Stored | None:
        """A page and its validity."""

    def put(self, record: Record) -> Validity | None:
        """Store a page unless a later render is there; ``None`` if there is one.

        :raises TooLarge: for a page larger than the store takes.
        """

    def delete(self, name: str) -> None:
        """Remove a page, if it is there."""

    def records(
        self, *, build: str | None = None, path: str | None = None, after: str = ""
    ) -> Iterator[Stored]:
        """Stored pages with empty bodies, of one build or of one full path, a few at a time.

        :param after: begin behind the page of this name, in an order that stays the same while
            nothing is stored; for lists that are shown in parts.
        :raises NotImplementedError: where pages cannot be listed.
        """

    def used(self, names: Iterable[str]) -> None:
        """Note that pages were served: they are among the last to be evicted."""

    # The order.

    def number(self) -> Number:
        """The number of a render that begins now."""

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        """Invalidate all pages that have one of the labels; it holds everywhere on return."""

    def changes(self, since: Number) -> Changes:
        """What was invalidated since a number; ``Number("", 0)`` for one who knows nothing."""

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> Lease | Busy:
        """The lease of a page, or who has it.

        :param seconds: after which another process may take it over.
        :param demanded: for a render on demand. It takes the lease from a render that nobody
            demanded, which began too early.
        """

    def outcome(self, token: str) -> bytes | None:
        """What a render left for those who waited for it, if it has ended."""

    def failure(self, name: str) -> Failure | None:
        """What is remembered of the failures of a page."""

    def set_failure(self, name: str, failure: Failure | None) -> None:
        """Remember a failure, or forget it."""

    def failures(self) -> Iterator[tuple[str, Failure]]:
        """All failures that are remembered, by the names of their pages.

        :raises NotImplementedError: where pages cannot be listed.
        """

    # Pages that other processes render (``workers=0``).

    def want(self, build: str, wanted: Wanted) -> bool:
        """Have a page rendered by a process of ``regenerate``; false where none is there."""

    def take(self, build: str, seconds: float) -> Wanted | None:
        """The page that waits longest and that nobody renders; it is the caller's for so long.

        It also says that a process of ``regenerate`` is there.
        """

    def done(self, build: str, name: str) -> None:
        """A wanted page was rendered, or need not be."""

    # What exists, what was counted, how much there is.

    def list_path(self, path: str) -> None:
        """Note that a path exists (it was prerendered or rendered on demand), for good."""

    def has_path(self, path: str) -> bool | None:
        """Whether a path was noted; ``None`` where that cannot be said."""

    def builds(self, build: str) -> list[str]:
        """Note that a build is in use, and give the builds first seen before it, latest first."""

    def add(self, counts: Mapping[str, float]) -> None:
        """Add to the totals of the site."""

    def totals(self) -> dict[str, float]:
        """The totals of all processes since the store began; they never go down."""

    def minutes(self) -> dict[int, dict[str, float]]:
        """The totals as the first `add` of each minute left them, of the last hour.

        :returns: by the minute since 1970, in order; at most `MAX_MINUTES`.
        """

    def log(self, *entries: bytes) -> None:
        """Append to the journal of the site, of which the last `MAX_JOURNAL` entries are kept."""

    def journal(self) -> list[bytes]:
        """The entries of the journal, latest first."""

    def once(self, name: str, seconds: float) -> bool:
        """Whether no process asked this of a name in the last so many seconds; it is asked now."""

    def report(self, process: Mapping[str, t.Any]) -> None:
        """Leave what this process has now (JSON values), in place of what it left before."""

    def processes(self) -> list[dict[str, t.Any]]:
        """What each process that still runs left last."""

    def sizes(self) -> Sizes:
        """How much is stored, and how much may be."""

    def prune(
        self,
        *,
        max_pages: int | None = None,
        max_bytes: int | None = None,
        keep_builds: Sequence[str] | None = None,
        everything: bool = False,
    ) -> int:
        """Remove pages that were used least until the rest fits, in steps that hold up nobody.

        :param keep_builds: remove the pages of all other builds.
        :param everything: remove all pages.
        :returns: how many pages were removed.
        :raises NotImplementedError: where pages cannot be listed.
        """

    # The process.

    def time(self) -> float:
        """Seconds since 1970 by the clock that all who share the store agree on."""

    def listen(self, seconds: float) -> bool:
        """Wait for changes that others announce, at most so many seconds; for a thread.

        False where nothing is announced, because ``signal`` shows every change at once.
        """

    def probe(self) -> None:
        """Find out whether the store reads and writes, and say what could not be said before.

        :raises ReadOnly: if it only reads.
        :raises Exception: if it does not answer.
        """

    def close(self) -> None:
        """Give back all that this process holds, and forget its report. It never raises."""
