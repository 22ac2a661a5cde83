"""Counters of one process, the totals in the store, and both in the format of Prometheus."""

from __future__ import annotations

import bisect
import collections
import typing as t
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment
    from prometheus_client import Metric

#: Upper bounds of the histogram of render seconds; the last one is open.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class Counters:
    """Attributes that are added to without a lock, so that a hit pays for nothing else."""

    hits: int = 0
    stale_hits: int = 0
    misses: int = 0
    passed: int = 0
    bypassed: int = 0
    renders: int = 0
    failures: int = 0
    rejections: int = 0
    store_errors: int = 0
    invalidations: int = 0
    #: Spent in renders.
    seconds: float = 0.0
    _buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    def rendered(self, seconds: float) -> None:
        """Count a render that took so long."""
        self.renders += 1
        self.seconds += seconds
        self._buckets[bisect.bisect_left(BUCKETS, seconds)] += 1

    def as_dict(self) -> dict[str, float]:
        """All that was counted, under the names that the store adds it to."""
        found: dict[str, float] = {name: getattr(self, name) for name in (*COUNTERS, "seconds")}
        found |= {f"bucket:{index}": count for index, count in enumerate(self._buckets) if count}
        return found


#: The names of what is counted.
COUNTERS = tuple(counter.name for counter in fields(Counters) if counter.default == 0)[:-1]
#: What is counted of requests that have to do with pages.
SERVED = ("hits", "stale_hits", "misses")
#: What the totals are remembered for: as the store, the day (UTC) and the build began.
PERIODS = ("store", "day", "build")


def beginning(
    period: str, identity: int, now: float, sums: Mapping[str, float]
) -> dict[str, float]:
    """What to add to the totals, so that they say what they are as a period begins.

    :param identity: another one than that of the period before.
    """
    start = {f"{period}:{name}": sums.get(name, 0) for name in SERVED}
    start |= {f"{period}:id": identity, f"{period}:at": now}
    return {name: value - sums.get(name, 0) for name, value in start.items()}


def periods_of(sums: Mapping[str, float]) -> dict[str, dict[str, t.Any]]:
    """The hits and misses of each period, its hit ratio, and when it began."""
    found = {}
    for period in PERIODS:
        if at := sums.get(f"{period}:at"):
            counts = {n: int(sums.get(n, 0) - sums.get(f"{period}:{n}", 0)) for n in SERVED}
            found[period] = {"at": at, **counts, "hit_ratio": hit_ratio(counts)}
    return found


def hit_ratio(counts: Mapping[str, float]) -> float:
    """The share of visits, 0 to 1, that found a page."""
    hits = counts["hits"] + counts["stale_hits"]
    return round(hits / (hits + counts["misses"]), 4) if hits else 0.0


def totals_of(sums: Mapping[str, float]) -> dict[str, t.Any]:
    """The totals as `ISRMiddleware.stats` gives them."""
    found: dict[str, t.Any] = {name: int(sums.get(name, 0)) for name in COUNTERS}
    found["evictions"] = int(sums.get("evictions", 0))
    running, buckets = 0, {}
    for index, bound in enumerate((*map(str, BUCKETS), "+Inf")):
        running += int(sums.get(f"bucket:{index}", 0))
        buckets[bound] = running
    found["render_seconds"] = {
        "count": running,
        "sum": round(sums.get("seconds", 0.0), 6),
        "buckets": buckets,
    }
    return found


# Prometheus.

#: Media type of the text format.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HELP = {
    "hits": "Visits that got a fresh page.",
    "stale_hits": "Visits that got a stale page.",
    "misses": "Visits that waited for a render, or got the app's own answer in its place.",
    "passed": "Requests that have nothing to do with pages.",
    "bypassed": "Visits that never get a page: draft mode, bypass, or switched off.",
    "renders": "Renders.",
    "failures": "Renders that failed.",
    "rejections": "Answers that were refused.",
    "evictions": "Pages removed from the store to make room.",
    "store_errors": "Calls that the store did not answer.",
    "invalidations": "Calls on demand.",
    "pages": "Pages in the store.",
    "bytes": "Bytes of the pages in the store; of a server, of all that it has in memory.",
    "memory_bytes": "Bytes of pages in the memory of all processes.",
    "rendering": "Pages that are rendered now.",
    "waiting": "Requests that wait for a render.",
    "processes": "Processes that serve or render.",
    "max_pages": "Pages that the store may have.",
    "max_bytes": "Bytes that the store may have.",
    "render_seconds": "How long renders take.",
    "store_up": "Whether the store reads and writes.",
    "build_processes": "Processes of each build.",
}


def exposition(isr: t.Any) -> bytes:
    """All metrics of a middleware; without its store no totals, since they never go down."""
    found = isr.on_demand().overview()
    stats, store = found["stats"], found["store"]
    lines: list[str] = []

    def add(name: str, kind: str, samples: Mapping[str, float]) -> None:
        """:param samples: by what follows the name of the metric."""
        whole = f"wsgi_isr_{name}_total" if kind == "counter" else f"wsgi_isr_{name}"
        lines.extend((f"# HELP {whole} {_HELP[name]}", f"# TYPE {whole} {kind}"))
        lines.extend(f"{whole}{rest} {value}" for rest, value in samples.items())

    times = stats.pop("render_seconds")
    for name, value in stats.items():
        is_total = name in COUNTERS or name == "evictions"
        if store["has_totals"] or not is_total:
            add(name, "counter" if is_total else "gauge", {"": value})
    if store["has_totals"]:
        buckets = {f'_bucket{{le="{bound}"}}': count for bound, count in times["buckets"].items()}
        rest = {"_sum": times["sum"], "_count": times["count"]}
        add("render_seconds", "histogram", {**buckets, **rest})
    for name in ("max_pages", "max_bytes"):
        if store[name]:
            add(name, "gauge", {"": store[name]})
    add("store_up", "gauge", {"": int(store["state"] == "ok")})
    builds = collections.Counter(str(process.get("build")) for process in found["workers"])
    escaped = {n: n.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for n in builds}
    of_builds = {f'{{build="{escaped[build]}"}}': count for build, count in builds.items()}
    add("build_processes", "gauge", of_builds)
    return "".join(f"{line}\n" for line in lines).encode()


class Collector:
    """All metrics of a middleware, for a registry of prometheus-client.

    They are right over all workers and restarts, without ``PROMETHEUS_MULTIPROC_DIR``: register
    it in one registry that one process serves, or in each.

    :param isr: the middleware, or an extension that has one.
    :raises ImportError: without prometheus-client, with the extra to install.

    .. code-block:: python

        prometheus_client.REGISTRY.register(Collector(isr))
    """

    def __init__(self, isr: t.Any) -> None:
        try:
            from prometheus_client import parser
        except ImportError as error:
            raise ImportError(
                "Collector needs prometheus-client: pip install 'wsgi-isr[prometheus]'"
            ) from error
        self._isr = isr
        self._parse = parser.text_string_to_metric_families

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry asks it when the app may not be there yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._parse(exposition(getattr(self._isr, "middleware", self._isr)).decode())


def bearer(environ: WSGIEnvironment) -> bytes:
    """The bearer token of a request, empty without one; to compare in constant time."""
    scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    # Bytes, which WSGI spells as latin-1: compare_digest refuses texts beyond ASCII.
    return given.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
