"""A Redis or Valkey server as one process uses it: what it is asked for, and what it announces."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import itertools
import logging
import secrets
import threading
import time
import typing as t
import weakref
from collections.abc import Callable, Mapping

from .clients import close_client, connections_of, database_of, is_refusal
from .leases import Lease
from .protocol import ReadOnly, StoreError

logger = logging.getLogger("wsgi_isr")

#: Seconds that a thread waits for a connection where all are busy.
PATIENCE = 2.0
#: Seconds for which an outcome is there for those who wait.
OUTCOME = 10.0
#: Seconds between two attempts to subscribe.
RESUBSCRIBE = 0.5

_SCRIPT = importlib.resources.files(__package__).joinpath("redis.lua").read_bytes()
_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()
#: Warnings that this process has given.
_said: set[str] = set()


def milliseconds(seconds: float) -> int:
    return max(1, int(1000 * seconds))


class Server:
    """It connects when it is first needed.

    :param root: what all keys of the site begin with.
    :param lent: whether the client is somebody else's, who closes it.
    """

    def __init__(self, make_client: Callable[[], t.Any], root: str, lent: bool) -> None:
        self._make_client, self._lent = make_client, lent
        self.root = root
        self.me = secrets.token_hex(8)
        self._client: t.Any = None
        self._connections = threading.BoundedSemaphore()
        self._lock = threading.Lock()
        self.channel = ""
        self.is_alone = True

    def connect(self) -> t.Any:
        with self._lock:
            if self._client is None:
                client = self._make_client()
                # A subscription keeps one; where there is one only, others need it.
                most = connections_of(client)
                self._connections = threading.BoundedSemaphore(max(1, most - 1))
                self.is_alone = most == 1
                # Channels know no databases.
                self.channel = f"{self.root}news:{database_of(client)}"
                self._client = client
            return self._client

    def _ask(self, ask: Callable[[t.Any], t.Any]) -> t.Any:
        """
        :raises ReadOnly: where the server answers, but takes no writes.
        """
        client = self.connect()
        if not self._connections.acquire(timeout=PATIENCE):
            raise StoreError("all connections to the server are busy: raise max_connections")
        try:
            return ask(client)
        except Exception as error:
            if is_refusal(error):
                raise ReadOnly(str(error)) from error
            raise
        finally:
            self._connections.release()

    def step(self, step: str, *args: object, seen: tuple[str, int, str] = ("", 0, "")) -> t.Any:
        """Run a step of the script.

        :param seen: what this process has seen of the order, for steps that depend on it.
        """

        def ask(client: t.Any) -> t.Any:
            own = (step, secrets.token_hex(8), *seen, self.channel, self.me)
            try:
                return client.evalsha(_SHA, 1, f"{self.root}clock", *own, *args)
            except Exception as error:
                if type(error).__name__ != "NoScriptError":
                    raise
                return client.eval(_SCRIPT, 1, f"{self.root}clock", *own, *args)

        return self._ask(ask)

    def do(self, command: str, key: str, *args: object) -> t.Any:
        """Run a command on a key of the site; one of another type under its name makes way."""
        key = self.root + key
        try:
            return self._ask(lambda client: client.execute_command(command, key, *args))
        except Exception as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._ask(lambda client: client.delete(key))
            return self._ask(lambda client: client.execute_command(command, key, *args))

    def extend(self, lease: Lease, seconds: float) -> bool:
        return bool(self.step("extend", lease.name, lease.token, milliseconds(seconds)))

    def end(self, lease: Lease) -> None:
        left = () if lease.outcome is None else (lease.outcome,)
        self.step("release", lease.name, lease.token, milliseconds(OUTCOME), *left)

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None and not self._lent:
            close_client(client)


class News:
    """What happened to the pages of the site, as far as this process heard of it.

    The server counts stored pages, so that a process finds out that it was not told of one.

    :ivar signal: as `Store.signal`.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        # Not from 0: another object's numbers may have been remembered before a fork.
        self._next = itertools.count(secrets.randbits(62)).__next__
        self.signal = [self._next(), self._next()]
        self._lock = threading.Lock()
        #: How many pages were stored or deleted that this process heard of.
        self._heard = 0
        self._subscription: t.Any = None
        self._end: t.Any = None
        self._subscribe_at = 0.0

    def invalidated(self) -> None:
        self.signal[0] = self._next()

    def begin(self, stores: int) -> None:
        """Any page may have changed; from here on count from a number."""
        with self._lock:
            self._heard = stores
            self._stored()

    def catch_up(self, stores: int) -> None:
        """See whether announcements of stored pages were missed by now."""
        if stores > self._heard:
            self.begin(stores)

    def stored_here(self, stores: int) -> None:
        with self._lock:
            # If others come between, they are announced.
            if stores == self._heard + 1:
                self._heard = stores
            self._stored()

    def _stored(self) -> None:
        self.signal[1] = self._next()

    def hear(self, seconds: float, changed: int) -> None:
        """Wait for an announcement; without a subscription, wait.

        :param changed: the last invalidation that this process has taken into account.
        """
        try:
            if self._subscription is None and time.monotonic() >= self._subscribe_at:
                self._subscribe_at = time.monotonic() + RESUBSCRIBE
                self._subscribe()
            if self._subscription is None:
                return time.sleep(seconds)
            message = self._subscription.get_message(timeout=seconds)
        except Exception:
            # Other calls notice that the server is away.
            return self.stop()
        if message is not None:
            self._take_in(message, changed)

    def _subscribe(self) -> None:
        client = self._server.connect()
        if not self._server.is_alone:
            self._subscription = client.pubsub()
            # Its own __del__ may come after that of its socket, which warns.
            self._end = weakref.finalize(self, self._subscription.close)
            self._end.atexit = False
            self._subscription.subscribe(self._server.channel)

    def _take_in(self, message: dict[str, t.Any], changed: int) -> None:
        """Take in ``i`` and the number of an invalidation, or ``s``, count, process and page."""
        with self._lock:
            if message["type"] != "message":
                # It is subscribed, perhaps anew: what was announced before was not heard.
                self.invalidated()
                return self._stored()
            words = str(message["data"][1:], "utf-8", "replace").split(" ", 2)
            if message["data"][:1] == b"i":
                if not words[0].isdecimal() or int(words[0]) > changed:
                    self.invalidated()
            elif len(words) == 3 and words[0].isdecimal():
                self._heard = max(self._heard, int(words[0]))
                if words[1] != self._server.me:
                    self._stored()

    def stop(self) -> None:
        self._subscription = None
        with contextlib.suppress(Exception):
            if self._end is not None:
                self._end()


def advise(found: Mapping[str, str]) -> None:
    """Say once what a server's own configuration keeps the store from promising.

    :param found: what it says of its memory.
    """
    policy = found.get("maxmemory_policy", "volatile-lru")
    if found.get("maxmemory") == "0":
        warning = "the server has no maxmemory: nothing bounds its pages"
    elif policy in ("volatile-lru", "volatile-lfu"):
        return
    elif policy == "noeviction":
        warning = "the server evicts nothing: when it is full, it takes no pages or invalidations"
    else:
        warning = f"the server may evict the order of pages (maxmemory-policy {policy})"
    if warning not in _said:
        _said.add(warning)
        logger.warning("%s; set maxmemory, and maxmemory-policy volatile-lru", warning)
