"""`RedisStore`: pages and their order on a Redis or Valkey server, for any number of machines.

Whatever has to be one step is a function in ``redis.lua`` beside this file. A process hears of
changes from a channel that the server publishes them on; `RedisStore.changes` stands behind that.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import itertools
import json
import logging
import math
import os
import secrets
import threading
import time
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from urllib.parse import quote

from .. import threads
from ..freshness import Invalidated
from . import protocol
from .clients import close_client
from .clients import connections_of
from .clients import database_of
from .clients import is_refusal
from .protocol import Busy
from .protocol import Changes
from .protocol import Failure
from .protocol import Invalidation
from .protocol import Number
from .protocol import Record
from .protocol import Sizes
from .protocol import Stored
from .protocol import StoreError
from .protocol import Validity
from .protocol import Wanted

logger = logging.getLogger("wsgi_isr")

#: Seconds for which a lease outlives its process, and between two extensions.
LEASE, BEAT = 3.0, 1.0
#: Seconds for which an outcome is there for those who wait.
OUTCOME = 10.0
#: Seconds for which a release that failed is said again.
RETRY = 60.0
#: Seconds for which a page is kept; `volatile-lru` evicts only what has a time to live.
RETENTION = 10 * 365 * 24 * 3600
#: Bytes of a page that a server takes.
MAX_BODY = 512 * 2**20 - 1
#: Patterns that are found at the same place and matched one by one.
MAX_ALIKE = 100
#: Labels of one step, and pages of one step: each takes the server about a millisecond.
LABELS, PAGES = 200, 40
#: Seconds after its last report from which a process counts as gone.
GONE = 15.0
#: Names of stored pages that a process remembers; beyond it all pages count as stored anew.
MAX_STORED = 10_000
#: Seconds between two measurements of the server's clock, and two attempts to subscribe.
CLOCK, RESUBSCRIBE = 60.0, 0.5
#: Seconds that a thread waits for a connection where all are busy.
PATIENCE = 2.0

_SCRIPT = importlib.resources.files(__package__).joinpath("redis.lua").read_bytes()
_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()
#: Warnings that this process has given.
_said: set[str] = set()


def _encode(label: str) -> bytes:
    """A label as the server has it, without the line feed that separates labels."""
    data = label.encode("utf-8", "surrogatepass")
    return data.replace(b"\x1a", b"\x1aa").replace(b"\n", b"\x1an")


def _decode(data: bytes) -> str:
    data = data.replace(b"\x1an", b"\n").replace(b"\x1aa", b"\x1a")
    return data.decode("utf-8", "surrogatepass")


def _ms(seconds: float) -> int:
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
        self._pid = os.getpid()
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
                raise protocol.ReadOnly(str(error)) from error
            raise
        finally:
            self._connections.release()

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            close_client(client)


class _Lease:
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
        self._leases: set[_Lease] = set()
        #: Leases that are over, which the server has not been able to hear.
        self._over: set[_Lease] = set()
        self._lock = threading.Lock()

    def start(self) -> bool:
        """See to it that there is a thread; false where none would run."""
        with self._lock:
            if not self._beats:
                thread = threading.Thread(target=self._beat, name="wsgi-isr-leases", daemon=True)
                self._beats = threads.start(thread)
            return self._beats

    def add(self, lease: _Lease) -> None:
        with self._lock:
            self._leases.add(lease)

    def release(self, lease: _Lease) -> None:
        with self._lock:
            self._leases.discard(lease)
        if not self._say(lease):
            self.later(lease)

    def later(self, lease: _Lease) -> None:
        """Release a lease that the server may have given, as soon as it answers."""
        lease.deadline = time.monotonic() + RETRY
        with self._lock:
            self._over.add(lease)
        self.start()

    def _say(self, lease: _Lease) -> bool:
        outcome = () if lease.outcome is None else (lease.outcome,)
        term = _ms(OUTCOME)
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
            for lease in leases:
                left = lease.deadline - time.monotonic()
                # Errors pass: the server may be back before the lease has lapsed.
                with contextlib.suppress(Exception):
                    term = _ms(min(LEASE, left))
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


class RedisStore:
    """Nothing is connected before it is needed.

    :param make_client: makes a client of redis-py or valkey-py.
    :param prefix: tells sites on one server apart.
    """

    kind = protocol.Kind("redis", "network", True, True, True, True, True)

    def __init__(self, make_client: Callable[[], t.Any], prefix: str) -> None:
        # A hash tag: in a cluster all keys of the site are on one node.
        tag = quote(prefix.encode("utf-8", "surrogatepass"), safe=":/@.-") or "%"
        self._server = Server(make_client, f"{{{tag}}}")
        self._call = self._server.call
        self._heart = Heart(self._server)
        weakref.finalize(self, self._heart.end)
        # Not from 0: another object's numbers may have been remembered before a fork.
        self._next = itertools.count(secrets.randbits(62)).__next__
        self.signal = [self._next(), self._next()]
        self._lock = threading.RLock()
        self._lineage, self._run, self._seen, self._changed = "", "", 0, -1
        self._folding = False
        # How many pages were stored: that the server said, and that this process heard of.
        self._stores = self._heard = 0
        self._pages: dict[str, int] = {}
        self._all_pages = self._next()
        self._listening: t.Any = None
        self._subscribe_at = self._listened = 0.0
        self._offset, self._measure_at = 0.0, 0.0
        self._advised = self._reported = False

    # The order, as this process knows it.

    def _order(self, step: str, *args: object) -> t.Any:
        """Run a step that depends on the order; returns its answer and its place there."""
        with self._lock:
            known = (self._lineage, self._seen, self._run)
        answer = self._call(step, *args, known=known)
        lineage, run = answer[0].decode(), answer[1].decode()
        sequence, changed, stores = map(int, answer[2:5])
        with self._lock:
            if lineage != self._lineage and self._lineage == known[0]:
                if known[0]:
                    logger.warning("the server has lost the order of pages: all count as stale")
                self._lineage, self._seen, self._changed = lineage, 0, -1
                self._heard = stores
                self._any_page()
            # Answers overtake each other, and one may be from before a new lineage.
            if lineage == self._lineage:
                if sequence >= self._seen:
                    self._seen, self._run, self._stores = sequence, run, stores
                if changed > self._changed:
                    self._changed = changed
                    self.signal[0] = self._next()
                self._folding = bool(answer[5])
        return answer[6], Number(lineage, sequence), Number(lineage, changed)

    def number(self) -> Number:
        return t.cast(Number, self._order("number")[1])

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        number = Number("", 0)
        bounds = (protocol.MAX_LABELS, protocol.MAX_HISTORY, MAX_ALIKE)
        for first in range(0, len(labels), LABELS):
            some = map(_encode, labels[first : first + LABELS])
            number = self._order("invalidate", int(expire), *bounds, *some)[1]
            if self._folding:
                # Whoever invalidates works off what that makes necessary.
                self._order("fold", PAGES)
        return number

    def changes(self, since: Number) -> Changes:
        found, _, at = self._order("changes", since.lineage, since.sequence)
        if time.monotonic() - self._listened > 2:
            self._catch_up(self._stores)
        if found is None:
            return Changes(at, False, ())
        parts = (item.partition(b" ") for item in found)
        invalidations = (
            Invalidation(_decode(rest[1:]), int(number), rest[:1] == b"1")
            for number, _, rest in parts
        )
        return Changes(at, True, tuple(invalidations))

    # Pages.

    def get(self, name: str) -> Stored | None:
        page, _, at = self._order("get", name)
        return None if page is None else _stored(name, page[:8], page[8], page[9], page[10], at)

    def put(self, record: Record) -> Validity | None:
        if len(record.body) > MAX_BODY:
            raise protocol.TooLarge(f"the page has {len(record.body)} bytes")
        labels = b"\n".join(map(_encode, record.labels))
        path = record.path.encode("latin-1", "replace")
        number = (record.number.sequence, record.number.lineage)
        text = record.build.encode("utf-8", "surrogatepass")
        rest = (text, path, int(record.gone), record.head, record.body, RETENTION)
        judged, _, at = self._order("put", record.name, labels, *number, *rest)
        if judged is None:
            return None
        self._stored_here(record.name)
        return Validity(Invalidated(judged), at)

    def delete(self, name: str) -> None:
        self._order("delete", name)
        self._stored_here(name)

    def records(self, *, build: str | None = None, path: str | None = None) -> Iterator[Stored]:
        low: bytes | str = "-"
        high: bytes | str = "+"
        if path is not None:
            start = path.encode("latin-1", "replace")
            low, high = b"[" + start + b"\0", b"(" + start + b"\1"
        own = b"*" if build is None else b"=" + build.encode("utf-8", "surrogatepass")
        while low:
            (low, rows), _, at = self._order("list", low, high, PAGES, own)
            for name, page in rows:
                yield _stored(name.decode(), page[:8], page[8], b"", page[9], at)

    def used(self, names: Iterable[str]) -> None:
        names = list(names)
        for first in range(0, len(names), 1000):
            self._call("used", *names[first : first + 1000])

    def stored(self, name: str) -> object:
        return self._pages.get(name, self._all_pages)

    def _stored_here(self, name: str) -> None:
        with self._lock:
            # The announcement of it is no news; if others come between, they are announced too.
            if self._stores == self._heard + 1:
                self._heard = self._stores
            self._page(name)

    def _page(self, name: str) -> None:
        if name == "*" or len(self._pages) >= MAX_STORED:
            return self._any_page()
        self._pages[name] = self.signal[1] = self._next()

    def _any_page(self) -> None:
        self._pages = {}
        self._all_pages = self.signal[1] = self._next()

    def _catch_up(self, stores: int) -> None:
        """See whether announcements of stored pages were missed by now."""
        with self._lock:
            if stores > self._heard:
                self._heard = stores
                self._any_page()

    def sizes(self) -> Sizes:
        return Sizes(int(self._call("sizes")), None)

    def prune(
        self,
        *,
        max_pages: int | None = None,
        max_bytes: int | None = None,
        keep_builds: Sequence[str] | None = None,
        everything: bool = False,
    ) -> int:
        removed, cursor = 0, b"0"
        while everything:
            (cursor, some), _, _ = self._order("clear", cursor)
            removed += some
            if cursor == b"0":
                self._any_page()
                return removed
        keep = None if keep_builds is None else {_bytes(build) for build in keep_builds}
        doomed, pages, low = [], [], b"-"
        while low:
            (low, rows), _, _ = self._order("measure", low, 5 * PAGES)
            for name, build, gone, idle, size in rows:
                if keep is not None and build not in keep:
                    doomed.append(name)
                else:
                    pages.append((gone == b"1", idle, size, name))
        # What was used last comes first, and what is gone comes last.
        pages.sort(key=lambda page: page[:2])
        room = math.inf if max_bytes is None else max_bytes
        for place, (_, _, size, name) in enumerate(pages):
            room -= size
            if room < 0 or (max_pages is not None and place >= max_pages):
                doomed.append(name)
        for first in range(0, len(doomed), PAGES):
            removed += self._order("delete", *doomed[first : first + PAGES])[0]
        if doomed:
            self._any_page()
        return removed

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> _Lease | Busy:
        lease = _Lease(name, seconds, demanded, self._heart)
        # Where nobody would extend it: rather a killed process in the way than two renders.
        term = min(LEASE if self._heart.start() else 60.0, seconds)
        try:
            other = self._call("lease", name, lease.token, _ms(term), int(demanded))
        except protocol.ReadOnly:
            raise
        except Exception:
            # A server that was too slow may have given it.
            self._heart.later(lease)
            raise
        if other is not None:
            return Busy(other.decode(errors="replace"))
        self._heart.add(lease)
        return lease

    def outcome(self, token: str) -> bytes | None:
        return t.cast("bytes | None", self._call("outcome", token))

    def failure(self, name: str) -> Failure | None:
        return _failure(self._call("failure", name))

    def set_failure(self, name: str, failure: Failure | None) -> None:
        left = () if failure is None else (json.dumps(failure), protocol.MAX_FAILURES)
        self._call("set_failure", name, *left)

    def failures(self) -> Iterator[tuple[str, Failure]]:
        for name, left in self._scan("failures"):
            failure = _failure(left)
            if failure is not None:
                yield name.decode(errors="replace"), failure

    def _scan(self, step: str) -> Iterator[tuple[bytes, bytes]]:
        cursor, seen = b"0", set()
        while True:
            cursor, flat = self._call(step, cursor)
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                # A scan may give a name twice.
                if name not in seen:
                    seen.add(name)
                    yield name, value
            if cursor == b"0":
                return

    # Wanted pages.

    def want(self, build: str, wanted: Wanted) -> bool:
        args = (_bytes(build), wanted.name, wanted.data, protocol.MAX_WANTED)
        return bool(self._call("want", *args))

    def take(self, build: str, seconds: float) -> Wanted | None:
        found = self._call("take", _bytes(build), _ms(seconds), _ms(protocol.ABANDONED))
        return None if found is None else Wanted(found[0].decode(errors="replace"), found[1])

    def done(self, build: str, name: str) -> None:
        self._call("done", _bytes(build), name)

    # What exists, and what was counted.

    def list_path(self, path: str) -> None:
        self._call("list_path", _bytes(path))

    def has_path(self, path: str) -> bool:
        return bool(self._call("has_path", _bytes(path)))

    def builds(self, build: str) -> list[str]:
        before = self._call("builds", _bytes(build), protocol.MAX_BUILDS)
        return [name.decode("utf-8", "surrogatepass") for name in before]

    def add(self, counts: Mapping[str, float]) -> None:
        flat = [word for name, number in counts.items() for word in (name, repr(float(number)))]
        for first in range(0, len(flat), 1000):
            self._call("add", *flat[first : first + 1000])

    def totals(self) -> dict[str, float]:
        flat = self._call("totals")
        totals = {}
        for name, number in zip(flat[::2], flat[1::2], strict=True):
            with contextlib.suppress(ValueError):
                totals[name.decode(errors="replace")] = float(number)
        return totals

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        self._call("report", _ms(GONE), *(() if process is None else (json.dumps(process),)))
        self._reported = process is not None

    def processes(self) -> list[dict[str, t.Any]]:
        found = []
        for left in self._call("processes", _ms(GONE)):
            with contextlib.suppress(ValueError):
                if isinstance(process := json.loads(left or b""), dict):
                    found.append(process)
        return found

    # The process.

    def time(self) -> float:
        if not self._measure_at:
            self._measure()
        return time.time() + self._offset

    def _measure(self) -> None:
        """Measure how far the server's clock is ahead; a server that is away is asked later."""
        self._measure_at = time.monotonic() + CLOCK
        before, began = time.time(), time.monotonic()
        with contextlib.suppress(Exception):
            seconds, micros = map(int, self._call("time"))
            self._offset = seconds + micros / 1e6 - before - (time.monotonic() - began) / 2
            return
        self._measure_at = time.monotonic()

    def listen(self, seconds: float) -> bool:
        before, stores, end = self.signal[0], self._stores, time.monotonic() + seconds
        if time.monotonic() >= self._measure_at:
            self._measure()
        if not self._advised:
            with contextlib.suppress(Exception):
                _advise(self._call("memory").decode())
                self._advised = True
        while self.signal[0] == before and (left := end - time.monotonic()) > 0:
            if self._folding:
                left = min(left, 0.01)
                with contextlib.suppress(Exception):
                    self._order("fold", PAGES)
            self._hear(left)
        self._listened = time.monotonic()
        if self._listened >= end:
            # What has not been announced by now was announced to nobody here.
            self._catch_up(stores)
        return True

    def _hear(self, seconds: float) -> None:
        """Take in ``i`` and the number of an invalidation, or ``s``, count, process and page."""
        try:
            if self._listening is None and time.monotonic() >= self._subscribe_at:
                self._subscribe_at = time.monotonic() + RESUBSCRIBE
                self._server.connect()
                # With connections of its own: where there is one only, others need that.
                client = self._server.make_client()
                subscription = client.pubsub()
                self._listening = subscription, client
                weakref.finalize(self, close_client, client, subscription).atexit = False
                subscription.subscribe(self._server.channel)
            if self._listening is None:
                return time.sleep(seconds)
            message = self._listening[0].get_message(timeout=seconds)
        except Exception:
            return self._stop_listening()
        if message is None:
            return
        with self._lock:
            if message["type"] == "subscribe":
                # Whatever was announced before was not heard.
                self.signal[0] = self._next()
                self._any_page()
                return
            words = str(message["data"][1:], "utf-8", "replace").split(" ", 2)
            if message["data"][:1] == b"i":
                if not words[0].isdecimal() or int(words[0]) > self._changed:
                    self.signal[0] = self._next()
            elif len(words) == 3 and words[0].isdecimal():
                self._heard = max(self._heard, int(words[0]))
                if words[1] != self._server.me:
                    self._page(words[2])

    def _stop_listening(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            close_client(listening[1], listening[0])

    def probe(self) -> None:
        self._order("changes", "", 0)
        self._call("probe")
        self._heart.say_again()
        if time.monotonic() >= self._measure_at:
            self._measure()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if self._reported:
                self.report(None)
        self._heart.end()
        self._stop_listening()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _stored(
    name: str, fields: Sequence[bytes], head: bytes, body: bytes, judged: int, at: Number
) -> Stored:
    labels, sequence, lineage, build, path, gone, *_ = fields
    record = Record(
        name,
        tuple(label.decode("utf-8", "replace") for label in labels.split(b"\n")),
        Number(lineage.decode("utf-8", "replace"), int(sequence)),
        build.decode("utf-8", "replace"),
        path.decode("latin-1"),
        gone == b"1",
        head,
        body,
    )
    return Stored(record, Validity(Invalidated(judged), at))


def _failure(data: bytes | None) -> Failure | None:
    try:
        times, retry_at, error, url, build = json.loads(data or b"")
        return Failure(int(times), float(retry_at), str(error), str(url), str(build))
    except (ValueError, TypeError):
        return None


def _advise(info: str) -> None:
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
