"""What the command line says: results and their summary, tables, numbers for people."""

from __future__ import annotations

import shutil
import sys
import time
import typing as t
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

from .metadata import REMEDIES
from .ondemand import PageInfo
from .ondemand import RefusedError
from .ondemand import Result

#: URLs that a summary names for one reason.
MAX_NAMED = 10
#: Narrower than this no column is made.
MIN_WIDTH = 12


class Report:
    """Counts results, and keeps what has to be said of them in the end.

    :param total: paths that were asked for.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._began = time.monotonic()
        self._path: str | None = None
        self._paths = 0
        self._counts = dict.fromkeys(("rendered", "fresh", "refused", "failed"), 0)
        #: URLs by what came of them and why; only the first ones, and how many there are.
        self._reasons: dict[tuple[str, str], tuple[int, list[str]]] = {}

    @property
    def failed(self) -> bool:
        return bool(self._counts["refused"] or self._counts["failed"])

    def add(self, path: str, result: Result) -> bool:
        """Count a result; true if it is the first one of its path."""
        kind, why = _kind(result), _why(result)
        self._counts[kind] += 1
        if why:
            count, urls = self._reasons.get((kind, why), (0, []))
            self._reasons[kind, why] = (count + 1, urls)
            if len(urls) < MAX_NAMED:
                urls.append(result.url)
        new = path != self._path
        self._path = path
        self._paths += new
        return new

    @staticmethod
    def line(result: Result) -> str:
        why = _why(result)
        status = f" {result.status}" if result.status is not None else ""
        return f"{_kind(result)}{status} {printable(result.url)}{': ' + why if why else ''}"

    def summary(self, interrupted: bool) -> Iterator[str]:
        seconds = time.monotonic() - self._began
        counts = self._counts
        parts = [f"{counts['rendered']:,} rendered"]
        for kind, word in (
            ("fresh", "fresh already"),
            ("refused", "refused"),
            ("failed", "failed"),
        ):
            if counts[kind]:
                parts.append(f"{counts[kind]:,} {word}")
        pages = number(sum(counts.values()), "page")
        if interrupted:
            yield f"Interrupted after {self._paths:,} of {number(self._total, 'path')}."
        yield f"{pages} in {seconds:.1f} s: {', '.join(parts)}"
        for (kind, why), (count, urls) in sorted(self._reasons.items()):
            yield f"{kind} ({count:,}): {why}"
            for url in urls:
                yield f"    {printable(url)}"
            if count > len(urls):
                yield f"    and {count - len(urls):,} more"


def _kind(result: Result) -> str:
    if result.error is None:
        return "rendered" if result.rendered else "fresh"
    return "refused" if isinstance(result.error, RefusedError) else "failed"


def _why(result: Result) -> str:
    error = result.error
    if error is None:
        return ""
    if isinstance(error, RefusedError):
        remedy = REMEDIES.get(error.detail)
        return printable(f"{error}; {remedy}" if remedy else str(error))
    kind = type(error).__name__
    return printable(str(error) if isinstance(error, ValueError) else f"{kind}: {error}")


# Tables.


def page_rows(pages: Iterable[PageInfo]) -> list[Sequence[str]]:
    """The table of pages, with its head."""
    head = ("URL", "STATUS", "STATE", "AGE", "TTL", "SIZE", "TAGS", "LAST ERROR")
    rows = [
        (
            page.url,
            str(page.status),
            page.state,
            span(page.age),
            "-" if page.ttl is None else span(page.ttl),
            amount(page.size),
            ", ".join(page.tags),
            page.last_error or "",
        )
        for page in pages
    ]
    return [head, *sorted(rows)]


def worker_rows(workers: Sequence[dict[str, t.Any]]) -> list[Sequence[str]]:
    """The table of processes, with its head and a sum."""
    now = time.time()
    counters = ("hits", "stale_hits", "misses", "renders", "failures", "rejections", "store_errors")
    head = ["PROCESS", "SINCE", "AS OF", *(name.upper().replace("_", " ") for name in counters)]
    rows: list[Sequence[str]] = [[*head, "RENDER", "LONGEST"]]
    hosts = {worker["host"] for worker in workers}
    for worker in workers:
        name = str(worker["pid"]) + (f"@{worker['host']}" if len(hosts) > 1 else "")
        since = [name, span(now - worker["began"]), span(now - worker["left"])]
        rows.append([*since, *(f"{worker[name]:,}" for name in counters), *_times([worker])])
    if len(workers) > 1:
        sums = (f"{sum(worker[name] for worker in workers):,}" for name in counters)
        rows.append(["all", "", "", *sums, *_times(workers)])
    return rows


def _times(workers: Sequence[dict[str, t.Any]]) -> tuple[str, str]:
    """How long a render takes, on average and at the most."""
    renders = sum(worker["renders"] for worker in workers)
    if not renders:
        return "-", "-"
    mean = sum(worker["render_seconds"] for worker in workers) / renders
    longest = max(worker["render_seconds_max"] for worker in workers)
    return f"{1000 * mean:,.0f} ms", f"{1000 * longest:,.0f} ms"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned columns; on a terminal no wider than it is."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns
        while (over := sum(widths) + 2 * (len(widths) - 1) - room) > 0:
            widest = max(range(len(widths)), key=widths.__getitem__)
            if widths[widest] <= MIN_WIDTH:
                break
            others = max((w for i, w in enumerate(widths) if i != widest), default=0)
            widths[widest] = max(MIN_WIDTH, min(others, widths[widest] - 1), widths[widest] - over)
    right = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(widths))]
    for row in cells:
        yield "  ".join(
            _fit(cell, width).rjust(width) if to_right else _fit(cell, width).ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()


def _is_number(cell: str) -> bool:
    return not cell or cell == "-" or cell.removeprefix("-")[:1].isdigit()


def _fit(cell: str, width: int) -> str:
    """A cell in so many characters; of what is too long the middle goes."""
    if len(cell) <= width:
        return cell
    half = (width - 1) // 2
    return f"{cell[: width - 1 - half]}…{cell[-half:]}"


# Numbers for people.


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
    units = iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 999.5 and (larger := next(units, None)):
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
