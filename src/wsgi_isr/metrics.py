"""Counters of one process: plain numbers, which are added to the totals of the store."""

from __future__ import annotations

import typing as t

#: Upper bounds of the histogram of render seconds; the last one is open.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: What is counted.
COUNTERS = (
    "hits",
    "stale_hits",
    "misses",
    "passed",
    "bypassed",
    "renders",
    "failures",
    "rejections",
    "store_errors",
    "invalidations",
)


class Counters:
    """Attributes that are added to without a lock, so that a hit pays for nothing else."""

    __slots__ = (*COUNTERS, "_added", "_buckets", "seconds")

    hits: int
    stale_hits: int
    misses: int
    passed: int
    bypassed: int
    renders: int
    failures: int
    rejections: int
    store_errors: int
    invalidations: int

    def __init__(self) -> None:
        for name in COUNTERS:
            setattr(self, name, 0)
        #: Seconds spent in renders.
        self.seconds = 0.0
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._added: dict[str, float] = {}

    def rendered(self, seconds: float) -> None:
        """Count a render that took so long."""
        self.renders += 1
        self.seconds += seconds
        self._buckets[sum(seconds > bound for bound in BUCKETS)] += 1

    def as_dict(self) -> dict[str, float]:
        """All that was counted, under the names that the store adds it to."""
        found: dict[str, float] = {name: getattr(self, name) for name in COUNTERS}
        found["seconds"] = self.seconds
        found |= {f"bucket:{index}": count for index, count in enumerate(self._buckets) if count}
        return found

    def take(self) -> dict[str, float]:
        """What was counted since the last call that was not given back."""
        now = self.as_dict()
        new = {name: n - self._added.get(name, 0) for name, n in now.items()}
        self._added = now
        return {name: count for name, count in new.items() if count}

    def give_back(self, counts: t.Mapping[str, float]) -> None:
        """Have counts taken again: the store did not get them."""
        for name, count in counts.items():
            self._added[name] = self._added.get(name, 0) - count


def totals_of(sums: t.Mapping[str, float]) -> dict[str, t.Any]:
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
