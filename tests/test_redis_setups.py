"""Set-ups of Redis that docs/stores.md names: a user with few rights, sentinels, a failover."""

from __future__ import annotations

import logging
import typing as t
from collections.abc import Iterator

import pytest
from cachelib import RedisCache
from conftest import Make
from conftest import Site
from conftest import status_of
from network import coordination
from network import FAST
from network import HOME
from redis_server import find
from redis_server import free_port
from redis_server import Redis
from redis_server import running
from redis_server import Server
from steps import PATIENCE
from steps import visit
from steps import wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import RevalidationError

pytestmark = pytest.mark.servers

#: As docs/stores.md says.
RIGHTS = "+@read +@write +@scripting +@pubsub +@connection +info +time"
CHANNELS = ("&isr:changes:*", "&isr:jobs:*")


class TestAUserWithFewRights:
    def test_is_enough(
        self, redis: Redis, site: Site, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        rules = ("on", ">secret", "~isr:*", "resetchannels", *CHANNELS, "-@all")
        redis.do("ACL", "SETUSER", "few", "reset", *rules, *RIGHTS.split())
        url = redis.url.replace("//", "//few:secret@")
        site.page("/", lambda environ: f"render {site.renders()}", revalidate=False)
        one, other = make(url), make(url)
        visit(one), visit(other)
        one.revalidate(HOME)
        wait_until(lambda: visit(other).text == "render 2")
        assert [page.url for page in one.pages()] == [HOME]
        assert coordination(other)._channel.open()
        jobs = coordination(other).jobs
        jobs.serve("line")
        assert jobs.put("line", b"job")
        jobs.wait("line", 0.0)
        job = jobs.take("line")
        assert job is not None and job.data == b"job"
        job.keep()
        job.done()
        assert jobs._channels["line"].open()
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class TestAUserWhoMayNotAskForTheTime:
    def test_has_pages_rendered_where_they_are_visited(self, redis: Redis, make: Make) -> None:
        rules = ("on", ">secret", "~*", "&*", "+@all", "-time")
        redis.do("ACL", "SETUSER", "timeless", "reset", *rules)
        jobs = coordination(make(redis.url.replace("//", "//timeless:secret@"))).jobs
        jobs.serve("line")
        assert not jobs.put("line", b"job")
        assert jobs.take("line") is None


class Sentinel(Server):
    def __init__(self, folder: t.Any, primary: Redis) -> None:
        port = free_port()
        path = folder / "sentinel.conf"
        path.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds main 1000\n"
        )
        command = [find("redis-server"), str(path), "--sentinel"]
        super().__init__(command, port, b"PING\r\n", b"+PONG")


def holds(isr: ISRMiddleware) -> bool:
    """Whether a demand does, by now."""
    try:
        isr.revalidate(HOME)
    except RevalidationError:
        return False
    return True


class TestSentinels:
    @pytest.fixture
    def servers(self, tmp_path: t.Any) -> Iterator[tuple[Redis, Redis, Sentinel]]:
        for name in ("primary", "replica", "sentinel"):
            (tmp_path / name).mkdir()
        with running(Redis(tmp_path / "primary")) as primary:
            assert isinstance(primary, Redis)
            options = f"--replicaof 127.0.0.1 {primary.port}"
            with running(Redis(tmp_path / "replica", options)) as replica:
                assert isinstance(replica, Redis)
                wait_until(lambda: b"connected" in replica.do("ROLE"))
                with running(Sentinel(tmp_path / "sentinel", primary)) as sentinel:
                    assert isinstance(sentinel, Sentinel)
                    yield primary, replica, sentinel

    def test_lead_to_the_primary_also_after_a_failover(
        self, servers: tuple[Redis, Redis, Sentinel], site: Site, make: Make
    ) -> None:
        primary, replica, sentinel = servers
        library = pytest.importorskip("redis")
        told = library.Sentinel([("127.0.0.1", sentinel.port)], sentinel_kwargs=FAST)
        no_retry = library.retry.Retry(library.backoff.NoBackoff(), 0)
        cache = RedisCache(told.master_for("main", retry=no_retry, **FAST))
        site.page("/", "body", revalidate=10)
        isr = make(cache)
        assert status_of(visit(isr)) == "isr; fwd=uri-miss; stored"
        assert status_of(visit(make(primary.url))) == "isr; hit; ttl=10"
        wait_until(lambda: replica.do("DBSIZE") == primary.do("DBSIZE"))
        asking = library.Redis(port=sentinel.port)
        wait_until(lambda: asking.execute_command("SENTINEL", "REPLICAS", "main"))
        primary.kill()
        wait_until(lambda: replica.do("ROLE")[0] == b"master", 6 * PATIENCE)
        wait_until(lambda: holds(isr), 6 * PATIENCE)
        assert status_of(visit(make(replica.url))) == "isr; hit; ttl=10"
        asking.close(), told.sentinels[0].close()
