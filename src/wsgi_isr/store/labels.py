"""The last invalidations of labels and patterns, in rows of a SQLite database.

A label belongs to one of a fixed number of rows, all of which exist from the beginning. So a row
that is missing or damaged shows, and means that everything in it is invalidated now. Patterns
belong to the row of their literal beginning: a page finds them by the beginnings of its path.
Reading a page costs the same however many labels there are.
"""

from __future__ import annotations

import functools
import typing as t
import zlib
from collections.abc import Iterable, Iterator, Sequence
from sqlite3 import Connection

from ..rules import compile_pattern
from .database import Database
from .epochs import Last, prefix_of
from .protocol import MAX_HISTORY, MAX_LABELS, Changes, Invalidation, Number, Record
from .schema import ALL, LABEL_ROWS, PATH_ROWS, State, dump, seal, unpack, unseal

#: Patterns with the same literal beginning; each costs every page below it a match.
MAX_ALIKE = 20
#: Pages or rows that are read or written in one step.
BATCH = 200
_PATTERN, _BEGIN = "pattern:", "begin:"

T = t.TypeVar("T")

_compiled = functools.lru_cache(4096)(compile_pattern)

#: By label or literal beginning: the `Last` of each pattern there, and of the label under "".
Entries: t.TypeAlias = dict[str, dict[str, Sequence[int]]]


class Page(t.NamedTuple):
    """What is sealed in a page's row.

    :param record: but for its bytes, of which there are ``size``.
    :param last: the last invalidations that were applied to it.
    """

    record: Record
    size: int
    last: Last = Last()

    def seal(self) -> bytes:
        return seal((*self.record[:6], self.size, *self.last), 2)

    @classmethod
    def of(cls, meta: t.Any, head: bytes = b"", body: bytes = b"") -> Page | None:
        if (values := unseal(meta, 2)) is None:
            return None
        name, labels, number, build, path, gone, size, *last = values
        record = Record(name, tuple(labels), Number(*number), build, path, gone, head, body)
        return cls(record, size, Last(*last))


def _row_of(key: str, first: int = 0, rows: int = LABEL_ROWS) -> int:
    return first + zlib.crc32(key.encode("utf-8", "surrogatepass")) % rows


def _place_of(label: str) -> tuple[str, str]:
    """Where a label is found: under itself, or as a pattern under its literal beginning."""
    if not label.startswith(_PATTERN):
        return label, ""
    pattern = label.removeprefix(_PATTERN)
    return _BEGIN + prefix_of(pattern), pattern


def _read(connection: Connection, row: int) -> t.Any:
    found = connection.execute("SELECT data FROM buckets WHERE id = ?", (row,)).fetchone()
    return unseal(found and found[0], row)


def _write(connection: Connection, row: int, entries: t.Any) -> None:
    connection.execute("REPLACE INTO buckets VALUES (?, ?)", (row, seal(entries, row)))


def _find(entries: Entries, keys: Iterable[str], path: str) -> Last:
    """The last invalidations of a page among some."""
    last = Last()
    for key in keys:
        for pattern, each in entries.get(key, {}).items():
            if not pattern or _compiled(pattern).fullmatch(path):
                last = last.later(Last(*each))
    return last


def _keys_of(record: Record, lengths: Iterable[int]) -> tuple[str, list[str]]:
    """The path of a page, and whatever may invalidate it."""
    path = record.path or "/"
    beginnings = (_BEGIN + path[:length] for length in lengths if length <= len(path))
    return path, [*record.labels, *beginnings]


def last_of(connection: Connection, state: State, page: Page, damaged: set[int]) -> Last:
    """The last invalidations of a page, in one step with what else the transaction reads.

    :param damaged: to which the numbers of rows that are damaged are added.
    """
    path, keys = _keys_of(page.record, state.lengths)
    rows: dict[int, list[str]] = {}
    for key in keys:
        rows.setdefault(_row_of(key), [ALL]).append(key)
    select = f"SELECT id, data FROM buckets WHERE id IN ({','.join('?' * len(rows))})"
    found, last = dict(connection.execute(select, tuple(rows))), page.last
    for row, keys in rows.items():
        content = unpack(found.get(row), row)
        if content is None:
            damaged.add(row)
            last = last.later(Last(state.changed, state.changed))
        # Most rows have other labels, and need not be parsed.
        elif keys := [key for key in keys if len(content) > 2 and dump(key) in content]:
            last = last.later(_find(unseal(found[row], row), keys, path))
    return last


def mend(connection: Connection, damaged: set[int]) -> None:
    """Write rows that are damaged anew: everything in them is invalidated now, and not again."""
    changed = State.read(connection).changed
    for row in damaged:
        if _read(connection, row) is None:
            _write(connection, row, {ALL: {"": (changed, changed)}})


def note(connection: Connection, labels: Iterable[str], expire: bool) -> tuple[Number, set[str]]:
    """Invalidate labels; gives what there are too many of now, for `forget`."""
    state, crowded, labels = State.read(connection), set[str](), list(dict.fromkeys(labels))
    state.sequence = state.changed = number = state.sequence + 1
    state.events += 1
    for label in labels:
        key, pattern = _place_of(label)
        row, length = _row_of(key), len(key) - len(_BEGIN)
        entries = _read(connection, row)
        if entries is None:
            entries = {ALL: {"": (number, number)}}
        place = entries.setdefault(key, {})
        state.labels += pattern not in place
        before = place.get(pattern, (0, 0))
        place[pattern] = (number, number if expire else before[1])
        if pattern and length not in state.lengths:
            state.lengths.append(length)
        if len(place) > MAX_ALIKE:
            crowded.add(key)
        _write(connection, row, entries)
    row_of_history = (state.events, seal([number, expire, labels], state.events))
    connection.execute("REPLACE INTO history VALUES (?, ?)", row_of_history)
    connection.execute("DELETE FROM history WHERE id <= ?", (state.events - MAX_HISTORY,))
    state.write(connection)
    return state.at, crowded | ({ALL} if state.labels > MAX_LABELS else set())


def changes(connection: Connection, since: Number) -> Changes:
    """What was invalidated since a number, as far as an unbroken chain of rows says it."""
    state, found = State.read(connection), list[Invalidation]()
    complete = since.lineage == state.lineage and since.sequence <= state.sequence
    if complete and since.sequence < state.changed:
        rows = connection.execute("SELECT data FROM history ORDER BY id DESC")
        for expected in range(state.events, 0, -1):
            # Sealed with its place: a missing row shows.
            content = unseal((rows.fetchone() or (None,))[0], expected)
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

    :param crowded: a literal beginning that too many patterns have, or `ALL` labels.
    """
    with database.apart() as connection:
        rows = range(LABEL_ROWS) if crowded == ALL else [_row_of(crowded)]
        labels = [
            (last, key, pattern)
            for row in rows
            for key, place in (_read(connection, row) or {}).items()
            for pattern, last in place.items()
            if key == crowded or key != crowded == ALL
        ]
        labels = sorted(labels)[: len(labels) // 2 if crowded == ALL else -MAX_ALIKE // 2]
        if not labels:
            return
        oldest: Entries = {}
        for last, key, pattern in labels:
            oldest.setdefault(key, {})[pattern] = last
        # A page that is put from now on with a number from before is stale; the others are found.
        database.write(_raise_floor, labels[-1][0][0])
        beginning = "" if crowded == ALL else crowded.removeprefix(_BEGIN)
        marked = list(_marked(connection, oldest, beginning))
    for some in _batches(marked):
        # Those that were replaced meanwhile are later.
        database.write(_mark, some)
    for keys in _batches(list(oldest)):
        database.write(_drop, keys, oldest)


def _batches(items: list[T]) -> Iterator[list[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _raise_floor(connection: Connection, floor: int) -> None:
    state = State.read(connection)
    state.floor = max(state.floor, floor)
    state.write(connection)


def _marked(
    connection: Connection, oldest: Entries, beginning: str
) -> Iterator[tuple[bytes, str, bytes]]:
    """What the rows of pages below a path become, their names, and what they are now."""
    lineage = State.read(connection).lineage
    lengths = {len(key) - len(_BEGIN) for key in oldest if key.startswith(_BEGIN)}
    select = "SELECT name, meta FROM pages WHERE path >= ? AND path < ?"
    for name, meta in connection.execute(select, (beginning, beginning + "\U0010ffff")):
        if (page := Page.of(meta)) is not None:
            path, keys = _keys_of(page.record, lengths)
            last, number = page.last.later(_find(oldest, keys, path)), page.record.number
            if last.makes(number, lineage) > page.last.makes(number, lineage):
                yield page._replace(last=last).seal(), name, meta


def _mark(connection: Connection, some: list[tuple[bytes, str, bytes]]) -> None:
    connection.executemany("UPDATE pages SET meta = ? WHERE name = ? AND meta = ?", some)


def _drop(connection: Connection, keys: list[str], oldest: Entries) -> None:
    state = State.read(connection)
    for key in keys:
        row = _row_of(key)
        entries = _read(connection, row)
        if entries is not None and key in entries:
            place, old = entries.pop(key), oldest[key]
            # Also those that were invalidated again meanwhile.
            left = {pattern: last for pattern, last in place.items() if last != old.get(pattern)}
            state.labels -= len(place) - len(left)
            _write(connection, row, {**entries, key: left} if left else entries)
    state.write(connection)


# Paths that exist: a list that says where it is damaged.


def _row_of_path(path: str) -> int:
    return _row_of(path, LABEL_ROWS, PATH_ROWS)


def list_path(connection: Connection, path: str) -> None:
    entries = _read(connection, _row_of_path(path))
    _write(connection, _row_of_path(path), {**({ALL: 1} if entries is None else entries), path: 1})


def has_path(connection: Connection, path: str) -> bool | None:
    """Whether a path was listed; ``None`` where nobody can say."""
    entries = _read(connection, _row_of_path(path))
    if entries is not None and path in entries and path != ALL:
        return True
    return None if entries is None or ALL in entries else False
