"""`Database`: one SQLite file that all processes of a machine share.

Connections belong to one process; before a fork they are closed. All writers queue behind a file
lock: SQLite's own waiting sleeps too long. A file that is damaged, foreign or planted is put aside,
and a new one begins, under that lock and once for all processes. Each process notices that another
file is at the path.
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

from . import schema, signal
from .protocol import ReadOnly, StoreError
from .schema import State

logger = logging.getLogger("wsgi_isr")

T = t.TypeVar("T")


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
        self.counters = signal.Counters(self.folder)
        self.presence = signal.Presence(self.folder)
        self._opened: Opened | None = None
        # Taken in this order.
        self.lock = signal.Lock(self.folder)
        self._reading = threading.RLock()
        _databases.add(self)

    def read(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """Run a step that sees one state of the database.

        :raises StoreError: if the database cannot be read.
        """
        for _ in range(3):
            fault: Exception | None = None
            with self._reading:
                if (opened := self._opened) is not None:
                    try:
                        opened.reader.execute("BEGIN")
                        return step(opened.reader)
                    except schema.FAULTS as error:
                        fault = error
                    finally:
                        opened.reader.rollback()
            try:
                if opened is None or fault is None:
                    self.check()
                else:
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
            with self.lock:
                opened = self._current()
                if opened.writer is None:
                    raise ReadOnly(f"{self.path} can only be read")
                try:
                    return self._transact(opened.writer, step, bump)
                except schema.FAULTS as error:
                    self._recover(opened, error)
        raise StoreError(f"{self.path} is damaged")

    def _transact(
        self, writer: sqlite3.Connection, step: Callable[[sqlite3.Connection], T], bump: int | None
    ) -> T:
        waits = signal.pauses()
        while not writer.in_transaction:
            try:
                writer.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                # Somebody who does not know our lock.
                if schema.code_of(error) != sqlite3.SQLITE_BUSY or not next(waits, False):
                    raise
        try:
            result = step(writer)
            writer.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                writer.rollback()
            raise
        if bump is not None:
            self.counters.bump(bump)
        return result

    def vacuum(self, pages: int) -> int:
        """Give so many free pages back to the file system; gives how many are left."""
        with contextlib.suppress(*schema.FAULTS), self.lock:
            if (writer := self._current().writer) is not None:
                # A script runs to its end; `execute` would stop after one page.
                writer.executescript(f"PRAGMA incremental_vacuum({pages})")
                return int(writer.execute("PRAGMA freelist_count").fetchone()[0])
        return 0

    def checkpoint(self, mode: t.Literal["PASSIVE", "TRUNCATE"]) -> None:
        """Move the log into the file; nobody waits for ``PASSIVE``, which syncs."""
        with contextlib.suppress(*schema.FAULTS), contextlib.ExitStack() as stack:
            if mode == "TRUNCATE":
                stack.enter_context(self.lock)
            connection = stack.enter_context(
                contextlib.closing(schema.connect(self.path, "mode=rw"))
            )
            connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    # The file at the path.

    def check(self) -> None:
        """Open the file that is at the path now, unless it is open.

        :raises StoreError: if that is not possible.
        """
        opened = self._opened
        if opened is None or self._identity(opened.immutable) != opened.identity:
            with self.lock.threads:
                self._current()

    def _identity(self, immutable: bool = False) -> list[t.Any]:
        """What differs for another file, or another log beside it."""
        found: list[t.Any] = [None, None]
        for place, path in enumerate((self.path, f"{self.path}-wal")):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                # Somebody else may write to what nobody here can.
                times = (status.st_size, status.st_mtime_ns) if immutable else ()
                found[place] = (status.st_dev, status.st_ino, *times)
        return found

    def _current(self) -> Opened:
        opened = self._opened
        if opened is not None and self._identity(opened.immutable) == opened.identity:
            if opened.writer is not None or not self.lock.taken:
                return opened
        with self._reading:
            self._drop()
            self._opened = new = self._open()
        if opened is not None and opened.writer and new.writer and opened.lineage == new.lineage:
            # Somebody put another copy in place while we run: what is later is not as it was.
            with self.lock:
                step = functools.partial(_begin_lineage, lineage=new.lineage)
                lineage = self._transact(new.writer, step, 0)
            self._opened = new = new._replace(lineage=lineage)
        return new

    def _drop(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _open(self) -> Opened:
        reason = schema.unwritable(self.folder)
        for _ in range(3):
            before, damage = self._identity()[0], None
            try:
                if before is not None:
                    opened = self._connect(reason is None)
                    if self._identity()[0] == before:
                        return opened
                    opened.close()
                    continue
            except schema.Damage as error:
                damage = error
            except sqlite3.Error as error:
                raise schema.translate(error) from error
            if reason:
                raise StoreError(f"{self.folder}: {damage or reason}") from damage
            with self.lock:
                # Once: the others find the new one.
                if self._identity()[0] == before:
                    self._begin(damage)
        raise StoreError(f"{self.path} is replaced again and again")

    def _connect(self, writes: bool) -> Opened:
        """
        :raises schema.Damage: for a file that is not ours.
        """
        for options in ["mode=rw"] if writes else ["mode=ro", "immutable=1"]:
            immutable, writer = options == "immutable=1", None
            try:
                with contextlib.ExitStack() as stack:
                    reader = schema.connect(self.path, options, signal.LOCK_TIMEOUT / 2)
                    stack.callback(reader.close)
                    state = schema.validate(reader)
                    if writes:
                        reader.execute("PRAGMA query_only = ON")
                        writer = schema.connect(self.path, options)
                        stack.callback(writer.close)
                        writer.executescript(
                            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                            f"PRAGMA journal_size_limit = {4 * 2**20}"
                        )
                    stack.pop_all()
                identity = self._identity(immutable)
                opened = Opened(reader, writer, immutable, identity, state.lineage)
                # Should nobody close it. Not at exit: a forked child has other descriptors.
                weakref.finalize(self, opened.close).atexit = False
                return opened
            except schema.FAULTS as error:
                if schema.is_damage(error):
                    raise schema.Damage(str(error)) from error
                # A log is there, or a process that may write can make one.
                if options != "mode=ro" or os.path.exists(f"{self.path}-wal"):
                    raise
        raise StoreError(f"{self.path} cannot be opened")

    def _begin(self, damage: Exception | None) -> None:
        """Make a new database, which nobody sees half made, in place of a damaged one."""
        new, aside = f"{self.path}.new", f"{self.path}.damaged-1"
        schema.remove(new)
        try:
            schema.create(new, lost=damage is not None)
            if damage is not None:
                logger.warning("%s is put aside, and a new one begins: %s", self.path, damage)
                schema.remove(aside)
                # Its log first: it must not be taken for that of the new one.
                for suffix in ("-wal", ""):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
                schema.remove(self.path)
            os.rename(new, self.path)
        except (OSError, sqlite3.Error) as error:
            raise schema.translate(error) from error
        finally:
            schema.remove(new)
        self.counters.bump(0)

    def _recover(self, opened: Opened, error: Exception) -> None:
        """Heal, so that the caller may try again.

        :raises StoreError: if that does not help.
        """
        if not schema.is_damage(error):
            code = schema.code_of(error)
            if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                # Opened again by the next call.
                with self.lock.threads, self._reading:
                    if self._opened is opened:
                        self._drop()
            raise schema.translate(error) from error
        with self.lock, self._reading:
            if self._opened is opened:
                same = self._identity(opened.immutable) == opened.identity
                self._drop()
                if same:
                    self._begin(error)

    # The process.

    def close(self) -> None:
        """Give back what this process has. It never raises."""
        with contextlib.suppress(Exception):
            self.presence.close()
            self.counters.close()
        with self.lock.threads, contextlib.ExitStack() as stack:
            with contextlib.suppress(Exception):
                # The last one to close removes the log: not while another process begins anew.
                stack.enter_context(self.lock)
            with self._reading:
                self._drop()
            stack.close()
            self.lock.close()

    def before_fork(self) -> None:
        """SQLite's locks of a process do not follow it into its children: none is to be open."""
        if self.lock.threads.acquire(timeout=signal.LOCK_TIMEOUT):
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
            _abandoned.append(self._opened)
            self._opened = None
        self.presence.after_fork()
        self.lock.after_fork()
        self._reading = threading.RLock()


def _begin_lineage(connection: sqlite3.Connection, lineage: str) -> str:
    state = State.read(connection)
    if state.lineage == lineage:
        state.lineage = secrets.token_hex(8)
        state.write(connection)
    return state.lineage


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
