"""A Redis or Valkey server as one process uses it: its steps, and the leases that it extends.

A lease may last as long as a render, a minute; nobody should wait a minute for a process that was
killed. So the server forgets it after a few seconds, and a thread extends it until then.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import logging
import os
import secrets
import threading
import time
import typing as t
from collections.abc import Callable

from .. import threads
from .clients import close_client, connections_of, database_of, is_refusal
from .protocol import ReadOnly, StoreError

logger = logging.getLogger("wsgi_isr")

#: Seconds for which a lease outlives its process, and between two extensions.
LEASE, BEAT = 3.0, 1.0
#: Seconds for which a lease lasts where no thread extends it.
UNATTENDED = 60.0
#: Seconds for which an outcome is there for those who wait.
OUTCOME = 10.0
#: Seconds for which a release that failed is said again.
RETRY = 60.0
#: Seconds that a thread waits for a connection where all are busy.
PATIENCE = 2.0

_FILES = importlib.resources.files(__package__)
_SCRIPT = b"".join(_FILES.joinpath(f"{name}.lua").read_bytes() for name in ("redis_order", "redis"))
_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()
#: Warnings that this process has given.
_said: set[str] = set()


def milliseconds(seconds: float) -> int:
    return max(1, int(1000 * seconds))


class Server:
    """Runs steps on the server. It connects with the first."""

    def __init__(self, make_client: Callable[[], t.Any], root: str) -> None:
        self.make_client = make_client
        self.root = root
        self.me = secrets.token_hex(8)
        self._client: t.Any = None
        self._connections = threading.BoundedSemaphore()
        self._lock = threading.Lock()
        self.channel = ""

    def connect(self) -> t.Any:
        with self._lock:
            if self._client is None:
                client = self.make_client()
                self._connections = threading.BoundedSemaphore(connections_of(client))
                # Channels know no databases.
                self.channel = f"{self.root}news:{database_of(client)}"
                self._client = client
            return self._client

    def call(self, step: str, *args: object, known: tuple[str, int, str] = ("", 0, "")) -> t.Any:
        """
        :param known: what this process knows of the order, for steps that depend on it.
        :raises ReadOnly: where the server answers, but takes no writes.
        """
        client = self.connect()
        own = (f"{self.root}clock", step, secrets.token_hex(8), *known, self.channel, self.me)
        if not self._connections.acquire(timeout=PATIENCE):
            raise StoreError("all connections to the server are busy: raise max_connections")
        try:
            try:
                return client.evalsha(_SHA, 1, *own, *args)
            except Exception as error:
                if type(error).__name__ != "NoScriptError":
                    raise
                return client.eval(_SCRIPT, 1, *own, *args)
        except Exception as error:
            if is_refusal(error):
                raise ReadOnly(str(error)) from error
            raise
        finally:
            self._connections.release()

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            close_client(client)


class Lease:
    def __init__(self, name: str, seconds: float, demanded: bool, heart: Heart) -> None:
        self.token = secrets.token_hex(8)
        self.name = name
        self.content = f"{self.token}|{int(demanded)}"
        self.deadline = time.monotonic() + seconds
        self.outcome: bytes | None = None
        self._heart = heart

    def release(self, outcome: bytes | None = None) -> None:
        self.outcome = outcome
        self._heart.release(self)


class Heart:
    """Extends the leases of this process, on a thread that is there while there are any."""

    def __init__(self, server: Server) -> None:
        self._call = server.call
        self._close = server.close
        self._pid = os.getpid()
        self._beats = False
        self._leases: set[Lease] = set()
        #: Leases that are over, which the server has not been able to hear.
        self._over: set[Lease] = set()
        self._lock = threading.Lock()

    def start(self) -> bool:
        """See to it that there is a thread; false where none would run."""
        with self._lock:
            if not self._beats:
                thread = threading.Thread(target=self._beat, name="wsgi-isr-leases", daemon=True)
                self._beats = threads.start(thread)
            return self._beats

    def term(self, seconds: float) -> int:
        """Milliseconds for which the server is to keep a lease of so many seconds."""
        # Where nobody would extend it: rather a killed process in the way than two renders.
        return milliseconds(min(LEASE if self.start() else UNATTENDED, seconds))

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.add(lease)

    def release(self, lease: Lease) -> None:
        with self._lock:
            self._leases.discard(lease)
        if not self._say(lease):
            self.later(lease)

    def later(self, lease: Lease) -> None:
        """Release a lease that the server may have given, as soon as it answers."""
        lease.deadline = time.monotonic() + RETRY
        with self._lock:
            self._over.add(lease)
        self.start()

    def _say(self, lease: Lease) -> bool:
        outcome = () if lease.outcome is None else (lease.outcome,)
        term = milliseconds(OUTCOME)
        with contextlib.suppress(Exception):
            self._call("release", lease.name, lease.content, lease.token, term, *outcome)
            return True
        return False

    def say_again(self) -> None:
        """Release what could not be released before; it stops where the server does not answer."""
        for lease in list(self._over):
            if time.monotonic() < lease.deadline and not self._say(lease):
                return
            self._over.discard(lease)

    def _beat(self) -> None:
        idle = 0
        while True:
            time.sleep(BEAT)
            with self._lock:
                leases = list(self._leases)
                idle = 0 if leases or self._over else idle + 1
                if idle > 3:
                    self._beats = False
                    return
            # An error ends the round: the server may be back before the leases have lapsed.
            with contextlib.suppress(Exception):
                for lease in leases:
                    left = lease.deadline - time.monotonic()
                    term = milliseconds(min(LEASE, left))
                    if left <= 0 or not self._call("extend", lease.name, lease.content, term):
                        with self._lock:
                            self._leases.discard(lease)
            self.say_again()

    def end(self) -> None:
        """Give everything back, but not what belongs to the process that forked this one."""
        if self._pid == os.getpid():
            with self._lock:
                leases, self._leases = self._leases, set()
            with contextlib.suppress(Exception):
                all(self._say(lease) for lease in leases | self._over)
        with contextlib.suppress(Exception):
            self._close()


def advise(info: str) -> None:
    """Say once what a server's own configuration keeps the store from promising."""
    found = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    policy = found.get("maxmemory_policy", "")
    warning = ""
    if "maxmemory" not in found or policy in ("volatile-lru", "volatile-lfu"):
        if found.get("maxmemory") == "0":
            warning = "the server has no maxmemory: nothing bounds its pages"
    elif found["maxmemory"] == "0":
        warning = "the server has no maxmemory: nothing bounds its pages"
    elif policy == "noeviction":
        warning = "the server evicts nothing: when it is full, it takes no pages or invalidations"
    else:
        warning = f"the server may evict the order of pages (maxmemory-policy {policy})"
    if warning and warning not in _said:
        _said.add(warning)
        logger.warning("%s; set maxmemory, and maxmemory-policy volatile-lru", warning)
