"""The file of the embedded store: its tables, its state, and values that show damage."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import secrets
import sqlite3
import typing as t
import zlib
from urllib.parse import quote

from .protocol import Number
from .protocol import ReadOnly
from .protocol import StoreError
from .protocol import TooLarge

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
CREATE TABLE leases (name TEXT PRIMARY KEY, token TEXT, holder TEXT, data BLOB);
CREATE TABLE outcomes (token TEXT PRIMARY KEY, at REAL, data BLOB);
CREATE TABLE failures (id INTEGER PRIMARY KEY, name TEXT UNIQUE, data BLOB);
CREATE TABLE wanted (id INTEGER PRIMARY KEY, build TEXT, name TEXT, claim BLOB, data BLOB);
CREATE UNIQUE INDEX wanted_name ON wanted (build, name);
CREATE TABLE takers (build TEXT PRIMARY KEY, data BLOB);
CREATE TABLE builds (id INTEGER PRIMARY KEY, build TEXT UNIQUE);
CREATE TABLE totals (name TEXT PRIMARY KEY, value REAL);
CREATE TABLE reports (holder TEXT PRIMARY KEY, data BLOB);
CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT UNIQUE, expires REAL, value BLOB);
"""


_encode = json.JSONEncoder(separators=(",", ":")).encode


class Damage(Exception):
    """The file is not what this library wrote."""


# An error whose message quotes damaged text cannot be decoded.
FAULTS = (sqlite3.Error, Damage, UnicodeDecodeError)


class State(t.NamedTuple):
    """The one row that says where the order is.

    :param sequence: the number given last.
    :param changed: that of the last invalidation.
    :param floor: labels up to here were forgotten; a page put with a lower number is stale.
    :param pages: how many there are, and their ``bytes``.
    :param labels: how many are remembered, and how many invalidations there were: ``events``.
    :param lengths: those of literal beginnings of patterns.
    :param forgetting: until when a process is forgetting labels, by the monotonic clock.
    :param lost: the list of paths was lost with a damaged file.
    """

    lineage: str
    sequence: int = 0
    changed: int = 0
    floor: int = 0
    pages: int = 0
    bytes: int = 0
    labels: int = 0
    events: int = 0
    lengths: t.Sequence[int] = ()
    forgetting: float = 0.0
    lost: bool = False

    @property
    def at(self) -> Number:
        """The number of the last invalidation."""
        return Number(self.lineage, self.changed)


# Values that a flipped bit must not change.


def pack(data: bytes, salt: int = 0) -> bytes:
    """Bytes with a checksum over them and over where they belong."""
    return zlib.crc32(data, salt).to_bytes(4, "big") + data


def unpack(data: t.Any, salt: int = 0) -> bytes | None:
    """The bytes, or ``None`` for damaged ones."""
    if type(data) is not bytes or zlib.crc32(data[4:], salt) != int.from_bytes(data[:4], "big"):
        return None
    return data[4:]


def seal(value: t.Any, salt: int = 0) -> bytes:
    return pack(_encode(value).encode(), salt)


def unseal(data: t.Any, salt: int = 0) -> t.Any:
    content = unpack(data, salt)
    return None if content is None else json.loads(content.decode())


# Most reads find the state that the one before them found.
@functools.lru_cache(8)
def load_state(data: t.Any) -> State:
    """
    :raises Damage: for what is none.
    """
    values = unseal(data, 1)
    if values is None:
        raise Damage("the state is damaged")
    return State(*values)


def read_state(connection: sqlite3.Connection) -> State:
    row = connection.execute("SELECT data FROM state WHERE id = 1").fetchone()
    return load_state(row and row[0])


def write_state(connection: sqlite3.Connection, state: State) -> None:
    connection.execute("UPDATE state SET data = ? WHERE id = 1", (seal(state, 1),))


def connect(path: str, options: str, timeout: float = 0.0) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(path)}?{options}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = _decode
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "replace")


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
    return read_state(connection)


def code_of(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


_DAMAGE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_MISMATCH,
)


def is_damage(error: Exception) -> bool:
    return (
        isinstance(error, Damage | UnicodeDecodeError)
        or code_of(error) in _DAMAGE
        or "no such" in str(error)
    )


def translate(error: Exception) -> StoreError:
    """What an error of the engine or of the operating system means to who asked."""
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
        return (ReadOnly if full else StoreError)(str(error))
    code = code_of(error)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
        return ReadOnly(str(error))
    return (TooLarge if code == sqlite3.SQLITE_TOOBIG else StoreError)(str(error))


def create(path: str, lost: bool) -> None:
    """Make a new database.

    :param lost: whether the one before it was damaged.
    """
    with contextlib.closing(connect(path, "mode=rwc")) as connection:
        for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = MEMORY"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN")
        for statement in SCHEMA.split(";\n")[:-1]:
            connection.execute(statement)
        state = State(secrets.token_hex(8), lost=lost)
        connection.execute("INSERT INTO state VALUES (1, ?)", (seal(state, 1),))
        connection.executemany(
            "INSERT INTO buckets VALUES (?, ?)",
            ((n, pack(b"{}", n)) for n in range(LABEL_BUCKETS + PATH_BUCKETS)),
        )
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()


def open_both(
    path: str, options: str, writes: bool, timeout: float
) -> tuple[sqlite3.Connection, sqlite3.Connection | None, State]:
    """A connection for reads, one for writes, and the state, of a file that is ours.

    :raises Damage: for any other file.
    """
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(contextlib.closing(connect(path, options, timeout)))
            state = validate(reader)
            writer = None
            if writes:
                reader.execute("PRAGMA query_only = ON")
                writer = stack.enter_context(contextlib.closing(connect(path, options)))
                for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
                    writer.execute(f"PRAGMA {pragma}").fetchall()
                writer.execute(f"PRAGMA journal_size_limit = {4 * 2**20}").fetchall()
        except FAULTS as error:
            if is_damage(error):
                raise Damage(str(error)) from error
            raise
        stack.pop_all()
    return reader, writer, state


# The folder.


def unwritable(folder: str) -> str | None:
    """Why the folder cannot be written, if it cannot; it is made if it is not there."""
    try:
        owner = os.stat(folder).st_uid
    except FileNotFoundError:
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            return None
        except OSError as error:
            return str(error.strerror)
    except OSError as error:
        return str(error.strerror)
    if os.geteuid() == 0 and owner != 0:
        # Root would leave files that the folder's owner can neither read nor replace.
        return f"it belongs to user {owner}; run as that user"
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return "it cannot be written"
    return None


def remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(OSError):
            os.unlink(path + suffix)
