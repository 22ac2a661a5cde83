"""`RedisStore`: pages and their order on a Redis or Valkey server, for any number of machines.

Whatever has to be one step is a function in ``redis.lua`` beside this file; only patterns are
matched here, by each process. Nothing is announced: each answer says what is new in the order.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import secrets
import threading
import time
import typing as t
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote, unquote

from . import protocol
from .clients import Server, milliseconds
from .epochs import Epochs, Last
from .leases import Lease
from .protocol import Busy, Changes, Failure, Invalidation, Number, Record, Stored, Validity, Wanted

logger = logging.getLogger("wsgi_isr")

#: Seconds for which a page is kept; `volatile-lru` evicts only what has a time to live.
RETENTION = 10 * 365 * 24 * 3600
#: Bytes of a page that a server takes.
MAX_BODY = 512 * 2**20 - 1
#: Patterns whose last invalidation the server keeps.
MAX_PATTERNS = 1000
#: Labels of one step, and pages of one step: each takes the server about a millisecond.
LABELS, PAGES = 100, 25
#: Seconds after its last report from which a process counts as gone; and reports that are kept.
GONE, MAX_PROCESSES = 15.0, 5000
#: Seconds between two looks at the order, and between two steps that apply old labels.
LOOK, FOLDING = 0.25, 0.01

#: Text as the server has it: without the line feeds and zero bytes that separate texts there.
_encode = functools.partial(quote, safe="/:*", errors="surrogatepass")


def _decode(data: bytes) -> str:
    with contextlib.suppress(UnicodeDecodeError):
        return unquote(data.decode("latin-1"), errors="surrogatepass")
    return ""  # Somebody else wrote it.


class _Order(t.NamedTuple):
    """The order, as this process saw it last."""

    lineage: str
    #: Of the server, which has another one after each restart.
    run: bytes
    sequence: int
    #: The number of the last invalidation.
    changed: int
    #: How many pages were stored or deleted.
    stores: int
    #: Where old labels are to be applied to pages next, where there are too many.
    cursor: bytes
    #: Those that were invalidated up to here, and perhaps later ones.
    patterns: Epochs


class RedisStore:
    """Nothing is connected before it is needed.

    :param make_client: makes a client of redis-py or valkey-py.
    :param prefix: tells sites on one server apart.
    :param lent: whether the client is somebody else's, who closes it.
    """

    kind = protocol.Kind("redis", "network", True, True, True, True, True)

    def __init__(self, make_client: Callable[[], t.Any], prefix: str, lent: bool = False) -> None:
        # A hash tag: in a cluster all keys of the site are on one node.
        tag = quote(prefix, safe=":/@.-", errors="surrogatepass") or "%"
        self._server = Server(make_client, f"{{{tag}}}", lent)
        self._step = self._server.step
        self._call = functools.partial(self._step, "call")
        self._leases = self._server.leases
        # Not from 0: another object's numbers may have been remembered before a fork.
        self._next = itertools.count(secrets.randbits(62)).__next__
        self.signal = [self._next(), self._next()]
        self._lock = threading.Lock()
        self._seen = _Order("", b"", 0, 0, 0, b"", Epochs(""))
        #: Patterns here, at which those that the server has forgotten are forgotten, too.
        self._enough = 2 * MAX_PATTERNS
        self._me, self._has_reported = secrets.token_hex(8), False

    # The order.

    def _order(self, step: str, *args: object) -> tuple[t.Any, _Order]:
        """Run a step that depends on the order: its result, and its place in the order."""
        before = self._seen
        patterns = before.patterns
        # With too many here, all that the server still has are asked for.
        matched = patterns.changed if len(patterns.labels) < self._enough else 0
        result, name, run, *rest, new = self._step(step, *args, seen=(*before[:3], matched))
        if not matched or name.decode() != before.lineage:
            patterns = Epochs(name.decode())
        order = _Order._make((name.decode(), run, *rest, patterns))
        with self._lock:
            for invalidation in _invalidations(new):
                with contextlib.suppress(ValueError):
                    patterns.apply(invalidation)
            if not matched:
                self._enough = 2 * max(MAX_PATTERNS, len(patterns.labels))
            seen = self._seen
            if order.lineage != seen.lineage == before.lineage:
                if seen.lineage:
                    logger.warning("the server has lost the order of pages: all count as stale")
                seen = seen._replace(lineage=order.lineage, sequence=0, changed=-1, stores=-1)
            # Answers overtake each other, and one may be from before a new lineage.
            if order.lineage == seen.lineage and order[2:5] >= seen[2:5]:
                if order.changed > seen.changed:
                    self.signal[0] = self._next()
                if order.stores > seen.stores:
                    self.signal[1] = self._next()
                self._seen = order
        return result, order

    def number(self) -> Number:
        _, order = self._order("number")
        return Number(order.lineage, order.sequence)

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        order, options = self._seen, (int(expire), protocol.MAX_LABELS, MAX_PATTERNS)
        for first in range(0, len(labels), LABELS):
            some = labels[first : first + LABELS]
            _, order = self._order("invalidate", *options, *map(_encode, some))
            self._fold(math.ceil(len(some) / 10))
        return Number(order.lineage, order.changed)

    def _fold(self, times: int) -> None:
        """Where there are too many labels, apply old ones to some of the pages that have them."""
        with contextlib.suppress(Exception):
            for cursor in itertools.takewhile(bool, (self._seen.cursor for _ in range(times))):
                low = cursor.partition(b" ")[2]
                (end, rows), order = self._order("list", low, "(o", PAGES)
                made: list[object] = []
                for name, meta, labels, *_ in rows:
                    record = _record(name.decode(), meta)
                    if record is not None and (last := self._last(record, labels, order)).any:
                        made += [name, meta, *last]
                self._order("fold", cursor, end, *made)

    def changes(self, since: Number) -> Changes:
        most = protocol.MAX_HISTORY
        found, order = self._order("changes", *since, most + 1)
        made = tuple(one for flat in found or () for one in _invalidations(flat))
        at = Number(order.lineage, order.changed)
        return Changes(at, found is not None and len(made) <= most, made)

    def _last(self, record: Record, labels: Sequence[int], order: _Order) -> Last:
        """The last invalidations of a page, of which the server gave those of its labels."""
        with self._lock:
            return Last(*labels).later(order.patterns.last((), record.path))

    def _validity(self, record: Record, labels: Sequence[int], order: _Order) -> Validity:
        last = self._last(record, labels, order)
        at = Number(order.lineage, order.changed)
        return Validity(last.makes(record.number, order.lineage), at)

    # Pages.

    def get(self, name: str) -> Stored | None:
        found, order = self._order("get", name)
        if not found:
            return None
        meta, labels, head, used, body = found
        record = _record(name, meta, head, body)
        return record and Stored(record, self._validity(record, labels, order), used / 1000)

    def put(self, record: Record) -> Validity | None:
        if len(record.body) > MAX_BODY:
            raise protocol.TooLarge(f"the page has {len(record.body)} bytes")
        content = (_meta(record), record.head, record.body)
        labels, order = self._order("put", record.name, *content, RETENTION)
        return None if labels is None else self._validity(record, labels, order)

    def delete(self, name: str) -> None:
        self._order("delete", name)

    def _rows(self, low: str, high: str) -> Iterator[tuple[Stored, int]]:
        """Pages of a part of the index, and their bytes."""
        while low:
            (low, rows), order = self._order("list", low, high, PAGES)
            for name, meta, labels, head, used, size in rows:
                if (record := _record(name.decode(), meta, head)) is not None:
                    yield Stored(record, self._validity(record, labels, order), used / 1000), size

    def records(
        self, *, build: str | None = None, path: str | None = None, after: str = ""
    ) -> Iterator[Stored]:
        low, high = f"(n{after}", "(o"
        if path is not None:
            low, high = f"(p{_encode(path)}\0{after}", f"(p{_encode(path)}\1"
        for stored, _ in self._rows(low, high):
            if build in (None, stored.record.build):
                yield stored

    def used(self, names: Iterable[str]) -> None:
        names = list(names)
        for first in range(0, len(names), LABELS):
            self._step("used", *names[first : first + LABELS])

    def sizes(self) -> protocol.Sizes:
        pages, memory = self._call("ZCARD", "pages") // 2, self._server.memory()
        used = memory.get("used_memory") if pages else "0"
        bound = int(memory.get("maxmemory", 0)) or None
        return protocol.Sizes(pages, None if used is None else int(used), None, bound)

    def prune(
        self,
        *,
        max_pages: int | None = None,
        max_bytes: int | None = None,
        keep_builds: Sequence[str] | None = None,
        everything: bool = False,
    ) -> int:
        doomed, pages = [], []
        for (record, _, used), size in self._rows("[n", "(o"):
            if everything or (keep_builds is not None and record.build not in keep_builds):
                doomed.append(record.name)
            else:
                pages.append((record.gone, -used, size, record.name))
        # What was used last comes first, and what is gone comes last.
        pages.sort(key=lambda page: page[:2])
        room = math.inf if max_bytes is None else max_bytes
        for place, (_, _, size, name) in enumerate(pages):
            room -= size
            if room < 0 or (max_pages is not None and place >= max_pages):
                doomed.append(name)
        parts = (doomed[first : first + PAGES] for first in range(0, len(doomed), PAGES))
        return sum(self._order("delete", *names)[0] for names in parts)

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> Lease | Busy:
        lease = Lease(self._leases, name, seconds, demanded)
        term = milliseconds(self._leases.add(lease))
        try:
            other = self._step("lease", name, lease.token, term, int(demanded))
        except Exception:
            # A server that was too slow may have given it.
            self._leases.later(lease)
            raise
        if other is None:
            return lease
        self._leases.drop(lease)
        return Busy(other.decode(errors="replace"))

    def outcome(self, token: str) -> bytes | None:
        return t.cast("bytes | None", self._call("GET", f"outcome:{token}"))

    def failure(self, name: str) -> Failure | None:
        return _failure(self._call("HGET", "failures", name))

    def set_failure(self, name: str, failure: Failure | None) -> None:
        if failure is None:
            self._step("unset", "failures", name)
        else:
            self._step("set", "failures", protocol.MAX_FAILURES, name, json.dumps(failure))

    def failures(self) -> Iterator[tuple[str, Failure]]:
        cursor, found = b"", dict[bytes, bytes]()
        while cursor != b"0":
            # It may give a name twice.
            cursor, flat = self._call("HSCAN", "failures", cursor or 0, "COUNT", 200)
            found.update(zip(flat[::2], flat[1::2], strict=True))
        for name, left in found.items():
            if (failure := _failure(left)) is not None:
                yield name.decode(errors="replace"), failure

    def want(self, build: str, wanted: Wanted) -> bool:
        return bool(self._step("want", _encode(build), *wanted, protocol.MAX_WANTED))

    def take(self, build: str, seconds: float) -> Wanted | None:
        terms = map(milliseconds, (seconds, protocol.ABANDONED))
        found = self._step("take", _encode(build), *terms)
        return None if found is None else Wanted(found[0].decode(errors="replace"), found[1])

    def done(self, build: str, name: str) -> None:
        self._step("unset", f"wanted:{_encode(build)}", name)

    # What exists, and what was counted.

    def list_path(self, path: str) -> None:
        self._call("SADD", "paths", _encode(path))

    def has_path(self, path: str) -> bool:
        return bool(self._call("SISMEMBER", "paths", _encode(path)))

    def builds(self, build: str) -> list[str]:
        return list(map(_decode, self._step("builds", _encode(build), protocol.MAX_BUILDS)))

    def add(self, counts: Mapping[str, float]) -> None:
        if counts:
            self._step("add", *itertools.chain(*counts.items()))

    def totals(self) -> dict[str, float]:
        return _totals(self._call("HGETALL", "totals"))

    def minutes(self) -> dict[int, dict[str, float]]:
        found = self._step("minutes", protocol.MAX_MINUTES)
        return {minute: _totals(flat) for minute, flat in found}

    def log(self, *entries: bytes) -> None:
        self._call("LPUSH", "journal", *entries)
        self._call("LTRIM", "journal", 0, protocol.MAX_JOURNAL - 1)

    def journal(self) -> list[bytes]:
        return list(self._call("LRANGE", "journal", 0, protocol.MAX_JOURNAL - 1))

    def once(self, name: str, seconds: float) -> bool:
        asked = self._call("SET", f"once:{_encode(name)}", 1, "NX", "PX", milliseconds(seconds))
        return asked is not None

    def report(self, process: Mapping[str, t.Any]) -> None:
        self._has_reported = True
        self._step("set", "processes", MAX_PROCESSES, self._me, json.dumps(process))

    def processes(self) -> list[dict[str, t.Any]]:
        found = []
        for left in self._step("recent", "processes", milliseconds(GONE)):
            with contextlib.suppress(ValueError):
                if isinstance(process := json.loads(left or b""), dict):
                    found.append(process)
        return found

    # The process.

    def time(self) -> float:
        return self._server.time()

    def listen(self, seconds: float) -> bool:
        before, end = self.signal[0], time.monotonic() + seconds
        while self.signal[0] == before and (left := end - time.monotonic()) > 0:
            self._fold(1)
            time.sleep(min(left, FOLDING if self._seen.cursor else LOOK))
            with contextlib.suppress(Exception):
                self._order("look")
        return True

    def probe(self) -> None:
        # It reads and writes.
        self.number()
        self._leases.say_again()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if self._has_reported:
                self._step("unset", "processes", self._me)
        self._server.close()


def _meta(record: Record) -> str:
    """What is stored with a page, one a line."""
    sequence, gone = str(record.number.sequence), str(int(record.gone))
    words = (sequence, record.number.lineage, record.path, record.build, gone, *record.labels)
    return "".join(f"{_encode(word)}\n" for word in words)


def _record(name: str, meta: bytes, head: bytes = b"", body: bytes = b"") -> Record | None:
    """A page of the server; ``None`` for one that is somebody else's, or damaged."""
    try:
        sequence, lineage, path, build, gone, *labels, _ = map(_decode, meta.split(b"\n"))
        number = Number(lineage, int(sequence))
        return Record(name, tuple(labels), number, build, path, gone == "1", head, body)
    except ValueError:
        return None


def _invalidations(flat: Sequence[bytes]) -> Iterator[Invalidation]:
    for label, number in zip(flat[::2], flat[1::2], strict=True):
        if number.isdigit():
            yield Invalidation(_decode(label[1:]), int(number), label[:1] == b"h")


def _failure(data: bytes | None) -> Failure | None:
    try:
        times, retry_at, error, url, build = json.loads(data or b"")
        return Failure(int(times), float(retry_at), str(error), str(url), str(build))
    except (ValueError, TypeError):
        return None


def _totals(flat: Sequence[bytes]) -> dict[str, float]:
    totals = {}
    for name, number in zip(flat[::2], flat[1::2], strict=True):
        with contextlib.suppress(ValueError):
            if math.isfinite(count := float(number)):
                totals[name.decode(errors="replace")] = count
    return totals
