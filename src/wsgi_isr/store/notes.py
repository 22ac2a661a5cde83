"""Leases, failures, wanted pages, processes, lists and totals: small values in one table.

Each process has a locked file. A lease, a claim or a report of a process whose lock is free is
that of a dead one, and ends at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import sqlite3
import time
import typing as t
import zlib
from collections.abc import Callable, Iterator, Mapping

from .database import Database
from .labels import has_path, list_path
from .protocol import (
    ABANDONED,
    MAX_BUILDS,
    MAX_FAILURES,
    MAX_JOURNAL,
    MAX_MINUTES,
    MAX_WANTED,
    Busy,
    Failure,
    StoreError,
    Wanted,
)
from .schema import seal, unseal

T = t.TypeVar("T")

#: Outcomes that are kept for those who waited.
MAX_OUTCOMES = 100
#: Names that `Store.once` remembers.
MAX_ONCE = 1000
#: Leases that this process could not give back yet.
MAX_UNRELEASED = 1000
#: Seconds between two signs of life of a process of ``regenerate``.
SIGN_OF_LIFE = 1.0


def _salt(kind: str, name: str) -> int:
    return zlib.crc32(f"{kind} {name}".encode("utf-8", "surrogatepass"))


def _get(connection: sqlite3.Connection, kind: str, name: str) -> t.Any:
    """A value, or ``None`` where it is damaged or not there."""
    select = "SELECT value FROM notes WHERE kind = ? AND name = ?"
    row = connection.execute(select, (kind, name)).fetchone()
    return row and unseal(row[0], _salt(kind, name))


def _all(connection: sqlite3.Connection, kind: str) -> list[tuple[str, t.Any]]:
    """Names and values, the first that was set first."""
    select = "SELECT name, value FROM notes WHERE kind = ? ORDER BY id"
    rows = connection.execute(select, (kind,)).fetchall()
    return [(name, unseal(value, _salt(kind, name))) for name, value in rows]


def _set(connection: sqlite3.Connection, kind: str, name: str, value: t.Any, most: int = 0) -> None:
    """
    :param most: that are kept of the kind; the oldest go.
    """
    replace = "REPLACE INTO notes (kind, name, value) VALUES (?, ?, ?)"
    connection.execute(replace, (kind, name, seal(value, _salt(kind, name))))
    if most and (over := _count(connection, kind) - most) > 0:
        oldest = "SELECT id FROM notes WHERE kind = ? ORDER BY id LIMIT ?"
        # Some more of many, so that not each has to order all of them.
        more = most // 20 if most > 1000 else 0
        connection.execute(f"DELETE FROM notes WHERE id IN ({oldest})", (kind, over + more))


def _count(connection: sqlite3.Connection, kind: str) -> int:
    count = "SELECT count(*) FROM notes WHERE kind = ?"
    return int(connection.execute(count, (kind,)).fetchone()[0])


def add(connection: sqlite3.Connection, counts: Mapping[str, float]) -> None:
    """Add to the totals."""
    for name, count in counts.items():
        _set(connection, "total", name, (_get(connection, "total", name) or 0) + count)
    minute = str(int(time.time() // 60))
    if counts and _get(connection, "minute", minute) is None:
        _set(connection, "minute", minute, _totals(connection), MAX_MINUTES)


def _totals(connection: sqlite3.Connection) -> dict[str, float]:
    return {name: value for name, value in _all(connection, "total") if value is not None}


def drop(connection: sqlite3.Connection, kind: str, name: str) -> None:
    connection.execute("DELETE FROM notes WHERE kind = ? AND name = ?", (kind, name))


@dataclasses.dataclass
class SQLiteLease:
    notes: Notes
    name: str
    token: str

    def release(self, outcome: bytes | None = None) -> None:
        self.notes.release(self.name, self.token, outcome)


class Notes:
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
            lease = self._valid(_get(connection, "lease", name))
            if lease and (lease[2] or not demanded):
                return Busy(lease[0])
            presence.ensure()
            self._count += 1
            token = f"{presence.token}-{self._count}"
            _set(connection, "lease", name, [token, time.monotonic() + seconds, demanded])
            return SQLiteLease(self, name, token)

        return self.said(step)

    def _valid(self, claim: t.Any) -> t.Any:
        """A claim, if its time is not over and its process runs."""
        if claim and time.monotonic() < claim[1]:
            return claim if self.database.presence.alive(claim[0].partition("-")[0]) else None
        return None

    def release(self, name: str, token: str, outcome: bytes | None) -> None:
        self._unreleased[token] = name, outcome
        try:
            self.said(lambda connection: None)
        except Exception:
            # Said later; until then the lease is one of this process, which knows better.
            self._unreleased[token] = name, None
            while len(self._unreleased) > MAX_UNRELEASED:
                self._unreleased.pop(next(iter(self._unreleased)), None)

    def said(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """Write a step after what could not be said before: which leases have ended."""
        unreleased = dict(self._unreleased)

        def both(connection: sqlite3.Connection) -> T:
            for token, (name, outcome) in unreleased.items():
                if (_get(connection, "lease", name) or [token])[0] == token:
                    drop(connection, "lease", name)
                if outcome is not None:
                    content = outcome.decode("latin-1")
                    _set(connection, "outcome", token, content, MAX_OUTCOMES)
            return step(connection)

        result = self.database.write(both)
        for token in unreleased:
            self._unreleased.pop(token, None)
        return result

    def outcome(self, token: str) -> bytes | None:
        found = self._ask("outcome", token)
        return None if found is None else found.encode("latin-1")

    def _ask(self, kind: str, name: str) -> t.Any:
        return self.database.read(lambda connection: _get(connection, kind, name))

    # Failures.

    def failure(self, name: str) -> Failure | None:
        found = self._ask("failure", name)
        return Failure(*found) if found else None

    def set_failure(self, name: str, failure: Failure | None) -> None:
        if failure is not None:
            self.database.write(lambda c: _set(c, "failure", name, failure, MAX_FAILURES))
        elif self.failure(name) is not None:
            self.database.write(lambda connection: drop(connection, "failure", name))

    def failures(self) -> Iterator[tuple[str, Failure]]:
        for name, found in self.database.read(lambda connection: _all(connection, "failure")):
            if found:
                yield name, Failure(*found)

    # Wanted pages: of each a claim, as that of a lease, and its data.

    def want(self, build: str, wanted: Wanted) -> bool:
        kind = f"wanted {build}"

        def there(connection: sqlite3.Connection) -> bool | None:
            if not self._valid(_get(connection, "taker", build)):
                return None
            return _get(connection, kind, wanted.name) is not None

        def step(connection: sqlite3.Connection) -> None:
            if not there(connection) and _count(connection, kind) < MAX_WANTED:
                _set(connection, kind, wanted.name, ["", 0, wanted.data.decode("latin-1")])

        found = self.database.read(there)
        if found is False:
            self.database.write(step, 1)
        return found is not None

    def take(self, build: str, seconds: float) -> Wanted | None:
        presence, kind, now = self.database.presence, f"wanted {build}", time.monotonic()

        def sign(connection: sqlite3.Connection) -> None:
            presence.ensure()
            _set(connection, "taker", build, [presence.token, now + ABANDONED])

        def free(connection: sqlite3.Connection) -> tuple[str, str] | None:
            for name, found in _all(connection, kind):
                if found and not self._valid(found):
                    if not self._valid(_get(connection, "lease", name)):
                        return name, found[2]
            return None

        def claim(connection: sqlite3.Connection) -> Wanted | None:
            presence.ensure()
            if (found := free(connection)) is None:
                return None
            name, data = found
            value = seal([presence.token, time.monotonic() + seconds, data], _salt(kind, name))
            # It keeps its place.
            update = "UPDATE notes SET value = ? WHERE kind = ? AND name = ?"
            connection.execute(update, (value, kind, name))
            return Wanted(name, data.encode("latin-1"))

        if now - self._signs.get(build, -SIGN_OF_LIFE) >= SIGN_OF_LIFE:
            self.database.write(sign)
            self._signs[build] = now
        return None if self.database.read(free) is None else self.database.write(claim)

    def done(self, build: str, name: str) -> None:
        self.database.write(lambda connection: drop(connection, f"wanted {build}", name))

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
            return [name for name, one in _all(connection, "build") if one][::-1]

        found = self.database.read(read)
        if build not in found:
            self.database.write(lambda c: _set(c, "build", build, 1, MAX_BUILDS))
            found = self.database.read(read)
        return found[found.index(build) + 1 :]

    def add(self, counts: Mapping[str, float]) -> None:
        self.database.write(lambda connection: add(connection, counts))

    def totals(self) -> dict[str, float]:
        return self.database.read(_totals)

    def minutes(self) -> dict[int, dict[str, float]]:
        rows = self.database.read(lambda connection: _all(connection, "minute"))
        first = time.time() // 60 - MAX_MINUTES
        return {int(name): value for name, value in rows if value and int(name) > first}

    # What happened.

    def log(self, entry: bytes) -> None:
        name, content = secrets.token_hex(8), entry.decode("latin-1")
        self.database.write(lambda c: _set(c, "journal", name, content, MAX_JOURNAL))

    def journal(self) -> list[bytes]:
        rows = self.database.read(lambda connection: _all(connection, "journal"))
        return [entry.encode("latin-1") for _, entry in reversed(rows) if entry is not None]

    def once(self, name: str, seconds: float) -> bool:
        def step(connection: sqlite3.Connection) -> bool:
            asked = _get(connection, "once", name)
            return asked is None or not 0 <= time.time() - asked < seconds

        def ask(connection: sqlite3.Connection) -> bool:
            if is_first := step(connection):
                _set(connection, "once", name, time.time(), MAX_ONCE)
            return is_first

        return self.database.read(step) and self.database.write(ask)

    # Processes.

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        presence = self.database.presence

        def step(connection: sqlite3.Connection) -> None:
            drop(connection, "report", presence.token)
            if process is not None:
                presence.ensure()
                _set(connection, "report", presence.token, dict(process))

        self.database.write(step)

    def processes(self) -> list[dict[str, t.Any]]:
        rows = self.database.read(lambda connection: _all(connection, "report"))
        alive = [data for token, data in rows if self.database.presence.alive(token)]
        if len(alive) < len(rows):
            with contextlib.suppress(StoreError):
                self.bury()
        return [data for data in alive if data is not None]

    def bury(self) -> None:
        """Remove what dead processes left."""
        presence = self.database.presence

        def step(connection: sqlite3.Connection) -> None:
            presence.sweep()
            for name, lease in _all(connection, "lease"):
                if not self._valid(lease):
                    drop(connection, "lease", name)
            for token, _ in _all(connection, "report"):
                if not presence.alive(token):
                    drop(connection, "report", token)

        self.database.write(step)
