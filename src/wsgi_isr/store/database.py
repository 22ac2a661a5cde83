"""`Database`: one SQLite file that all processes of a machine share.

Connections belong to one process; before a fork they are closed. All writers queue behind a file
lock: SQLite's own waiting sleeps too long. A file that is damaged, foreign or planted is put aside,
and a new one begins, under that lock and once for all processes. Each process notices that another
file is at the path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import secrets
import sqlite3
import threading
import time
import typing as t
import weakref
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from urllib.parse import quote

from .protocol import ReadOnly
from .protocol import StoreError
from .protocol import TooLarge
from .signal import Counters
from .signal import Presence

logger = logging.getLogger("wsgi_isr")

T = t.TypeVar("T")

#: Longest wait for the lock: a frozen process may have it.
LOCK_TIMEOUT = 1.0
#: Label rows, and rows of paths after them. All exist from the beginning: a missing one is damage.
LABEL_BUCKETS, PATH_BUCKETS = 4096, 1024
APPLICATION_ID, VERSION = 0x49535231, 1
_SCHEMA = """
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
_FAULTS = (sqlite3.Error, Damage, UnicodeDecodeError)


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


def _connect(path: str, options: str, timeout: float = 0.0) -> sqlite3.Connection:
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
        connection.executescript(_SCHEMA)
        return frozenset(connection.execute(_PARTS))


class Opened(t.NamedTuple):
    """The connections of one file.

    :param writer: ``None`` where the file can only be read.
    :param immutable: whether it was opened as one that nobody writes to.
    """

    reader: sqlite3.Connection
    writer: sqlite3.Connection | None
    immutable: bool
    identity: object
    lineage: str

    def close(self) -> None:
        for connection in (self.writer, self.reader):
            with contextlib.suppress(sqlite3.Error):
                if connection is not None:
                    connection.close()


class Database:
    """The database of a folder, for one process and any of its threads.

    Nothing happens before the first `read` or `write`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)
        self.path = os.path.join(self.folder, "pages.sqlite3")
        self.counters = Counters(self.folder)
        self.presence = Presence(self.folder)
        self._opened: Opened | None = None
        self._reset()
        _databases.add(self)

    def _reset(self) -> None:
        # Taken in this order.
        self._writing = threading.RLock()
        self._reading = threading.RLock()
        self._lock = -1

    def read(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """Run a step on the connection for reads.

        :raises StoreError: if the database cannot be read.
        """
        for _ in range(3):
            with self._reading:
                opened = self._opened
                try:
                    if opened is not None:
                        return step(opened.reader)
                except _FAULTS as error:
                    fault = error
                    with contextlib.suppress(sqlite3.Error):
                        if opened.reader.in_transaction:
                            opened.reader.execute("ROLLBACK")
            if opened is None:
                self.check()
                continue
            try:
                self._recover(opened, fault)
            finally:
                # It refers to this frame: what both have would stay until it is collected.
                del fault
        raise StoreError(f"{self.path} is damaged")

    def write(self, step: Callable[[sqlite3.Connection], T], bump: int | None = None) -> T:
        """Run a step in a transaction that no other process is in.

        :param bump: the counter that others see change afterwards.
        :raises ReadOnly: if nothing can be written.
        :raises StoreError: if the transaction failed; it changed nothing.
        """
        for _ in range(3):
            with self.exclusive():
                opened = self._current()
                if opened.writer is None:
                    raise ReadOnly(f"{self.path} can only be read")
                try:
                    return self._transact(opened.writer, step, bump)
                except _FAULTS as error:
                    self._recover(opened, error)
        raise StoreError(f"{self.path} is damaged")

    def _transact(
        self, writer: sqlite3.Connection, step: Callable[[sqlite3.Connection], T], bump: int | None
    ) -> T:
        pauses = _pauses()
        while True:
            try:
                writer.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as error:
                # Somebody who does not know our lock.
                if _code(error) != sqlite3.SQLITE_BUSY or not next(pauses, False):
                    raise
        try:
            result = step(writer)
            writer.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                writer.execute("ROLLBACK")
            raise
        if bump is not None:
            self.counters.bump(bump)
        return result

    def maintain(self, statement: str) -> list[t.Any]:
        """Run a statement that brings its own transaction."""
        with self.exclusive():
            opened = self._current()
            try:
                return opened.writer.execute(statement).fetchall() if opened.writer else []
            except _FAULTS as error:
                self._recover(opened, error)
        return []

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """The one lock, over threads and processes; the kernel releases it if we are killed."""
        if not self._writing.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError("another thread has the lock of the cache folder")
        try:
            if self._lock >= 0:
                yield
                return
            # A folder in whose file this process writes was found good when that was opened.
            opened = self._opened
            good = opened is not None and opened.writer is not None and os.path.isdir(self.folder)
            if not good and (reason := self.unwritable()):
                raise ReadOnly(f"{self.folder}: {reason}")
            try:
                path = os.path.join(self.folder, "lock")
                self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise translate(error) from error
            try:
                for _ in _pauses():
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                else:
                    raise StoreError("another process has the lock of the cache folder")
                try:
                    yield
                except OSError as error:
                    raise translate(error) from error
                finally:
                    # Closing is not enough: a child forked meanwhile has the descriptor too.
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
            finally:
                descriptor, self._lock = self._lock, -1
                os.close(descriptor)
        finally:
            self._writing.release()

    def unwritable(self) -> str | None:
        """Why the folder cannot be written, if it cannot; it is made if it is not there."""
        try:
            owner = os.stat(self.folder).st_uid
        except FileNotFoundError:
            try:
                os.makedirs(self.folder, 0o700, exist_ok=True)
                return None
            except OSError as error:
                return str(error.strerror)
        except OSError as error:
            return str(error.strerror)
        if os.geteuid() == 0 and owner != 0:
            # Root would leave files that the folder's owner can neither read nor replace.
            return f"it belongs to user {owner}; run as that user"
        if not os.access(self.folder, os.W_OK | os.X_OK, effective_ids=True):
            return "it cannot be written"
        return None

    # The file at the path.

    def check(self) -> None:
        """Open the file that is at the path now, unless it is open.

        :raises StoreError: if that is not possible.
        """
        opened = self._opened
        if opened is None or self._identity(opened.immutable) != opened.identity:
            with self._writing:
                self._current()

    def _identity(self, immutable: bool) -> object:
        """What differs for another file, or another log beside it."""
        found: list[object] = []
        for path in (self.path, f"{self.path}-wal"):
            try:
                status = os.stat(path)
                found += [status.st_dev, status.st_ino]
                # Somebody else may write to what nobody here can.
                found += [status.st_size, status.st_mtime_ns] if immutable else []
            except OSError:
                found.append(None)
        return found

    def _file(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _current(self) -> Opened:
        opened = self._opened
        if opened is not None and self._identity(opened.immutable) == opened.identity:
            if opened.writer is not None or self._lock < 0:
                return opened
        with self._reading:
            self._drop()
            self._opened = new = self._open()
        if opened is not None and opened.writer is not None and opened.lineage == new.lineage:
            self._begin_lineage(new)
        return self._opened

    def _begin_lineage(self, opened: Opened) -> None:
        """Somebody put another copy in place while we run: what is later is not as it was."""
        if opened.writer is None:
            return
        with self.exclusive():

            def step(connection: sqlite3.Connection) -> str:
                state = read_state(connection)
                if state.lineage == opened.lineage:
                    state = state._replace(lineage=secrets.token_hex(8))
                    write_state(connection, state)
                return state.lineage

            lineage = self._transact(opened.writer, step, 0)
            self._opened = opened._replace(lineage=lineage)

    def _drop(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _open(self) -> Opened:
        reason = self.unwritable()
        for _ in range(3):
            before = self._file()
            if before is None:
                if reason:
                    raise StoreError(f"{self.folder}: {reason}")
                with self.exclusive():
                    if self._file() is None:
                        self._create(lost=False)
                continue
            try:
                opened = self._connect(reason)
                if self._file() == before:
                    return opened
                opened.close()
            except Damage as error:
                if reason:
                    raise StoreError(f"{self.path}: {error}") from error
                with self.exclusive():
                    # Once: the others find the new one.
                    if self._file() == before:
                        self._replace(error)
            except sqlite3.Error as error:
                raise translate(error) from error
        raise StoreError(f"{self.path} is replaced again and again")

    def _connect(self, reason: str | None) -> Opened:
        options = ["mode=rw"] if reason is None else ["mode=ro", "immutable=1"]
        for option in options:
            reader = writer = None
            try:
                reader = _connect(self.path, option, LOCK_TIMEOUT / 2)
                state = _validate(reader)
                if reason is None:
                    reader.execute("PRAGMA query_only = ON")
                    writer = _connect(self.path, option)
                    for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
                        writer.execute(f"PRAGMA {pragma}").fetchall()
                    writer.execute(f"PRAGMA journal_size_limit = {4 * 2**20}").fetchall()
                immutable = option == "immutable=1"
                identity = self._identity(immutable)
                return Opened(reader, writer, immutable, identity, state.lineage)
            except BaseException as error:
                for connection in (writer, reader):
                    if connection is not None:
                        connection.close()
                if isinstance(error, _FAULTS):
                    if is_damage(error):
                        raise Damage(str(error)) from error
                    if option == "mode=ro" and not os.path.exists(f"{self.path}-wal"):
                        continue
                raise
        raise StoreError(f"{self.path} cannot be opened")

    def _create(self, lost: bool) -> None:
        """Make a new database, which nobody sees half made."""
        temporary = f"{self.path}.new"
        _remove(temporary)
        try:
            with contextlib.closing(_connect(temporary, "mode=rwc")) as connection:
                for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = MEMORY"):
                    connection.execute(f"PRAGMA {pragma}").fetchall()
                connection.execute("BEGIN")
                for statement in _SCHEMA.split(";\n")[:-1]:
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
            if lost:
                self._put_aside()
            os.rename(temporary, self.path)
        except sqlite3.Error as error:
            raise translate(error) from error
        finally:
            _remove(temporary)
        self.counters.bump(0)

    def _replace(self, error: Exception) -> None:
        logger.warning("%s is put aside, and a new one begins: %s", self.path, error)
        _remove(f"{self.path}.damaged-1")
        self._create(lost=True)

    def _put_aside(self) -> None:
        # Its log first: it must not be taken for that of the new one.
        for suffix in ("-wal", ""):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.path}{suffix}", f"{self.path}.damaged-1{suffix}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}-shm")

    def _recover(self, opened: Opened, error: Exception) -> None:
        """Heal, so that the caller may try again.

        :raises StoreError: if that does not help.
        """
        if not is_damage(error):
            code = _code(error)
            if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                # Opened again by the next call.
                with self._writing, self._reading:
                    if self._opened is opened:
                        self._drop()
            raise translate(error) from error
        with self.exclusive(), self._reading:
            if self._opened is not opened:
                return
            identity = self._identity(opened.immutable)
            self._drop()
            if identity == opened.identity:
                self._replace(error)

    # The process.

    def close(self) -> None:
        """Give back what this process has. It never raises."""
        with contextlib.suppress(Exception):
            self.presence.close()
            self.counters.close()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(Exception):
                # The last one to close removes the log: not while another process begins anew.
                stack.enter_context(self.exclusive())
            stack.enter_context(self._reading)
            self._drop()

    def before_fork(self) -> None:
        """SQLite's locks of a process do not follow it into its children: none is to be open."""
        if self._writing.acquire(timeout=LOCK_TIMEOUT):
            self._reading.acquire()
            self._drop()

    def after_fork_in_parent(self) -> None:
        for lock in (self._reading, self._writing):
            # Not ours, if it was not to be had in time.
            with contextlib.suppress(RuntimeError):
                lock.release()

    def after_fork_in_child(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        if self._opened is not None:
            # Closing them here would touch files that are the parent's.
            _abandoned.append(self._opened)
            self._opened = None
        self.presence.after_fork()
        self._reset()


def _pauses() -> Iterator[bool]:
    """Short pauses until the longest wait is over."""
    deadline, pause = time.monotonic() + LOCK_TIMEOUT, 0.0001
    yield True
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.002)
        yield True


def _validate(connection: sqlite3.Connection) -> State:
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


def _remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(OSError):
            os.unlink(path + suffix)


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


_DAMAGE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_MISMATCH,
)


def is_damage(error: Exception) -> bool:
    return isinstance(error, Damage | UnicodeDecodeError) or _code(error) in _DAMAGE or "no such" in str(error)


def translate(error: Exception) -> StoreError:
    """What an error of the engine or of the operating system means to who asked."""
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
        return (ReadOnly if full else StoreError)(str(error))
    code = _code(error)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
        return ReadOnly(str(error))
    return (TooLarge if code == sqlite3.SQLITE_TOOBIG else StoreError)(str(error))


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_abandoned: list[Opened] = []


def _each(method: str) -> Callable[[], None]:
    def call() -> None:
        for database in list(_databases):
            getattr(database, method)()

    return call


os.register_at_fork(
    before=_each("before_fork"),
    after_in_parent=_each("after_fork_in_parent"),
    after_in_child=_each("after_fork_in_child"),
)
