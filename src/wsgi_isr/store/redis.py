"""`RedisStore`: pages and their order on a Redis or Valkey server, for any number of machines.

Whatever has to be one step is a function in ``redis.lua`` beside this file. A process hears of
changes from a channel that the server publishes them on; `RedisStore.changes` stands behind that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
import typing as t
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote

from ..freshness import Invalidated
from . import protocol
from .protocol import (
    Busy,
    Changes,
    Failure,
    Invalidation,
    Number,
    Record,
    Sizes,
    Stored,
    Validity,
    Wanted,
)
from .redis_news import News
from .redis_server import Heart, Lease, Server, advise, milliseconds

logger = logging.getLogger("wsgi_isr")

#: Seconds for which a page is kept; `volatile-lru` evicts only what has a time to live.
RETENTION = 10 * 365 * 24 * 3600
#: Bytes of a page that a server takes.
MAX_BODY = 512 * 2**20 - 1
#: Patterns that are found at the same place and matched one by one.
MAX_ALIKE = 100
#: Labels of one step, and pages of one step: each takes the server about a millisecond.
LABELS, PAGES = 100, 25
#: Seconds after its last report from which a process counts as gone.
GONE = 15.0
#: Seconds between two measurements of the server's clock.
CLOCK = 60.0


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _encode(label: str) -> bytes:
    """A label as the server has it, without the line feed that separates labels."""
    return _bytes(label).replace(b"\x1a", b"\x1aa").replace(b"\n", b"\x1an")


def _decode(data: bytes) -> str:
    data = data.replace(b"\x1an", b"\n").replace(b"\x1aa", b"\x1a")
    return data.decode("utf-8", "surrogatepass")


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
        self._news = News(self._server)
        self.signal = self._news.signal
        self._lock = threading.Lock()
        self._lineage, self._run, self._seen, self._changed = "", "", 0, -1
        self._folding = False
        #: How many pages were stored or deleted, when the server last said it.
        self._stores = 0
        self._listened = 0.0
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
                self._news.begin(stores)
            # Answers overtake each other, and one may be from before a new lineage.
            if lineage == self._lineage:
                if sequence >= self._seen:
                    self._seen, self._run, self._stores = sequence, run, stores
                if changed > self._changed:
                    self._changed = changed
                    self._news.invalidated()
                self._folding = bool(answer[5])
        return answer[6], Number(lineage, sequence), Number(lineage, changed)

    def number(self) -> Number:
        return t.cast(Number, self._order("number")[1])

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        number = Number("", 0)
        bounds = (protocol.MAX_LABELS, protocol.MAX_HISTORY, MAX_ALIKE)
        for first in range(0, len(labels), LABELS):
            some = [_encode(label) for label in labels[first : first + LABELS]]
            number = self._order("invalidate", int(expire), *bounds, *some)[1]
            # When there are too many labels, each invalidation forgets some of the oldest.
            with contextlib.suppress(Exception):
                for _ in range(math.ceil(len(some) / 10)):
                    if self._folding:
                        self._order("fold", PAGES)
        return number

    def changes(self, since: Number) -> Changes:
        found, _, at = self._order("changes", since.lineage, since.sequence)
        if time.monotonic() - self._listened > 2:
            self._news.catch_up(self._stores)
        parts = (item.partition(b" ") for item in found or ())
        invalidations = (
            Invalidation(_decode(rest[1:]), int(number), rest[:1] == b"1")
            for number, _, rest in parts
        )
        return Changes(at, found is not None, tuple(invalidations))

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
        rest = (_bytes(record.build), path, int(record.gone), record.head, record.body, RETENTION)
        judged, _, at = self._order("put", record.name, labels, *number, *rest)
        if judged is None:
            return None
        self._news.stored_here(record.name, self._stores)
        return Validity(Invalidated(judged), at)

    def delete(self, name: str) -> None:
        self._order("delete", name)
        self._news.stored_here(name, self._stores)

    def records(self, *, build: str | None = None, path: str | None = None) -> Iterator[Stored]:
        low: bytes | str = "-"
        high: bytes | str = "+"
        if path is not None:
            start = path.encode("latin-1", "replace")
            low, high = b"[" + start + b"\0", b"(" + start + b"\1"
        own = b"*" if build is None else b"=" + _bytes(build)
        while low:
            (low, rows), _, at = self._order("list", low, high, PAGES, own)
            for name, page in rows:
                stored = _stored(name.decode(), page[:8], page[8], b"", page[9], at)
                if stored is not None:
                    yield stored

    def used(self, names: Iterable[str]) -> None:
        names = list(names)
        for first in range(0, len(names), LABELS):
            self._call("used", *names[first : first + LABELS])

    def stored(self, name: str) -> object:
        return self._news.stored(name)

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
            removed += int(some)
            if cursor == b"0":
                self._news.begin(self._stores)
                return removed
        keep = None if keep_builds is None else {_bytes(build) for build in keep_builds}
        doomed, pages, low = [], [], b"-"
        while low:
            (low, rows), _, _ = self._order("measure", low, 5 * PAGES)
            for name, build, gone, used, size in rows:
                if keep is not None and build not in keep:
                    doomed.append(name)
                else:
                    pages.append((gone == b"1", -int(used), size, name))
        # What was used last comes first, and what is gone comes last.
        pages.sort(key=lambda page: page[:2])
        room = math.inf if max_bytes is None else max_bytes
        for place, (_, _, size, name) in enumerate(pages):
            room -= size
            if room < 0 or (max_pages is not None and place >= max_pages):
                doomed.append(name)
        for first in range(0, len(doomed), PAGES):
            removed += int(self._order("delete", *doomed[first : first + PAGES])[0])
        if doomed:
            self._news.begin(self._stores)
        return removed

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> Lease | Busy:
        lease = Lease(name, seconds, demanded, self._heart)
        term = self._heart.term(seconds)
        try:
            other = self._call("lease", name, lease.token, term, int(demanded))
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
        cursor, seen = b"0", set[bytes]()
        while cursor != b"0" or not seen:
            cursor, flat = self._call("failures", cursor)
            seen.add(b"")
            for name, left in zip(flat[::2], flat[1::2], strict=True):
                # A scan may give a name twice.
                if name not in seen and (failure := _failure(left)) is not None:
                    yield name.decode(errors="replace"), failure
                seen.add(name)

    # Wanted pages.

    def want(self, build: str, wanted: Wanted) -> bool:
        args = (_bytes(build), wanted.name, wanted.data, protocol.MAX_WANTED)
        return bool(self._call("want", *args))

    def take(self, build: str, seconds: float) -> Wanted | None:
        terms = map(milliseconds, (seconds, protocol.ABANDONED))
        found = self._call("take", _bytes(build), *terms)
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
        left = () if process is None else (json.dumps(process),)
        self._call("report", milliseconds(GONE), *left)
        self._reported = process is not None

    def processes(self) -> list[dict[str, t.Any]]:
        found = []
        for left in self._call("processes", milliseconds(GONE)):
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
                advise(self._call("memory").decode())
                self._advised = True
        while self.signal[0] == before and (left := end - time.monotonic()) > 0:
            if self._folding:
                left = min(left, 0.01)
                with contextlib.suppress(Exception):
                    self._order("fold", PAGES)
            self._news.hear(left, self._changed)
        self._listened = time.monotonic()
        if self._listened >= end:
            # What has not been announced by now was announced to nobody here.
            self._news.catch_up(stores)
        return True

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
        self._news.stop()


def _stored(
    name: str, fields: Sequence[bytes], head: bytes, body: bytes, judged: int, at: Number
) -> Stored | None:
    labels, sequence, lineage, build, path, gone, *_ = fields
    try:
        all_labels = tuple(map(_decode, labels.split(b"\n"))) if labels else ()
        number = Number(_decode(lineage), int(sequence))
        where = (_decode(build), path.decode("latin-1"), gone == b"1")
    except ValueError:
        # Somebody else's, or damaged.
        return None
    record = Record(name, all_labels, number, *where, head, body)
    return Stored(record, Validity(Invalidated(judged), at))


def _failure(data: bytes | None) -> Failure | None:
    try:
        times, retry_at, error, url, build = json.loads(data or b"")
        return Failure(int(times), float(retry_at), str(error), str(url), str(build))
    except (ValueError, TypeError):
        return None
