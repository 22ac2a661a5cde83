"""`SQLiteStore`: pages and their order in one SQLite file, for all workers of a machine.

Each step of `Store` is one transaction. Reading a page is one ``SELECT``, and one more for a page
that is older than the last invalidation.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
import threading
import time
import typing as t
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

from ..freshness import Invalidated
from . import labels as labels_of
from . import signal
from .database import Database
from .epochs import replaces
from .labels import Page
from .protocol import Changes
from .protocol import Kind
from .protocol import Number
from .protocol import Record
from .protocol import Sizes
from .protocol import Stored
from .protocol import StoreError
from .protocol import TooLarge
from .protocol import Validity
from .schema import load_state
from .schema import read_state
from .schema import seal
from .schema import State
from .schema import write_state
from .tables import Tables

#: Pages that are evicted or pruned in one step, and their bytes.
BATCH, BATCH_BYTES = 20, 2**20
_LEAST = "ORDER BY gone DESC, used"
#: Seconds between two steps of pruning, in which others write.
PAUSE = 0.002
#: Steps of pruning after which the log is moved into the file.
CHECKPOINT = 5
#: Seconds between two glances at the counters.
GLANCE = 0.03
_GET = """SELECT pages.meta, pages.head, bodies.body, state.data FROM pages, state
    JOIN bodies ON bodies.id = pages.id WHERE pages.name = ? AND state.id = 1"""


class SQLiteStore(Tables):
    """The embedded store.

    :param folder: it is made where it does not exist, for this user alone.
    :param max_pages: and ``max_bytes``: pages beyond make others go, first those that are gone,
        then those used least.
    """

    kind = Kind("sqlite", "machine", True, True, True, True, True)

    def __init__(
        self, folder: str, *, max_pages: int = 100_000, max_bytes: int = 2 * 2**30
    ) -> None:
        super().__init__(Database(folder))
        self.folder = self.database.folder
        self.max_pages, self.max_bytes = max_pages, max_bytes
        #: Rows of labels that were found damaged.
        self._damaged: set[int] = set()
        self._closed = threading.Event()
        self._steps = 0

    @property
    def signal(self) -> t.Any:
        counters = self.database.counters
        if not counters.opened:
            counters.check()
        return counters.values

    # Pages.

    def get(self, name: str) -> Stored | None:
        def step(connection: sqlite3.Connection) -> Stored | None:
            found = self._find(connection, name)
            if found is None:
                return None
            record, page, state = found
            if page.lineage == state.lineage and page.sequence >= state.changed:
                return Stored(record, Validity(Invalidated.NO, state.at))
            connection.execute("BEGIN")
            try:
                found = self._find(connection, name)
                return found and Stored(found[0], self._validity(connection, *found[1:]))
            finally:
                connection.execute("COMMIT")

        return self.database.read(step)

    def _find(self, connection: sqlite3.Connection, name: str) -> tuple[Record, Page, State] | None:
        row = connection.execute(_GET, (name,)).fetchone()
        if row is None:
            return None
        meta, head, body, data = row
        state, page = load_state(data), Page.of(meta)
        if page is None or page.name != name or type(head) is not bytes or type(body) is not bytes:
            # Damaged: a miss.
            return None
        return _record(page, head, body), page, state

    def _validity(self, connection: sqlite3.Connection, page: Page, state: State) -> Validity:
        last = page.last.later(labels_of.last_of(connection, state, page, self._damaged))
        return Validity(last.makes(page.number, state.lineage), state.at)

    def put(self, record: Record) -> Validity | None:
        size = len(record.head) + len(record.body)
        if size > self.max_bytes:
            raise TooLarge(f"a page of {size} bytes is larger than max_bytes={self.max_bytes}")
        page = Page(
            record.name,
            record.path,
            record.build,
            record.labels,
            *record.number,
            record.gone,
            size,
        )
        return self.database.write(lambda connection: self._put(connection, page, record), 1)

    def _put(self, connection: sqlite3.Connection, page: Page, record: Record) -> Validity | None:
        state = read_state(connection)
        row = connection.execute(
            "SELECT id, meta FROM pages WHERE name = ?", (page.name,)
        ).fetchone()
        before = row and Page.of(row[1])
        if before is not None:
            if not replaces(page.number, before.number, state.lineage):
                return None
            if page.lineage != before.lineage and not page.lineage:
                return None
        if row is not None:
            state = _without(connection, state, row[0], row[1])
        if page.lineage != state.lineage or page.sequence < state.changed:
            last = labels_of.last_of(connection, state, page, self._damaged, floors=True)
            page = page._replace(stale=last.any, expired=last.expire)
        state = state._replace(pages=state.pages + 1, bytes=state.bytes + page.size)
        while state.pages > self.max_pages or state.bytes > self.max_bytes:
            freed = _remove_some(connection, state, _LEAST, (), self.max_pages, self.max_bytes)
            if freed is state:
                # Nothing is left: what was counted besides was damaged.
                state = state._replace(pages=1, bytes=page.size)
                break
            state = freed
        now = time.time_ns() // 1000
        values = (page.name, page.path, page.build, page.gone, now, seal(page, 2), record.head)
        cursor = connection.execute(
            "INSERT INTO pages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (row and row[0], *values)
        )
        connection.execute("REPLACE INTO bodies VALUES (?, ?)", (cursor.lastrowid, record.body))
        connection.execute("DELETE FROM failures WHERE name = ?", (page.name,))
        # Of a state that was restored since: later invalidations must have later numbers.
        if page.lineage == state.lineage and page.sequence > state.sequence:
            state = state._replace(sequence=page.sequence)
        write_state(connection, state)
        invalidated = page.last.makes(page.number, state.lineage)
        return Validity(invalidated, state.at)

    def delete(self, name: str) -> None:
        def step(connection: sqlite3.Connection) -> None:
            select = "SELECT id, meta FROM pages WHERE name = ?"
            for row, meta in connection.execute(select, (name,)).fetchall():
                write_state(connection, _without(connection, read_state(connection), row, meta))
            connection.execute("DELETE FROM failures WHERE name = ?", (name,))

        self.database.write(step, 1)

    def records(self, *, build: str | None = None, path: str | None = None) -> Iterator[Stored]:
        conditions = [("build", build), ("path", path)]
        where = "".join(f" AND {column} = ?" for column, value in conditions if value is not None)
        given = tuple(value for _, value in conditions if value is not None)
        after = -(2**63)
        while True:
            found = self.database.read(
                lambda connection: self._listed(connection, where, (after, *given))  # noqa: B023
            )
            if not found:
                return
            for after, stored in found:  # noqa: B007
                if stored is not None:
                    yield stored

    def _listed(
        self, connection: sqlite3.Connection, where: str, values: tuple[t.Any, ...]
    ) -> list[tuple[int, Stored | None]]:
        found: list[tuple[int, Stored | None]] = []
        connection.execute("BEGIN")
        try:
            state = read_state(connection)
            select = f"SELECT id, meta, head FROM pages WHERE id > ?{where} ORDER BY id LIMIT 50"
            for row, meta, head in connection.execute(select, values).fetchall():
                page, stored = Page.of(meta), None
                if page is not None and type(head) is bytes:
                    validity = self._validity(connection, page, state)
                    stored = Stored(_record(page, head, b""), validity)
                found.append((row, stored))
        finally:
            connection.execute("COMMIT")
        return found

    def used(self, names: Iterable[str]) -> None:
        now = time.time_ns() // 1000
        rows = [(now, name) for name in names]
        update = "UPDATE pages SET used = ? WHERE name = ?"
        if rows:
            self.database.write(lambda connection: connection.executemany(update, rows) and None)

    def stored(self, name: str) -> object:
        select = "SELECT id, used, meta FROM pages WHERE name = ?"
        return self.database.read(lambda connection: connection.execute(select, (name,)).fetchone())

    # The order.

    def number(self) -> Number:
        def step(connection: sqlite3.Connection) -> Number:
            state = read_state(connection)
            if self._damaged:
                labels_of.mend(connection, state, self._damaged)
            state = state._replace(sequence=state.sequence + 1)
            write_state(connection, state)
            return Number(state.lineage, state.sequence)

        number = self.database.write(step)
        self._damaged.clear()
        return number

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        labels = list(dict.fromkeys(labels))
        number = self.database.write(
            lambda connection: labels_of.note(connection, labels, expire), 0
        )
        # The invalidation holds by now, whatever becomes of the bounds.
        with contextlib.suppress(StoreError):
            labels_of.bound(self.database, labels)
        return number

    def changes(self, since: Number) -> Changes:
        self.database.counters.check()
        self.database.check()

        return self.database.read(functools.partial(labels_of.changes, since=since))

    # How much there is.

    def sizes(self) -> Sizes:
        state = self.database.read(read_state)
        return Sizes(state.pages, state.bytes, self.max_pages, self.max_bytes)

    def prune(
        self,
        *,
        max_pages: int | None = None,
        max_bytes: int | None = None,
        keep_builds: Sequence[str] | None = None,
        everything: bool = False,
    ) -> int:
        pages = self.max_pages if max_pages is None else max_pages
        size = self.max_bytes if max_bytes is None else max_bytes
        if everything:
            pages = size = 0
        steps: list[tuple[str, tuple[str, ...], int, int]] = [(_LEAST, (), pages, size)]
        if keep_builds is not None and not everything:
            others = [build for build in self.database.read(_builds) if build not in keep_builds]
            steps = [("WHERE build = ?", (build,), 0, 0) for build in others] + steps
        removed = 0
        self.database.checkpoint("PASSIVE")
        for step in steps:
            while count := self.database.write(functools.partial(_prune_some, step), 1):
                removed += count
                self._rest()
        self._tidy()
        return removed

    def _rest(self) -> None:
        """Let others write, who are not to sync what was pruned."""
        self._steps += 1
        if self._steps % CHECKPOINT == 0:
            self.database.checkpoint("PASSIVE")
        time.sleep(PAUSE)

    def _tidy(self) -> None:
        """Give room back to the file system, and remove what nobody needs any more."""
        left = None
        # It stops where nothing moves any more.
        while left != (left := self.database.vacuum(BATCH)) and left:
            self._rest()
        self.database.checkpoint("PASSIVE")
        self.database.checkpoint("TRUNCATE")
        self.bury()
        signal.sweep()
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                # Folders of versions without a database, one a prefix.
                if entry.is_dir(follow_symlinks=False) and _is_former(entry.path):
                    shutil.rmtree(entry.path, ignore_errors=True)

    # The process.

    def time(self) -> float:
        return time.time()

    def listen(self, seconds: float) -> bool:
        values = self.signal
        before, deadline = (values[0], values[1]), time.monotonic() + seconds
        while not self._closed.is_set():
            values = self.signal
            if (values[0], values[1]) != before:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._closed.wait(min(left, GLANCE))
        return False

    def probe(self) -> None:
        self.database.read(read_state)

        def step(connection: sqlite3.Connection) -> None:
            self.give_back(connection)
            write_state(connection, read_state(connection))

        self._said(step)

    def close(self) -> None:
        self._closed.set()
        self.leave()
        self.database.close()


def _record(page: Page, head: bytes, body: bytes) -> Record:
    return Record(
        page.name,
        tuple(page.labels),
        page.number,
        page.build,
        page.path,
        bool(page.gone),
        head,
        body,
    )


def _without(connection: sqlite3.Connection, state: State, row: int, meta: t.Any) -> State:
    """Remove a page; gives the state after it."""
    page = Page.of(meta)
    connection.execute("DELETE FROM bodies WHERE id = ?", (row,))
    connection.execute("DELETE FROM pages WHERE id = ?", (row,))
    if page is not None:
        connection.execute("DELETE FROM failures WHERE name = ?", (page.name,))
    size = 0 if page is None else page.size
    return state._replace(pages=max(0, state.pages - 1), bytes=max(0, state.bytes - size))


def _builds(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT DISTINCT build FROM pages")]


def _remove_some(
    connection: sqlite3.Connection,
    state: State,
    which: str,
    values: tuple[str, ...],
    max_pages: int,
    max_bytes: int,
) -> State:
    """Remove pages until the rest fits, a bounded number; gives the state after it."""
    select = f"SELECT id, meta FROM pages {which} LIMIT {BATCH}"
    most = state.bytes - BATCH_BYTES
    for row, meta in connection.execute(select, values).fetchall():
        if (state.pages <= max_pages and state.bytes <= max_bytes) or state.bytes < most:
            break
        state = _without(connection, state, row, meta)
    return state


def _prune_some(step: tuple[str, tuple[str, ...], int, int], connection: sqlite3.Connection) -> int:
    state = read_state(connection)
    left = _remove_some(connection, state, *step)
    write_state(connection, left)
    return state.pages - left.pages


def _is_former(path: str) -> bool:
    names = set(os.listdir(path))
    return "pages" in names and not names.isdisjoint({"sequence", "epochs", "leases", "lock"})
