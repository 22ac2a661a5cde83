"""What the command line prints: results, tables, and numbers for people."""

from __future__ import annotations

import heapq
import shutil
import sys
import time
import typing as t
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from urllib.parse import unquote_to_bytes, urlsplit

from .listing import Explanation, PageInfo
from .metadata import GONE
from .metrics import BUCKETS, hit_ratio
from .ondemand import RefusedError, Result
from .refusals import remedy_of
from .rules import compile_pattern


def line(result: Result) -> str:
    """A result on one line."""
    status = "" if result.status is None else f" {result.status}"
    why = "" if result.error is None else f": {describe(result.error)}"
    return printable(f"{result.outcome}{status} {result.url}{why}")


def describe(error: Exception) -> str:
    """An error for those who read a line, with its remedy."""
    if isinstance(error, RefusedError):
        remedy = remedy_of(str(error).partition("(")[2].removesuffix(")"))
        return f"{error}; {remedy}" if remedy else str(error)
    is_ours = type(error).__module__.startswith("wsgi_isr")
    is_plain = is_ours or isinstance(error, ValueError | NotImplementedError)
    return str(error) if is_plain else f"{type(error).__name__}: {error}"


def selector(
    tags: Iterable[str], patterns: Iterable[str], failed: bool = False, stale: bool = False
) -> Callable[[PageInfo], bool]:
    """Whether a page has one of the tags, or a path that matches one of the patterns."""
    wanted, compiled = set(tags), [compile_pattern(pattern) for pattern in patterns]

    def selects(page: PageInfo) -> bool:
        path = unquote_to_bytes(urlsplit(page.url).path).decode("latin-1") or "/"
        is_named = not wanted.isdisjoint(page.tags) or any(p.fullmatch(path) for p in compiled)
        return (
            (is_named or not (wanted or compiled))
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


def first(pages: Iterable[PageInfo], order: str, limit: int | None) -> list[PageInfo]:
    """The first pages of an order; no more than that many are kept meanwhile."""
    if limit is None:
        return sorted(pages, key=ORDERS[order])
    return heapq.nsmallest(limit, pages, key=ORDERS[order])


def page_rows(pages: Iterable[PageInfo]) -> list[Sequence[str]]:
    """The table of pages, with its head."""
    head = "URL STATUS STATE AGE TTL USED SIZE RENDER P95 TAGS"
    rows: list[Sequence[str]] = [(*head.split(), "LAST ERROR")]
    for page in pages:
        ttl = "-" if page.ttl is None else span(page.ttl)
        used = span(time.time() - page.used_at) if page.used_at else "-"
        what = (page.url, str(page.status or "-"), page.state, span(page.age), ttl, used)
        render, p95 = (millis(page.render_seconds(share)) for share in (0.5, 0.95))
        times = f" ({page.failures} times)" if page.failures > 1 else ""
        error = f"{page.last_error}{times}" if page.last_error else ""
        rows.append((*what, amount(page.size), render, p95, ", ".join(page.tags), error))
    return rows


def overview_tables(found: dict[str, t.Any]) -> Iterator[list[Sequence[str]]]:
    """What `wsgi_isr.listing.overview_of` gives, as tables."""
    stats, store = dict(found["stats"]), found["store"]
    times = stats.pop("render_seconds")
    names = {"store": "since the store began", "day": "today (UTC)", "build": "since the deploy"}
    rows: list[Sequence[str]] = [("hit ratio", f"{hit_ratio(stats):.1%}")]
    for period, counts in found["periods"].items():
        visits = sum(counts[name] for name in ("hits", "stale_hits", "misses"))
        what = (
            f"{counts['hit_ratio']:.1%} of {number(visits, 'visit')}, from {moment(counts['at'])}"
        )
        rows.append((f"  {names[period]}", what))
    for name, value in stats.items():
        shown = amount(value) if name.endswith("bytes") else f"{value:,}"
        bound = store.get(f"max_{name}")
        most = amount(bound) if name == "bytes" and bound else f"{bound:,}" if bound else ""
        rows.append((name.replace("_", " "), f"{shown} of {most}" if most else shown))
    rows.append(("mean render", millis(times["sum"] / max(1, times["count"]))))
    within = next(b for b, n in times["buckets"].items() if n >= 0.95 * times["count"])
    took = f"over {BUCKETS[-1]} s" if within == "+Inf" else f"within {within} s"
    rows.append(("95% of renders", took if times["count"] else "-"))
    yield [*rows, ("store", f"{store['kind']}, {store['state']} since {moment(store['since'])}")]
    columns = ("pid", "host", "build", "store", "hits", "misses", "renders", "waiting")
    rows = [(*map(str.upper, columns), "SINCE", "MEMORY", "RENDERING")]
    for process in found["workers"]:
        cells = [str(process.get(name, "")) for name in columns]
        memory, now = amount(process.get("memory_bytes", 0)), process.get("rendering", ())
        rows.append((*cells, moment(process.get("began", 0)), memory, ", ".join(now)))
    if found["workers"]:
        yield rows
    if calls := found["calls"][:MAX_CALLS]:
        rows = [("WHEN", "CALL", "WHAT", "EFFECT", "BY", "PROCESS")]
        yield [*rows, *((moment(call.get("at", 0)), *call_row(call)) for call in calls)]


def call_row(call: Mapping[str, t.Any]) -> tuple[str, str, str, str, str]:
    """An entry of the journal: what was called, with what, to what effect, by whom and where."""
    effect = "expired" if call.get("expire") else "stale"
    if call.get("pages") is not None:
        effect = f"{number(int(call['pages']), 'page')} rendered"
    what, where = ", ".join(map(str, call.get("what", ()))), f"{call.get('host')} {call.get('pid')}"
    return str(call.get("kind")), what, effect, call.get("by") or "-", where


def moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(round(at)))


def millis(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


#: Facts of an explanation that are shown even where there are none.
_FACTS = 14
#: On-demand calls that `isr stats` shows.
MAX_CALLS = 10


def explanation_rows(found: Explanation) -> list[Sequence[str]]:
    """What is said of a page, one fact a row."""
    said = dict(vars(found))
    for name in list(said)[_FACTS:]:
        # Of what may be there besides, only what is.
        if not said[name]:
            del said[name]
    if found.rendered_at is not None:
        said["rendered_at"] = moment(found.rendered_at)
        said["age"], said["seconds"] = span(found.age or 0), millis(found.seconds or 0)
    if found.renders:
        said["renders"] = tuple(
            f"{moment(r.at)}: {millis(r.seconds)} {r.reason}" for r in found.renders
        )
    if found.invalidation is not None:
        call = found.invalidation
        kind, what, effect, by, where = call_row(call)
        at = moment(call.get("at", 0))
        said["invalidation"] = f"{at}: {kind} {what}, {effect}, by {by}, process {where}"
    rows: list[Sequence[str]] = []
    for name, value in said.items():
        each = value if isinstance(value, tuple) else (value,)
        words = ["-" if word is None else str(word) for word in each] or ["-"]
        rows += [(name.replace("_", " ") if not i else "", word) for i, word in enumerate(words)]
    return rows


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns; on a terminal no wider than it is."""
    # Here, since the status page uses this module, too, and needs no click.
    import click

    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    cells = [[_fit(printable(cell), room // 2) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        text = "  ".join(map(str.ljust, row, widths)).rstrip()
        click.echo(text[:room] if room else text)


def _fit(cell: str, room: int) -> str:
    """A cell in so many characters; of what is too long the middle goes."""
    return f"{cell[: room // 2]}…{cell[1 - room // 2 :]}" if 0 < room < len(cell) else cell


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
