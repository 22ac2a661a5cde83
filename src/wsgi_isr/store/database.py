"""`Database`: one SQLite file that all processes of a machine share.

Connections belong to one process; before a fork they are closed. All writers queue behind a file
lock: SQLite's own waiting sleeps too long. A file that is damaged, foreign or planted is put aside,
and a new one begins, under that lock and once for all processes. Each process notices that another
file is at the path.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import threading
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Iterator

from .protocol import ReadOnly
from .protocol import StoreError
from .schema import code_of
from .schema import connect
from .schema import create
from .schema import Damage
from .schema import FAULTS
from .schema import is_damage
from .schema import open_both
from .schema import read_state
from .schema import remove
from .schema import translate
from .schema import unwritable
from .schema import write_state
from .signal import Counters
from .signal import Lock
from .signal import LOCK_TIMEOUT
from .signal import pauses
from .signal import Presence

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
        self.counters = Counters(self.folder)
        self.presence = Presence(self.folder)
        self._opened: Opened | None = None
        # Taken in this order.
        self._lock = Lock(os.path.join(self.folder, "lock"))
        self._reading = threading.RLock()
        _databases.add(self)

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
                except FAULTS as error:
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
                except FAULTS as error:
                    self._recover(opened, error)
        raise StoreError(f"{self.path} is damaged")

    def _transact(
        self, writer: sqlite3.Connection, step: Callable[[sqlite3.Connection], T], bump: int | None
    ) -> T:
        waits = pauses()
        while True:
            try:
                writer.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as error:
                # Somebody who does not know our lock.
                if code_of(error) != sqlite3.SQLITE_BUSY or not next(waits, False):
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

    def vacuum(self, pages: int) -> int:
        """Give so many free pages back to the file system; gives how many are left."""
        with self.exclusive():
            opened = self._current()
            if opened.writer is None:
                return 0
            try:
                # A script runs to its end; `execute` would stop after one page.
                opened.writer.executescript(f"PRAGMA incremental_vacuum({pages})")
                return int(opened.writer.execute("PRAGMA freelist_count").fetchone()[0])
            except FAULTS as error:
                self._recover(opened, error)
        return 0

    def checkpoint(self, mode: t.Literal["PASSIVE", "TRUNCATE"]) -> None:
        """Move the log into the file; nobody waits for ``PASSIVE``, which syncs."""
        with contextlib.suppress(*FAULTS), contextlib.ExitStack() as stack:
            if mode == "TRUNCATE":
                stack.enter_context(self.exclusive())
            connection = stack.enter_context(contextlib.closing(connect(self.path, "mode=rw")))
            connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """The lock of all writers.

        :raises ReadOnly: if the folder cannot be written.
        :raises StoreError: if the lock is not to be had in time.
        """
        # A folder in whose file this process writes was found good when that was opened.
        opened = self._opened
        good = opened is not None and opened.writer is not None and os.path.isdir(self.folder)
        if not good and (reason := unwritable(self.folder)):
            raise ReadOnly(f"{self.folder}: {reason}")
        try:
            with self._lock.exclusive():
                yield
        except OSError as error:
            raise translate(error) from error

    # The file at the path.

    def check(self) -> None:
        """Open the file that is at the path now, unless it is open.

        :raises StoreError: if that is not possible.
        """
        opened = self._opened
        if opened is None or self._identity(opened.immutable) != opened.identity:
            with self._lock.threads:
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
            if opened.writer is not None or not self._lock.taken:
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
        reason = unwritable(self.folder)
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
        for options in ["mode=rw"] if reason is None else ["mode=ro", "immutable=1"]:
            try:
                reader, writer, state = open_both(
                    self.path, options, reason is None, LOCK_TIMEOUT / 2
                )
            except sqlite3.Error:
                # A log is there, or can be made, for whoever may write.
                if options == "mode=ro" and not os.path.exists(f"{self.path}-wal"):
                    continue
                raise
            immutable = options == "immutable=1"
            return Opened(reader, writer, immutable, self._identity(immutable), state.lineage)
        raise StoreError(f"{self.path} cannot be opened")

    def _create(self, lost: bool) -> None:
        """Make a new database, which nobody sees half made."""
        temporary = f"{self.path}.new"
        remove(temporary)
        try:
            create(temporary, lost)
            if lost:
                self._put_aside()
            os.rename(temporary, self.path)
        except sqlite3.Error as error:
            raise translate(error) from error
        finally:
            remove(temporary)
        self.counters.bump(0)

    def _replace(self, error: Exception) -> None:
        logger.warning("%s is put aside, and a new one begins: %s", self.path, error)
        remove(f"{self.path}.damaged-1")
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
            code = code_of(error)
            if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                # Opened again by the next call.
                with self._lock.threads, self._reading:
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
        if self._lock.threads.acquire(timeout=LOCK_TIMEOUT):
            self._reading.acquire()
            self._drop()

    def after_fork_in_parent(self) -> None:
        for lock in (self._reading, self._lock.threads):
            # Not ours, if it was not to be had in time.
            with contextlib.suppress(RuntimeError):
                lock.release()

    def after_fork_in_child(self) -> None:
        if self._opened is not None:
            # Closing them here would touch files that are the parent's.
            _abandoned.append(self._opened)
            self._opened = None
        self.presence.after_fork()
        self._lock.after_fork()
        self._reading = threading.RLock()


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
