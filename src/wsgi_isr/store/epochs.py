"""`Epochs`: the last invalidation of each label and pattern, where no engine keeps them."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import unquote_to_bytes

from ..page import Invalidated
from ..rules import compile_pattern
from .protocol import MAX_LABELS, Invalidation, Number

_PATTERN = "pattern:"
#: Patterns with the same literal beginning that are matched one by one.
MAX_ALIKE = 100


def prefix_of(pattern: str) -> str:
    """The literal beginning of a pattern, by which it is found; in WSGI's spelling."""
    literal, star, _ = pattern.partition("*")
    # Without the slash before a star: "/blog/**" matches "/blog", too.
    return unquote_to_bytes(literal.removesuffix("/") if star else literal).decode("latin-1")


def pattern_over(pattern: str) -> str:
    """A pattern that matches whatever patterns with the same literal beginning match."""
    literal = pattern.partition("*")[0]
    return literal[: literal.rfind("/")] + "/**"


def replaces(new: Number, old: Number, lineage: str) -> bool:
    """Whether a render may take the place of another, in a store of this lineage.

    An older render never replaces a later one, whenever it ends. A page without a lineage was
    rendered while the store did not answer; nobody knows when.
    """
    if new.lineage == old.lineage:
        return new.sequence >= old.sequence
    # Nobody knows the order of two lineages; pages of the store's own are never lost to others.
    return new.lineage != "" and old.lineage != lineage


class Last(t.NamedTuple):
    """The numbers of the last invalidation, and of the last that expired pages; 0 for none."""

    any: int = 0
    expire: int = 0

    def later(self, other: Last) -> Last:
        return Last(max(self.any, other.any), max(self.expire, other.expire))

    def makes(self, number: Number, lineage: str) -> Invalidated:
        """What they make of a page with this number, in a store of this lineage."""
        # The number of another lineage says nothing here.
        sequence = number.sequence if number.lineage == lineage else 0
        if self.expire > sequence:
            return Invalidated.EXPIRED
        if self.any > sequence or number.lineage != lineage:
            return Invalidated.STALE
        return Invalidated.NO


class Epochs:
    """The last invalidation of each label and pattern, in one lineage.

    :param changed: the number of the last invalidation.
    :param floor: pages with a number from before it count as stale: labels up to it were forgotten.
    """

    def __init__(
        self,
        lineage: str,
        changed: int = 0,
        floor: int = 0,
        invalidations: Iterable[tuple[str, int, bool]] = (),
    ) -> None:
        self.lineage, self.changed, self.floor = lineage, changed, floor
        #: The latest at the end, but for patterns that replaced others.
        self.labels: dict[str, Last] = {}
        #: Patterns by their literal beginning.
        self._patterns: dict[str, dict[str, re.Pattern[str]]] = {}
        for invalidation in invalidations:
            self.apply(Invalidation(*invalidation))

    def __iter__(self) -> Iterator[t.Any]:
        """What it can be made of again."""
        yield from (self.lineage, self.changed, self.floor, self.since(0))

    def apply(self, invalidation: Invalidation) -> None:
        label, sequence, expire = invalidation
        self._note(label, Last(sequence, sequence if expire else 0))
        self.changed = max(self.changed, sequence)
        if len(self.labels) > MAX_LABELS:
            # A tenth at a time, for it takes a while.
            self.forget_oldest(MAX_LABELS * 9 // 10)

    def _note(self, label: str, last: Last) -> None:
        pattern = label.removeprefix(_PATTERN)
        if pattern != label and label not in self.labels:
            compiled = compile_pattern(pattern)
            group = self._patterns.setdefault(prefix_of(pattern), {})
            group[label] = compiled
            if len(group) > MAX_ALIKE:
                # Patterns that cover the oldest replace them.
                oldest = {old: self._forget(old) for old in list(group)[: MAX_ALIKE // 2]}
                for old, numbers in oldest.items():
                    self._note(_PATTERN + pattern_over(old.removeprefix(_PATTERN)), numbers)
        self.labels[label] = self.labels.pop(label, last).later(last)

    def _forget(self, label: str) -> Last:
        prefix = prefix_of(label.removeprefix(_PATTERN))
        if label.startswith(_PATTERN) and (group := self._patterns.get(prefix)) is not None:
            group.pop(label, None)
            if not group:
                del self._patterns[prefix]
        return self.labels.pop(label)

    def forget_oldest(self, keep: int) -> None:
        """Forget all but the latest labels: pages from before those count as stale."""
        ordered = sorted(self.labels, key=lambda label: self.labels[label].any)
        for label in ordered[: max(0, len(ordered) - keep)]:
            self.floor = max(self.floor, self._forget(label).any)

    def validity(self, labels: Sequence[str], path: str, number: Number) -> Invalidated:
        """What invalidations since its render began have made of a page."""
        if number.lineage == self.lineage and number.sequence >= self.changed:
            return Invalidated.NO
        return self.last(labels, path).makes(number, self.lineage)

    def last(self, labels: Sequence[str], path: str) -> Last:
        """The last invalidations of a page with these labels and this path."""
        path, last = path or "/", Last(self.floor)
        beginnings = range(len(path) + 1) if self._patterns else ()
        groups = (list(self._patterns.get(path[:end], {}).items()) for end in beginnings)
        matching = (label for group in groups for label, it in group if it.fullmatch(path))
        for label in (*labels, *matching):
            last = last.later(self.labels.get(label, Last()))
        return last

    def since(self, sequence: int) -> tuple[Invalidation, ...]:
        """The invalidations after a number, in their order."""
        found = []
        for label, last in reversed(self.labels.items()):
            if last.expire > sequence:
                found.append(Invalidation(label, last.expire, True))
            if last.any > sequence and last.any != last.expire:
                found.append(Invalidation(label, last.any, False))
            if last.any <= sequence and not label.endswith("/**"):
                break
        return tuple(sorted(found, key=lambda item: item.sequence))
