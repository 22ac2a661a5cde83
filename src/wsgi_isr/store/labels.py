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
from .database import Database
from .epochs import Epochs
from .epochs import Last
from .epochs import prefix_of
from .protocol import Changes
from .protocol import Invalidation
from .protocol import MAX_HISTORY
from .protocol import MAX_LABELS
from .protocol import Number
from .schema import LABEL_BUCKETS
from .schema import PATH_BUCKETS
from .schema import read_state
from .schema import seal
from .schema import State
from .schema import unpack
from .schema import unseal
from .schema import write_state

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

#: Of a label: its `Last`. Of a literal beginning: a floor, and the `Last` of each pattern.
Entries: t.TypeAlias = dict[str, t.Any]


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
        values = unseal(meta, 2)
        return None if values is None else cls(*values)

    @property
    def number(self) -> Number:
        return Number(self.lineage, self.sequence)

    @property
    def last(self) -> Last:
        return Last(self.stale, self.expired)


def _bucket_of(key: str) -> int:
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % LABEL_BUCKETS


def _read(connection: sqlite3.Connection, number: int) -> Entries | None:
    row = connection.execute("SELECT data FROM buckets WHERE id = ?", (number,)).fetchone()
    return t.cast("Entries | None", unseal(row and row[0], number))


def _write(connection: sqlite3.Connection, number: int, entries: Entries) -> None:
    connection.execute("REPLACE INTO buckets VALUES (?, ?)", (number, seal(entries, number)))


def last_of(
    connection: sqlite3.Connection,
    state: State,
    page: Page,
    damaged: set[int],
    floors: bool = False,
) -> Last:
    """The last invalidations of a page, in one step with what else the transaction reads.

    :param damaged: to which the numbers of rows that are damaged are added.
    :param floors: whether the page is put now, so that it may be from before what was forgotten.
    """
    path = page.path or "/"
    rows: dict[int, list[str]] = {}
    for label in page.labels:
        rows.setdefault(_bucket_of(label), []).append(label)
    for length in state.lengths:
        if length <= len(path):
            key = _BEGIN + path[:length]
            rows.setdefault(_bucket_of(key), []).append(key)
    places = ",".join("?" * len(rows))
    found = dict(
        connection.execute(f"SELECT id, data FROM buckets WHERE id IN ({places})", tuple(rows))
    )
    last = Last(state.floor if floors else 0)
    for number, keys in rows.items():
        content = unpack(found.get(number), number)
        if content is None:
            damaged.add(number)
            last = last.later(Last(state.changed, state.changed))
        elif len(content) > 2:
            # Most rows have other labels, and need not be parsed.
            keys = [key for key in (*keys, _ALL) if json.dumps(key).encode() in content]
            entries: Entries = json.loads(content) if keys else {}
            for key in keys:
                if (entry := entries.get(key)) is not None:
                    last = last.later(_matching(key, entry, path, floors))
    return last


def _matching(key: str, entry: t.Any, path: str, floors: bool) -> Last:
    if not key.startswith(_BEGIN):
        return Last(*entry)
    floor, patterns = entry
    last = Last(floor if floors else 0)
    for pattern, each in patterns.items():
        if _compiled(pattern).fullmatch(path):
            last = last.later(Last(*each))
    return last


def mend(connection: sqlite3.Connection, state: State, damaged: set[int]) -> None:
    """Write rows that are damaged anew: everything in them is invalidated now, and not again."""
    for number in damaged:
        if _read(connection, number) is None:
            _write(connection, number, {_ALL: (state.changed, state.changed)})


def _add(connection: sqlite3.Connection, state: State, label: str, expire: bool) -> State:
    """Note the invalidation ``state.changed`` of a label; gives the state after it."""
    number = state.changed
    pattern = label.removeprefix(_PATTERN) if label.startswith(_PATTERN) else None
    beginning = None if pattern is None else prefix_of(pattern)
    key = label if beginning is None else _BEGIN + beginning
    bucket = _bucket_of(key)
    entries = _read(connection, bucket)
    if entries is None:
        entries = {_ALL: (number, number)}
    place = entries
    if beginning is not None:
        place, key = entries.setdefault(key, [0, {}])[1], t.cast(str, pattern)
        if len(beginning) not in state.lengths:
            state = state._replace(lengths=[*state.lengths, len(beginning)])
    # The latest stands last.
    before = place.pop(key, None)
    place[key] = (number, number if expire else before[1] if before else 0)
    _write(connection, bucket, entries)
    return state if before else state._replace(labels=state.labels + 1)


def note(connection: sqlite3.Connection, labels: Sequence[str], expire: bool) -> Number:
    """Invalidate labels."""
    state = read_state(connection)
    number, event = state.sequence + 1, state.events + 1
    state = state._replace(sequence=number, changed=number, events=event)
    for label in labels:
        state = _add(connection, state, label, expire)
    row = (event, seal([number, expire, labels], event))
    connection.execute("REPLACE INTO history VALUES (?, ?)", row)
    connection.execute("DELETE FROM history WHERE id <= ?", (event - MAX_HISTORY,))
    write_state(connection, state)
    return state.at


def changes(connection: sqlite3.Connection, since: Number) -> Changes:
    """What was invalidated since a number, as far as an unbroken chain of rows says it."""
    connection.execute("BEGIN")
    try:
        state, found = read_state(connection), list[Invalidation]()
        complete = since.lineage == state.lineage and since.sequence <= state.sequence
        if complete and since.sequence < state.changed:
            rows = connection.execute("SELECT data FROM history ORDER BY id DESC")
            for expected in range(state.events, 0, -1):
                (data,) = rows.fetchone() or (None,)
                # Sealed with its place: a missing row shows.
                content = unseal(data, expected)
                if content is None:
                    complete, found = False, []
                    break
                sequence, expire, labels = content
                if sequence <= since.sequence:
                    break
                found += (Invalidation(label, sequence, expire) for label in reversed(labels))
            rows.close()
    finally:
        connection.execute("COMMIT")
    return Changes(state.at, complete, tuple(reversed(found)))


# Forgetting.


def bound(database: Database, labels: Sequence[str]) -> None:
    """Forget the oldest labels where there are too many, after applying them to their pages.

    :param labels: that were invalidated just now.
    """
    for beginning in {
        prefix_of(label.removeprefix(_PATTERN)) for label in labels if label.startswith(_PATTERN)
    }:
        while _bound_alike(database, beginning):
            pass

    def claim(connection: sqlite3.Connection) -> bool:
        state, now = read_state(connection), time.monotonic()
        if state.labels <= MAX_LABELS or now < state.forgetting < now + FORGETTING:
            return False
        write_state(connection, state._replace(forgetting=now + FORGETTING))
        return True

    if database.read(read_state).labels > MAX_LABELS and database.write(claim):
        _forget_half(database)


def _bound_alike(database: Database, beginning: str) -> bool:
    key = _BEGIN + beginning
    bucket = _bucket_of(key)
    entries = database.read(lambda connection: _read(connection, bucket)) or {}
    if key not in entries or len(entries[key][1]) <= MAX_ALIKE:
        return False
    ordered = sorted(entries[key][1].items(), key=lambda item: item[1][0])[: -MAX_ALIKE // 2]
    oldest = {pattern: Last(*last) for pattern, last in ordered[:ALIKE_AT_ONCE]}
    floor = max(last.any for last in oldest.values())

    def raise_floor(connection: sqlite3.Connection) -> str:
        current = _read(connection, bucket) or {}
        if key in current:
            current[key][0] = max(current[key][0], floor)
            _write(connection, bucket, current)
        return read_state(connection).lineage

    def forget(connection: sqlite3.Connection) -> None:
        current = _read(connection, bucket)
        if current is None or key not in current:
            return
        patterns, state = current[key][1], read_state(connection)
        gone = [name for name, last in oldest.items() if patterns.get(name) == [*last]]
        for name in gone:
            del patterns[name]
        _write(connection, bucket, current)
        write_state(connection, state._replace(labels=state.labels - len(gone)))

    # A page that is put from now on with a number from before is stale; the others are found.
    lineage = database.write(raise_floor)
    _apply(database, lineage, {_PATTERN + name: last for name, last in oldest.items()}, beginning)
    database.write(forget)
    return len(ordered) > ALIKE_AT_ONCE


def _forget_half(database: Database) -> None:
    numbers = range(0, LABEL_BUCKETS, BATCH)
    labels: dict[str, Last] = {}
    for start in numbers:
        for entries in database.read(lambda connection, start=start: _some(connection, start)):
            for key, entry in (entries[1] or {}).items():
                if key.startswith(_BEGIN):
                    labels.update((_PATTERN + name, Last(*each)) for name, each in entry[1].items())
                elif key != _ALL:
                    labels[key] = Last(*entry)
    if not labels:
        return
    floor = sorted(last.any for last in labels.values())[len(labels) // 2]
    oldest = {label: last for label, last in labels.items() if last.any <= floor}

    def raise_floor(connection: sqlite3.Connection) -> str:
        state = read_state(connection)
        write_state(connection, state._replace(floor=max(state.floor, floor)))
        return state.lineage

    def forget(connection: sqlite3.Connection, start: int) -> None:
        gone = 0
        for number, entries in _some(connection, start):
            if not entries:
                continue
            kept: Entries = {}
            for key, entry in entries.items():
                if key.startswith(_BEGIN):
                    patterns = {name: each for name, each in entry[1].items() if each[0] > floor}
                    gone += len(entry[1]) - len(patterns)
                    if patterns or entry[0] > floor:
                        kept[key] = [entry[0], patterns]
                elif key == _ALL or entry[0] > floor:
                    kept[key] = entry
                else:
                    gone += 1
            if kept != entries:
                _write(connection, number, kept)
        state = read_state(connection)
        write_state(connection, state._replace(labels=max(0, state.labels - gone)))

    lineage = database.write(raise_floor)
    _apply(database, lineage, oldest, "")
    for start in numbers:
        database.write(lambda connection, start=start: forget(connection, start))
    database.write(
        lambda connection: write_state(connection, read_state(connection)._replace(forgetting=0.0))
    )


def _some(connection: sqlite3.Connection, start: int) -> list[tuple[int, Entries | None]]:
    rows = connection.execute(
        "SELECT id, data FROM buckets WHERE id >= ? AND id < ?",
        (start, min(start + BATCH, LABEL_BUCKETS)),
    )
    return [(number, unseal(data, number)) for number, data in rows.fetchall()]


def _apply(database: Database, lineage: str, labels: dict[str, Last], beginning: str) -> None:
    """Note on the pages below a path that they were invalidated, in small steps."""
    epochs = Epochs(lineage)
    for label, last in labels.items():
        epochs.apply(Invalidation(label, last.any, False))
        if last.expire:
            epochs.apply(Invalidation(label, last.expire, True))

    def judge(meta: t.Any) -> Page | None:
        page = Page.of(meta)
        if page is None:
            return None
        found = int(epochs.validity(page.labels, page.path, page.number))
        return page._replace(
            stale=max(page.stale, epochs.changed if found else 0),
            expired=max(page.expired, epochs.changed if found == 2 else 0),
        )

    def note(connection: sqlite3.Connection, rows: list[int]) -> None:
        for row in rows:
            (meta,) = connection.execute("SELECT meta FROM pages WHERE id = ?", (row,)).fetchone()
            if (page := judge(meta)) is not None:
                connection.execute("UPDATE pages SET meta = ? WHERE id = ?", (seal(page, 2), row))

    select = (
        "SELECT path, id, meta FROM pages WHERE path >= ? AND path < ? AND (path, id) > (?, ?) "
        f"ORDER BY path, id LIMIT {BATCH}"
    )
    place: tuple[t.Any, int] = (beginning, -(2**63))
    while True:
        found = database.read(
            lambda connection: connection.execute(
                select,
                (beginning, beginning + "\U0010ffff", *place),  # noqa: B023
            ).fetchall()
        )
        if not found:
            return
        place = found[-1][0], found[-1][1]
        changed = [row for _, row, meta in found if (page := judge(meta)) and page != Page.of(meta)]
        if changed:
            database.write(lambda connection: note(connection, changed))  # noqa: B023


# Paths that exist: a list that says where it is damaged.


def _path_bucket(path: str) -> int:
    return LABEL_BUCKETS + zlib.crc32(path.encode("utf-8", "surrogatepass")) % PATH_BUCKETS


def list_path(connection: sqlite3.Connection, path: str) -> None:
    bucket = _path_bucket(path)
    entries = _read(connection, bucket)
    _write(connection, bucket, {**({_ALL: 0} if entries is None else entries), path: 1})


def has_path(connection: sqlite3.Connection, path: str) -> bool | None:
    """Whether a path was listed; ``None`` where nobody can say."""
    entries = _read(connection, _path_bucket(path))
    if entries is not None and path in entries and path != _ALL:
        return True
    return None if entries is None or _ALL in entries or read_state(connection).lost else False
