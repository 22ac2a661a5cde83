"""The file of the embedded store: its tables, its state, and values that show damage."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import secrets
import sqlite3
import struct
import typing as t
import zlib
from array import array
from urllib.parse import quote

from .protocol import Number, ReadOnly, StoreError, TooLarge

#: Label rows, and rows of paths after them. All exist from the beginning: a missing one is damage.
LABEL_BUCKETS, PATH_BUCKETS = 4096, 1024
APPLICATION_ID, VERSION = 0x49535231, 1
SCHEMA = """
CREATE TABLE state (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE pages (id INTEGER PRIMARY KEY, name TEXT UNIQUE, path TEXT, build TEXT, gone INTEGER,
    used INTEGER, meta BLOB, head BLOB);
CREATE INDEX pages_path ON pages (path);
CREATE INDEX pages_build ON pages (build);
CREATE INDEX pages_used ON pages (gone DESC, used);
CREATE TABLE bodies (id INTEGER PRIMARY KEY, body BLOB);
CREATE TABLE buckets (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE history (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE notes (id INTEGER PRIMARY KEY, kind TEXT, name TEXT, value BLOB);
CREATE UNIQUE INDEX notes_name ON notes (kind, name);
CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT UNIQUE, expires REAL, value BLOB);
"""


class Damage(Exception):
    """The file is not what this library wrote."""


# An error whose message quotes damaged text cannot be decoded.
FAULTS = (sqlite3.Error, OSError, Damage, UnicodeDecodeError)


# Values that a flipped bit must not change.


def pack(data: bytes, salt: int = 0) -> bytes:
    """Bytes with a checksum over them and over where they belong."""
    return zlib.crc32(data, salt).to_bytes(4, "big") + data


def unpack(data: t.Any, salt: int = 0) -> bytes | None:
    """The bytes, or ``None`` for damaged ones."""
    if type(data) is not bytes or zlib.crc32(data[4:], salt) != int.from_bytes(data[:4], "big"):
        return None
    return data[4:]


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def dump(value: t.Any) -> bytes:
    return _encode(value).encode("utf-8", "surrogatepass")


def seal(value: t.Any, salt: int = 0) -> bytes:
    return pack(dump(value), salt)


def unseal(data: t.Any, salt: int = 0) -> t.Any:
    content = unpack(data, salt)
    return None if content is None else json.loads(content.decode("utf-8", "surrogatepass"))


_STATE, _STATE_SALT = struct.Struct("=16s7qd?"), 1


@dataclasses.dataclass(slots=True)
class State:
    """The one row that says where the order is.

    :param sequence: the number given last.
    :param changed: that of the last invalidation.
    :param floor: labels up to here were forgotten; a page put with a lower number is stale.
    :param pages: how many there are, and their ``bytes``.
    :param labels: how many are remembered, and how many invalidations there were: ``events``.
    :param forgetting: until when a process is forgetting labels, by the monotonic clock.
    :param lost: the list of paths was lost with a damaged file.
    :param lengths: those of literal beginnings of patterns.
    """

    lineage: str
    sequence: int = 0
    changed: int = 0
    floor: int = 0
    pages: int = 0
    bytes: int = 0
    labels: int = 0
    events: int = 0
    forgetting: float = 0.0
    lost: bool = False
    lengths: array[int] = dataclasses.field(default_factory=lambda: array("I"))

    @classmethod
    def of(cls, data: t.Any) -> State:
        """
        :raises Damage: for what is none.
        """
        content = unpack(data, _STATE_SALT)
        if content is None:
            raise Damage("the state is damaged")
        lineage, *numbers = _STATE.unpack_from(content)
        state = cls(lineage.decode(), *numbers)
        state.lengths.frombytes(content[_STATE.size :])
        return state

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> State:
        row = connection.execute("SELECT data FROM state WHERE id = 1").fetchone()
        return cls.of(row and row[0])

    def write(self, connection: sqlite3.Connection) -> None:
        numbers = (self.sequence, self.changed, self.floor, self.pages, self.bytes, self.labels)
        rest = (self.events, self.forgetting, self.lost)
        content = _STATE.pack(self.lineage.encode(), *numbers, *rest) + self.lengths.tobytes()
        connection.execute("REPLACE INTO state VALUES (1, ?)", (pack(content, _STATE_SALT),))

    @property
    def at(self) -> Number:
        """The number of the last invalidation."""
        return Number(self.lineage, self.changed)


# The file.


def connect(path: str, options: str, timeout: float = 0.0) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(path)}?{options}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


_PARTS = "SELECT type, name, tbl_name, sql FROM sqlite_master"


@functools.cache
def _expected() -> frozenset[t.Any]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        return frozenset(connection.execute(_PARTS))


def validate(connection: sqlite3.Connection) -> State:
    """
    :raises Damage: for a file that is not one of ours as we write it.
    :raises StoreError: for one of a newer version.
    """
    (identity,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if identity == APPLICATION_ID and version > VERSION:
        raise StoreError("the database is of a newer version of wsgi-isr")
    if identity != APPLICATION_ID or version != VERSION:
        raise Damage("it is not a database of this library")
    if frozenset(connection.execute(_PARTS)) != _expected():
        raise Damage("its schema was changed")
    return State.read(connection)


def create(path: str, lost: bool) -> None:
    """Make a new database.

    :param lost: whether the one before it was damaged.
    """
    state = State(secrets.token_hex(8), lost=lost)
    with contextlib.closing(connect(path, "mode=rwc")) as connection:
        for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = MEMORY"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.executescript(
            f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID};"
            f"PRAGMA user_version = {VERSION};"
        )
        state.write(connection)
        connection.executemany(
            "INSERT INTO buckets VALUES (?, ?)",
            ((n, pack(b"{}", n)) for n in range(LABEL_BUCKETS + PATH_BUCKETS)),
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()


def remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(OSError):
            os.unlink(path + suffix)


def unwritable(folder: str) -> str | None:
    """Why the folder cannot be written, if it cannot; it is made if it is not there."""
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        owner = os.stat(folder).st_uid
    except OSError as error:
        return str(error.strerror)
    if os.geteuid() == 0 and owner != 0:
        # Root would leave files that the folder's owner can neither read nor replace.
        return f"it belongs to user {owner}; run as that user"
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return "it cannot be written"
    return None


# Errors.

_DAMAGE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_MISMATCH,
)


def code_of(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_damage(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        return code_of(error) in _DAMAGE or "no such" in str(error)
    return isinstance(error, Damage | UnicodeDecodeError)


def translate(error: Exception) -> StoreError:
    """What an error of the engine or of the operating system means to who asked."""
    full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    if full or code_of(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
        return ReadOnly(str(error))
    too_large = code_of(error) == sqlite3.SQLITE_TOOBIG
    return (TooLarge if too_large else StoreError)(str(error))
