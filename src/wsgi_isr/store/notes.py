"""Small values in the database: the store's notes, and `SQLiteCache` for those of an app.

A claim is a note of a process that ends with it: its locked file is free then.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import logging
import secrets
import time
import typing as t
import zlib
from collections.abc import Callable, Iterator, Mapping
from sqlite3 import Connection

from cachelib import BaseCache

from . import protocol, tables
from .database import Database
from .leases import Lease, Leases
from .protocol import Busy, Failure, StoreError, Wanted
from .tables import seal, unseal

logger = logging.getLogger("wsgi_isr")

#: Outcomes that are kept for those who waited, and names that `Store.once` remembers.
MAX_OUTCOMES, MAX_ONCE = 100, 1000
#: Seconds between two log lines of a `SQLiteCache` that fails.
QUIET = 60.0
#: Seconds between two signs of life of a process of ``regenerate``, and those of a claim for good.
SIGN_OF_LIFE, FOR_GOOD = 1.0, 1e12

_PUT = """INSERT INTO notes (kind, name, value) VALUES (?, ?, ?)
    ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value"""
_TRIM = """DELETE FROM notes WHERE kind = ? AND id <=
    (SELECT id FROM notes WHERE kind = ? ORDER BY id DESC LIMIT 1 OFFSET ?)"""

Timeout: t.TypeAlias = int | datetime.timedelta


def _salt(kind: str, name: str) -> int:
    return zlib.crc32(f"{kind} {name}".encode("utf-8", "surrogatepass"))


def get(connection: Connection, kind: str, name: str) -> t.Any:
    """A value, or ``None`` where it is damaged or not there; bytes come back as latin-1."""
    select = "SELECT value FROM notes WHERE kind = ? AND name = ?"
    row = connection.execute(select, (kind, name)).fetchone()
    return row and unseal(row[0], _salt(kind, name))


def get_all(connection: Connection, kind: str) -> dict[str, t.Any]:
    """Values that are not damaged by their names, the first that came first."""
    select = "SELECT name, value FROM notes WHERE kind = ? ORDER BY id"
    rows = connection.execute(select, (kind,))
    found = {name: unseal(sealed, _salt(kind, name)) for name, sealed in rows}
    return {name: value for name, value in found.items() if value is not None}


def put(connection: Connection, kind: str, name: str, value: t.Any, most: int = 0) -> None:
    """Keep a value, and so many of the kind at most: the oldest go."""
    connection.execute(_PUT, (kind, name, seal(value, _salt(kind, name))))
    if most:
        connection.execute(_TRIM, (kind, kind, most))


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
        claim = self._claim(lease.left, (lease.token, lease.demanded))
        put(connection, "lease", lease.name, claim)
        return lease

    def _claim(self, seconds: float, data: object) -> tuple[str, float, object]:
        """A value of this process, for so long; for one who has the lock of all writers."""
        return self.database.presence.ensure(), time.monotonic() + seconds, data

    def _valid(self, claim: t.Any) -> t.Any:
        """A claim, if its time is not over and its process runs."""
        is_valid = claim and time.monotonic() < claim[1]
        return claim if is_valid and self.database.presence.alive(claim[0]) else None

    def outcome(self, token: str) -> bytes | None:
        found = self.database.read(get, "outcome", token)
        return None if found is None else t.cast(bytes, found.encode("latin-1"))

    def failure(self, name: str) -> Failure | None:
        found = self.database.read(get, "failure", name)
        return found and Failure(*found)

    def set_failure(self, name: str, failure: Failure | None) -> None:
        if failure is not None:
            self.database.write(put, "failure", name, failure, protocol.MAX_FAILURES)
        elif self.failure(name) is not None:
            self.database.write(drop, "failure", name)

    def failures(self) -> Iterator[tuple[str, Failure]]:
        found = self.database.read(get_all, "failure").items()
        return ((name, Failure(*failure)) for name, failure in found)

    # Wanted pages: each is a claim, at first nobody's, with the page's data.

    def want(self, build: str, wanted: Wanted) -> bool:
        found = self.database.read(self._is_wanted, build, wanted.name)
        if found is False:
            claim = ("", 0, wanted.data)
            kind, most = f"wanted {build}", protocol.MAX_WANTED
            self.database.write(put, kind, wanted.name, claim, most, bump=1)
        return found is not None

    def _is_wanted(self, connection: Connection, build: str, name: str) -> bool | None:
        """Whether a page is wanted already; ``None`` where nobody takes it."""
        if not self._valid(get(connection, "taker", build)):
            return None
        return get(connection, f"wanted {build}", name) is not None

    def take(self, build: str, seconds: float) -> Wanted | None:
        now = time.monotonic()
        if now - self._signs.get(build, -SIGN_OF_LIFE) >= SIGN_OF_LIFE:
            term = protocol.ABANDONED
            self.database.write(lambda c: put(c, "taker", build, self._claim(term, None)))
            self._signs[build] = now
        found = self.database.read(self._free, build)
        return found and self.database.write(self._take, build, seconds)

    def _free(self, connection: Connection, build: str) -> Wanted | None:
        for name, wanted in get_all(connection, f"wanted {build}").items():
            if not self._valid(wanted) and not self._valid(get(connection, "lease", name)):
                return Wanted(name, wanted[2].encode("latin-1"))
        return None

    def _take(self, connection: Connection, build: str, seconds: float) -> Wanted | None:
        if found := self._free(connection, build):
            claim = self._claim(seconds, found.data)
            put(connection, f"wanted {build}", found.name, claim)
        return found

    def done(self, build: str, name: str) -> None:
        self.database.write(drop, f"wanted {build}", name)

    # What exists, what was counted, what happened.

    def list_path(self, path: str) -> None:
        if not self.has_path(path):
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
        for entry in entries:
            name = secrets.token_hex(8)
            self.database.write(put, "journal", name, entry, protocol.MAX_JOURNAL)

    def journal(self) -> list[bytes]:
        entries = self.database.read(get_all, "journal").values()
        return [entry.encode("latin-1") for entry in entries][::-1]

    def once(self, name: str, seconds: float) -> bool:
        return self.database.write(_is_first, name, seconds)

    def report(self, process: Mapping[str, t.Any]) -> None:
        self.database.write(self._report, dict(process))

    def _report(self, connection: Connection, process: object) -> None:
        claim = self._claim(FOR_GOOD, process)
        # Named by who made it: a process whose file was replaced is another one.
        put(connection, "report", claim[0], claim)

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
        for kind in ("lease", "report", "taker"):
            for name, claim in get_all(connection, kind).items():
                if not self._valid(claim):
                    drop(connection, kind, name)
        # Pages of builds that nobody renders.
        unwanted = """DELETE FROM notes WHERE kind LIKE 'wanted %'
            AND substr(kind, 8) NOT IN (SELECT name FROM notes WHERE kind = 'taker')"""
        connection.execute(unwanted)


def _release(connection: Connection, lease: Lease) -> None:
    there = get(connection, "lease", lease.name)
    if there and there[2][0] == lease.token:
        drop(connection, "lease", lease.name)
    if lease.outcome is not None:
        put(connection, "outcome", lease.token, lease.outcome, MAX_OUTCOMES)


def _is_first(connection: Connection, name: str, seconds: float) -> bool:
    now = time.time()
    is_first = not 0 <= now - (get(connection, "once", name) or 0) < seconds
    if is_first:
        put(connection, "once", name, now, MAX_ONCE)
    return is_first


class SQLiteCache(BaseCache):
    """A cache that all workers of a machine share, and that outlives them.

    Given as ``cache=``, pages are kept in the same folder. Values are ``None``, texts, bytes,
    numbers, truth values, and lists, tuples and dicts (with text keys) of those: nothing that is
    read can run code.

    :param folder: it is made where it does not exist.
    :param threshold: items that are kept; more make the expired ones go, then the oldest. 0: any.
    :param default_timeout: seconds after which an item expires; 0 for never.

    .. code-block:: python

        cache = SQLiteCache("/var/cache/site")
        app.wsgi_app = ISRMiddleware(app.wsgi_app, cache=cache)
        cache.set("rates", {"EUR": 1.0}, timeout=60)
    """

    def __init__(
        self, folder: str, threshold: int = 10_000, default_timeout: Timeout = 300
    ) -> None:
        super().__init__(default_timeout)
        self._database = Database(folder)
        self.folder = self._database.folder
        self.threshold = threshold
        self._quiet_until = 0.0

    def get(self, key: str) -> t.Any:
        found = self._try(self._database.read, _find, key)
        return found and found[0]

    def has(self, key: str) -> bool:
        return self._try(self._database.read, _find, key) is not None

    def set(self, key: str, value: t.Any, timeout: Timeout | None = None) -> bool:
        return self._keep(key, value, timeout, False)

    def add(self, key: str, value: t.Any, timeout: Timeout | None = None) -> bool:
        return self._keep(key, value, timeout, True)

    def _keep(self, key: str, value: t.Any, timeout: Timeout | None, is_new: bool) -> bool:
        item = (key, self._expires(timeout), dumps(value))
        return bool(self._try(self._database.write, self._put, item, is_new))

    def delete(self, key: str) -> bool:
        return bool(self._try(self._database.write, _delete, "WHERE key = ?", key))

    def clear(self) -> bool:
        """Remove all items, and no page."""
        return self._try(self._database.write, _delete, "") is not None

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add to a number in one step; it expires when it would have."""
        return t.cast("int | None", self._try(self._database.write, self._inc, key, delta))

    def dec(self, key: str, delta: int = 1) -> int | None:
        return self.inc(key, -delta)

    def _put(self, connection: Connection, item: tuple[t.Any, ...], is_new: bool = False) -> bool:
        if is_new and _find(connection, item[0]) is not None:
            return False
        connection.execute("REPLACE INTO items (key, expires, value) VALUES (?, ?, ?)", item)
        (count,) = connection.execute("SELECT count(*) FROM items").fetchone()
        if 0 < self.threshold < count:
            _delete(connection, "WHERE expires <= ?", time.time())
            oldest = "SELECT id FROM items ORDER BY id DESC LIMIT 1 OFFSET ?"
            _delete(connection, f"WHERE id <= ({oldest})", self.threshold)
        return True

    def _inc(self, connection: Connection, key: str, delta: int) -> int:
        value, expires = _find(connection, key) or (0, self._expires(None))
        self._put(connection, (key, expires, dumps(value + delta)))
        return int(value + delta)

    def _expires(self, timeout: Timeout | None) -> float | None:
        seconds: float | datetime.timedelta = self.default_timeout if timeout is None else timeout
        if isinstance(seconds, datetime.timedelta):
            seconds = seconds.total_seconds()
        return None if seconds == 0 else time.time() + seconds

    def _try(self, call: Callable[..., t.Any], *step: t.Any) -> t.Any:
        # As with cachelib's own files, an outage is a miss.
        try:
            return call(*step)
        except StoreError as error:
            if (now := time.time()) >= self._quiet_until:
                self._quiet_until = now + QUIET
                logger.warning("%s: %s", self.folder, error)
            return None


def _find(connection: Connection, key: str) -> tuple[t.Any, float | None] | None:
    """A value and when it expires, if it is there, alive and sound."""
    select = "SELECT value, expires FROM items WHERE key = ? AND ifnull(expires > ?, 1)"
    row = connection.execute(select, (key, time.time())).fetchone()
    found = row and unseal(row[0], parse=_parse)
    return found and (found[0], row[1])


def _delete(connection: Connection, which: str, *values: object) -> int:
    return connection.execute(f"DELETE FROM items {which}", values).rowcount


def dumps(value: t.Any) -> bytes:
    """Its bytes; `TypeError` for what is not one of the values that a `SQLiteCache` keeps."""
    try:
        return seal([_encode(value)])
    except RecursionError:
        raise TypeError("the value is nested too deeply, or contains itself") from None


def _encode(value: t.Any) -> t.Any:
    """JSON that says what JSON has no values for: an object with one member, the type's name."""
    kind = type(value)
    if value is None or kind in (str, bool, float):
        return value
    if kind is int:
        # JSON has no limit, but Python has one for decimal digits.
        return value if value.bit_length() < 64 else {"int": hex(value)}
    if kind is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if kind is list:
        return [_encode(item) for item in value]
    if kind is tuple:
        return {"tuple": [_encode(item) for item in value]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": [[key, _encode(item)] for key, item in value.items()]}
    raise TypeError(
        "a SQLiteCache keeps None, str, bytes, int, float, bool, and lists, tuples and dicts with "
        f"text keys of those, not {kind.__name__}"
    )


def _decode(value: dict[str, t.Any]) -> t.Any:
    ((kind, content),) = value.items()
    if kind == "int":
        return int(content, 16)
    if kind == "bytes":
        return base64.b64decode(content)
    return tuple(content) if kind == "tuple" else dict(content)


_parse = json.JSONDecoder(object_hook=_decode).decode
