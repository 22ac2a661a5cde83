"""A store on memcached, with the real server."""

from __future__ import annotations

import os
import threading
import typing as t
from collections.abc import Iterator

import pytest
from cachelib import MemcachedCache
from entries import put, state
from redis_server import Memcached, running

from wsgi_isr.page import Invalidated
from wsgi_isr.store.opening import plan
from wsgi_isr.store.protocol import Store, TooLarge

NO, STALE = Invalidated.NO, Invalidated.STALE


@pytest.fixture
def server() -> Iterator[Memcached]:
    pytest.importorskip("pymemcache")
    with running(Memcached("-I 2m")) as server:
        assert isinstance(server, Memcached)
        yield server


@pytest.mark.servers
class TestMemcached:
    @pytest.fixture(params=["url", "instance", "callable"])
    def open_store(self, request: pytest.FixtureRequest, server: Memcached) -> t.Any:
        wait = "?timeout=2&connect_timeout=2"
        cache: t.Any = {
            "url": server.url + wait,
            "instance": MemcachedCache(server.pooled_client(), key_prefix="app:"),
            "callable": lambda: MemcachedCache(server.pooled_client(), key_prefix="app:"),
        }[request.param]
        return lambda: plan(cache, "isr:", "app")[1](None)

    def test_is_shared_whatever_names_it(self, open_store: t.Any) -> None:
        store, other = open_store(), open_store()
        put(store)
        other.invalidate(["page:page"], False)
        assert state(store) is STALE and other.kind.name == "memcached"

    def test_says_how_large_a_page_may_be(self, open_store: t.Any) -> None:
        store = open_store()
        put(store, body=b"x" * 1_900_000)
        with pytest.raises(TooLarge, match="more than the 209"):
            put(store, body=b"y" * 2_200_000)
        assert store.get("page").record.body[:1] == b"x"

    def test_that_is_emptied_makes_a_new_order(self, open_store: t.Any, server: Memcached) -> None:
        store = open_store()
        put(store)
        at = store.invalidate(["tag:a"], False)
        server.flush()
        assert state(store) is None and store.number().lineage != at.lineage
        put(store)
        assert state(store) is NO

    def test_that_is_gone_raises_and_comes_back(self, open_store: t.Any, server: Memcached) -> None:
        store = open_store()
        put(store)
        lease = store.lease("page", 60, True)
        server.stop()
        for call in (store.number, store.probe, lambda: store.get("page")):
            with pytest.raises(Exception, match="."):
                call()
        lease.release()
        server.start()
        store.probe()
        put(store)
        assert state(store) is NO

    @pytest.mark.processes
    def test_a_child_has_connections_of_its_own(self, server: Memcached) -> None:
        cache = MemcachedCache(server.pooled_client())
        open_store = plan(cache, "isr:", "app")[1]
        parent = open_store(None)
        for number in range(20):
            put(parent, f"page {number}", body=b"%d" % number)
        pid = os.fork()
        if pid == 0:
            os._exit(_read_all(open_store(parent)))
        assert _read_all(parent) == 0
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _read_all(store: Store) -> int:
    wrong: list[t.Any] = []

    def read() -> None:
        for _ in range(10):
            for number in range(20):
                stored = store.get(f"page {number}")
                if stored is None or stored.record.body != b"%d" % number:
                    wrong.append(stored)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return min(len(wrong), 99)
