"""`RedisStore`: pages and their order on a Redis or Valkey server, for any number of machines.

Whatever has to be one step is a function in ``redis.lua`` beside this file; only patterns are
matched here, by each process. A process hears of changes from a channel that the server publishes
them on; `RedisStore.changes` stands behind that.
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

from . import protocol
from .epochs import Epochs, Last
from .leases import Lease, Leases
from .protocol import Busy, Changes, Failure, Invalidation, Number, Record, Stored, Validity, Wanted
from .redis_server import News, Server, advise, milliseconds

logger = logging.getLogger("wsgi_isr")

#: Seconds for which a page is kept; `volatile-lru` evicts only what has a time to live.
RETENTION = 10 * 365 * 24 * 3600
#: Bytes of a page that a server takes.
MAX_BODY = 512 * 2**20 - 1
#: Patterns whose last invalidation the server keeps.
MAX_PATTERNS = 1000
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


class _Answer(t.NamedTuple):
    """Of a step that depends on the order: its result, and the place of that in the order."""

    result: t.Any
    lineage: str
    sequence: int
    #: The numbers of the last invalidation, and of the last of a pattern.
    changed: int
    patterned: int

    @property
    def at(self) -> Number:
        return Number(self.lineage, self.changed)


class RedisStore:
    """Nothing is connected before it is needed.

    :param make_client: makes a client of redis-py or valkey-py.
    :param prefix: tells sites on one server apart.
    :param lent: whether the client is somebody else's, who closes it.
    """

    kind = protocol.Kind("redis", "network", True, True, True, True, True)

    def __init__(self, make_client: Callable[[], t.Any], prefix: str, lent: bool = False) -> None:
        # A hash tag: in a cluster all keys of the site are on one node.
        tag = quote(prefix.encode("utf-8", "surrogatepass"), safe=":/@.-") or "%"
        server = Server(make_client, f"{{{tag}}}", lent)
        self._step, self._do = server.step, server.do
        self._leases = Leases(server.extend, server.end)
        self._end = weakref.finalize(self, _close, self._leases, server)
        self._news = News(server)
        self.signal = self._news.signal
        self._lock = threading.Lock()
        self._lineage, self._run, self._seen, self._changed = "", "", 0, -1
        self._patterns = Epochs("")
        self._folding = False
        #: How many pages were stored or deleted, when the server last said it.
        self._stores = 0
        self._listened = 0.0
        self._offset, self._measure_at = 0.0, 0.0
        self._advised = self._reported = False

    # The order, as this process has seen it.

    def _order(self, step: str, *args: object) -> _Answer:
        """Run a step that depends on the order."""
        with self._lock:
            before = (self._lineage, self._seen, self._run)
        result, lineage, run, *rest = self._step(step, *args, seen=before)
        sequence, changed, patterned, stores, fold = map(int, rest)
        answer = _Answer(result, lineage.decode(), sequence, changed, patterned)
        with self._lock:
            if answer.lineage != self._lineage and self._lineage == before[0]:
                if before[0]:
                    logger.warning("the server has lost the order of pages: all count as stale")
                self._lineage, self._seen, self._changed = answer.lineage, 0, -1
                self._news.begin(stores)
            # Answers overtake each other, and one may be from before a new lineage.
            if answer.lineage == self._lineage:
                if sequence >= self._seen:
                    self._seen, self._run, self._stores = sequence, run.decode(), stores
                if changed > self._changed:
                    self._changed = changed
                    self._news.invalidated()
                self._folding = bool(fold)
        return answer

    def _judged(self, step: str, *args: object) -> _Answer:
        """The same for a step that judges pages: with all patterns that it has to match, here."""
        while True:
            answer, mine = self._order(step, *args), self._patterns
            here = mine.changed if mine.lineage == answer.lineage else 0
            if here >= answer.patterned:
                return answer
            # Then the step again: what was forgotten meanwhile was applied to its pages before.
            since = mine.changed if len(mine.labels) < 2 * MAX_PATTERNS else 0
            found = self._order("patterns", mine.lineage, since)
            with self._lock:
                if not since or mine.lineage != found.lineage:
                    mine = Epochs(found.lineage)
                for invalidation in _invalidations(found.result, 0):
                    with contextlib.suppress(ValueError):
                        mine.apply(invalidation)
                mine.changed = max(mine.changed, found.patterned)
                self._patterns = mine

    def _last(self, record: Record, labels: Sequence[bytes], lineage: str) -> Last:
        """The last invalidations of a page, of which the server gave those of its labels."""
        last, patterns = Last(*map(int, labels)), self._patterns
        if not patterns.labels or patterns.lineage != lineage:
            return last
        with self._lock:
            return last.later(patterns.last((), record.path))

    def number(self) -> Number:
        answer = self._order("number")
        return Number(answer.lineage, answer.sequence)

    def invalidate(self, labels: Sequence[str], expire: bool) -> Number:
        number = Number("", 0)
        bounds = (protocol.MAX_LABELS, MAX_PATTERNS)
        for first in range(0, len(labels), LABELS):
            some = [_encode(label) for label in labels[first : first + LABELS]]
            number = self._order("invalidate", int(expire), *bounds, *some).at
            # When there are too many labels, each invalidation forgets some of the oldest.
            with contextlib.suppress(Exception):
                for _ in range(math.ceil(len(some) / 10)):
                    self._fold()
        return number

    def _fold(self) -> None:
        """Apply old labels to some of the pages that have them, or forget some."""
        if not self._folding or (answer := self._judged("fold", PAGES)).result is None:
            return
        start, end, rows = answer.result
        made: list[object] = []
        for name, fields, labels, *_ in rows:
            if (record := _record(name.decode(), fields)) is not None:
                last, number = self._last(record, labels, answer.lineage), record.number
                if number.lineage == answer.lineage and last.any > number.sequence:
                    made += [name, number.sequence, *last]
        self._order("folded", start, end, *made)

    def changes(self, since: Number) -> Changes:
        answer = self._order("changes", since.lineage, since.sequence, protocol.MAX_HISTORY)
        if time.monotonic() - self._listened > 2:
            self._news.catch_up(self._stores)
        found = _invalidations(answer.result or (), since.sequence)
        return Changes(answer.at, answer.result is not None, tuple(found))

    # Pages.

    def get(self, name: str) -> Stored | None:
        answer = self._judged("get", name)
        if answer.result is None:
            return None
        fields, labels, head, body = answer.result
        return self._stored(name, fields, labels, answer, head, body)

    def _stored(
        self, name: str, fields: t.Any, labels: t.Any, answer: _Answer, *content: bytes
    ) -> Stored | None:
        record = _record(name, fields, *content)
        if record is None:
            return None
        last = self._last(record, labels, answer.lineage)
        return Stored(record, Validity(last.makes(record.number, answer.lineage), answer.at))

    def put(self, record: Record) -> Validity | None:
        if len(record.body) > MAX_BODY:
            raise protocol.TooLarge(f"the page has {len(record.body)} bytes")
        labels = b"\n".join(map(_encode, record.labels))
        path = record.path.encode("latin-1", "replace")
        number = (record.number.sequence, record.number.lineage)
        rest = (_bytes(record.build), path, int(record.gone), record.head, record.body, RETENTION)
        answer = self._judged("put", record.name, labels, *number, *rest)
        if answer.result is None:
            return None
        self._news.stored_here(self._stores)
        last = self._last(record, answer.result, answer.lineage)
        return Validity(last.makes(record.number, answer.lineage), answer.at)

    def delete(self, name: str) -> None:
        self._order("delete", name)
        self._news.stored_here(self._stores)

    def records(
        self, *, build: str | None = None, path: str | None = None, after: str = ""
    ) -> Iterator[Stored]:
        low, high = b"(n" + _bytes(after) + b"\1", b"(o"
        if path is not None:
            start = b"p" + path.encode("latin-1", "replace") + b"\0"
            low, high = b"(" + start + _bytes(after), b"(" + start[:-1] + b"\1"
        while low:
            answer = self._judged("list", low, high, PAGES)
            low, rows = answer.result
            for name, fields, labels, head, used, _ in rows:
                stored = self._stored(name.decode(), fields, labels, answer, head)
                if stored is not None and build in (None, stored.record.build):
                    yield stored._replace(used=int(used) / 1000)

    def used(self, names: Iterable[str]) -> None:
        names = list(names)
        for first in range(0, len(names), LABELS):
            self._step("used", *names[first : first + LABELS])

    def sizes(self) -> protocol.Sizes:
        pages, memory = self._do("ZCARD", "pages") // 2, self._memory()
        used = memory.get("used_memory") if pages else "0"
        bound = int(memory.get("maxmemory", 0)) or None
        return protocol.Sizes(pages, None if used is None else int(used), None, bound)

    def _memory(self) -> dict[str, str]:
        """What the server says of its memory; nothing where this user may not ask."""
        lines = self._step("memory").decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

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
            cursor, some = self._order("clear", cursor).result
            removed += int(some)
            if cursor == b"0":
                self._news.begin(self._stores)
                return removed
        keep = None if keep_builds is None else {_bytes(build) for build in keep_builds}
        doomed, pages, low = [], [], b"[n"
        while low:
            low, rows = self._order("list", low, b"(o", PAGES).result
            for name, fields, _, _, used, size in rows:
                if keep is not None and fields[3] not in keep:
                    doomed.append(name)
                else:
                    pages.append((fields[5] == b"1", -int(used), size, name))
        # What was used last comes first, and what is gone comes last.
        pages.sort(key=lambda page: page[:2])
        room = math.inf if max_bytes is None else max_bytes
        for place, (_, _, size, name) in enumerate(pages):
            room -= size
            if room < 0 or (max_pages is not None and place >= max_pages):
                doomed.append(name)
        for first in range(0, len(doomed), PAGES):
            removed += int(self._order("delete", *doomed[first : first + PAGES]).result)
        if doomed:
            self._news.begin(self._stores)
        return removed

    # Renders.

    def lease(self, name: str, seconds: float, demanded: bool) -> Lease | Busy:
        lease = Lease(self._leases, name, seconds, demanded)
        term = milliseconds(self._leases.add(lease))
        try:
            other = self._step("lease", name, lease.token, term, int(demanded))
        except protocol.ReadOnly:
            self._leases.drop(lease)
            raise
        except Exception:
            # A server that was too slow may have given it.
            self._leases.later(lease)
            raise
        if other is None:
            return lease
        self._leases.drop(lease)
        return Busy(other.decode(errors="replace"))

    def outcome(self, token: str) -> bytes | None:
        return t.cast("bytes | None", self._do("GET", f"outcome:{token}"))

    def failure(self, name: str) -> Failure | None:
        return _failure(self._do("HGET", "failures", name))

    def set_failure(self, name: str, failure: Failure | None) -> None:
        left = () if failure is None else (json.dumps(failure),)
        self._step("set_failure", name, protocol.MAX_FAILURES, *left)

    def failures(self) -> Iterator[tuple[str, Failure]]:
        cursor, seen = -1, set[bytes]()
        while cursor:
            cursor, some = self._do("HSCAN", "failures", max(cursor, 0), "COUNT", 200)
            for name, left in some.items():
                # A scan may give a name twice.
                if name not in seen and (failure := _failure(left)) is not None:
                    yield name.decode(errors="replace"), failure
                seen.add(name)

    # Wanted pages.

    def want(self, build: str, wanted: Wanted) -> bool:
        args = (_bytes(build), wanted.name, wanted.data, protocol.MAX_WANTED)
        return bool(self._step("want", *args))

    def take(self, build: str, seconds: float) -> Wanted | None:
        found = self._step(
            "take", _bytes(build), milliseconds(seconds), milliseconds(protocol.ABANDONED)
        )
        return None if found is None else Wanted(found[0].decode(errors="replace"), found[1])

    def done(self, build: str, name: str) -> None:
        self._step("done", _bytes(build), name)

    # What exists, and what was counted.

    def list_path(self, path: str) -> None:
        self._do("SADD", "paths", _bytes(path))

    def has_path(self, path: str) -> bool:
        return bool(self._do("SISMEMBER", "paths", _bytes(path)))

    def builds(self, build: str) -> list[str]:
        before = self._step("builds", _bytes(build), protocol.MAX_BUILDS)
        return [name.decode("utf-8", "surrogatepass") for name in before]

    def add(self, counts: Mapping[str, float]) -> None:
        flat = [word for name, number in counts.items() for word in (name, repr(float(number)))]
        for first in range(0, len(flat), 1000):
            self._step("add", int(first + 1000 >= len(flat)), *flat[first : first + 1000])

    def totals(self) -> dict[str, float]:
        return _totals(self._do("HGETALL", "totals").items())

    def minutes(self) -> dict[int, dict[str, float]]:
        found = self._step("minutes", protocol.MAX_MINUTES)
        return {
            int(minute): _totals(zip(flat[::2], flat[1::2], strict=True)) for minute, flat in found
        }

    def log(self, *entries: bytes) -> None:
        self._do("LPUSH", "journal", *entries)
        self._do("LTRIM", "journal", 0, protocol.MAX_JOURNAL - 1)

    def journal(self) -> list[bytes]:
        entries = self._do("LRANGE", "journal", 0, protocol.MAX_JOURNAL - 1)
        return t.cast("list[bytes]", entries)

    def once(self, name: str, seconds: float) -> bool:
        key = f"once:{quote(name, errors='surrogatepass')}"
        return bool(self._do("SET", key, 1, "NX", "PX", milliseconds(seconds)))

    def report(self, process: Mapping[str, t.Any] | None) -> None:
        left = () if process is None else (json.dumps(process),)
        self._step("report", milliseconds(GONE), *left)
        self._reported = process is not None

    def processes(self) -> list[dict[str, t.Any]]:
        found = []
        for left in self._step("processes"):
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
            seconds, micros = map(int, self._step("time"))
            self._offset = seconds + micros / 1e6 - before - (time.monotonic() - began) / 2
            return
        self._measure_at = time.monotonic()

    def listen(self, seconds: float) -> bool:
        before, stores, end = self.signal[0], self._stores, time.monotonic() + seconds
        if time.monotonic() >= self._measure_at:
            self._measure()
        if not self._advised:
            with contextlib.suppress(Exception):
                advise(self._memory())
                self._advised = True
        while self.signal[0] == before and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(Exception):
                self._fold()
            self._news.hear(min(left, 0.01) if self._folding else left, self._changed)
        self._listened = time.monotonic()
        if self._listened >= end:
            # What has not been announced by now was announced to nobody here.
            self._news.catch_up(stores)
        return True

    def probe(self) -> None:
        self._order("changes", "", 0, 0)
        self._do("SET", "probe", 1, "PX", 1000)
        self._leases.say_again()
        if time.monotonic() >= self._measure_at:
            self._measure()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if self._reported:
                self.report(None)
        self._news.stop()
        self._end()


def _invalidations(rows: Iterable[t.Any], since: int) -> Iterator[Invalidation]:
    for label, stale, expired in rows:
        if int(expired) > since:
            yield Invalidation(_decode(label), int(expired), True)
        if int(stale) > max(since, int(expired)):
            yield Invalidation(_decode(label), int(stale), False)


def _close(leases: Leases, server: Server) -> None:
    leases.close()
    server.close()


def _record(
    name: str, fields: Sequence[bytes], head: bytes = b"", body: bytes = b""
) -> Record | None:
    labels, sequence, lineage, build, path, gone, *_ = fields
    try:
        all_labels = tuple(map(_decode, labels.split(b"\n"))) if labels else ()
        number = Number(_decode(lineage), int(sequence))
        where = (_decode(build), path.decode("latin-1"), gone == b"1")
    except ValueError:
        # Somebody else's, or damaged.
        return None
    return Record(name, all_labels, number, *where, head, body)


def _failure(data: bytes | None) -> Failure | None:
    try:
        times, retry_at, error, url, build = json.loads(data or b"")
        return Failure(int(times), float(retry_at), str(error), str(url), str(build))
    except (ValueError, TypeError):
        return None


def _totals(flat: Iterable[tuple[bytes, bytes]]) -> dict[str, float]:
    totals = {}
    for name, number in flat:
        with contextlib.suppress(ValueError):
            totals[name.decode(errors="replace")] = float(number)
    return totals
