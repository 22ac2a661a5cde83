"""The tables of the embedded store: the order of events in rows that show damage.

What decides whether a page is valid is sealed with a checksum over it and its place. Labels belong
to a fixed number of rows, all of which exist from the beginning, so that a missing one shows.
Patterns belong to the row of their literal beginning: a page finds them by those of its path.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import sqlite3
import typing as t
import zlib
from collections.abc import Callable, Iterable, Sequence
from sqlite3 import Connection

from ..rules import compile_pattern, to_wsgi
from .epochs import Last
from .protocol import (
    MAX_HISTORY,
    Changes,
    Invalidation,
    Number,
    ReadOnly,
    Record,
    StoreError,
    TooLarge,
)

#: Rows of labels, and labels and patterns of a row: with `protocol.MAX_LABELS` some get full.
ROWS, MAX_ROW = 4096, 40
#: Segments by which patterns are found; those that begin alike cost every page below a match.
DEPTH = 8
#: Pages or rows that are read or written in one step.
BATCH = 50
_BEGIN, _LISTED = "begin:", "listed:"
SCHEMA = """\
CREATE TABLE state (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE pages (id INTEGER PRIMARY KEY, name TEXT UNIQUE, path TEXT, build TEXT, gone INTEGER,
    used INTEGER, meta BLOB, head BLOB);
CREATE INDEX pages_path ON pages (path);
CREATE INDEX pages_build ON pages (build);
CREATE INDEX pages_used ON pages (gone DESC, used);
CREATE TABLE bodies (id INTEGER PRIMARY KEY, body BLOB);
CREATE TABLE labels (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE history (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE notes (id INTEGER PRIMARY KEY, kind TEXT, name TEXT, value BLOB, UNIQUE (kind, name));
CREATE INDEX notes_kind ON notes (kind);
CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT UNIQUE, expires REAL, value BLOB)"""

#: By label or literal beginning: the `Last` of each pattern there, and of the label under "".
Entries: t.TypeAlias = dict[str, dict[str, Sequence[int]]]

_compiled = functools.lru_cache(4096)(compile_pattern)


# Faults.


class Damage(StoreError):
    """The file is not what this library wrote."""


# An error whose message quotes damaged text cannot be decoded.
FAULTS = (Damage, sqlite3.Error, OSError, UnicodeDecodeError)


_KINDS: dict[str, type[StoreError]] = {
    **dict.fromkeys(("CORRUPT", "NOTADB", "CONSTRAINT", "FORMAT", "MISMATCH"), Damage),
    **dict.fromkeys(("FULL", "READONLY"), ReadOnly),
    "TOOBIG": TooLarge,
}


def translate(error: Exception) -> StoreError:
    """What a fault of the engine or of the operating system means to who asked."""
    if isinstance(error, StoreError):
        return error
    kind = _KINDS.get(code_of(error), StoreError)
    if isinstance(error, UnicodeDecodeError) or "no such" in str(error):
        kind = Damage
    elif getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        kind = ReadOnly
    return kind(str(error))


def code_of(error: Exception) -> str:
    """The first word of an error's name in SQLite: ``IOERR`` of ``SQLITE_IOERR_READ``."""
    return str(getattr(error, "sqlite_errorname", "__")).split("_")[1]


# Values that a flipped bit must not change.


_parse = json.JSONDecoder().decode
# Bytes become text, which parsing does not turn back.
_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, default=lambda data: data.decode("latin-1")
).encode


def dump(value: t.Any) -> bytes:
    return _encode(value).encode("utf-8", "surrogatepass")


def seal(value: t.Any, salt: int = 0) -> bytes:
    """A value with a checksum over it and over where it belongs."""
    data = dump(value)
    return zlib.crc32(data, salt).to_bytes(4, "big") + data


def _content(data: t.Any, salt: int) -> bytes | None:
    if type(data) is not bytes or zlib.crc32(data[4:], salt) != int.from_bytes(data[:4], "big"):
        return None
    return data[4:]


def unseal(data: t.Any, salt: int = 0, parse: Callable[[str], t.Any] = _parse) -> t.Any:
    """The value, or ``None`` for a damaged one."""
    content = _content(data, salt)
    return content and parse(content.decode("utf-8", "surrogatepass"))


def _sound(data: t.Any, salt: int) -> bytes:
    """What must not be damaged, before it is parsed."""
    if (content := _content(data, salt)) is None:
        raise Damage("a row is damaged")
    return content


@functools.lru_cache(64)
def state_fields(data: t.Any) -> tuple[t.Any, ...]:
    return tuple(json.loads(_sound(data, 1)))


@dataclasses.dataclass
class State:
    """The one row that says where the order is.

    :param sequence: the number given last.
    :param changed: that of the last invalidation.
    :param floor: labels up to here were forgotten; a page put with a lower number is stale.
    :param pages: how many there are, and their ``bytes``.
    :param lost: whether a list of paths was lost with the file before this one.
    """

    lineage: str
    sequence: int = 0
    changed: int = 0
    floor: int = 0
    pages: int = 0
    bytes: int = 0
    lost: int = 0

    @classmethod
    def read(cls, connection: Connection) -> State:
        row = connection.execute("SELECT data FROM state").fetchone()
        return cls(*state_fields(row and row[0]))

    def write(self, connection: Connection) -> None:
        sealed = seal([*vars(self).values()], 1)
        connection.execute("REPLACE INTO state VALUES (1, ?)", (sealed,))

    def fits(self, pages: int, size: int) -> bool:
        """Whether there are no more pages and bytes than these."""
        return self.pages <= pages and self.bytes <= size

    @property
    def at(self) -> Number:
        """The number of the last invalidation."""
        return Number(self.lineage, self.changed)


class Page(t.NamedTuple):
    """What is sealed in a page's row: its record but for the bytes, of which there are ``size``."""

    record: Record
    size: int
    #: The last invalidations that were applied to it.
    last: Last = Last()

    def seal(self) -> bytes:
        return seal((*self.record[:6], self.size, *self.last), 2)

    @classmethod
    @functools.lru_cache(1024)
    def of(cls, meta: t.Any) -> Page | None:
        if (values := unseal(meta, 2)) is None:
            return None
        name, labels, number, build, path, gone, size, *last = values
        record = Record(name, tuple(labels), Number(*number), build, path, gone, b"", b"")
        return cls(record, size, Last(*last))


# Labels.


def _row_of(key: str) -> int:
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % ROWS


def _beginnings(path: str) -> list[str]:
    segments = path.split("/")[:DEPTH]
    return ["/".join(segments[:count]) for count in range(1, len(segments) + 1)]


def _place_of(label: str) -> tuple[str, str]:
    """Where a label is found: under itself, or as a pattern under its literal beginning."""
    pattern = label.removeprefix("pattern:")
    if pattern == label:
        return label, ""
    literal, star, _ = pattern.partition("*")
    path = to_wsgi(literal.rpartition("/")[0] if star else literal)
    return _BEGIN + _beginnings(path)[-1], pattern


def _read(connection: Connection, row: int) -> Entries:
    found = connection.execute("SELECT data FROM labels WHERE id = ?", (row,)).fetchone()
    return t.cast(Entries, json.loads(_sound(found and found[0], row)))


def _write(connection: Connection, row: int, entries: Entries) -> None:
    connection.execute("REPLACE INTO labels VALUES (?, ?)", (row, seal(entries, row)))


def begin(connection: Connection, lineage: str, lost: bool) -> None:
    """Fill the tables of a new database."""
    State(lineage, lost=lost).write(connection)
    rows = ((row, seal({}, row)) for row in range(ROWS))
    connection.executemany("INSERT INTO labels VALUES (?, ?)", rows)


def last_of(connection: Connection, state: State, page: Page) -> Last:
    """The last invalidations of a page, in one step with what else the transaction reads."""
    record, last = page.record, page.last
    if record.number.lineage == state.lineage and record.number.sequence >= state.changed:
        return last
    path, rows = record.path or "/", dict[int, list[str]]()
    for key in (*record.labels, *(_BEGIN + beginning for beginning in _beginnings(path))):
        rows.setdefault(_row_of(key), []).append(key)
    select = f"SELECT id, data FROM labels WHERE id IN ({','.join('?' * len(rows))})"
    found = dict(connection.execute(select, tuple(rows)))
    for row, keys in rows.items():
        content = _sound(found.get(row), row)
        # Most rows are empty or have other labels, and need not be parsed.
        keys = [key for key in keys if len(content) > 2 and dump(key) in content]
        entries: Entries = json.loads(content) if keys else {}
        for key in keys:
            for pattern, numbers in entries.get(key, {}).items():
                if not pattern or _compiled(pattern).fullmatch(path):
                    last = last.later(Last(*numbers))
    return last


def note(connection: Connection, labels: Iterable[str], expire: bool) -> tuple[Number, bool]:
    """Invalidate labels; gives whether some are to be forgotten, because a row is full."""
    state, labels, is_full = State.read(connection), list(dict.fromkeys(labels)), False
    number, rows = state.sequence + 1, dict[int, list[tuple[str, str]]]()
    for key, pattern in map(_place_of, labels):
        rows.setdefault(_row_of(key), []).append((key, pattern))
    for row, places in rows.items():
        entries = _read(connection, row)
        for key, pattern in places:
            place = entries.setdefault(key, {})
            place[pattern] = (number, number if expire else place.get(pattern, (0, 0))[1])
        _write(connection, row, entries)
        numbers = sorted(last[0] for place in entries.values() for last in place.values() if last)
        if len(numbers) > MAX_ROW:
            is_full, state.floor = True, max(state.floor, numbers[len(numbers) // 2])
    # With the number of the one before: a missing row shows.
    sealed = seal([expire, labels, state.changed], number)
    connection.execute("REPLACE INTO history VALUES (?, ?)", (number, sealed))
    # Those of the last numbers, most of which are renders.
    connection.execute("DELETE FROM history WHERE id <= ?", (number - 10 * MAX_HISTORY,))
    state.sequence = state.changed = number
    state.write(connection)
    return state.at, is_full


def changes(connection: Connection, since: Number) -> Changes:
    """What was invalidated since a number, as far as an unbroken chain of rows says it."""
    state, found = State.read(connection), list[Invalidation]()
    at, first = state.changed, since.sequence if since.lineage == state.lineage else state.changed
    select = "SELECT id, data FROM history WHERE id > ? ORDER BY id DESC"
    for number, data in connection.execute(select, (first,)):
        content = unseal(data, number)
        if number != at or content is None:
            break
        expire, labels, at = content
        found += (Invalidation(label, number, expire) for label in reversed(labels))
    complete = since.lineage == state.lineage and at <= since.sequence <= state.sequence
    return Changes(state.at, complete, tuple(reversed(found)) if complete else ())


def concerned(connection: Connection, after: str) -> tuple[str, list[tuple[bytes, str, bytes]]]:
    """Before labels are forgotten: what was invalidated of some pages, to be written to them.

    Gives the last name of those pages; for some of them what the row becomes, the name, what it is.
    """
    state, name, found = State.read(connection), "", []
    select = "SELECT name, meta FROM pages WHERE name > ? ORDER BY name LIMIT ?"
    for name, meta in connection.execute(select, (after, BATCH)).fetchall():
        if (page := Page.of(meta)) and (last := last_of(connection, state, page)) != page.last:
            found.append((page._replace(last=last).seal(), name, meta))
    return name, found


def forget(connection: Connection, floor: int, first: int) -> None:
    """Forget labels up to a number, in some rows."""
    for row in range(first, min(first + BATCH, ROWS)):
        before, after = _read(connection, row), Entries()
        for key, place in before.items():
            left = {name: last for name, last in place.items() if not last or last[0] > floor}
            if left:
                after[key] = left
        if after != before:
            _write(connection, row, after)


# Paths that exist.


def list_path(connection: Connection, path: str) -> None:
    entries = _read(connection, _row_of(_LISTED + path))
    entries[_LISTED + path] = {"": ()}
    _write(connection, _row_of(_LISTED + path), entries)


def has_path(connection: Connection, path: str) -> bool | None:
    """Whether a path was listed; ``None`` where nobody can say."""
    if _LISTED + path in _read(connection, _row_of(_LISTED + path)):
        return True
    return None if State.read(connection).lost else False
