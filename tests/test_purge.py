"""An invalidation by tag or pattern is one step, however many pages it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from conftest import Clock, Make
from entries import make_page
from redis_server import Redis

from wsgi_isr import ISRMiddleware
from wsgi_isr.page import Codec
from wsgi_isr.store.protocol import Record

MANY = 3_000

Purge = Callable[[ISRMiddleware], None]

#: With the state that all pages are in afterwards.
PURGES: dict[str, tuple[Purge, str]] = {
    "a tag": (lambda isr: isr.revalidate_tag("posts"), "stale"),
    "a pattern, hard": (lambda isr: isr.invalidate("/blog/*", expire=True), "expired"),
}


def fill(isr: ISRMiddleware, count: int, now: float) -> None:
    """Store so many posts, as renders would have."""
    store, codec = isr.store, Codec()
    number = store.number()
    for index in range(count):
        page = make_page(
            f"/blog/{index}",
            tags=("posts",),
            generated_at=now,
            sequence=number.sequence,
            lineage=number.lineage,
        )
        head, body = codec.encode(page)
        store.put(Record(page.name, page.labels, number, "", page.key.path, False, head, body))


def states(isr: ISRMiddleware) -> Counter[str]:
    return Counter(page.state for page in isr.pages())


@pytest.mark.servers
@pytest.mark.parametrize(("purge", "state"), PURGES.values(), ids=PURGES)
def test_a_server_does_nothing_for_each_page(
    redis: Redis, make: Make, clock: Clock, purge: Purge, state: str
) -> None:
    isr = make(redis.url)
    fill(isr, MANY, clock())
    # So that the server has the scripts of both calls.
    isr.revalidate_tag("another")
    isr.invalidate("/another", expire=True)
    redis.do("CONFIG", "RESETSTAT")
    purge(isr)
    stats = redis.do("INFO", "commandstats")
    # Far fewer of each command than there are pages; another thread follows changes, too.
    assert 0 < max(found["calls"] for found in stats.values()) < MANY / 100
    assert "cmdstat_scan" not in stats
    assert states(isr) == {state: MANY}
