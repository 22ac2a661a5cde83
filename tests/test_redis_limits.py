"""What a Redis server's own configuration cannot promise, and servers that will not do."""

from __future__ import annotations

import logging
import time
import typing as t
from collections.abc import Iterator

import pytest
from cachelib import RedisCache
from conftest import Make
from conftest import Site
from conftest import status_of
from network import coordination
from network import HOME
from network import RULES
from redis_server import free_port
from redis_server import Redis
from redis_server import running
from steps import visit
from steps import wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import RevalidationError

pytestmark = pytest.mark.servers


@pytest.fixture
def server(tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    monkeypatch.setattr("wsgi_isr.store.advice._told", set())
    with running(Redis(tmp_path)) as server:
        assert isinstance(server, Redis)
        yield server


def told(isr: ISRMiddleware, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a middleware says of its server at start."""
    coordination(isr).follow()
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


class TestAdvice:
    def test_is_not_given_where_it_is_followed(
        self, server: Redis, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert told(make(server.url), caplog) == []

    @pytest.mark.parametrize(
        ("size", "policy", "says"),
        [
            ("0", "noeviction", "no maxmemory"),
            ("1gb", "noeviction", "invalidations fail"),
            ("1gb", "allkeys-lru", "may evict invalidations"),
            ("1gb", "volatile-ttl", "leases"),
        ],
    )
    def test_is_given_once_for_other_ways_to_make_room(
        self,
        size: str,
        policy: str,
        says: str,
        server: Redis,
        make: Make,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server.do("CONFIG", "SET", "maxmemory", size)
        server.do("CONFIG", "SET", "maxmemory-policy", policy)
        (said,) = told(make(server.url), caplog)
        assert says in said and "volatile-lru" in said
        assert told(make(server.url), caplog) == [said]

    def test_is_given_where_clocks_differ(
        self,
        server: Redis,
        make: Make,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        now = time.time
        monkeypatch.setattr("wsgi_isr.store.advice.time.time", lambda: now() - 60)
        (said,) = told(make(server.url), caplog)
        assert said.startswith("the clock of this machine is 60 seconds behind")

    def test_is_not_given_by_a_server_that_does_not_let_itself_be_asked(
        self, server: Redis, site: Site, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.do("CONFIG", "SET", "maxmemory", "0")
        server.do("ACL", "SETUSER", "default", "-info", "-time")
        site.page("/", "body")
        assert told(make(server.url), caplog) == []
        assert status_of(visit(make(server.url))) == "isr; fwd=uri-miss; stored"


class TestAFullServer:
    def test_that_evicts_as_advised_evicts_pages_alone(
        self, server: Redis, site: Site, make: Make
    ) -> None:
        site.page("/", "body", tags=["tag"])
        isr = make(server.url)
        visit(isr)
        isr.revalidate_tag("tag")
        lineage = coordination(isr).epochs().lineage
        # Room for a few of them only.
        server.do("CONFIG", "SET", "maxmemory", server.do("INFO", "memory")["used_memory"] + 2**20)
        for number in range(60):
            site.page(path := f"/{number}", 100_000 * "x", headers=[("Content-Encoding", "x")])
            assert status_of(visit(isr, path)) == "isr; fwd=uri-miss; stored"
        assert server.do("INFO", "stats")["evicted_keys"] > 0
        later = coordination(make(server.url))
        assert later.epochs().lineage == lineage
        assert "tag:tag" in later.epochs().labels


class TestACluster:
    @pytest.fixture
    def node(self, tmp_path: t.Any) -> Iterator[Redis]:
        options = f"--cluster-enabled yes --cluster-port {free_port()} --databases 1"
        with running(Redis(tmp_path, options)) as server:
            assert isinstance(server, Redis)
            server.do("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: b"cluster_state:ok" in server.do("CLUSTER", "INFO"))
            yield server

    def test_is_told_to_be_the_reason_and_costs_visitors_nothing(
        self, node: Redis, site: Site, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.page("/", "body")
        isr = make(node.url, rules=RULES)
        assert status_of(visit(isr)) == "isr; fwd=uri-miss; detail=store-error"
        assert "the server is one of a cluster" in caplog.records[0].message
        with pytest.raises(RevalidationError, match="one of a cluster"):
            isr.revalidate(HOME)

    def test_has_a_client_that_is_refused(self, node: Redis, site: Site) -> None:
        client = pytest.importorskip("redis").RedisCluster(host="127.0.0.1", port=node.port)
        try:
            with pytest.raises(ValueError, match="not a cluster"):
                ISRMiddleware(site, RedisCache(client))
        finally:
            client.close()
