"""The last invalidations of labels and patterns, in rows of a SQLite database.

A label belongs to one of a fixed number of rows, all of which exist from the beginning. So a row
that is missing or damaged shows, and means that everything in it is invalidated now. Patterns
belong to the row of their literal beginning: a page finds them by the beginnings of its path.
Reading a page costs the same however many labels there are.
"""

from __future__ import annotations

import functools
import json
import sqlite3
import time
import typing as t
import zlib
from collections.abc import Sequence

from ..rules import compile_pattern
from . import schema
from .database import Database
from .epochs import Epochs, Last, prefix_of
from .protocol import MAX_HISTORY, MAX_LABELS, Changes, Invalidation, Number
from .schema import State

#: Patterns with the same literal beginning; each costs every page below it a match.
MAX_ALIKE = 20
#: Of those, how many are forgotten in one step: fewer than `Epochs` keeps apart.
ALIKE_AT_ONCE = 90
#: Pages or rows that are read or written in one step.
BATCH = 200
#: Seconds that forgetting may take before another process begins it again.
FORGETTING = 300.0
_PATTERN, _BEGIN, _ALL = "pattern:", "begin:", "*"

_compiled = functools.lru_cache(4096)(compile_pattern)

#: Of a label: its `Last`. Of a literal beginning: the `Last` of each pattern.
Entries: t.TypeAlias = dict[str, t.Any]
#: The path and the row of a page, in the order of both.
Place: t.TypeAlias = tuple[t.Any, int] | None


class Page(t.NamedTuple):
    """What is sealed in a page's row.

    :param stale: the number of an invalidation that was applied to it, and of one that
        ``expired`` it.
    """

    name: str
    path: str
    build: str
    labels: Sequence[str]
    lineage: str
    sequence: int
    gone: bool
    size: int
    stale: int = 0
    expired: int = 0

    @classmethod
    def of(cls, meta: t.Any) -> Page | None:
        values = schema.unseal(meta, 2)
        return None if values is None else cls(*values)

    @property
    def number(self) -> Number:
        return Number(self.lineage, self.sequence)

    @property
    def last(self) -> Last:
        return Last(self.stale, self.expired)


def _row_of(key: str, first: int = 0, rows: int = schema.LABEL_BUCKETS) -> int:
    return first + zlib.crc32(key.encode("utf-8", "surrogatepass")) % rows


def _place_of(label: str) -> tuple[int, str, str | None]:
    """The row of a label, its key there, and the pattern under that, if it is one."""
    pattern = label.removeprefix(_PATTERN) if label.startswith(_PATTERN) else None
    key = label if pattern is None else _BEGIN + prefix_of(pattern)
    return _row_of(key), key, pattern


def _read(connection: sqlite3.Connection, number: int) -> Entries | None:
    row = connection.execute("SELECT data FROM buckets WHERE id = ?", (number,)).fetchone()
    return t.cast("Entries | None", schema.unseal(row and row[0], number))


def _write(connection: sqlite3.Connection, number: int, entries: Entries) -> None:
    connection.execute("REPLACE INTO buckets VALUES (?, ?)", (number, schema.seal(entries, number)))


def last_of(connection: sqlite3.Connection, state: State, page: Page, damaged: set[int]) -> Last:
    """The last invalidations of a page, in one step with what else the transaction reads.

    :param damaged: to which the numbers of rows that are damaged are added.
    """
    path = page.path or "/"
    beginnings = [_BEGIN + path[:length] for length in state.lengths if length <= len(path)]
    rows: dict[int, list[str]] = {}
    for key in (*page.labels, *beginnings):
        rows.setdefault(_row_of(key), [_ALL]).append(key)
    select = f"SELECT id, data FROM buckets WHERE id IN ({','.join('?' * len(rows))})"
    found = dict(connection.execute(select, tuple(rows)))
    last = page.last
    for number, keys in rows.items():
        content = schema.unpack(found.get(number), number)
        if content is None:
            damaged.add(number)
            last = last.later(Last(state.changed, state.changed))
            continue
        # Most rows have other labels, and need not be parsed.
        keys = [key for key in keys if len(content) > 2 and schema.dump(key) in content]
        entries: Entries = json.loads(content.decode("utf-8", "surrogatepass")) if keys else {}
        for key in keys:
            entry = entries.get(key, (0, 0))
            if not isinstance(entry, dict):
                last = last.later(Last(*entry))
                continue
            for pattern, each in entry.items():
                if _compiled(pattern).fullmatch(path):
                    last = last.later(Last(*each))
    return last


def mend(connection: sqlite3.Connection, state: State, damaged: set[int]) -> None:
    """Write rows that are damaged anew: everything in them is invalidated now, and not again."""
    for number in damaged:
        if _read(connection, number) is None:
            _write(connection, number, {_ALL: (state.changed, state.changed)})


def note(
    connection: sqlite3.Connection, labels: Sequence[str], expire: bool
) -> tuple[Number, set[str]]:
    """Invalidate labels; gives what there are too many of now, for `forget`."""
    state, crowded = State.read(connection), set[str]()
    state.sequence = state.changed = number = state.sequence + 1
    state.events += 1
    for label in labels:
        bucket, key, pattern = _place_of(label)
        entries = _read(connection, bucket)
        if entries is None:
            entries = {_ALL: (number, number)}
        place = entries
        if pattern is not None:
            place, length = entries.setdefault(key, {}), len(key) - len(_BEGIN)
            if length not in state.lengths:
                state.lengths.append(length)
        before = place.get(pattern or key)
        place[pattern or key] = (number, number if expire else before[1] if before else 0)
        state.labels += before is None
        if pattern is not None and len(place) > MAX_ALIKE:
            crowded.add(key)
        _write(connection, bucket, entries)
    row = (state.events, schema.seal([number, expire, labels], state.events))
    connection.execute("REPLACE INTO history VALUES (?, ?)", row)
    connection.execute("DELETE FROM history WHERE id <= ?", (state.events - MAX_HISTORY,))
    now = time.monotonic()
    if state.labels > MAX_LABELS and not now < state.forgetting < now + FORGETTING:
        state.forgetting = now + FORGETTING
        crowded.add(_ALL)
    state.write(connection)
    return state.at, crowded


def changes(connection: sqlite3.Connection, since: Number) -> Changes:
    """What was invalidated since a number, as far as an unbroken chain of rows says it."""
    state, found = State.read(connection), list[Invalidation]()
    complete = since.lineage == state.lineage and since.sequence <= state.sequence
    if complete and since.sequence < state.changed:
        rows = connection.execute("SELECT data FROM history ORDER BY id DESC")
        for expected in range(state.events, 0, -1):
            (data,) = rows.fetchone() or (None,)
            # Sealed with its place: a missing row shows.
            content = schema.unseal(data, expected)
            if content is None:
                complete, found = False, []
                break
            sequence, expire, labels = content
            if sequence <= since.sequence:
                break
            found += (Invalidation(label, sequence, expire) for label in reversed(labels))
        rows.close()
    return Changes(state.at, complete, tuple(reversed(found)))


# Forgetting.


def forget(database: Database, crowded: str) -> None:
    """Forget the oldest labels after applying them to their pages, in small steps.

    :param crowded: a literal beginning that too many patterns have, or all labels.
    """
    whole, labels = crowded == _ALL, dict[str, Last]()

    def gather(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
        for number in numbers:
            for key, entry in (_read(connection, number) or {}).items():
                if key.startswith(_BEGIN) and (whole or key == crowded):
                    labels.update((_PATTERN + name, Last(*each)) for name, each in entry.items())
                elif whole and key != _ALL:
                    labels[key] = Last(*entry)

    _in_steps(database.read, gather, range(schema.LABEL_BUCKETS) if whole else [_row_of(crowded)])
    ordered = sorted(labels.items(), key=lambda item: item[1].any)
    ordered = ordered[: len(ordered) // 2 if whole else -MAX_ALIKE // 2]
    step = len(ordered) if whole else ALIKE_AT_ONCE
    for start in range(0, len(ordered), step or 1):
        oldest = dict(ordered[start : start + step])
        _forget(database, oldest, "" if whole else crowded.removeprefix(_BEGIN))


def _forget(database: Database, oldest: dict[str, Last], beginning: str) -> None:
    rows: dict[int, list[str]] = {}
    for label in oldest:
        rows.setdefault(_place_of(label)[0], []).append(label)

    def raise_floor(connection: sqlite3.Connection) -> str:
        state = State.read(connection)
        state.floor = max(state.floor, *(last.any for last in oldest.values()))
        state.write(connection)
        return state.lineage

    def drop(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
        state = State.read(connection)
        for number in numbers:
            entries = _read(connection, number)
            if entries is None:
                continue
            for label in rows[number]:
                _, key, pattern = _place_of(label)
                place = entries if pattern is None else entries.get(key, {})
                # Not one that was invalidated again meanwhile.
                if place.get(pattern or key) == [*oldest[label]]:
                    del place[pattern or key]
                    state.labels -= 1
                    if not place and pattern is not None:
                        del entries[key]
            _write(connection, number, entries)
        state.forgetting = 0.0
        state.write(connection)

    # A page that is put from now on with a number from before is stale; the others are found.
    lineage = database.write(raise_floor)
    _apply(database, lineage, oldest, beginning)
    _in_steps(database.write, drop, list(rows))


def _in_steps(call: t.Any, step: t.Any, numbers: Sequence[int]) -> None:
    for start in range(0, len(numbers), BATCH):
        call(functools.partial(step, numbers=numbers[start : start + BATCH]))


def _apply(database: Database, lineage: str, labels: dict[str, Last], beginning: str) -> None:
    """Note on the pages below a path that they were invalidated."""
    epochs = Epochs(lineage)
    for label, last in labels.items():
        epochs.apply(Invalidation(label, last.any, False))
        if last.expire:
            epochs.apply(Invalidation(label, last.expire, True))
    select = (
        "SELECT path, id, meta FROM pages WHERE path >= ? AND path < ? AND (path, id) > (?, ?) "
        f"ORDER BY path, id LIMIT {BATCH}"
    )

    def step(connection: sqlite3.Connection, after: Place, update: bool) -> tuple[Place, bool]:
        place, changed = None, False
        values = (beginning, beginning + "\U0010ffff", *(after or ()))
        for path, row, meta in connection.execute(select, values).fetchall():
            place, page = (path, row), Page.of(meta)
            found = page and int(epochs.validity(page.labels, page.path, page.number))
            if page is None or not found:
                continue
            last = page.last.later(Last(epochs.changed, epochs.changed if found == 2 else 0))
            if last != page.last:
                changed = True
                if update:
                    sealed = schema.seal(page._replace(stale=last.any, expired=last.expire), 2)
                    connection.execute("UPDATE pages SET meta = ? WHERE id = ?", (sealed, row))
        return place, changed

    place: Place = (beginning, -(2**63))
    while place is not None:
        after, changed = database.read(functools.partial(step, after=place, update=False))
        if changed:
            after, _ = database.write(functools.partial(step, after=place, update=True))
        place = after


# Paths that exist: a list that says where it is damaged.


def _row_of_path(path: str) -> int:
    return _row_of(path, schema.LABEL_BUCKETS, schema.PATH_BUCKETS)


def list_path(connection: sqlite3.Connection, path: str) -> None:
    entries = _read(connection, _row_of_path(path))
    entries = {_ALL: 0} if entries is None else entries
    _write(connection, _row_of_path(path), {**entries, path: 1})


def has_path(connection: sqlite3.Connection, path: str) -> bool | None:
    """Whether a path was listed; ``None`` where nobody can say."""
    entries = _read(connection, _row_of_path(path))
    if entries is not None and path in entries and path != _ALL:
        return True
    unsure = entries is None or _ALL in entries or State.read(connection).lost
    return None if unsure else False
