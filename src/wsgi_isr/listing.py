"""What there is: stored pages, totals, gauges and the journal, as data and as tables."""

from __future__ import annotations

import contextlib
import json
import math
import time
import typing as t
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from urllib.parse import unquote_to_bytes, urlsplit

from .key import Origin
from .metadata import GONE
from .metrics import BUCKETS, SERVED, hit_ratio, periods_of, totals_of
from .page import Render, state_of, window_of
from .process import Process
from .rules import check_pattern
from .store.pages import Listed
from .store.protocol import Failure, Record, Sizes


class PageInfo(t.NamedTuple):
    """A stored page, as `ISRMiddleware.pages` lists it.

    :param state: ``"fresh"``, ``"stale"``, ``"expired"``; or ``"failed"`` for a page that never
        rendered well.
    :param age: seconds since its render began.
    :param ttl: seconds of freshness left, 0 or negative for a stale page; ``None`` for a page
        that is fresh until it is revalidated.
    :param size: bytes of all its bodies.
    :param last_error: why the last attempts at it failed, ``None`` if they did not.
    :param sizes: bytes of each body, by content coding; the page as it is under ``"identity"``.
    :param seconds: how long its render took.
    :param failures: attempts that failed since then.
    :param renders: its last renders that ended well, the latest first.
    :param used_at: seconds since 1970 at which it was served last, within a minute or so; 0 where
        nobody can say.
    """

    url: str
    status: int
    state: str
    age: float
    ttl: int | None
    tags: tuple[str, ...]
    size: int
    codings: tuple[str, ...]
    last_error: str | None
    sizes: dict[str, int]
    seconds: float = 0.0
    failures: int = 0
    renders: tuple[Render, ...] = ()
    used_at: float = 0.0

    def render_seconds(self, share: float) -> float:
        """Seconds within which such a share of its last renders ended; 0 where there are none."""
        return percentile([render.seconds for render in self.renders], share)


def percentile(values: Sequence[float], share: float) -> float:
    """The least of some values that so many of them, 0 to 1, do not exceed; 0 of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


class Inspection:
    """What operators ask; all of it shows what all processes have done.

    :param origin: of the request in which paths are named; ``None`` outside of one.
    :param render: false while the library is switched off: nothing is rendered.
    """

    def __init__(self, process: Process, origin: Origin | None, render: bool) -> None:
        self._process, self._origin, self._may_render = process, origin, render
        self._config = process.config
        self._pages = process.pages
        self._clock = process.clock

    # Pages.

    def pages(self) -> Iterator[PageInfo]:
        """All stored pages of the build, then those that never rendered well.

        :raises NotImplementedError: on a store that cannot list.
        """
        return (page for _, page in self.matching() if page is not None)

    def matching(
        self,
        matches: Callable[[Record], object] = lambda record: True,
        after: str = "",
        path: str | None = None,
    ) -> Iterator[tuple[str, PageInfo | None]]:
        """The same with the names of pages; ``None`` for one that does not match.

        :param after: begin behind the page of this name.
        :param path: the full path of all of them; ``None`` for any.
        """
        failures: dict[str, Failure] = {}
        with contextlib.suppress(NotImplementedError):
            failures = self._failures()
        build = self._config.build_id
        for name, listed in self._pages.listed(build, path, after, matches):
            failure = failures.pop(name, None)
            yield name, listed and info_of(listed, self._clock(), failure)
        if not after and path is None:
            yield from (("", page) for page in _never_well(failures.values()))

    def failing(self) -> Iterator[PageInfo]:
        """Pages whose last render failed, as if they had never rendered well.

        :raises NotImplementedError: on a store that cannot list.
        """
        return _never_well(self._failures().values())

    def _failures(self) -> dict[str, Failure]:
        build, found = self._config.build_id, self._pages.store.failures()
        return {name: failure for name, failure in found if failure.build == build}

    # Numbers.

    def overview(self) -> dict[str, t.Any]:
        """What an operator asks first.

        ``stats``, the totals of all processes, and gauges; ``periods``, the hits and misses since
        the store began, today (UTC) and since the build began; ``minutes``, the totals as each
        minute of the last hour began; ``workers``, what each process has now; ``store``, its kind,
        its state and since when that is so for all of them, and its bounds. Where it does not
        answer (``has_totals`` is false), totals are those of this process, and there are no
        ``periods``.
        """
        process, pages, memory = self._process, self._pages, self._pages.memory
        guard, store = pages.guard, pages.store
        process.upkeep()
        sums = guard.read(store.totals)
        workers = guard.read(store.processes) or []
        mine = process.report()
        if mine is not None and not any(worker.get("pid") == mine["pid"] for worker in workers):
            workers = [*workers, mine]
        sizes = guard.read(store.sizes) or Sizes(None, None)
        stats = {
            **totals_of(process.counters.as_dict() if sums is None else sums),
            "pages": len(memory) if sizes.pages is None else sizes.pages,
            "bytes": memory.size if sizes.bytes is None else sizes.bytes,
            "memory_bytes": sum(int(w.get("memory_bytes", 0)) for w in workers) or memory.size,
            "rendering": sum(len(worker.get("rendering", ())) for worker in workers),
            "waiting": sum(int(worker.get("waiting", 0)) for worker in workers),
            "processes": len(workers),
        }
        # What this process has seen, or the last that any has; else all is as it was when they
        # began.
        alike = (float(w.get("since", 0)) for w in workers if w.get("store") == guard.state)
        since = guard.since or max(alike, default=0.0)
        began = min((float(worker.get("began", 0)) for worker in workers), default=process.began)
        return {
            "stats": stats,
            "periods": periods_of(sums or {}),
            "minutes": guard.read(store.minutes) or {},
            "workers": workers,
            "store": {
                "kind": store.kind.name,
                "state": guard.state,
                "since": since or began,
                "has_totals": sums is not None,
                "max_pages": sizes.max_pages,
                "max_bytes": sizes.max_bytes,
            },
        }

    def journal(self) -> list[dict[str, t.Any]]:
        """The last on-demand calls, latest first.

        Each has ``at``, ``kind`` (``revalidate``, ``tags`` or ``invalidate``), ``what`` (a list),
        ``expire``, ``pages`` (how many it rendered), ``number`` (its place in the order of
        events), ``by``, ``host`` and ``pid``.
        """
        self._process.write_journal()
        found = []
        for data in self._pages.guard.read(self._pages.store.journal) or []:
            with contextlib.suppress(ValueError):
                if isinstance(entry := json.loads(data), dict):
                    found.append(entry)
        return found


def _never_well(failures: Iterable[Failure]) -> Iterator[PageInfo]:
    """Pages that never rendered well, without those that were refused, or have no URL."""
    for times, _, error, url, _ in failures:
        if times and url:
            yield PageInfo(url, 0, "failed", 0.0, 0, (), 0, (), error, {}, failures=times)


def info_of(listed: Listed, now: float, failure: Failure | None) -> PageInfo:
    page, sizes, invalidated, used_at = listed
    if failure is not None and failure.retry_at < page.generated_at:
        # Another process has rendered it since.
        failure = None
    age, revalidate = now - page.generated_at, page.metadata.revalidate
    window, ttl = window_of(page, invalidated, now), None
    if revalidate is not None:
        ttl = min(0, int(revalidate - age)) if window is None else window[1]
    lengths = dict(sizes)
    return PageInfo(
        url=page.key.url,
        status=page.code,
        state=state_of(page, invalidated, now).value,
        age=max(0.0, age),
        ttl=ttl,
        tags=page.metadata.tags,
        size=sum(lengths.values()),
        codings=tuple(coding for coding in lengths if coding != "identity"),
        last_error=None if failure is None else failure.error,
        sizes=lengths,
        seconds=page.seconds,
        failures=0 if failure is None else failure.times,
        renders=page.renders,
        used_at=used_at,
    )


# Tables, and numbers for people.

#: Lines of cells; those of a head first, if there is one.
Rows: t.TypeAlias = "Iterator[Sequence[str]]"


def selector(
    tags: Iterable[str], patterns: Iterable[str], failed: bool = False, stale: bool = False
) -> Callable[[PageInfo], bool]:
    """Whether a page has one of the tags, if there are any, matches one of the patterns, and so on.

    :raises ValueError: for a pattern that can never match.
    """
    wanted, compiled = set(tags), [check_pattern(pattern) for pattern in patterns]

    def selects(page: PageInfo) -> bool:
        path = unquote_to_bytes(urlsplit(page.url).path).decode("latin-1") or "/"
        return (
            (not wanted or not wanted.isdisjoint(page.tags))
            and (not compiled or any(pattern.fullmatch(path) for pattern in compiled))
            and (not failed or page.last_error is not None)
            and (not stale or page.state in ("stale", "expired"))
        )

    return selects


#: What pages are sorted by; ``"use"`` is the order in which they make room for others.
ORDERS: dict[str, Callable[[PageInfo], t.Any]] = {
    "url": lambda page: page.url,
    "age": lambda page: -page.age,
    "size": lambda page: -page.size,
    "render": lambda page: -page.render_seconds(0.5),
    "use": lambda page: (page.state == "failed", page.status not in GONE, page.used_at),
}


def page_rows(pages: Iterable[PageInfo]) -> Rows:
    yield *"URL STATUS STATE AGE TTL USED SIZE RENDER P95 TAGS".split(), "LAST ERROR"
    for page in pages:
        times = f" ({page.failures} times)" if page.failures > 1 else ""
        yield (
            page.url,
            str(page.status or "-"),
            page.state,
            span(page.age),
            "-" if page.ttl is None else span(page.ttl),
            span(time.time() - page.used_at) if page.used_at else "-",
            amount(page.size),
            *(millis(page.render_seconds(share)) for share in (0.5, 0.95)),
            ", ".join(page.tags),
            f"{page.last_error}{times}" if page.last_error else "",
        )


def totals_rows(found: Mapping[str, t.Any]) -> Rows:
    """What `Inspection.overview` says of all processes."""
    stats, store = dict(found["stats"]), found["store"]
    times = stats.pop("render_seconds")
    yield "hit ratio", f"{hit_ratio(stats):.1%}"
    names = {"store": "since the store began", "day": "today (UTC)", "build": "since the deploy"}
    for period, counts in found["periods"].items():
        visits, ratio = number(sum(counts[name] for name in SERVED), "visit"), counts["hit_ratio"]
        yield f"  {names[period]}", f"{ratio:.1%} of {visits}, from {moment(counts['at'])}"
    for name, value in stats.items():
        show = amount if name.endswith("bytes") else "{:,}".format
        bound = store.get(f"max_{name}")
        yield name.replace("_", " "), show(value) + (f" of {show(bound)}" if bound else "")
    yield "mean render", millis(times["sum"] / max(1, times["count"]))
    within = next(b for b, n in times["buckets"].items() if n >= 0.95 * times["count"])
    took = f"over {BUCKETS[-1]} s" if within == "+Inf" else f"within {within} s"
    yield "95% of renders", took if times["count"] else "-"
    yield "store", f"{store['kind']}, {store['state']} since {moment(store['since'])}"


def worker_rows(workers: Iterable[Mapping[str, t.Any]]) -> Rows:
    columns = ("pid", "host", "build", "store", "hits", "misses", "renders", "waiting")
    yield *map(str.upper, columns), "SINCE", "MEMORY", "RENDERING"
    for worker in workers:
        yield (
            *(str(worker.get(name, "")) for name in columns),
            moment(worker.get("began", 0)),
            amount(worker.get("memory_bytes", 0)),
            ", ".join(worker.get("rendering", ())),
        )


def call_rows(calls: Iterable[Mapping[str, t.Any]]) -> Rows:
    yield "WHEN", "CALL", "WHAT", "EFFECT", "BY", "PROCESS"
    for call in calls:
        yield moment(call.get("at", 0)), *call_row(call)


def call_row(call: Mapping[str, t.Any]) -> tuple[str, str, str, str, str]:
    """An entry of the journal: what was called, with what, to what effect, by whom and where."""
    effect = "expired" if call.get("expire") else "stale"
    if call.get("pages"):
        effect = f"{number(int(call['pages']), 'page')} rendered"
    what, where = ", ".join(map(str, call.get("what", ()))), f"{call.get('host')} {call.get('pid')}"
    return str(call.get("kind")), what, effect, call.get("by") or "-", where


def moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(round(at)))


def millis(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


def printable(text: str) -> str:
    """On one line, and without what a terminal takes for commands: apps and visitors wrote it."""
    return "".join(char if char.isprintable() else " " for char in text)


def number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def span(seconds: float) -> str:
    sign, seconds = ("-", -seconds) if seconds <= -1 else ("", max(0, seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{sign}{int(seconds // length)} {unit}"
    return f"{sign}{int(seconds)} s"


def amount(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:,.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
