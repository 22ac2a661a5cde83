"""What a server announces to all processes at once, and which pages count as stored anew."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
import time
import typing as t

#: Names of stored pages that a process remembers; beyond it all pages count as stored anew.
MAX_STORED = 10_000
#: Seconds after which a channel that could not be had is tried again.
RESUBSCRIBE = 2.0


class Channel:
    """A subscription, made again when it is lost. One thread uses it.

    Without one, because it is forbidden or a connection too much, there are no announcements.

    :param client: of redis-py or valkey-py.
    """

    def __init__(self, client: t.Any, name: str) -> None:
        self.name = name
        self._client = client
        self._subscription: t.Any = None
        self._not_before = 0.0

    def open(self) -> bool:
        """Whether there will be announcements from now on."""
        if self._subscription is None and time.monotonic() >= self._not_before:
            try:
                subscription = self._client.pubsub()
                subscription.subscribe(self.name)
                self._subscription = subscription
            except Exception:
                self.close()
        return self._subscription is not None

    def next(self, seconds: float) -> bytes | None:
        """The next announcement; ``None`` if there was none, or the subscription is lost."""
        if self._subscription is None:
            time.sleep(seconds)
            return None
        try:
            message = self._subscription.get_message(timeout=seconds)
        except Exception:
            self.close()
            return None
        if message is None or message["type"] != "message":
            return None
        data: bytes = message["data"]
        return data

    def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._not_before = time.monotonic() + RESUBSCRIBE
        with contextlib.suppress(Exception):
            if subscription is not None:
                subscription.close()


class StoredPages:
    """Which pages others have stored while this process looked; where it did not: any.

    The server counts stored pages, so that a process knows when it was not told of one.

    :param signal: its second number changes when any page may have been stored.
    """

    def __init__(self, signal: list[int], marks: itertools.count[int]) -> None:
        #: Tells the pages of this process from others'.
        self.me = secrets.token_hex(8)
        self._signal = signal
        self._marks = marks
        self._pages: dict[str, int] = {}
        self._count = 0
        self._lock = threading.Lock()

    def mark(self, name: str) -> object:
        """What changes when a page is stored by somebody else."""
        return self._pages.get(name, self._signal[1])

    def here(self, count: int) -> None:
        """Count a page that this process has stored, for which it is no news."""
        with self._lock:
            if count == self._count + 1:
                self._count = count

    def announced(self, count: int, who: str, name: str) -> None:
        with self._lock:
            missing = count > self._count + 1
            self._count = max(self._count, count)
            if missing or len(self._pages) >= MAX_STORED:
                self._any()
            elif who != self.me:
                self._pages[name] = next(self._marks)

    def catch_up(self, count: int) -> None:
        """See whether announcements were missed by now."""
        with self._lock:
            if count > self._count:
                self._count = count
                self._any()

    def begin(self, count: int) -> None:
        """Count from there on: the server counts anew."""
        with self._lock:
            self._count = count
            self._any()

    def _any(self) -> None:
        self._pages = {}
        self._signal[1] = next(self._marks)
