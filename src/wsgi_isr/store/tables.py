"""The small tables: leases, failures, wanted pages, processes, lists and totals, in SQLite.

Each process has a locked file. A lease, a claim or a report of a process whose lock is free is
that of a dead one, and ends at once.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping

from .database import Database
from .labels import has_path
from .labels import list_path
from .protocol import ABANDONED
from .protocol import Busy
from .protocol import Failure
from .protocol import MAX_BUILDS
from .protocol import MAX_FAILURES
from .protocol import MAX_WANTED
from .protocol import StoreError
from .protocol import Wanted
from .schema import pack
from .schema import seal
from .schema import unpack
from .schema import unseal

T = t.TypeVar("T")

#: Seconds for which an outcome is kept for those who waited, and how many are.
OUTCOME_SECONDS, MAX_OUTCOMES = 60.0, 100
#: Leases that this process could not give back yet.
MAX_UNRELEASED = 1000
#: Seconds between two signs of life of a process of ``regenerate``.
SIGN_OF_LIFE = 1.0


class SQLiteLease:
    """The right to render a page."""

    def __init__(self, tables: Tables, name: str, token: str) -> None:
        self.token = token
        self._tables, self._name = tables, name

    def release(self, outcome: bytes | None = None) -> None:
        """Give the right back. It never raises."""
        self._tables.release(self._name, self.token, outcome)


class Tables:
    """The steps of a store that concern neither pages nor their order."""

    def __init__(self, database: Database) -> None:
        self.database = database
        #: What could not be said yet: names and outcomes by the tokens of leases.
        self._unreleased: dict[str, tuple[str, bytes | None]] = {}
        self._signs: dict[str, float] = {}
        self._count = 0

    # Leases.

    def lease(self, name: str, seconds: float, demanded: bool) -> SQLiteLease | Busy:
        presence = self.database.presence

        def step(connection: sqlite3.Connection) -> SQLiteLease | Busy:
            self.give_back(connection)
            busy = self._busy(connection, name)
            if busy is not None and (busy[1] or not demanded):
                return Busy(busy[0])
            presence.ensure()
            self._count += 1
            token = f"{presence.token}-{self._count}"
            data = seal([demanded, time.monotonic() + seconds], 4)
            row = (name, token, presence.token, data)
            connection.execute("REPLACE INTO leases VALUES (?, ?, ?, ?)", row)
            return SQLiteLease(self, name, token)

        return self._said(step)

    def _said(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """Write a step that gives back what was released before it, and forget that then."""
        tokens = list(self._unreleased)
        result = self.database.write(step)
        for token in tokens:
            self._unreleased.pop(token, None)
        return result

    def _busy(self, connection: sqlite3.Connection, name: str) -> tuple[str, bool] | None:
        """The token of a page's lease, and whether the render is on demand, if it holds."""
        select = "SELECT token, holder, data FROM leases WHERE name = ?"
        row = connection.execute(select, (name,)).fetchone()
        data = row and unseal(row[2], 4)
        if not data or data[1] <= time.monotonic() or not self.database.presence.alive(row[1]):
            return None
        return row[0], data[0]

    def release(self, name: str, token: str, outcome: bytes | None) -> None:
        self._unreleased[token] = name, outcome
        try:
            self._said(self.give_back)
        except Exception:
            # Said later; until then the lease is one of this process, which knows better.
            self._unreleased[token] = name, None
            while len(self._unreleased) > MAX_UNRELEASED:
                self._unreleased.pop(next(iter(self._unreleased)), None)

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Say in a transaction which leases of this process have ended."""
        for token, (name, outcome) in list(self._unreleased.items()):
            connection.execute("DELETE FROM leases WHERE name = ? AND token = ?", (name, token))
            if outcome is not None:
                now = time.monotonic()
                row = (token, now, pack(outcome, 3))
                connection.execute("REPLACE INTO outcomes VALUES (?, ?, ?)", row)
                kept = f"SELECT token FROM outcomes ORDER BY at DESC LIMIT {MAX_OUTCOMES}"
                connection.execute(
                    # One from the future is from before the machine was started.
                    f"DELETE FROM outcomes WHERE at < ? OR at > ? OR token NOT IN ({kept})",
                    (now - OUTCOME_SECONDS, now),
                )

    def outcome(self, token: str) -> bytes | None:
        select = "SELECT data FROM outcomes WHERE token = ?"
        row = self.database.read(lambda connection: connection.execute(select, (token,)).fetchone())
        return unpack(row[0], 3) if row else None

    # Failures.

    def failure(self, name: str) -> Failure | None:
        select = "SELECT data FROM failures WHERE name = ?"
        row = self.database.read(lambda connection: connection.execute(select, (name,)).fetchone())
        data = row and unseal(row[0], 5)
        return Failure(*data) if data else None

    def set_failure(self, name: str, failure: Failure | None) -> None:
        def step(connection: sqlite3.Connection) -> None:
            if failure is None:
                connection.execute("DELETE FROM failures WHERE name = ?", (name,))
                return
            cursor = connection.execute(
                "REPLACE INTO failures (name, data) VALUES (?, ?)", (name, seal(failure, 5))
            )
            last = cursor.lastrowid or 0
            connection.execute("DELETE FROM failures WHERE id <= ?", (last - MAX_FAILURES,))

        if failure is not None or self.failure(name) is not None:
            self.database.write(step)

    def failures(self) -> Iterator[tuple[str, Failure]]:
        rows = self.database.read(
            lambda connection: connection.execute("SELECT name, data FROM failures").fetchall()
        )
        for name, sealed in rows:
            if data := unseal(sealed, 5):
                yield name, Failure(*data)

    # Wanted pages.

    def want(self, build: str, wanted: Wanted) -> bool:
        where, key = "FROM wanted WHERE build = ?", (build, wanted.name)

        def there(connection: sqlite3.Connection) -> bool | None:
            select = "SELECT data FROM takers WHERE build = ?"
            row = connection.execute(select, (build,)).fetchone()
            sign = row and unseal(row[0], 6)
            if not sign or not 0 <= time.monotonic() - sign[1] <= ABANDONED:
                return None
            if not self.database.presence.alive(sign[0]):
                return None
            found = connection.execute(f"SELECT 1 {where} AND name = ?", key).fetchone()
            return found is not None

        def step(connection: sqlite3.Connection) -> None:
            if connection.execute(f"SELECT count(*) {where}", (build,)).fetchone()[0] < MAX_WANTED:
                insert = "INSERT OR IGNORE INTO wanted (build, name, data) VALUES (?, ?, ?)"
                connection.execute(insert, (*key, pack(wanted.data, 7)))

        found = self.database.read(there)
        if found is False:
            self.database.write(step, 1)
        return found is not None

    def take(self, build: str, seconds: float) -> Wanted | None:
        presence, now = self.database.presence, time.monotonic()

        def sign(connection: sqlite3.Connection) -> None:
            presence.ensure()
            row = (build, seal([presence.token, now], 6))
            connection.execute("REPLACE INTO takers VALUES (?, ?)", row)

        def claim(connection: sqlite3.Connection) -> Wanted | None:
            presence.ensure()
            found = self._free(connection, build)
            if found is None:
                return None
            row, name, data = found
            content = unpack(data, 7)
            if content is None:
                connection.execute("DELETE FROM wanted WHERE id = ?", (row,))
                return None
            mine = seal([presence.token, time.monotonic() + seconds], 8)
            connection.execute("UPDATE wanted SET claim = ? WHERE id = ?", (mine, row))
            return Wanted(name, content)

        if now - self._signs.get(build, -SIGN_OF_LIFE) >= SIGN_OF_LIFE:
            self.database.write(sign)
            self._signs[build] = now
        if self.database.read(lambda connection: self._free(connection, build)) is None:
            return None
        return self.database.write(claim)

    def _free(self, connection: sqlite3.Connection, build: str) -> tuple[int, str, t.Any] | None:
        select = "SELECT id, name, claim, data FROM wanted WHERE build = ? ORDER BY id"
        now = time.monotonic()
        for row, name, sealed, data in connection.execute(select, (build,)).fetchall():
            claim = unseal(sealed, 8)
            if claim and now < claim[1] and self.database.presence.alive(claim[0]):
                continue
            if self._busy(connection, name) is None:
                return row, name, data
        return None

    def done(self, build: str, name: str) -> None:
        delete = "DELETE FROM wanted WHERE build = ? AND name = ?"
        self.database.write(lambda connection: connection.execute(delete, (build, name)).rowcount)

    # What exists, and what was counted.

    def list_path(self, path: str) -> None:
        if not self.database.read(lambda connection: has_path(connection, path)):
            self.database.write(lambda connection: list_path(connection, path))

    def has_path(self, path: str) -> bool:
        found = self.database.read(lambda connection: has_path(connection, path))
        if found is None:
            raise StoreError("the list of paths is damaged; prerender again to write it")
        return found

    def builds(self, build: str) -> list[str]:
        def read(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute("SELECT build FROM builds ORDER BY id DESC").fetchall()
            return [name for (name,) in rows]

        def note(connection: sqlite3.Connection) -> list[str]:
            connection.execute("INSERT OR IGNORE INTO builds (build) VALUES (?)", (build,))
            keep = f"SELECT id FROM builds ORDER BY id DESC LIMIT {MAX_BUILDS}"
            connection.execute(f"DELETE FROM builds WHERE id NOT IN ({keep})")
            return read(connection)

        found = self.database.read(read)
        if build not in found:
            found = self.database.write(note)
        return found[found.index(build) + 1 :]

    def add(self, counts: Mapping[str, float]) -> None:
        upsert = """INSERT INTO totals VALUES (?, ?)
            ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"""
        rows = list(counts.items())
        self.database.write(lambda connection: connection.executemany(upsert, rows) and None)

    def totals(self) -> dict[str, float]:
        rows = self.database.read(
            lambda connection: connection.execute("SELECT name, value FROM totals").fetchall()
        )
        return {name: value for name, value in rows if isinstance(value, float)}

    # Processes.

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        presence = self.database.presence

        def step(connection: sqlite3.Connection) -> None:
            if process is None:
                connection.execute("DELETE FROM reports WHERE holder = ?", (presence.token,))
                return
            presence.ensure()
            row = (presence.token, seal(dict(process), 9))
            connection.execute("REPLACE INTO reports VALUES (?, ?)", row)

        self.database.write(step)

    def processes(self) -> list[dict[str, t.Any]]:
        rows = self.database.read(
            lambda connection: connection.execute("SELECT holder, data FROM reports").fetchall()
        )
        alive = [(self.database.presence.alive(holder), unseal(data, 9)) for holder, data in rows]
        if not all(each for each, _ in alive):
            with contextlib.suppress(StoreError):
                self.bury()
        return [data for each, data in alive if each and data is not None]

    def bury(self) -> None:
        """Remove what dead processes left."""
        presence = self.database.presence
        presence.sweep()

        def step(connection: sqlite3.Connection) -> None:
            for table in ("leases", "reports"):
                for (holder,) in connection.execute(
                    f"SELECT DISTINCT holder FROM {table}"
                ).fetchall():
                    if not presence.alive(holder):
                        connection.execute(f"DELETE FROM {table} WHERE holder = ?", (holder,))

        self.database.write(step)

    def leave(self) -> None:
        """Give back the leases of this process and its report. It never raises."""
        token = self.database.presence.token

        def step(connection: sqlite3.Connection) -> None:
            self.give_back(connection)
            for table in ("leases", "reports"):
                connection.execute(f"DELETE FROM {table} WHERE holder = ?", (token,))

        with contextlib.suppress(Exception):
            if self.database.presence.present:
                self.database.write(step)
