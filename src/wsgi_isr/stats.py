"""Counters of one process."""

from __future__ import annotations

import typing as t


class Stats:
    """Plain attributes, added to without a lock: a hit pays for nothing else."""

    __slots__ = (
        "failures",
        "hits",
        "misses",
        "rejections",
        "render_seconds",
        "render_seconds_max",
        "renders",
        "stale_hits",
        "store_errors",
    )

    def __init__(self) -> None:
        self.hits = 0
        self.stale_hits = 0
        self.misses = 0
        self.renders = 0
        self.failures = 0
        self.rejections = 0
        self.store_errors = 0
        self.render_seconds = 0.0
        self.render_seconds_max = 0.0

    def rendered(self, seconds: float) -> None:
        self.renders += 1
        self.render_seconds += seconds
        self.render_seconds_max = max(self.render_seconds_max, seconds)

    def as_dict(self) -> dict[str, t.Any]:
        return {name: getattr(self, name) for name in self.__slots__}
