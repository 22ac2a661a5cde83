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
from collections.abc import Iterable, Iterator, Sequence

from ..freshness import Invalidated
from . import labels as labels_of
from . import schema, signal
from .database import Database
from .epochs import Last, replaces
from .labels import Page
from .notes import Notes, add, drop
from .protocol import Changes, Kind, Number, Record, Sizes, Stored, StoreError, TooLarge, Validity
from .schema import State

#: Pages that are evicted or pruned in one step, and their bytes.
BATCH, BATCH_BYTES = 20, 2**20
#: Seconds between two steps of pruning, in which others write.
PAUSE = 0.002
#: Steps of pruning after which the log is moved into the file.
CHECKPOINT = 5
#: Seconds between two glances at the counters.
GLANCE = 0.03
_LEAST = "WHERE name != ? ORDER BY gone DESC, used"
_OF_BUILD = "WHERE build = ?"
_GET = """SELECT pages.meta, pages.head, bodies.body, state.data FROM pages, state
    JOIN bodies ON bodies.id = pages.id WHERE pages.name = ? AND state.id = 1"""
_ROW = "SELECT id, meta FROM pages WHERE name = ?"
_INSERT = """INSERT INTO pages (name, path, build, gone, used, meta, head, id)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
_UPDATE = """UPDATE pages SET name = ?, path = ?, build = ?, gone = ?, used = ?, meta = ?, head = ?
    WHERE id = ?"""
# Where the size is the same, it is written in place.
_BODY = """INSERT INTO bodies VALUES (?, ?)
    ON CONFLICT (id) DO UPDATE SET body = excluded.body"""


class SQLiteStore(Notes):
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
        if counters.used is None:
            counters.check()
        return counters.values

    # Pages.

    def get(self, name: str) -> Stored | None:
        def step(connection: sqlite3.Connection) -> Stored | None:
            row = connection.execute(_GET, (name,)).fetchone()
            if row is None:
                return None
            meta, head, body, data = row
            state, page = State.of(data), Page.of(meta)
            damaged = page is None or page.name != name or type(body) is not bytes
            return None if damaged else self._judge(connection, page, state, head, body)

        return self.database.read(step)

    def _judge(
        self,
        connection: sqlite3.Connection,
        page: Page | None,
        state: State,
        head: t.Any,
        body: bytes,
    ) -> Stored | None:
        """A page and its validity, unless it is damaged."""
        if page is None or type(head) is not bytes:
            return None
        name, path, build, labels, *_ = page
        number = page.number
        record = Record(name, tuple(labels), number, build, path, bool(page.gone), head, body)
        if page.lineage == state.lineage and page.sequence >= state.changed:
            return Stored(record, Validity(Invalidated.NO, state.at))
        last = labels_of.last_of(connection, state, page, self._damaged)
        return Stored(record, Validity(last.makes(number, state.lineage), state.at))

    def put(self, record: Record) -> Validity | None:
        name, labels, number, build, path, gone, head, body = record
        size = len(head) + len(body)
        if size > self.max_bytes:
            raise TooLarge(f"a page of {size} bytes is larger than max_bytes={self.max_bytes}")
        page = Page(name, path, build, labels, *number, gone, size)
        return self.database.write(lambda connection: self._put(connection, page, head, body), 1)

    def _put(
        self, connection: sqlite3.Connection, page: Page, head: bytes, body: bytes
    ) -> Validity | None:
        state = State.read(connection)
        row, meta = connection.execute(_ROW, (page.name,)).fetchone() or (None, None)
        before = Page.of(meta)
        if before is not None:
            if not replaces(page.number, before.number, state.lineage):
                return None
            if page.lineage != before.lineage and not page.lineage:
                return None
        if page.lineage != state.lineage or page.sequence < state.changed:
            # It may be from before what was forgotten.
            last = labels_of.last_of(connection, state, page, self._damaged).later(
                Last(state.floor)
            )
            page = page._replace(stale=last.any, expired=last.expire)
        values = (
            page.name,
            page.path,
            page.build,
            page.gone,
            _now(),
            schema.seal(page, 2),
            head,
            row,
        )
        cursor = connection.execute(_INSERT if row is None else _UPDATE, values)
        connection.execute(_BODY, (cursor.lastrowid if row is None else row, body))
        drop(connection, "failure", page.name)
        state.pages += row is None
        state.bytes += page.size - (before.size if before else 0)
        while state.pages > self.max_pages or state.bytes > self.max_bytes:
            step = (_LEAST, page.name, self.max_pages, self.max_bytes)
            if evicted := _remove_some(connection, state, *step):
                add(connection, {"evictions": evicted})
            else:
                # Nothing is left: what was counted besides was damaged.
                state.pages, state.bytes = 1, page.size
        # Of a state that was restored since: later invalidations must have later numbers.
        if page.lineage == state.lineage and page.sequence > state.sequence:
            state.sequence = page.sequence
        state.write(connection)
        return Validity(page.last.makes(page.number, state.lineage), state.at)

    def delete(self, name: str) -> None:
        def step(connection: sqlite3.Connection) -> None:
            state = State.read(connection)
            for row, meta in connection.execute(_ROW, (name,)).fetchall():
                _remove(connection, state, row, meta)
            state.write(connection)
            drop(connection, "failure", name)

        self.database.write(step, 1)

    def records(
        self, *, build: str | None = None, path: str | None = None, after: str = ""
    ) -> Iterator[Stored]:
        conditions = {"build": build, "path": path}
        given = [value for value in conditions.values() if value is not None]
        where = "".join(f" AND {key} = ?" for key, value in conditions.items() if value is not None)
        select = f"SELECT name, meta, head FROM pages WHERE name > ?{where} ORDER BY name LIMIT 50"

        def step(connection: sqlite3.Connection, after: str) -> list[tuple[str, Stored | None]]:
            state = State.read(connection)
            return [
                (name, self._judge(connection, Page.of(meta), state, head, b""))
                for name, meta, head in connection.execute(select, (after, *given)).fetchall()
            ]

        while found := self.database.read(functools.partial(step, after=after)):
            yield from (stored for _, stored in found if stored is not None)
            after = found[-1][0]

    def used(self, names: Iterable[str]) -> None:
        rows = [(_now(), name) for name in names]
        update = "UPDATE pages SET used = ? WHERE name = ?"
        if rows:
            self.database.write(lambda connection: connection.executemany(update, rows) and None)

    def stored(self, name: str) -> object:
        select = "SELECT id, used, meta FROM pages WHERE name = ?"
        return self.database.read(lambda connection: connection.execute(select, (name,)).fetchone())

    # The order.

    def number(self) -> Number:
        damaged = set(self._damaged)

        def step(connection: sqlite3.Connection) -> Number:
            state = State.read(connection)
            labels_of.mend(connection, state, damaged)
            state.sequence += 1
            state.write(connection)
            return Number(state.lineage, state.sequence)

        number = self.database.write(step)
        self._damaged -= damaged
        return number

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        labels = list(dict.fromkeys(labels))
        note = functools.partial(labels_of.note, labels=labels, expire=expire)
        number, crowded = self.database.write(note, 0)
        # The invalidation holds by now, whatever becomes of the bounds.
        with contextlib.suppress(StoreError):
            for which in crowded:
                labels_of.forget(self.database, which)
        return number

    def changes(self, since: Number) -> Changes:
        self.database.counters.check()
        self.database.check()
        return self.database.read(functools.partial(labels_of.changes, since=since))

    # How much there is.

    def sizes(self) -> Sizes:
        state = self.database.read(State.read)
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
        steps = [(_LEAST, "", 0, 0) if everything else (_LEAST, "", pages, size)]
        if keep_builds is not None:
            builds = self.database.read(_builds)
            steps[:0] = [(_OF_BUILD, build, 0, 0) for build in builds if build not in keep_builds]
        removed = 0
        self.database.checkpoint("PASSIVE")
        for step in steps:
            while count := self.database.write(functools.partial(_prune_some, step=step), 1):
                removed += count
                self._rest()
        left = None
        # Room goes back to the file system, until nothing moves any more.
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
        return removed

    def _rest(self) -> None:
        """Let others write, who are not to sync what was pruned."""
        self._steps += 1
        if self._steps % CHECKPOINT == 0:
            self.database.checkpoint("PASSIVE")
        time.sleep(PAUSE)

    # The process.

    def time(self) -> float:
        return time.time()

    def listen(self, seconds: float) -> bool:
        before, deadline = tuple(self.signal), time.monotonic() + seconds
        while tuple(self.signal) == before:
            left = deadline - time.monotonic()
            if left <= 0 or self._closed.wait(min(left, GLANCE)):
                return False
        return True

    def probe(self) -> None:
        self.database.read(State.read)
        self.said(lambda connection: State.read(connection).write(connection))

    def close(self) -> None:
        self._closed.set()
        self.database.close()


def _now() -> int:
    return time.time_ns() // 1000


def _remove(connection: sqlite3.Connection, state: State, row: int, meta: t.Any) -> None:
    page = Page.of(meta)
    connection.execute("DELETE FROM bodies WHERE id = ?", (row,))
    connection.execute("DELETE FROM pages WHERE id = ?", (row,))
    if page is not None:
        drop(connection, "failure", page.name)
        state.bytes = max(0, state.bytes - page.size)
    state.pages = max(0, state.pages - 1)


def _remove_some(
    connection: sqlite3.Connection,
    state: State,
    which: str,
    value: str,
    max_pages: int,
    max_bytes: int,
) -> int:
    """Remove pages until the rest fits, a bounded number."""
    before, most = state.pages, state.bytes - BATCH_BYTES
    select = f"SELECT id, meta FROM pages {which} LIMIT {BATCH}"
    for row, meta in connection.execute(select, (value,)).fetchall():
        if (state.pages <= max_pages and state.bytes <= max_bytes) or state.bytes < most:
            break
        _remove(connection, state, row, meta)
    return before - state.pages


def _prune_some(connection: sqlite3.Connection, step: tuple[str, str, int, int]) -> int:
    state = State.read(connection)
    removed = _remove_some(connection, state, *step)
    state.write(connection)
    return removed


def _builds(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT DISTINCT build FROM pages")]


def _is_former(path: str) -> bool:
    names = set(os.listdir(path))
    return "pages" in names and not names.isdisjoint({"sequence", "epochs", "leases", "lock"})
