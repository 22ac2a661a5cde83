"""What the library is meant to reach, as ratios within one run on one machine."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Callable

from .results import Results, figure

#: A value by part, row and column.
Get = Callable[[str, str, str], float]


class Target(t.NamedTuple):
    what: str
    limit: float
    unit: str
    #: Raises `Missing` for what was not measured.
    measured: Callable[[Get], float]
    at_least: bool = False
    #: The same of something that does less: what nobody can be better than here.
    limit_here: Callable[[Get], float] | None = None

    def told(self) -> str:
        word = "at least" if self.at_least else "at most"
        return f"{word} {self.limit:,g}{self.unit}"

    def tell(self, value: float) -> str:
        if " × " in self.unit:
            return f"{figure(value)} ×"
        return f"{figure(value)}{self.unit}"

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
    server, _, *coding = row.split(", ")
    constant = ", ".join([server, "constant", *coding])
    return lambda get: get("http", constant, "CPU µs") / get("http", row, "CPU µs")


def beside(row: str, peer: str) -> Callable[[Get], float]:
    return lambda get: get("http", peer, "CPU µs") / get("http", row, "CPU µs")


def load(row: str, column: str) -> Callable[[Get], float]:
    return lambda get: get("load", row, column)


def beyond_the_render(row: str) -> Callable[[Get], float]:
    return lambda get: get("load", row, "slowest ms") - get("load", row, "render ms")


def more_than_the_app(row: str) -> Callable[[Get], float]:
    return lambda get: get("hits", row, "ns") - get("hits", "app alone", "ns")


def growth(row: str) -> Callable[[Get], float]:
    return lambda get: get("memory", row, "growth")


def over_http(server: str) -> list[Target]:
    hits, by_hand = f"{server}, wsgi-isr", of_constant(f"{server}, by hand")
    return [
        Target(f"hits over HTTP, {server}", 0.95, " × constant", of_constant(hits), True, by_hand),
        Target("… gzip", 0.95, " × constant", of_constant(f"{hits}, gzip"), True),
    ]


def than(server: str, times: float, peer: str, kind: str = "") -> Target:
    """A server of Python with the library, beside a peer; at best its answer is constant."""
    who = f"{server}, {peer}" if peer == "Flask-Caching" else peer
    measured, best = (f"{server}, {name}{kind}" for name in ("wsgi-isr", "constant"))
    return Target(
        f"{server}{kind}",
        times,
        f" × {peer}{kind}",
        beside(measured, f"{who}{kind}"),
        True,
        beside(best, f"{who}{kind}"),
    )


SLEEPS = "50/s, render sleeps"
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
        more_than_the_app("not a page"),
        limit_here=more_than_the_app("not a page, by hand"),
    ),
    *over_http("granian"),
    *over_http("bjoern"),
    than("bjoern", 1.3, "Varnish"),
    than("granian", 7, "Flask-Caching"),
    than("granian", 12, "Next.js 12"),
    than("granian", 30, "Next.js 16"),
    than("granian", 40, "Next.js 12", ", gzip"),
    than("granian", 55, "Next.js 16", ", gzip"),
    Target("64 visitors at once, cold page: renders", 1, "", load("64 at once, cold", "renders")),
    Target(
        "… slowest visitor, beyond the render",
        20,
        " ms",
        beyond_the_render("64 at once, cold"),
        limit_here=load("64 at once, not a page", "slowest ms"),
    ),
    Target("64 visitors at once, stale page: renders", 1, "", load("64 at once, stale", "renders")),
    Target(
        "… slowest visitor",
        10,
        " ms",
        load("64 at once, stale", "slowest ms"),
        limit_here=load("64 at once, not a page", "slowest ms"),
    ),
    Target(
        "50 requests/s for 20 s, render sleeps: renders",
        17,
        "",
        load(SLEEPS, "renders"),
        limit_here=load(SLEEPS, "due"),
    ),
    Target(
        "… p99", 2, " ms", load(SLEEPS, "p99 ms"), limit_here=load("50/s, not a page", "p99 ms")
    ),
    Target(
        "the same, render computes, dedicated processes: p99",
        2,
        " ms",
        load("50/s, render computes, processes", "p99 ms"),
        limit_here=load("50/s, not a page", "p99 ms"),
    ),
    Target(
        "hit, 1,000 pages asked for of 100,000 instead of 1,000",
        1.3,
        " ×",
        growth("hit, 1,000 of 100,000 pages"),
        limit_here=growth("by hand, 1,000 of 100,000 pages"),
    ),
    Target(
        "… all 100,000 asked for",
        1.3,
        " ×",
        growth("hit, 100,000 pages"),
        limit_here=growth("by hand, 100,000 pages"),
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

    lines = ["| what | target | measured | | limit here |", "|---|---|---:|---|---:|"]
    for target in TARGETS:
        try:
            value = target.measured(get)
        except Missing:
            measured, verdict = "not measured", ""
        else:
            measured = target.tell(value)
            verdict = "met" if target.met(value) else "**missed**"
        limit = ""
        if target.limit_here is not None:
            with contextlib.suppress(Missing):
                limit = target.tell(target.limit_here(get))
        lines.append(f"| {target.what} | {target.told()} | {measured} | {verdict} | {limit} |")
    return "\n".join(lines)
