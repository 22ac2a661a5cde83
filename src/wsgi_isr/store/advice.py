"""What a Redis server's own configuration keeps the store from promising, told once."""

from __future__ import annotations

import logging
import time
import typing as t

from ..state import CLOCK_TOLERANCE

logger = logging.getLogger("wsgi_isr")

#: Policies that make room by evicting pages, which have a time to live, and spare the order of
#: renders and invalidations, which has none.
GOOD_POLICIES = ("volatile-lru", "volatile-lfu")
#: Warnings that this process has given.
_told: set[str] = set()


def tell(client: t.Any) -> None:
    """Warn of what is wrong with a server, or with this machine's clock.

    A server that does not let itself be asked is not judged.
    """
    try:
        warnings = list(_of_memory(client.info("memory")))
    except Exception:
        warnings = []
    try:
        before = time.time()
        seconds, microseconds = client.time()
        took = time.time() - before
        warnings += _of_clock(before + took / 2 - (seconds + microseconds / 1e6), took)
    except Exception:
        pass
    for warning in warnings:
        if warning not in _told:
            _told.add(warning)
            logger.warning(warning)


def _of_memory(info: dict[str, t.Any]) -> t.Iterator[str]:
    policy = str(info.get("maxmemory_policy", ""))
    advice = "set maxmemory-policy volatile-lru"
    if "maxmemory" not in info:
        return
    if not info["maxmemory"]:
        yield f"the Redis server has no maxmemory: nothing bounds its pages; set it, and {advice}"
    elif policy == "noeviction":
        yield (
            "the Redis server evicts nothing (maxmemory-policy noeviction): when it is full, new "
            f"pages are kept in memory only and invalidations fail; {advice}"
        )
    elif policy not in GOOD_POLICIES:
        yield (
            f"the Redis server may evict invalidations and leases (maxmemory-policy {policy}): "
            f"all pages then count as stale, or are rendered twice; {advice}"
        )


def _of_clock(ahead: float, took: float) -> t.Iterator[str]:
    if abs(ahead) > CLOCK_TOLERANCE + took:
        yield (
            f"the clock of this machine is {abs(ahead):.0f} seconds "
            f"{'ahead of' if ahead > 0 else 'behind'} the Redis server's: pages of machines whose "
            "clocks differ are rendered too early or too late"
        )
