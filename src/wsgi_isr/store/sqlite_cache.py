"""`SQLiteCache`: a cachelib cache in the database of the embedded store."""

from __future__ import annotations

import base64
import datetime
import json
import logging
import sqlite3
import time
import typing as t
from collections.abc import Callable

from cachelib import BaseCache

from .database import Database
from .protocol import StoreError
from .schema import pack
from .schema import unpack

logger = logging.getLogger("wsgi_isr")

T = t.TypeVar("T")
Timeout: t.TypeAlias = int | datetime.timedelta
_LIVE = "key = ? AND (expires IS NULL OR expires > ?)"


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

    def get(self, key: str) -> t.Any:
        def step(connection: sqlite3.Connection) -> t.Any:
            found = _find(connection, key)
            return None if found is None else found[0]

        return self._ask(lambda: self._database.read(step), None)

    def has(self, key: str) -> bool:
        return self._ask(
            lambda: self._database.read(lambda connection: _find(connection, key) is not None),
            False,
        )

    def set(self, key: str, value: t.Any, timeout: Timeout | None = None) -> bool:
        return self._store(key, value, timeout, replace=True)

    def add(self, key: str, value: t.Any, timeout: Timeout | None = None) -> bool:
        return self._store(key, value, timeout, replace=False)

    def _store(self, key: str, value: t.Any, timeout: Timeout | None, replace: bool) -> bool:
        data, expires = dumps(value), self._expires(timeout)

        def step(connection: sqlite3.Connection) -> bool:
            if not replace and _find(connection, key) is not None:
                return False
            self._write(connection, key, data, expires)
            return True

        return self._ask(lambda: self._database.write(step), False)

    def _write(
        self, connection: sqlite3.Connection, key: str, data: bytes, expires: float | None
    ) -> None:
        connection.execute(
            "REPLACE INTO items (key, expires, value) VALUES (?, ?, ?)", (key, expires, pack(data))
        )
        count = "SELECT count(*) FROM items"
        if 0 < self.threshold < connection.execute(count).fetchone()[0]:
            connection.execute("DELETE FROM items WHERE expires <= ?", (time.time(),))
            over = connection.execute(count).fetchone()[0] - self.threshold
            oldest = "SELECT id FROM items ORDER BY id LIMIT ?"
            connection.execute(f"DELETE FROM items WHERE id IN ({oldest})", (max(0, over),))

    def delete(self, key: str) -> bool:
        def step(connection: sqlite3.Connection) -> bool:
            return connection.execute("DELETE FROM items WHERE key = ?", (key,)).rowcount > 0

        return self._ask(lambda: self._database.write(step), False)

    def clear(self) -> bool:
        """Remove all items, and no page."""

        def step(connection: sqlite3.Connection) -> bool:
            connection.execute("DELETE FROM items")
            return True

        return self._ask(lambda: self._database.write(step), False)

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add to a number in one step; it expires when it would have."""

        def step(connection: sqlite3.Connection) -> int:
            found = _find(connection, key)
            value, expires = (0, self._expires(None)) if found is None else found
            total: int = value + delta
            self._write(connection, key, dumps(total), expires)
            return total

        return self._ask(lambda: self._database.write(step), None)

    def dec(self, key: str, delta: int = 1) -> int | None:
        return self.inc(key, -delta)

    def _expires(self, timeout: Timeout | None) -> float | None:
        seconds: float | datetime.timedelta = self.default_timeout if timeout is None else timeout
        if isinstance(seconds, datetime.timedelta):
            seconds = seconds.total_seconds()
        return None if seconds == 0 else time.time() + seconds

    def _ask(self, step: Callable[[], T], otherwise: T) -> T:
        """What a step gives; as with cachelib's own files, an outage is a miss."""
        try:
            return step()
        except StoreError as error:
            logger.warning("%s: %s", self.folder, error)
            return otherwise


def _find(connection: sqlite3.Connection, key: str) -> tuple[t.Any, float | None] | None:
    """A value and when it expires, if it is there, alive and sound."""
    select = f"SELECT value, expires FROM items WHERE {_LIVE}"
    row = connection.execute(select, (key, time.time())).fetchone()
    content = row and unpack(row[0])
    return None if content is None else (_decode(json.loads(content)), row[1])


# The serializer.


def dumps(value: t.Any) -> bytes:
    """
    :raises TypeError: for what is not one of the values that a `SQLiteCache` keeps.
    """
    try:
        return json.dumps(_encode(value)).encode()
    except RecursionError:
        raise TypeError("the value is nested too deeply, or contains itself") from None


def _encode(value: t.Any) -> t.Any:
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


def _decode(value: t.Any) -> t.Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "int":
        return int(content, 16)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "tuple":
        return tuple(_decode(item) for item in content)
    return {key: _decode(item) for key, item in content}
