"""What the command line prints: results, tables, and numbers for people."""

from __future__ import annotations

import shutil
import sys
import typing as t
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import unquote_to_bytes, urlsplit

import click

from .listing import PageInfo
from .ondemand import RefusedError, Result
from .refusals import REMEDIES
from .rules import compile_pattern


def line(result: Result) -> str:
    """A result on one line."""
    status = "" if result.status is None else f" {result.status}"
    why = "" if result.error is None else f": {describe(result.error)}"
    return printable(f"{result.outcome}{status} {result.url}{why}")


def describe(error: Exception) -> str:
    """An error for those who read a line, with its remedy."""
    if isinstance(error, RefusedError) and error.detail in REMEDIES:
        return f"{error}; {REMEDIES[error.detail]}"
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


ORDERS: dict[str | None, Callable[[PageInfo], t.Any]] = {
    None: lambda page: page.url,
    "age": lambda page: -page.age,
    "size": lambda page: -page.size,
    "render": lambda page: -page.seconds,
}


def page_rows(pages: Iterable[PageInfo]) -> list[Sequence[str]]:
    """The table of pages, with its head."""
    rows: list[Sequence[str]] = [
        ("URL", "STATUS", "STATE", "AGE", "TTL", "SIZE", "RENDER", "TAGS", "LAST ERROR")
    ]
    for page in pages:
        ttl = "-" if page.ttl is None else span(page.ttl)
        what = (page.url, str(page.status or "-"), page.state, span(page.age), ttl)
        render, error = f"{1000 * page.seconds:,.0f} ms", page.last_error or ""
        rows.append((*what, amount(page.size), render, ", ".join(page.tags), error))
    return rows


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns; on a terminal no wider than it is."""
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
