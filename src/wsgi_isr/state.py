"""Pure decisions: is a page fresh, stale or expired, and may one render replace another.

No I/O and no clock of its own. Renders and invalidations of a store share one order: each takes
the next number of its sequence. A page carries the number its render began with, so it is
invalidated exactly if one of its labels has a later number.
"""

from __future__ import annotations

import enum
import math
import re
import typing as t
from collections.abc import Iterable

from .page import Page
from .rules import compile_pattern

#: A page from a little in the future is another machine's clock; from further, a wrong one.
CLOCK_TOLERANCE = 5.0


class State(enum.Enum):
    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


class Mark(enum.IntEnum):
    """What invalidations have made of a page."""

    NONE = 0
    SOFT = 1
    HARD = 2


# Looked up once: members of an enumeration take their time.
_HARD = Mark.HARD

#: Whether a page is fresh; seconds of freshness left, as `seconds_left` has them; seconds for
#: which it is served as a stale one, counted from the end of its window or, once it is stale,
#: from now, ``None`` for ever; and up to when that is so, in seconds since 1970.
Held: t.TypeAlias = "tuple[bool, int | None, int | None, float]"


def state_of(page: Page, mark: Mark, now: float) -> State:
    age = now - page.generated_at
    window, expire, _ = page.metadata
    if mark is Mark.HARD or (expire is not None and age >= expire):
        return State.EXPIRED
    if mark is Mark.SOFT or age < -CLOCK_TOLERANCE:
        return State.STALE
    if window is not None and age >= window:
        # Where expiry equals the window the stale page is never served.
        return State.STALE
    return State.FRESH


def hold(page: Page, mark: Mark, now: float) -> Held | None:
    """What is said of a page that may be served, and how long that holds; ``None`` for an expired.

    In one step, because every page that is asked for takes it once a second.
    """
    window, expire, _ = page.metadata
    age = now - page.generated_at
    if mark is _HARD or (expire is not None and age >= expire):
        return None
    fresh = not mark and age >= -CLOCK_TOLERANCE and (window is None or age < window)
    if window is None:
        return fresh, None if fresh else 0, None, math.inf
    age = max(age, 0.0)
    left = math.ceil(window - age)
    change = page.generated_at + window - left + 1
    if fresh:
        return True, left, None if expire is None else expire - window, change
    return False, min(0, left), None if expire is None else math.floor(expire - age), change


def seconds_left(page: Page, mark: Mark, now: float) -> int | None:
    """Freshness that is left, rounded up; 0 or negative for a stale page, ``None`` for ever."""
    window = page.metadata.revalidate
    # A page from the future has all of it left.
    left = None if window is None else math.ceil(window - max(0.0, now - page.generated_at))
    return left if state_of(page, mark, now) is State.FRESH else min(0, left or 0)


def replaces(new: Page, old: Page | None, lineage: str | None = None) -> bool:
    """Whether a finished render may take the place of what is stored.

    An older render never overwrites a newer page, however late it ends (promise 5). One without
    a lineage was made while the store did not answer; nobody knows when.

    :param lineage: the one of the store now, if it is known.
    """
    if old is None:
        return True
    if old.lineage == new.lineage:
        return old.sequence <= new.sequence
    return new.lineage != "" and old.lineage != lineage


class Invalidation(t.NamedTuple):
    """Numbers of the last invalidation of a label, and of the last one that was hard."""

    last: int
    hard: int


class Epochs:
    """The last invalidation of each label and pattern.

    :param lineage: name of the sequence the numbers belong to. A page of another lineage counts
        as stale: what happened to it since is unknown.
    """

    def __init__(self, lineage: str, sequence: int = 0) -> None:
        self.lineage = lineage
        self.sequence = sequence
        #: Pages from before this number count as invalidated: their labels were forgotten.
        self.floor = Invalidation(0, 0)
        self.labels: dict[str, Invalidation] = {}
        self._patterns: dict[str, tuple[re.Pattern[str], Invalidation]] = {}

    def __len__(self) -> int:
        return len(self.labels) + len(self._patterns)

    def apply(self, number: int, label: str, hard: bool) -> None:
        if label.startswith("pattern:"):
            pattern = label.removeprefix("pattern:")
            known = self._patterns.get(pattern)
            compiled = known[0] if known else compile_pattern(pattern)
            old = known[1] if known else self.floor
            self._patterns[pattern] = (compiled, _later(old, number, hard))
        else:
            self.labels[label] = _later(self.labels.get(label, self.floor), number, hard)
        self.sequence = max(self.sequence, number)

    def mark(self, page: Page) -> Mark:
        """What the invalidations since its render began have made of a page."""
        foreign = page.lineage != self.lineage
        if not foreign and page.sequence >= self.sequence:
            return Mark.NONE
        # Its number says nothing here, and what is known to have happened may be later.
        sequence = 0 if foreign else page.sequence
        worst = Mark.SOFT if foreign else Mark.NONE
        for last, hard in self._of(page):
            if hard > sequence:
                return Mark.HARD
            if last > sequence:
                worst = Mark.SOFT
        return worst

    def _of(self, page: Page) -> Iterable[Invalidation]:
        yield self.floor
        for label in page.labels:
            if (found := self.labels.get(label)) is not None:
                yield found
        # A copy, because other threads add to it meanwhile.
        for pattern, found in tuple(self._patterns.values()):
            if pattern.fullmatch(page.key.full_path or "/"):
                yield found

    def items(self) -> Iterable[tuple[str, Invalidation]]:
        yield from self.labels.items()
        for pattern, (_, found) in self._patterns.items():
            yield f"pattern:{pattern}", found

    def forget_oldest(self, keep: int) -> None:
        """Bound the table: what is forgotten counts as invalidated, never as valid."""
        ordered = sorted(self.items(), key=lambda item: item[1].last)
        forgotten = ordered[: max(0, len(ordered) - keep)]
        # First, for other threads look up labels meanwhile.
        for _, (last, hard) in forgotten:
            self.floor = Invalidation(max(self.floor.last, last), max(self.floor.hard, hard))
        for label, _ in forgotten:
            if label.startswith("pattern:"):
                del self._patterns[label.removeprefix("pattern:")]
            else:
                del self.labels[label]


def _later(old: Invalidation, number: int, hard: bool) -> Invalidation:
    return Invalidation(max(old.last, number), max(old.hard, number) if hard else old.hard)
