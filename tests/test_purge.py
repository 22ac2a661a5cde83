"""A purge is one step, however many pages it is about: what is counted is what the store does."""

from __future__ import annotations

import os
import sys
import typing as t
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from redis_server import Redis
from redis_server import running
from steps import visit

from wsgi_isr import ISRMiddleware
from wsgi_isr.key import PageKey
from wsgi_isr.metadata import Metadata
from wsgi_isr.page import Codec
from wsgi_isr.page import Page

FEW, MANY = 10, 10_000

Purge = Callable[[ISRMiddleware], None]

#: With the state that all pages are in afterwards.
PURGES: dict[str, tuple[Purge, str]] = {
    "a tag": (lambda isr: isr.revalidate_tag("posts"), "stale"),
    "a pattern, hard": (lambda isr: isr.invalidate("/blog/*", expire=True), "expired"),
}

#: File system calls of this process, while somebody counts them.
_counter: Counter[str] | None = None


def _audit(event: str, args: tuple[t.Any, ...]) -> None:
    if _counter is not None and event in ("open", "os.listdir", "os.scandir", "os.rename"):
        _counter[event] += 1


# An audit hook is there for good, and costs next to nothing while nobody counts.
sys.addaudithook(_audit)


def fill(isr: ISRMiddleware, count: int, now: float) -> None:
    """Store so many posts, as renders would have."""
    store = isr._here().store
    number, codec = store.next_number(), Codec()
    for index in range(count):
        key = PageKey("http", "localhost", "", f"/blog/{index}")
        body = {"identity": b"a post"}
        page = Page(key, "200 OK", (), body, Metadata(60, None, ("posts",)), now, *number[::-1])
        store.storage.set(page.name, codec.encode(page))


def states(isr: ISRMiddleware) -> Counter[str]:
    return Counter(page.state for page in isr.pages())


@pytest.mark.parametrize(("purge", "state"), PURGES.values(), ids=PURGES)
class TestFiles:
    def calls(self, isr: ISRMiddleware, purge: Purge) -> tuple[Counter[str], int]:
        """File system calls of a purge, and the bytes that were written."""
        global _counter
        folder = isr._here().store.coordination.folder  # type: ignore[attr-defined]
        # What a process reads once, it has read.
        isr.revalidate_tag("another")
        log = os.path.join(folder, "epochs")
        before = os.path.getsize(log)
        _counter = counter = Counter()
        try:
            purge(isr)
        finally:
            _counter = None
        return counter, os.path.getsize(log) - before

    def test_costs_the_same_for_ten_pages_and_for_ten_thousand(
        self, make: Make, tmp_path: t.Any, clock: Clock, purge: Purge, state: str
    ) -> None:
        costs = []
        for count in (FEW, MANY):
            isr = make(f"file://{tmp_path}/{count}")
            fill(isr, count, clock())
            assert states(isr) == {"fresh": count}
            costs.append(self.calls(isr, purge))
            assert states(isr) == {state: count}
        assert costs[0] == costs[1]
        calls, written = costs[0]
        assert 0 < calls.total() <= 10
        assert 0 < written < 100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running(Redis(tmp_path_factory.mktemp("redis"))) as server:
        assert isinstance(server, Redis)
        yield server


@pytest.mark.servers
@pytest.mark.parametrize(("purge", "state"), PURGES.values(), ids=PURGES)
class TestRedis:
    def calls(self, isr: ISRMiddleware, purge: Purge) -> dict[str, int]:
        """What the server did meanwhile, also within scripts, and for other threads."""
        client = isr._here().store.storage.client  # type: ignore[attr-defined]
        isr.revalidate_tag("another")
        # By the scripts of two calls, so that both are known to the server.
        purge(isr)
        client.config_resetstat()
        purge(isr)
        return {name: stats["calls"] for name, stats in client.info("commandstats").items()}

    def test_does_nothing_for_each_of_ten_thousand_pages(
        self, server: Redis, make: Make, clock: Clock, purge: Purge, state: str
    ) -> None:
        isr = make(f"redis://127.0.0.1:{server.port}/0")
        server.do("FLUSHALL")
        fill(isr, MANY, clock())
        calls = self.calls(isr, purge)
        # Far fewer of each command than there are pages; another thread looks for changes, too.
        assert max(calls.values()) < MANY / 100
        assert "cmdstat_scan" not in calls
        assert states(isr) == {state: MANY}


class TestNothingIsRendered:
    @pytest.mark.parametrize("expire", [False, True])
    def test_until_visitors_come(self, site: Site, make: Make, cache: str, expire: bool) -> None:
        paths = [f"/blog/{index}" for index in range(FEW)]
        isr = make(cache, base_url="http://localhost")
        for path in paths:
            site.page(path, tags=["posts"])
            visit(isr, path)
        isr.revalidate_tag("posts", expire=expire)
        isr.close()
        assert site.renders() == FEW
        answer = visit(isr, paths[0])
        forward = "isr; fwd=stale; stored" if expire else "isr; hit; ttl=0"
        assert status_of(answer) == forward
        isr.close()
        assert site.renders() == FEW + 1
