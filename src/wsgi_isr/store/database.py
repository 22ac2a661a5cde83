"""`Database`: one SQLite file that all processes of a machine share.

Connections belong to one process; before a fork they are closed. All writers queue behind a file
lock: SQLite's own waiting sleeps too long. A file that is damaged, foreign or planted is put aside,
and a new one begins, under that lock and once for all processes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import sqlite3
import threading
import typing as t
import weakref
from collections.abc import Callable
from sqlite3 import Connection
from urllib.parse import quote

from . import tables
from .locks import LOCK_TIMEOUT, Lock, Presence, unwritable
from .protocol import ReadOnly, StoreError
from .tables import FAULTS, SCHEMA, Damage, State, code_of, translate

logger = logging.getLogger("wsgi_isr")

# A file of an earlier version is put aside, as a damaged one; that of a later one is left alone.
APPLICATION_ID, VERSION = 0x49535231, 4

T = t.TypeVar("T")
Args = t.TypeVarTuple("Args")
#: What happens in one transaction, with its connection and some arguments.
Step: t.TypeAlias = Callable[[Connection, *Args], T]


class Opened(t.NamedTuple):
    """Connections to a file.

    :param writer: ``None`` where it can only be read.
    :param close: closes both; called should nobody else do it.
    :param seen: what differs for another file at the path, or another log or index of it.
    """

    reader: Connection
    writer: Connection | None
    close: weakref.finalize[[Connection | None, Connection | None], Database]
    seen: list[object]
    lineage: str


class Database:
    """The database of a folder, for one process and any of its threads.

    Nothing happens before the first `read` or `write`. They raise `StoreError`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)
        self.path = os.path.join(self.folder, "pages.sqlite3")
        self.presence = Presence(self.folder)
        self._opened: Opened | None = None
        #: The lineage of a file that was open when another one took its place.
        self._left = ""
        # Taken in this order.
        self.lock = Lock(self.folder)
        self._reading = threading.RLock()
        _databases.add(self)

    def read(self, step: Step[*Args, T], *args: *Args) -> T:
        """Run a step that sees one state of the database."""
        for _ in range(3):
            if self._opened is None:
                self.check()
            try:
                with self._reading:
                    if (opened := self._opened) is not None:
                        return _transact(opened.reader, "BEGIN", step, *args)
            except FAULTS as error:
                self._recover(opened, error)
        raise StoreError(f"{self.path} is damaged")

    def write(self, step: Step[*Args, T], *args: *Args, bump: int | None = None) -> T:
        """Run a step in a transaction that no other process is in.

        :param bump: the counter that others see change afterwards.
        """
        for _ in range(3):
            with self.lock:
                opened = self._current(writes=True)
                if opened.writer is None:
                    raise ReadOnly(f"{self.path} can only be read")
                try:
                    result = _transact(opened.writer, "BEGIN IMMEDIATE", step, *args)
                    if bump is not None:
                        self.lock.bump(bump)
                    return result
                except FAULTS as error:
                    self._recover(opened, error)
        raise StoreError(f"{self.path} is damaged")

    def checkpoint(self, mode: str) -> None:
        """Move the log into the file as far as it is not in use; others go on meanwhile."""
        with contextlib.suppress(*FAULTS), contextlib.closing(_connect(self.path, "rw", 0)) as own:
            own.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    # The file at the path.

    def check(self) -> None:
        """Have the files open that are at the paths now."""
        self.lock.check()
        if not self._is_there():
            with self.lock.threads:
                self._current()

    def _see(self, writes: bool = True) -> list[object]:
        seen: list[object] = [None, None, None]
        for place, suffix in enumerate(("", "-wal", "-shm")):
            with contextlib.suppress(OSError):
                status = os.stat(self.path + suffix)
                # Others may write what can only be read here, past a connection that is immutable.
                times = () if writes else (status.st_size, status.st_mtime_ns)
                seen[place] = (status.st_dev, status.st_ino, *times)
        return seen

    def _is_there(self) -> bool:
        """Whether the file that is open is the one at the path."""
        opened = self._opened
        return opened is not None and opened.seen == self._see(opened.writer is not None)

    def _current(self, writes: bool = False) -> Opened:
        opened = self._opened
        if opened is not None and self._is_there() and (opened.writer or not writes):
            return opened
        if opened is not None and opened.writer is not None:
            self._left = opened.lineage
        self._drop()
        opened = self._open()
        if opened.writer is not None and opened.lineage == self._left:
            # Somebody put another copy in place while we run: what is later is not as it was.
            try:
                with self.lock:
                    lineage = _transact(opened.writer, "BEGIN IMMEDIATE", _rename, self._left)
                    self.lock.bump(0)
            except BaseException:
                opened.close()
                raise
            opened = opened._replace(lineage=lineage)
        self._opened, self._left = opened, ""
        return opened

    def _drop(self) -> None:
        with self._reading:
            opened, self._opened = self._opened, None
            if opened is not None:
                opened.close()

    def _open(self) -> Opened:
        reason = unwritable(self.folder)
        for _ in range(3):
            before, damage = self._see(not reason)[0], None
            if before is not None:
                try:
                    return self._connect(before, not reason)
                except Damage as error:
                    damage = error
            if reason:
                raise StoreError(f"{self.folder}: {damage or reason}") from damage
            with self.lock:
                # Once: the others find the new one.
                if self._see()[0] == before:
                    self._begin(damage)
        raise StoreError(f"{self.path} is replaced again and again")

    def _connect(self, before: object, writes: bool) -> Opened:
        reader = writer = None
        # Without either of them SQLite would make it; what is only in the log is not read then.
        has_log = all(os.path.exists(f"{self.path}-{suffix}") for suffix in ("wal", "shm"))
        mode = "rw" if writes else "ro" if has_log else "ro&immutable=1"
        try:
            reader = _connect(self.path, mode, LOCK_TIMEOUT / 2)
            state = _validate(reader)
            if writes:
                writer = _connect(self.path, mode, LOCK_TIMEOUT)
                writer.executescript(
                    "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                    f"PRAGMA journal_size_limit = {4 * 2**20}"
                )
        except BaseException as error:
            _close(reader, writer)
            if isinstance(error, FAULTS):
                raise translate(error) from error
            raise
        close = weakref.finalize(self, _close, reader, writer)
        # A forked child has other descriptors.
        close.atexit = False
        # Should another file be there by now, it shows at the next look.
        return Opened(reader, writer, close, [before, *self._see(writes)[1:]], state.lineage)

    def _begin(self, damage: Exception | None) -> None:
        """Make a new database, which nobody sees half made, in place of a damaged one."""
        new, aside = f"{self.path}.new", f"{self.path}.damaged-1"
        try:
            _remove(new)
            _create(new, lost=damage is not None)
            if damage is not None:
                logger.warning("%s is put aside, and a new one begins: %s", self.path, damage)
                _remove(aside)
                # Its log first: it must not be taken for that of the new one.
                for suffix in ("-wal", ""):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
                _remove(self.path)
            os.rename(new, self.path)
            self.lock.bump(0)
        except FAULTS as error:
            raise translate(error) from error
        finally:
            _remove(new)

    def _recover(self, opened: Opened | None, error: Exception) -> None:
        """Heal, so that the caller may try again, or raise what the fault means."""
        fault = translate(error)
        is_damage = isinstance(fault, Damage)
        if is_damage or code_of(error) in ("IOERR", "CANTOPEN", "READONLY"):
            with self.lock if is_damage else self.lock.threads:
                if self._opened is opened:
                    is_same = self._is_there()
                    # Opened again by the next call.
                    self._drop()
                    if is_damage and is_same:
                        self._begin(error)
        if not is_damage:
            raise fault from error

    # The process.

    def close(self) -> None:
        """Give back what this process has. It never raises."""
        with contextlib.suppress(Exception):
            self.presence.leave()
        with self.lock.threads:
            # The last one to close removes the log: not while another process begins anew.
            with contextlib.suppress(Exception), self.lock:
                self._drop()
            self._drop()
            self.lock.close()

    def before_fork(self) -> None:
        """SQLite's locks of a process do not follow it into its children: none is to be open."""
        if self.lock.threads.acquire(timeout=LOCK_TIMEOUT):
            self._reading.acquire()
            self._drop()

    def after_fork_in_parent(self) -> None:
        for lock in (self._reading, self.lock.threads):
            # Not ours, if it was not to be had in time.
            with contextlib.suppress(RuntimeError):
                lock.release()

    def after_fork_in_child(self) -> None:
        if self._opened is not None:
            # Closing them here would touch files that are the parent's.
            self._opened.close.detach()
            _abandoned.append(self._opened)
            self._opened = None
        self.presence.after_fork()
        self.lock.after_fork()
        self._reading = threading.RLock()


def _transact(connection: Connection, begin: str, step: Step[*Args, T], *args: *Args) -> T:
    connection.execute(begin)
    try:
        result = step(connection, *args)
        connection.execute("COMMIT")
    except BaseException:
        # Where it is over, this does nothing.
        with contextlib.suppress(sqlite3.Error):
            connection.rollback()
        raise
    return result


def _connect(path: str, mode: str, timeout: float) -> Connection:
    uri = f"file:{quote(os.fsencode(path))}?mode={mode}"
    connection = sqlite3.connect(
        uri, timeout=timeout, isolation_level=None, check_same_thread=False, uri=True
    )
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    connection.executescript("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON")
    return connection


def _validate(connection: Connection) -> State:
    (identity,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if identity == APPLICATION_ID and version > VERSION:
        raise StoreError("the database is of a newer version of wsgi-isr")
    parts = connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")
    ours = sorted(sql for (sql,) in parts) == sorted(SCHEMA.split(";\n"))
    if identity != APPLICATION_ID or version != VERSION or not ours:
        raise Damage("it is not a database of this version of wsgi-isr")
    return State.read(connection)


def _create(path: str, lost: bool) -> None:
    with contextlib.closing(_connect(path, "rwc", 0)) as connection:
        connection.executescript(
            f"PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = MEMORY; BEGIN; {SCHEMA};"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}"
        )
        tables.begin(connection, secrets.token_hex(8), lost)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()


def _remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(OSError):
            os.unlink(path + suffix)


def _close(*connections: Connection | None) -> None:
    for connection in filter(None, reversed(connections)):
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _rename(connection: Connection, lineage: str) -> str:
    """Begin another lineage, unless another process did."""
    state = State.read(connection)
    if state.lineage == lineage:
        state.lineage = secrets.token_hex(8)
        state.write(connection)
    return state.lineage


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_abandoned: list[Opened] = []


def _each(method: str) -> None:
    for database in list(_databases):
        getattr(database, method)()


os.register_at_fork(
    before=functools.partial(_each, "before_fork"),
    after_in_parent=functools.partial(_each, "after_fork_in_parent"),
    after_in_child=functools.partial(_each, "after_fork_in_child"),
)
