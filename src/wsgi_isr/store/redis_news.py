"""`News`: what a Redis or Valkey server announces, and which pages count as stored anew."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
import typing as t
import weakref

from .clients import close_client
from .redis_server import Server

#: Names of stored pages that a process remembers; beyond it all pages count as stored anew.
MAX_STORED = 10_000
#: Seconds between two attempts to subscribe.
RESUBSCRIBE = 0.5


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
        self._pages: dict[str, int] = {}
        self._all_pages = self._next()
        #: How many pages were stored or deleted that this process heard of.
        self._heard = 0
        self._subscription: t.Any = None
        self._end: t.Any = None
        self._subscribe_at = 0.0

    def stored(self, name: str) -> int:
        """A number that changes when a page is stored or deleted."""
        return self._pages.get(name, self._all_pages)

    def invalidated(self) -> None:
        self.signal[0] = self._next()

    def begin(self, stores: int) -> None:
        """Any page may have changed; from here on count from a number."""
        with self._lock:
            self._heard = stores
            self._any_page()

    def catch_up(self, stores: int) -> None:
        """See whether announcements of stored pages were missed by now."""
        if stores > self._heard:
            self.begin(stores)

    def stored_here(self, name: str, stores: int) -> None:
        with self._lock:
            # If others come between, they are announced.
            if stores == self._heard + 1:
                self._heard = stores
            self._page(name)

    def _page(self, name: str) -> None:
        if name == "*" or len(self._pages) >= MAX_STORED:
            return self._any_page()
        self._pages[name] = self.signal[1] = self._next()

    def _any_page(self) -> None:
        self._pages = {}
        self._all_pages = self.signal[1] = self._next()

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
        self._server.connect()
        # With connections of its own: where one may be made only, others need that.
        client = self._server.make_client()
        self._subscription = client.pubsub()
        self._end = weakref.finalize(self, close_client, client, self._subscription)
        self._end.atexit = False
        self._subscription.subscribe(self._server.channel)

    def _take_in(self, message: dict[str, t.Any], changed: int) -> None:
        """Take in ``i`` and the number of an invalidation, or ``s``, count, process and page."""
        with self._lock:
            if message["type"] != "message":
                # It is subscribed, perhaps anew: what was announced before was not heard.
                self.invalidated()
                return self._any_page()
            words = str(message["data"][1:], "utf-8", "replace").split(" ", 2)
            if message["data"][:1] == b"i":
                if not words[0].isdecimal() or int(words[0]) > changed:
                    self.invalidated()
            elif len(words) == 3 and words[0].isdecimal():
                self._heard = max(self._heard, int(words[0]))
                if words[1] != self._server.me:
                    self._page(words[2])

    def stop(self) -> None:
        self._subscription = None
        if self._end is not None:
            self._end()
