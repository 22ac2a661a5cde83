"""`SQLiteCache`: a cachelib cache in the database of the embedded store."""

from __future__ import annotations

import base64
import datetime
import logging
import time
import typing as t
from collections.abc import Callable
from sqlite3 import Connection

from cachelib import BaseCache

from .database import Database
from .protocol import StoreError
from .tables import seal, unseal

logger = logging.getLogger("wsgi_isr")

Timeout: t.TypeAlias = int | datetime.timedelta
Item: t.TypeAlias = tuple[str, float | None, bytes]


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
        found = self._try(self._database.read, _find, key)
        return found and found[0]

    def has(self, key: str) -> bool:
        return self._try(self._database.read, _find, key) is not None

    def set(self, key: str, value: t.Any, timeout: Timeout | None = None) -> bool:
        item = (key, self._expires(timeout), dumps(value))
        return bool(self._try(self._database.write, self._put, item))

    def add(self, key: str, value: t.Any, timeout: Timeout | None = None) -> bool:
        item = (key, self._expires(timeout), dumps(value))
        return bool(self._try(self._database.write, self._add, item))

    def delete(self, key: str) -> bool:
        return bool(self._try(self._database.write, _delete, "WHERE key = ?", key))

    def clear(self) -> bool:
        """Remove all items, and no page."""
        return self._try(self._database.write, _delete, "") is not None

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add to a number in one step; it expires when it would have."""
        found = self._try(self._database.write, self._inc, key, delta)
        return t.cast("int | None", found)

    def dec(self, key: str, delta: int = 1) -> int | None:
        return self.inc(key, -delta)

    def _put(self, connection: Connection, item: Item) -> bool:
        connection.execute("REPLACE INTO items (key, expires, value) VALUES (?, ?, ?)", item)
        count = "SELECT count(*) FROM items"
        if 0 < self.threshold < connection.execute(count).fetchone()[0]:
            _delete(connection, "WHERE expires <= ?", time.time())
            over = connection.execute(count).fetchone()[0] - self.threshold
            oldest = "SELECT id FROM items ORDER BY id LIMIT ?"
            _delete(connection, f"WHERE id IN ({oldest})", max(0, over))
        return True

    def _add(self, connection: Connection, item: Item) -> bool:
        return _find(connection, item[0]) is None and self._put(connection, item)

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
        """What a step gives; as with cachelib's own files, an outage is a miss."""
        try:
            return call(*step)
        except StoreError as error:
            logger.warning("%s: %s", self.folder, error)
            return None


def _find(connection: Connection, key: str) -> tuple[t.Any, float | None] | None:
    """A value and when it expires, if it is there, alive and sound."""
    select = "SELECT value, expires FROM items WHERE key = ? AND ifnull(expires > ?, 1)"
    row = connection.execute(select, (key, time.time())).fetchone()
    value = row and unseal(row[0])
    return None if value is None else (_decode(value[0]), row[1])


def _delete(connection: Connection, which: str, *values: object) -> int:
    return connection.execute(f"DELETE FROM items {which}", values).rowcount


# The serializer.


def dumps(value: t.Any) -> bytes:
    """
    :raises TypeError: for what is not one of the values that a `SQLiteCache` keeps.
    """
    try:
        return seal([_encode(value)])
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
