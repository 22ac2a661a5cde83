"""What each kind of store promises: the table of docs/stores.md, cell by cell.

Two middlewares with caches of their own stand for two processes, and a new one for a restart.
"""

from __future__ import annotations

import logging
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from cachelib import BaseCache
from cachelib import FileSystemCache
from cachelib import SimpleCache
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from redis_server import Memcached
from redis_server import Redis
from redis_server import running
from steps import PATIENCE
from steps import visit
from steps import wait_until

from wsgi_isr import ISRMiddleware

pytestmark = pytest.mark.servers

HOME = "http://localhost/"


class Shared(BaseCache):
    """A cache of somebody else's making: all that is known of it is that it is one."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._files = FileSystemCache(folder, threshold=0)

    def get(self, key: str) -> t.Any:
        return self._files.get(key)

    def set(self, key: str, value: t.Any, timeout: t.Any = None) -> bool | None:
        return self._files.set(key, value, timeout)

    def add(self, key: str, value: t.Any, timeout: t.Any = None) -> bool:
        return self._files.add(key, value, timeout)

    def delete(self, key: str) -> bool:
        return self._files.delete(key)


KINDS = ["memory", "SimpleCache", "FileSystemCache", "files", "redis", "memcached", "other"]
IN_ONE_PROCESS = ("memory", "SimpleCache")


@pytest.fixture(scope="module")
def memcached() -> Iterator[Memcached]:
    pytest.importorskip("pymemcache")
    with running(Memcached()) as server:
        assert isinstance(server, Memcached)
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("wsgi_isr.store.opening._warned", set())
    return str(request.param)


@pytest.fixture
def cache(kind: str, tmp_path: t.Any, request: pytest.FixtureRequest) -> Callable[[], t.Any]:
    """Makes the cache of one process."""
    if kind == "redis":
        redis: Redis = request.getfixturevalue("redis")
        return lambda: redis.url
    if kind == "memcached":
        server: Memcached = request.getfixturevalue("memcached")
        server.flush()
        return lambda: server.url
    return {
        "memory": lambda: "memory://",
        "SimpleCache": lambda: SimpleCache(threshold=1000),
        "FileSystemCache": lambda: FileSystemCache(str(tmp_path / "cache"), threshold=0),
        "files": lambda: f"file://{tmp_path}/cache",
        "other": lambda: Shared(str(tmp_path / "cache")),
    }[kind]


class TestAStore:
    def test_keeps_pages_and_what_happened_to_them_over_a_restart(
        self, kind: str, cache: Callable[[], t.Any], site: Site, make: Make, clock: Clock
    ) -> None:
        site.page("/", "body")
        site.page("/tagged", "body", tags=["tag"])
        site.page("/gone", "gone", status="404 Not Found")
        isr = make(cache())
        for path in ("/", "/tagged", "/gone"):
            visit(isr, path)
        isr.revalidate_tag("tag")
        isr.close()
        clock.advance(20)
        later = make(cache())
        statuses = [status_of(visit(later, path)) for path in ("/", "/tagged", "/gone")]
        if kind in IN_ONE_PROCESS:
            assert statuses == 3 * ["isr; fwd=uri-miss; stored"]
        else:
            assert statuses == ["isr; hit; ttl=40", "isr; hit; ttl=0", "isr; hit; ttl=40"]
            assert visit(later, "/gone").status_code == 404

    def test_holds_a_demand_here_at_once_and_elsewhere_soon(
        self, kind: str, cache: Callable[[], t.Any], site: Site, make: Make
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders()}", revalidate=False)
        here, elsewhere = make(cache()), make(cache())
        visit(here), visit(elsewhere)
        known = visit(elsewhere).text
        here.revalidate(HOME)
        text = f"render {site.renders()}"
        assert visit(here).text == text
        if kind in IN_ONE_PROCESS:
            assert visit(elsewhere).text == known != text
        else:
            wait_until(lambda: visit(elsewhere).text == text)

    def test_hands_stale_pages_over_to_other_processes(
        self, kind: str, cache: Callable[[], t.Any], site: Site, make: Make
    ) -> None:
        if kind not in ("files", "FileSystemCache", "redis"):
            with pytest.raises(ValueError, match="workers=0 leaves renders to other processes"):
                make(cache(), workers=0)
            return
        site.page("/", "body", revalidate=False)
        isr, there = make(cache(), workers=0), make(cache(), workers=0)
        visit(isr)
        isr.invalidate("/")
        ours, theirs = isr._here().line, there._here().line
        assert ours is not None and theirs is not None
        theirs.serve()
        visit(isr)
        isr.close()
        task = theirs.take()
        assert task is not None and task.key.url == HOME
        theirs.done(task.job)
        assert (site.renders(), theirs.take()) == (1, None)

    def test_lists_its_pages(
        self, kind: str, cache: Callable[[], t.Any], site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        isr = make(cache())
        visit(isr)
        if kind in ("FileSystemCache", "memcached", "other"):
            with pytest.raises(NotImplementedError, match="cannot list"):
                list(isr.pages())
        else:
            assert [page.url for page in isr.pages()] == [HOME]

    def test_renders_a_page_once_for_all_its_processes(
        self, kind: str, cache: Callable[[], t.Any], site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        for isr in [make(cache()) for _ in range(3)]:
            visit(isr)
        assert site.renders() == (3 if kind in IN_ONE_PROCESS else 1)

    def test_keeps_the_counters_of_all_processes(
        self, kind: str, cache: Callable[[], t.Any], site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        two = [make(cache()) for _ in range(2)]
        for isr in two:
            visit(isr)
            isr._here().upkeep.leave_stats()
        shares = kind in ("FileSystemCache", "files", "redis")
        assert len(two[0].all_stats()) == (2 if shares else 1)

    def test_says_once_what_it_cannot_promise(
        self,
        kind: str,
        cache: Callable[[], t.Any],
        site: Site,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, "wsgi_isr")
        for _ in range(3):
            ISRMiddleware(site, cache())
        said = {
            "memory": "memory://: pages are those of one process",
            "SimpleCache": "SimpleCache: pages are those of one process",
            "FileSystemCache": "FileSystemCache: pages cannot be listed or pruned",
            "memcached": "MemcachedCache: pages cannot be listed, it may lose invalidations",
            "other": "Shared: pages cannot be listed, it may lose invalidations",
        }.get(kind)
        messages = [record.message for record in caplog.records]
        assert len(messages) == (said is not None)
        assert said is None or messages[0].startswith(said)


def test_counters_of_a_killed_process_are_forgotten_and_those_of_an_idle_one_stay(
    redis: Redis, site: Site, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server nothing but a key that is renewed tells who is alive."""
    monkeypatch.setattr("wsgi_isr.store.workers.FORGOTTEN", 2)
    monkeypatch.setattr("wsgi_isr.store.workers.RENEWAL", 0.1)
    site.page("/", "body")
    idle, killed = make(redis.url), make(redis.url)
    for isr in (idle, killed):
        visit(isr)
        isr._here().upkeep.leave_stats()
    assert len(idle.all_stats()) == 2
    # As if it were: it does not look at the server any more.
    there: t.Any = killed._here().store.coordination
    there._workers.keep = lambda: None
    wait_until(lambda: len(idle.all_stats()) == 1)
    until = time.monotonic() + min(3, PATIENCE)
    while time.monotonic() < until:
        assert len(idle.all_stats()) == 1
        time.sleep(0.1)
