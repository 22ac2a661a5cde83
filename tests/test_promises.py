"""What each kind of store promises: the table of docs/stores.md, cell by cell.

Two middlewares with caches of their own stand for two processes, and a new one for a restart.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterator

import pytest
from cachelib import BaseCache, FileSystemCache, SimpleCache
from conftest import Clock, Make, Site, status_of
from redis_server import Memcached, Redis, running
from steps import visit, wait_until

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
        if kind not in ("files", "redis"):
            with pytest.raises(ValueError, match="workers=0 leaves renders to other processes"):
                make(cache(), workers=0)
            return
        site.page("/", "body", revalidate=False)
        isr, there = make(cache(), workers=0), make(cache(), workers=0)
        visit(isr)
        # It says that it is there, as a process of `regenerate` does.
        assert there.store.take(there.build_id, 5) is None
        isr.invalidate("/")
        visit(isr)
        isr.close()
        wanted = None
        while wanted is None:
            wanted = there.store.take(there.build_id, 5)
        there.store.done(there.build_id, wanted.name)
        assert site.renders() == 1

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

    def test_keeps_the_totals_of_all_processes(
        self, kind: str, cache: Callable[[], t.Any], site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        two = [make(cache()) for _ in range(2)]
        for isr in two:
            visit(isr)
            isr.stats()
        assert two[0].stats()["misses"] == 1
        assert two[0].stats()["hits"] == (0 if kind in IN_ONE_PROCESS else 1)
