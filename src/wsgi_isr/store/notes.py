"""Leases, failures, wanted pages, processes, lists and totals: small values in one table.

Each process has a locked file. A claim of a process whose lock is free is that of a dead one, and
ends at once.
"""

from __future__ import annotations

import contextlib
import secrets
import time
import typing as t
import zlib
from collections.abc import Iterable, Iterator, Mapping
from sqlite3 import Connection

from . import protocol, tables
from .database import Database
from .leases import Lease, Leases
from .protocol import Busy, Failure, StoreError, Wanted
from .tables import seal, unseal

#: Outcomes that are kept for those who waited, and names that `Store.once` remembers.
MAX_OUTCOMES, MAX_ONCE = 100, 1000
#: Seconds between two signs of life of a process of ``regenerate``, and those of a claim for good.
SIGN_OF_LIFE, FOR_GOOD = 1.0, 1e12


def _salt(kind: str, name: str) -> int:
    return zlib.crc32(f"{kind} {name}".encode("utf-8", "surrogatepass"))


def get(connection: Connection, kind: str, name: str) -> t.Any:
    """A value, or ``None`` where it is damaged or not there."""
    select = "SELECT value FROM notes WHERE kind = ? AND name = ?"
    row = connection.execute(select, (kind, name)).fetchone()
    return row and unseal(row[0], _salt(kind, name))


def each(connection: Connection, kind: str) -> Iterator[tuple[str, t.Any]]:
    """Names and values that are not damaged, the first that came first."""
    select = "SELECT name, value FROM notes WHERE kind = ? ORDER BY id"
    for name, sealed in connection.execute(select, (kind,)):
        if (value := unseal(sealed, _salt(kind, name))) is not None:
            yield name, value


def get_all(connection: Connection, kind: str) -> dict[str, t.Any]:
    return dict(each(connection, kind))


def put(connection: Connection, kind: str, name: str, value: t.Any, most: int = 0) -> None:
    """
    :param most: that are kept of the kind; the oldest go.
    """
    insert = "INSERT INTO notes (kind, name, value) VALUES (?, ?, ?)"
    update = "ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value"
    connection.execute(f"{insert} {update}", (kind, name, seal(value, _salt(kind, name))))
    if most and (over := _count(connection, kind) - most) > 0:
        oldest = "SELECT id FROM notes WHERE kind = ? ORDER BY id LIMIT ?"
        connection.execute(f"DELETE FROM notes WHERE id IN ({oldest})", (kind, over))


def _count(connection: Connection, kind: str) -> int:
    count = "SELECT count(*) FROM notes WHERE kind = ?"
    return int(connection.execute(count, (kind,)).fetchone()[0])


def drop(connection: Connection, kind: str, name: str) -> None:
    connection.execute("DELETE FROM notes WHERE kind = ? AND name = ?", (kind, name))


def add(connection: Connection, counts: Mapping[str, float]) -> None:
    """Add to the totals, and keep those of a minute that begins."""
    totals = get(connection, "totals", "") or {}
    totals |= {name: totals.get(name, 0) + count for name, count in counts.items()}
    put(connection, "totals", "", totals)
    minute = str(int(time.time() // 60))
    if counts and get(connection, "minute", minute) is None:
        put(connection, "minute", minute, totals, protocol.MAX_MINUTES)


def _is_first(connection: Connection, name: str, seconds: float) -> bool:
    now = time.time()
    is_first = not 0 <= now - (get(connection, "once", name) or 0) < seconds
    if is_first:
        put(connection, "once", name, now, MAX_ONCE)
    return is_first


class Notes:
    """The steps of a store that concern neither pages nor their order."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.leases = Leases(None, lambda lease: database.write(_release, lease))
        self._signs: dict[str, float] = {}

    # Claims: leases and what else ends with its time or its process.

    def lease(self, name: str, seconds: float, demanded: bool) -> Lease | Busy:
        self.leases.say_again()
        return self.database.write(self._lease, Lease(self.leases, name, seconds, demanded))

    def _lease(self, connection: Connection, lease: Lease) -> Lease | Busy:
        if there := self._valid(get(connection, "lease", lease.name)):
            token, is_demanded = there[2]
            if is_demanded or not lease.demanded:
                return Busy(token)
        data = (lease.token, lease.demanded)
        self._claim(connection, "lease", lease.name, lease.left, data)
        return lease

    def _claim(
        self, connection: Connection, kind: str, name: str, seconds: float, data: t.Any
    ) -> None:
        presence = self.database.presence
        presence.ensure()
        claim = (presence.token, time.monotonic() + seconds, data)
        put(connection, kind, name, claim)

    def _valid(self, claim: t.Any) -> t.Any:
        """A claim, if its time is not over and its process runs."""
        if claim and time.monotonic() < claim[1] and self.database.presence.alive(claim[0]):
            return claim
        return None

    def outcome(self, token: str) -> bytes | None:
        found = self.database.read(get, "outcome", token)
        return None if found is None else t.cast(bytes, found.encode("latin-1"))

    # Failures.

    def failure(self, name: str) -> Failure | None:
        found = self.database.read(get, "failure", name)
        return found and Failure(*found)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        if failure is not None:
            self.database.write(put, "failure", name, failure, protocol.MAX_FAILURES)
        elif self.failure(name) is not None:
            self.database.write(drop, "failure", name)

    def failures(self) -> Iterator[tuple[str, Failure]]:
        found = self.database.read(get_all, "failure")
        return ((name, Failure(*failure)) for name, failure in found.items())

    # Wanted pages: each is a claim, at first nobody's, with the page's data.

    def want(self, build: str, wanted: Wanted) -> bool:
        found = self.database.read(self._is_wanted, build, wanted.name)
        if found is False:
            self.database.write(self._want, build, wanted, bump=1)
        return found is not None

    def _is_wanted(self, connection: Connection, build: str, name: str) -> bool | None:
        """Whether a page is wanted already; ``None`` where nobody takes it."""
        if not self._valid(get(connection, "taker", build)):
            return None
        return get(connection, f"wanted {build}", name) is not None

    def _want(self, connection: Connection, build: str, wanted: Wanted) -> None:
        (name, data), kind = wanted, f"wanted {build}"
        there = self._is_wanted(connection, build, name)
        if not there and _count(connection, kind) < protocol.MAX_WANTED:
            put(connection, kind, name, ["", 0, data.decode("latin-1")])

    def take(self, build: str, seconds: float) -> Wanted | None:
        now = time.monotonic()
        if now - self._signs.get(build, -SIGN_OF_LIFE) >= SIGN_OF_LIFE:
            self.database.write(self._claim, "taker", build, protocol.ABANDONED, None)
            self._signs[build] = now
        found = self.database.read(self._free, build)
        return found and self.database.write(self._take, build, seconds)

    def _free(self, connection: Connection, build: str) -> Wanted | None:
        for name, wanted in each(connection, f"wanted {build}"):
            if not self._valid(wanted) and not self._valid(get(connection, "lease", name)):
                return Wanted(name, wanted[2].encode("latin-1"))
        return None

    def _take(self, connection: Connection, build: str, seconds: float) -> Wanted | None:
        if found := self._free(connection, build):
            data = found.data.decode("latin-1")
            self._claim(connection, f"wanted {build}", found.name, seconds, data)
        return found

    def done(self, build: str, name: str) -> None:
        self.database.write(drop, f"wanted {build}", name)

    # What exists, what was counted, what happened.

    def list_path(self, path: str) -> None:
        if not self.database.read(tables.has_path, path):
            self.database.write(tables.list_path, path)

    def has_path(self, path: str) -> bool | None:
        return self.database.read(tables.has_path, path)

    def builds(self, build: str) -> list[str]:
        if build not in self.database.read(get_all, "build"):
            self.database.write(put, "build", build, 1, protocol.MAX_BUILDS)
        names = list(self.database.read(get_all, "build"))
        return names[: names.index(build)][::-1]

    def add(self, counts: Mapping[str, float]) -> None:
        self.database.write(add, counts)

    def totals(self) -> dict[str, float]:
        return self.database.read(get, "totals", "") or {}

    def minutes(self) -> dict[int, dict[str, float]]:
        first = time.time() // 60 - protocol.MAX_MINUTES
        found = self.database.read(get_all, "minute").items()
        return dict(sorted((int(name), sums) for name, sums in found if int(name) > first))

    def log(self, *entries: bytes) -> None:
        self.database.write(_log, entries)

    def journal(self) -> list[bytes]:
        entries = self.database.read(get_all, "journal").values()
        return [entry.encode("latin-1") for entry in entries][::-1]

    def once(self, name: str, seconds: float) -> bool:
        return self.database.write(_is_first, name, seconds)

    # Processes.

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        token = self.database.presence.token
        if process is None:
            self.database.write(drop, "report", token)
        else:
            self.database.write(self._claim, "report", token, FOR_GOOD, dict(process))

    def processes(self) -> list[dict[str, t.Any]]:
        reports = self.database.read(get_all, "report").values()
        alive = [report[2] for report in reports if self._valid(report)]
        if len(alive) < len(reports):
            with contextlib.suppress(StoreError):
                self.database.write(self.bury)
        return alive

    def bury(self, connection: Connection) -> None:
        """Remove what dead processes left."""
        self.database.presence.sweep()
        for kind in ("lease", "report"):
            for name, claim in get_all(connection, kind).items():
                if not self._valid(claim):
                    drop(connection, kind, name)


def _log(connection: Connection, entries: Iterable[bytes]) -> None:
    for entry in entries:
        name, content = secrets.token_hex(8), entry.decode("latin-1")
        put(connection, "journal", name, content, protocol.MAX_JOURNAL)


def _release(connection: Connection, lease: Lease) -> None:
    there = get(connection, "lease", lease.name)
    if there and there[2][0] == lease.token:
        drop(connection, "lease", lease.name)
    if lease.outcome is not None:
        put(connection, "outcome", lease.token, lease.outcome.decode("latin-1"), MAX_OUTCOMES)
