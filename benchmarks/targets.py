"""What the library is meant to reach, as ratios within one run on one machine."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

from .results import figure
from .results import Results

#: A value by part, row and column.
Get = Callable[[str, str, str], float]


class Target(t.NamedTuple):
    what: str
    limit: float
    unit: str
    #: Raises `Missing` for what was not measured.
    measured: Callable[[Get], float]
    at_least: bool = False

    def told(self) -> str:
        word = "at least" if self.at_least else "at most"
        return f"{word} {self.limit:,g}{self.unit}"

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


class Missing(Exception):
    """A figure that this run does not have."""


def ratio(row: str) -> Callable[[Get], float]:
    return lambda get: get("hits", row, "ratio")


def slowest(*rows: str) -> Callable[[Get], float]:
    return lambda get: max(get("hits", row, "ratio") for row in rows)


def of_constant(row: str) -> Callable[[Get], float]:
    """By processor time for a request, beside the same server with a constant response."""
    server, _, kind = row.partition(", ")
    constant = f"{server}, {kind.replace('wsgi-isr', 'constant')}"
    return lambda get: get("http", constant, "CPU µs") / get("http", row, "CPU µs")


def beside(row: str, peer: str) -> Callable[[Get], float]:
    return lambda get: get("http", peer, "CPU µs") / get("http", row, "CPU µs")


def load(row: str, column: str) -> Callable[[Get], float]:
    return lambda get: get("load", row, column)


def beyond_the_render(row: str) -> Callable[[Get], float]:
    return lambda get: get("load", row, "slowest ms") - get("load", row, "render ms")


GRANIAN, BJOERN = "granian, wsgi-isr", "bjoern, wsgi-isr"
TARGETS = [
    Target("hit, `memory://`", 2, " × by hand", ratio("memory://")),
    Target("hit, `redis://`", 2, " × by hand", ratio("redis://")),
    Target("hit, `file://`, shared by workers", 2.5, " × by hand", ratio("file://")),
    *(
        Target(
            f"hit, {kind}",
            2.5,
            " × by hand",
            slowest(f"memory://, {kind}", f"file://, {kind}"),
        )
        for kind in ("gzip", "cookie", "query", "304", "HEAD")
    ),
    Target(
        "not a page, known as such",
        300,
        " ns more",
        lambda get: get("hits", "not a page", "ns") - get("hits", "app alone", "ns"),
    ),
    Target("hits over HTTP, granian", 0.95, " × constant", of_constant(GRANIAN), True),
    Target("… gzip", 0.95, " × constant", of_constant(f"{GRANIAN}, gzip"), True),
    Target("hits over HTTP, bjoern", 0.95, " × constant", of_constant(BJOERN), True),
    Target("… gzip", 0.95, " × constant", of_constant(f"{BJOERN}, gzip"), True),
    Target("bjoern", 1.3, " × Varnish", beside(BJOERN, "Varnish"), True),
    Target("granian", 7, " × Flask-Caching", beside(GRANIAN, "granian, Flask-Caching"), True),
    Target("granian", 12, " × Next.js 12", beside(GRANIAN, "Next.js 12"), True),
    Target("granian", 30, " × Next.js 16", beside(GRANIAN, "Next.js 16"), True),
    Target(
        "granian, gzip",
        40,
        " × Next.js 12, gzip",
        beside(f"{GRANIAN}, gzip", "Next.js 12, gzip"),
        True,
    ),
    Target(
        "granian, gzip",
        55,
        " × Next.js 16, gzip",
        beside(f"{GRANIAN}, gzip", "Next.js 16, gzip"),
        True,
    ),
    Target("64 visitors at once, cold page: renders", 1, "", load("64 at once, cold", "renders")),
    Target(
        "… slowest visitor, beyond the render", 20, " ms", beyond_the_render("64 at once, cold")
    ),
    Target("64 visitors at once, stale page: renders", 1, "", load("64 at once, stale", "renders")),
    Target("… slowest visitor", 10, " ms", load("64 at once, stale", "slowest ms")),
    Target(
        "50 requests/s for 20 s, render sleeps: renders",
        17,
        "",
        load("50/s, render sleeps", "renders"),
    ),
    Target("… p99", 2, " ms", load("50/s, render sleeps", "p99 ms")),
    Target(
        "the same, render computes, dedicated processes: p99",
        2,
        " ms",
        load("50/s, render computes, processes", "p99 ms"),
    ),
    Target(
        "hit, 1,000 pages asked for of 100,000 instead of 1,000",
        1.3,
        " ×",
        lambda get: get("memory", "hit, 1,000 of 100,000 pages", "growth"),
    ),
    Target(
        "… all 100,000 asked for",
        1.3,
        " ×",
        lambda get: get("memory", "hit, 100,000 pages", "growth"),
    ),
    Target(
        "a page read from files",
        2,
        " × cachelib's get",
        lambda get: get("files", "a page read", "ratio"),
    ),
    Target(
        "… the whole request, memory level off",
        2,
        " × cachelib's get",
        lambda get: get("files", "a request, memory level off", "ratio"),
    ),
    Target(
        "a page written to files",
        3,
        " × cachelib's set",
        lambda get: get("files", "a page written", "ratio"),
    ),
    Target(
        "memory of a page of 20 KB beyond its bodies",
        2048,
        " bytes",
        lambda get: get("memory", "a page in memory", "bytes beyond"),
    ),
    Target(
        "`import wsgi_isr`",
        1.5,
        " × werkzeug.http",
        lambda get: get("import", "wsgi_isr", "ratio"),
    ),
]


def table(results: Results) -> str:
    """All targets beside what was measured, in Markdown."""

    def get(part: str, row: str, column: str) -> float:
        value = results.get(part, row, column)
        if value is None:
            raise Missing
        return value

    lines = ["| what | target | measured | |", "|---|---|---:|---|"]
    for target in TARGETS:
        try:
            value = target.measured(get)
        except Missing:
            measured, verdict = "not measured", ""
        else:
            measured = f"{figure(value)}{target.unit.partition(' × ')[0] or ''}"
            if " × " in target.unit:
                measured = f"{figure(value)} ×"
            verdict = "met" if target.met(value) else "**missed**"
        lines.append(f"| {target.what} | {target.told()} | {measured} | {verdict} |")
    return "\n".join(lines)
