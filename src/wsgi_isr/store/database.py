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
from collections.abc import Callable, Iterator
from sqlite3 import Connection

from . import schema, signal
from .protocol import ReadOnly, StoreError
from .schema import FAULTS, Damage, State, translate

logger = logging.getLogger("wsgi_isr")

T = t.TypeVar("T")
Args = t.TypeVarTuple("Args")
#: What happens in one transaction, with its connection and some arguments.
Step: t.TypeAlias = Callable[[Connection, *Args], T]
Opened: t.TypeAlias = tuple[Connection, Connection | None]


class Database:
    """The database of a folder, for one process and any of its threads.

    Nothing happens before the first `read` or `write`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)
        self.path = os.path.join(self.folder, "pages.sqlite3")
        self.counters = signal.Counters(self.folder)
        self.presence = signal.Presence(self.folder)
        #: The connections, of which the second is ``None`` where the file can only be read.
        self._opened: Opened | None = None
        self._seen: object = None
        self._lineage = ""
        # Taken in this order.
        self.lock = signal.Lock(self.folder)
        self._reading = threading.RLock()
        _databases.add(self)

    def read(self, step: Step[*Args, T], *args: *Args) -> T:
        """Run a step that sees one state of the database.

        :raises StoreError: if the database cannot be read.
        """
        for _ in range(3):
            if self._opened is None:
                self.check()
            try:
                with self._reading:
                    if (opened := self._opened) is not None:
                        try:
                            opened[0].execute("BEGIN")
                            return step(opened[0], *args)
                        finally:
                            opened[0].rollback()
            except (Damage, *FAULTS) as error:
                self._recover(opened, error)
        raise StoreError(f"{self.path} is damaged")

    def write(self, step: Step[*Args, T], *args: *Args, bump: int | None = None) -> T:
        """Run a step in a transaction that no other process is in.

        :param bump: the counter that others see change afterwards.
        :raises ReadOnly: if nothing can be written.
        :raises StoreError: if the transaction failed; it changed nothing.
        """
        for _ in range(3):
            with self.lock:
                _, writer = opened = self._current()
                if writer is None:
                    raise ReadOnly(f"{self.path} can only be read")
                try:
                    return self._transact(writer, step, *args, bump=bump)
                except (Damage, *FAULTS) as error:
                    self._recover(opened, error)
        raise StoreError(f"{self.path} is damaged")

    def _transact(
        self, writer: Connection, step: Step[*Args, T], *args: *Args, bump: int | None
    ) -> T:
        writer.execute("BEGIN IMMEDIATE")
        try:
            result = step(writer, *args)
            writer.execute("COMMIT")
        finally:
            # Where it is over, this does nothing.
            with contextlib.suppress(sqlite3.Error):
                writer.rollback()
        if bump is not None:
            self.counters.bump(bump)
        return result

    @contextlib.contextmanager
    def apart(self) -> Iterator[Connection]:
        """A connection for what takes so long that nobody is to wait for it.

        :raises StoreError: if it fails.
        """
        try:
            with contextlib.closing(schema.connect(self.path, "mode=rw", 0)) as connection:
                yield connection
        except FAULTS as error:
            raise translate(error) from error

    # The file at the path.

    def check(self) -> None:
        """Open the file that is at the path now, unless it is open.

        :raises StoreError: if that is not possible.
        """
        if not self._is_there():
            with self.lock.threads:
                self._current()

    def _identity(self, writes: bool = True) -> list[t.Any]:
        """What differs for another file, or another log beside it."""
        found: list[t.Any] = [None, None]
        for place, path in enumerate((self.path, f"{self.path}-wal")):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                # Others may write what can only be read here, past a connection that is immutable.
                times = () if writes else (status.st_size, status.st_mtime_ns)
                found[place] = (status.st_dev, status.st_ino, *times)
        return found

    def _is_there(self) -> bool:
        """Whether the file that is open is the one at the path."""
        opened = self._opened
        return opened is not None and self._identity(opened[1] is not None) == self._seen

    def _current(self) -> Opened:
        before, lineage = self._opened, self._lineage
        if before is not None and self._is_there() and (before[1] or not self.lock.depth):
            return before
        with self._reading:
            self._drop()
            self._opened = _, writer = opened = self._open()
        if before is not None and before[1] and writer and self._lineage == lineage:
            # Somebody put another copy in place while we run: what is later is not as it was.
            with self.lock:
                self._lineage = self._transact(writer, _begin_lineage, lineage, bump=0)
        return opened

    def _drop(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            _close(*opened)

    def _open(self) -> Opened:
        reason = schema.unwritable(self.folder)
        for _ in range(3):
            before, damage = self._identity()[0], None
            try:
                if before is not None:
                    opened = self._connect(not reason)
                    if self._identity()[0] == before:
                        return opened
                    _close(*opened)
                    continue
            except Damage as error:
                damage = error
            if reason:
                raise StoreError(f"{self.folder}: {damage or reason}") from damage
            with self.lock:
                # Once: the others find the new one.
                if self._identity()[0] == before:
                    self._begin(damage)
        raise StoreError(f"{self.path} is replaced again and again")

    def _connect(self, writes: bool) -> Opened:
        """
        :raises Damage: for a file that is not ours.
        """
        has_log, writer = os.path.exists(f"{self.path}-wal"), None
        mode = "mode=rw" if writes else "mode=ro" if has_log else "immutable=1"
        try:
            with contextlib.ExitStack() as stack:
                reader = schema.connect(self.path, mode, signal.LOCK_TIMEOUT / 2)
                stack.callback(reader.close)
                state = schema.validate(reader)
                if writes:
                    reader.execute("PRAGMA query_only = ON")
                    writer = schema.connect(self.path, mode, signal.LOCK_TIMEOUT)
                    stack.callback(writer.close)
                    writer.executescript(
                        f"{schema.SAFE} PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                        f"PRAGMA journal_size_limit = {4 * 2**20}"
                    )
                stack.pop_all()
        except FAULTS as error:
            raise translate(error) from error
        self._seen, self._lineage = self._identity(writes), state.lineage
        # Should nobody close it. Not at exit: a forked child has other descriptors.
        weakref.finalize(self, _close, reader, writer).atexit = False
        return reader, writer

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
        except FAULTS as error:
            raise translate(error) from error
        finally:
            schema.remove(new)
        self.counters.bump(0)

    def _recover(self, opened: Opened | None, error: Exception) -> None:
        """Heal, so that the caller may try again.

        :raises StoreError: if that does not help.
        """
        is_damage = isinstance(translate(error), Damage)
        if is_damage or schema.code_of(error) in ("IOERR", "CANTOPEN", "READONLY"):
            with self.lock if is_damage else self.lock.threads, self._reading:
                if opened is not None and self._opened is opened:
                    is_same = self._is_there()
                    # Opened again by the next call.
                    self._drop()
                    if is_damage and is_same:
                        self._begin(error)
        if not is_damage:
            raise translate(error) from error

    # The process.

    def close(self) -> None:
        """Give back what this process has. It never raises."""
        with contextlib.suppress(Exception):
            self.presence.leave()
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


def _close(reader: Connection, writer: Connection | None) -> None:
    for connection in filter(None, (writer, reader)):
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _begin_lineage(connection: Connection, lineage: str) -> str:
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
