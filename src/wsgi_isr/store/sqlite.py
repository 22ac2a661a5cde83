"""`SQLiteStore`: pages and their order in one SQLite file, for all workers of a machine.

Each step of `Store` is one transaction. Reading a page is one ``SELECT``, and one more for a page
that is older than the last invalidation.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import threading
import time
import typing as t
from collections.abc import Callable, Iterable, Iterator, Sequence
from sqlite3 import Connection

from . import tables
from .database import Database
from .epochs import Last, replaces
from .notes import Notes, add, drop
from .protocol import (
    Busy,
    Changes,
    Kind,
    Number,
    Record,
    Sizes,
    Stored,
    StoreError,
    TooLarge,
    Validity,
)
from .tables import Page, State

#: Seconds that a step may take which makes room, and those between two, in which others write.
STEP, PAUSE = 0.003, 0.002
#: Seconds between two glances at the counters.
GLANCE = 0.03
#: Seconds that forgetting labels may take before another process begins it again.
FORGETTING = 300.0
_LEAST = "WHERE name != ? ORDER BY gone DESC, used"
_GET = """SELECT state.data, pages.used, pages.meta, pages.head, bodies.body FROM pages, state
    JOIN bodies ON bodies.id = pages.id WHERE pages.name = ?"""
_PUT = """INSERT INTO pages (name, path, build, gone, used, meta, head)
    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET path = excluded.path,
    build = excluded.build, gone = excluded.gone, used = excluded.used, meta = excluded.meta,
    head = excluded.head"""
# Where the size is the same, it is written in place.
_PUT_BODY = """INSERT INTO bodies SELECT id, ? FROM pages WHERE name = ?
    ON CONFLICT (id) DO UPDATE SET body = excluded.body"""

_MARK = "UPDATE pages SET meta = ? WHERE name = ? AND meta = ?"


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
        self._closed = threading.Event()

    @property
    def signal(self) -> t.Any:
        return self.database.lock.counters or self.database.lock.check()

    # Pages.

    def get(self, name: str) -> Stored | None:
        return self.database.read(_get, name)

    def put(self, record: Record) -> Validity | None:
        size = len(record.head) + len(record.body)
        if size > self.max_bytes:
            raise TooLarge(f"a page of {size} bytes is larger than max_bytes={self.max_bytes}")
        while (done := self.database.write(self._put, Page(record, size), bump=1)) is False:
            self._pause()
        return done

    def _put(self, connection: Connection, page: Page) -> Validity | t.Literal[False] | None:
        """As `put`; false where only some of the room for the page could be made in one step."""
        name, _, number, build, path, gone, head, body = page.record
        state = State.read(connection)
        row = connection.execute("SELECT meta FROM pages WHERE name = ?", (name,)).fetchone()
        before = Page.of(row and row[0])
        if before is not None and not replaces(number, before.record.number, state.lineage):
            return None
        # It may be from before what was forgotten.
        last = tables.last_of(connection, state, page).later(Last(state.floor))
        meta = page._replace(last=last).seal()
        was = before.size if before else 0
        room = self.max_pages - (row is None), self.max_bytes - page.size + was
        if evicted := _evict(connection, state, _LEAST, name, *room):
            add(connection, {"evictions": evicted})
        if not state.fits(*room):
            if evicted:
                return False
            # Nothing else is left: what was counted besides was damaged.
            state.pages, state.bytes = int(row is not None), was
        state.pages += row is None
        state.bytes += page.size - was
        values = (name, path, build, gone, time.time_ns() // 1000, meta, head)
        connection.execute(_PUT, values)
        connection.execute(_PUT_BODY, (body, name))
        drop(connection, "failure", name)
        # Of a state that was restored since: later invalidations must have later numbers.
        if number.lineage == state.lineage:
            state.sequence = max(state.sequence, number.sequence)
        state.write(connection)
        return Validity(last.makes(number, state.lineage), state.at)

    def delete(self, name: str) -> None:
        self.database.write(_delete, name, bump=1)

    def records(
        self, *, build: str | None = None, path: str | None = None, after: str = ""
    ) -> Iterator[Stored]:
        while found := self.database.read(_some, build, path, after):
            yield from (stored for _, stored in found if stored is not None)
            after = found[-1][0]

    def used(self, names: Iterable[str]) -> None:
        if rows := [(time.time_ns() // 1000, name) for name in names]:
            update = "UPDATE pages SET used = ? WHERE name = ?"
            self.database.write(Connection.executemany, update, rows)

    # The order.

    def number(self) -> Number:
        return self.database.write(_number)

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        number, is_full = self.database.write(tables.note, labels, expire, bump=0)
        if is_full:
            # The invalidation holds by now, whatever becomes of the bounds.
            with contextlib.suppress(StoreError):
                self._forget()
        return number

    def _forget(self) -> None:
        """Forget old labels, after applying all to the pages that have them."""
        lease, name = self.lease("labels", FORGETTING, True), ""
        if isinstance(lease, Busy):
            return
        try:
            # Others may raise it meanwhile, beyond what the pages have been asked for.
            floor = self.database.read(State.read).floor
            while (found := self.database.read(tables.concerned, name))[0]:
                name, pages = found
                if pages:
                    # Those that were replaced meanwhile are later.
                    self.database.write(Connection.executemany, _MARK, pages)
            for first in range(0, tables.ROWS, tables.BATCH):
                self.database.write(tables.forget, floor, first)
        finally:
            lease.release()

    def changes(self, since: Number) -> Changes:
        self.database.check()
        return self.database.read(tables.changes, since)

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
        removed = 0
        if keep_builds is not None:
            for build in set(self.database.read(_builds)).difference(keep_builds):
                removed += self._in_steps(_prune, "WHERE build = ?", build, 0, 0)
        bounds = (0, 0) if everything else (pages, size)
        removed += self._in_steps(_prune, _LEAST, "", *bounds)
        with contextlib.suppress(StoreError):
            self._in_steps(_vacuum)
            with self.database.lock:
                self.database.checkpoint("TRUNCATE")
        self.database.write(self.bury)
        # Folders of versions without a database, one a prefix.
        for path in map(os.path.dirname, glob.glob(f"{glob.escape(self.folder)}/*/pages")):
            if not {"sequence", "epochs", "leases", "lock"}.isdisjoint(os.listdir(path)):
                shutil.rmtree(path, ignore_errors=True)
        return removed

    def _in_steps(self, step: Callable[..., int], *args: object) -> int:
        """Run a step until nothing is left to do, and let others write in between."""
        total = 0
        while count := self.database.write(step, *args, bump=1):
            total += count
            self._pause()
        return total

    def _pause(self) -> None:
        # Nobody else is to sync it.
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
        self.leases.say_again()
        self.database.write(lambda connection: State.read(connection).write(connection))

    def close(self) -> None:
        self._closed.set()
        self.database.close()


def _get(connection: Connection, name: str) -> Stored | None:
    row = connection.execute(_GET, (name,)).fetchone()
    stored = row and _judge(connection, State(*tables.state_fields(row[0])), *row[1:])
    return stored if stored and stored.record.name == name else None


def _judge(
    connection: Connection, state: State, used: t.Any, meta: t.Any, head: t.Any, body: t.Any
) -> Stored | None:
    """A page and its validity, unless it is damaged."""
    page = Page.of(meta)
    if page is None or type(head) is not bytes or type(body) is not bytes:
        return None
    made = tables.last_of(connection, state, page).makes(page.record.number, state.lineage)
    used = used / 1e6 if isinstance(used, int) else 0.0
    return Stored(Record(*page.record[:6], head, body), Validity(made, state.at), used)


def _some(
    connection: Connection, build: str | None, path: str | None, after: str
) -> list[tuple[str, Stored | None]]:
    """Names of pages, and those that are not damaged."""
    state, values, where = State.read(connection), [after], "name > ?"
    # Not by the index of builds, which is not in the order of names: most are of one build.
    for column, value in (("+build", build), ("path", path)):
        if value is not None:
            where += f" AND {column} = ?"
            values.append(value)
    select = f"SELECT name, used, meta, head FROM pages WHERE {where} ORDER BY name LIMIT 50"
    found: list[tuple[str, Stored | None]] = []
    for name, used, meta, head in connection.execute(select, values):
        found.append((name, _judge(connection, state, used, meta, head, b"")))
    return found


def _number(connection: Connection) -> Number:
    state = State.read(connection)
    state.sequence += 1
    state.write(connection)
    return Number(state.lineage, state.sequence)


def _delete(connection: Connection, name: str) -> None:
    state = State.read(connection)
    _remove(connection, state, "WHERE name = ?", name)
    drop(connection, "failure", name)
    state.write(connection)


def _remove(connection: Connection, state: State, which: str, value: object) -> bool:
    """Remove the first page of some, if there is one."""
    select = f"SELECT id, name, meta FROM pages {which} LIMIT 1"
    row, name, meta = connection.execute(select, (value,)).fetchone() or (None, "", None)
    if row is None:
        return False
    connection.execute("DELETE FROM bodies WHERE id = ?", (row,))
    connection.execute("DELETE FROM pages WHERE id = ?", (row,))
    drop(connection, "failure", name)
    page = Page.of(meta)
    state.pages = max(0, state.pages - 1)
    state.bytes = max(0, state.bytes - (page.size if page else 0))
    return True


def _evict(
    connection: Connection, state: State, which: str, value: str, pages: int, size: int
) -> int:
    """Remove some pages of those that are to go until so many pages and bytes are left."""
    removed, end = 0, time.monotonic() + STEP
    while not state.fits(pages, size) and _remove(connection, state, which, value):
        removed += 1
        if time.monotonic() > end:
            break
    if removed:
        state.write(connection)
    return removed


def _prune(connection: Connection, which: str, value: str, pages: int, size: int) -> int:
    return _evict(connection, State.read(connection), which, value, pages, size)


def _vacuum(connection: Connection) -> int:
    """Give some free pages of the file back to the file system."""
    end, freed = time.monotonic() + STEP, 0
    while connection.execute("PRAGMA freelist_count").fetchone()[0] and time.monotonic() < end:
        # One at a time, since `execute` stops after the first.
        connection.execute("PRAGMA incremental_vacuum(1)")
        freed += 1
    return freed


def _builds(connection: Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT DISTINCT build FROM pages")]
