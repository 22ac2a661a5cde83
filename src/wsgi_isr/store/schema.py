"""The file of the embedded store: its tables, its state, and values that show damage."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import sqlite3
import struct
import typing as t
import zlib
from array import array
from sqlite3 import Connection
from urllib.parse import quote

from .protocol import Number, ReadOnly, StoreError, TooLarge

#: Rows of labels, and rows of paths after them. All exist from the beginning, so that a missing
#: one shows. What is so of all labels, or all paths, of a row stands there under ``ALL``.
LABEL_ROWS, PATH_ROWS, ALL = 4096, 1024, "*"
# A file of an earlier version is put aside, as a damaged one; that of a later one is left alone.
APPLICATION_ID, VERSION = 0x49535231, 2
SAFE = "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;"
_SCHEMA = """\
CREATE TABLE state (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE pages (id INTEGER PRIMARY KEY, name TEXT UNIQUE, path TEXT, build TEXT, gone INTEGER,
    used INTEGER, meta BLOB, head BLOB);
CREATE INDEX pages_path ON pages (path);
CREATE INDEX pages_build ON pages (build);
CREATE INDEX pages_used ON pages (gone DESC, used);
CREATE TABLE bodies (id INTEGER PRIMARY KEY, body BLOB);
CREATE TABLE buckets (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE history (id INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE notes (id INTEGER PRIMARY KEY, kind TEXT, name TEXT, value BLOB, UNIQUE (kind, name));
CREATE INDEX notes_kind ON notes (kind);
CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT UNIQUE, expires REAL, value BLOB)"""


class Damage(StoreError):
    """The file is not what this library wrote."""


# An error whose message quotes damaged text cannot be decoded.
FAULTS = (sqlite3.Error, OSError, UnicodeDecodeError)


def translate(error: Exception) -> StoreError:
    """What a fault of the engine or of the operating system means to who asked."""
    if isinstance(error, StoreError):
        return error
    code, kind = code_of(error), StoreError
    if code in ("CORRUPT", "NOTADB", "CONSTRAINT", "FORMAT", "MISMATCH") or "no such" in str(error):
        kind = Damage
    elif isinstance(error, UnicodeDecodeError):
        kind = Damage
    elif code in ("FULL", "READONLY"):
        kind = ReadOnly
    elif getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        kind = ReadOnly
    elif code == "TOOBIG":
        kind = TooLarge
    return kind(str(error))


def code_of(error: Exception) -> str:
    """The first word of an error's name in SQLite: ``IOERR`` of ``SQLITE_IOERR_READ``."""
    return str(getattr(error, "sqlite_errorname", "__")).split("_")[1]


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


_STATE, _STATE_SALT = struct.Struct("=16s7q"), 1


@dataclasses.dataclass(slots=True)
class State:
    """The one row that says where the order is.

    :param sequence: the number given last.
    :param changed: that of the last invalidation.
    :param floor: labels up to here were forgotten; a page put with a lower number is stale.
    :param pages: how many there are, and their ``bytes``.
    :param labels: how many are remembered, and how many invalidations there were: ``events``.
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
    def read(cls, connection: Connection) -> State:
        row = connection.execute("SELECT data FROM state WHERE id = 1").fetchone()
        return cls.of(row and row[0])

    def write(self, connection: Connection) -> None:
        numbers = (self.sequence, self.changed, self.floor, self.pages, self.bytes, self.labels)
        content = _STATE.pack(self.lineage.encode(), *numbers, self.events) + self.lengths.tobytes()
        connection.execute("REPLACE INTO state VALUES (1, ?)", (pack(content, _STATE_SALT),))

    @property
    def at(self) -> Number:
        """The number of the last invalidation."""
        return Number(self.lineage, self.changed)


# The file.


def connect(path: str, mode: str, timeout: float) -> Connection:
    uri = f"file:{quote(path)}?{mode}"
    connection = sqlite3.connect(
        uri, timeout=timeout, isolation_level=None, check_same_thread=False, uri=True
    )
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    return connection


def validate(connection: Connection) -> State:
    """
    :raises Damage: for a file that is not one of ours as we write it.
    :raises StoreError: for one of a later version.
    """
    connection.executescript(SAFE)
    (identity,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if identity == APPLICATION_ID and version > VERSION:
        raise StoreError("the database is of a newer version of wsgi-isr")
    if identity != APPLICATION_ID or version != VERSION:
        raise Damage("it is not a database of this version of wsgi-isr")
    parts = connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")
    if sorted(sql for (sql,) in parts) != sorted(_SCHEMA.split(";\n")):
        raise Damage("its schema was changed")
    return State.read(connection)


def create(path: str, lost: bool) -> None:
    """Make a new database.

    :param lost: whether the list of paths was lost with the one before it.
    """
    content = [b"{}"] * LABEL_ROWS + [dump({ALL: 1} if lost else {})] * PATH_ROWS
    with contextlib.closing(connect(path, "mode=rwc", 0)) as connection:
        connection.executescript(
            f"PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = MEMORY; BEGIN; {_SCHEMA};"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}"
        )
        State(secrets.token_hex(8)).write(connection)
        rows = ((number, pack(data, number)) for number, data in enumerate(content))
        connection.executemany("INSERT INTO buckets VALUES (?, ?)", rows)
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
