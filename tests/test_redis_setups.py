"""Ways to reach Redis and Valkey: URLs, clients that are handed over, clusters, sentinels."""

from __future__ import annotations

import contextlib
import logging
import typing as t
from collections.abc import Callable, Iterator

import pytest
from cachelib import MemcachedCache, RedisCache, ValkeyCache
from redis_server import Memcached, Redis, Server, eventually, find, free_port, listening, running

from wsgi_isr.page import Invalidated
from wsgi_isr.store.clients import (
    client_of,
    import_extra,
    memcached_cache,
    own_memcached,
    prefix_of,
    redis_client,
)
from wsgi_isr.store.protocol import Number, Wanted
from wsgi_isr.store.redis import RedisStore
from wsgi_isr.testing.support import make_record, run_threads

pytestmark = pytest.mark.servers

NO, STALE = Invalidated.NO, Invalidated.STALE
#: As docs/stores.md says.
RIGHTS = "+@read +@write +@scripting +@connection +info +time"
redis = pytest.importorskip("redis")
valkey = pytest.importorskip("valkey")
FAST = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0}


def use(make_client: Callable[[], t.Any], prefix: str = "site:", lent: bool = False) -> None:
    """All that two processes do with a store."""
    one, other = (RedisStore(make_client, prefix, lent) for _ in range(2))
    try:
        with listening(other):
            one.put(make_record("page", one.number(), tags=["a"]))
            stored = other.get("page")
            assert stored is not None and stored.validity.invalidated is NO
            before = other.signal[0]
            one.invalidate(["tag:a", "pattern:/x/*"], False)
            assert eventually(lambda: other.signal[0] != before, 2)
        stored = other.get("page")
        assert stored is not None and stored.validity.invalidated is STALE
        assert [item.record.name for item in other.records()] == ["page"]
        assert len(list(other.records(path="/blog/1"))) == 1
        assert other.changes(Number("", 0)).at.sequence
        one.lease("page", 60, True).release(b"why")  # type: ignore[union-attr]
        other.take("build", 5)
        assert one.want("build", Wanted("page", b"data"))
        assert other.take("build", 5) == Wanted("page", b"data")
        other.done("build", "page")
        one.add({"hits": 1})
        one.report({"pid": 1})
        assert other.processes() == [{"pid": 1}]
        one.probe()
        assert abs(one.time() - other.time()) < 1
        assert one.prune(everything=True) == 1
    finally:
        one.close(), other.close()


class TestURLs:
    @pytest.mark.parametrize("scheme", ["redis", "valkey"])
    def test_of_one_server(self, redis: Redis, scheme: str) -> None:
        use(redis_client(redis.url.replace("redis:", f"{scheme}:")))

    def test_have_short_timeouts_and_no_retries_unless_they_say_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgi_isr.store.clients.TIMEOUT", 0.25)
        options = redis_client("redis://h/3")().connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.25, 0.25)
        assert options["retry"].get_retries() == 0
        assert options["db"] == 3
        options = redis_client("redis://h/3?socket_timeout=2")().connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (2, 0.25)

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("redis://h:port", "port is no number"), ("redis://h/?decode_responses=True", "bytes"),
            ("redis://a,b", "cluster://"), ("redis+sentinel://a", "name a service"),
            ("redis://h?foo=1", "foo"), ("http://h", "a Redis URL"), ("redis://u:s#c@h", "URL"),
        ],
    )  # fmt: skip
    def test_that_cannot_be_used_are_refused_without_showing_a_password(
        self, url: str, says: str
    ) -> None:
        with pytest.raises(ValueError, match=says) as error:
            redis_client(url)
        assert "s#c" not in str(error.value)

    def test_without_their_package_name_the_extra(self) -> None:
        with pytest.raises(ImportError, match=r"pip install 'wsgi-isr\[redis\]'"):
            import_extra("no_such_package", "redis")

    def test_of_memcached(self) -> None:
        with running(Memcached()) as server:
            assert isinstance(server, Memcached)
            cache = memcached_cache(server.url)()
            assert cache.set("a", b"1")
            run_threads(5, lambda index: [cache.get("a") for _ in range(20)])
            server.restart()
            # Connections that the server has closed are no error.
            assert cache.get("a") is None and cache.add("a", b"2") and cache.get("a") == b"2"

    @pytest.mark.parametrize("url", ["memcached://", "memcached://a,b", "memcached://a?x=1"])
    def test_of_memcached_that_cannot_be_used_are_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match="memcached URL"):
            memcached_cache(url)


class TestCachesThatAreHandedOver:
    @pytest.mark.parametrize(("kind", "module"), [(RedisCache, redis), (ValkeyCache, valkey)])
    def test_lend_their_clients(self, redis: Redis, kind: t.Any, module: t.Any) -> None:
        client = getattr(module, kind.__name__.removesuffix("Cache"))
        own = client(port=redis.port, db=redis.database, max_connections=3, **FAST)
        cache = kind(own, key_prefix="mine:")
        assert client_of(cache) is own and prefix_of(cache) == "mine:"
        use(lambda: own, lent=True)
        assert own.ping()
        own.close()

    def test_may_have_pools_that_wait(self, redis: Redis) -> None:
        library = pytest.importorskip("redis")
        pool = library.BlockingConnectionPool(
            port=redis.port, db=redis.database, max_connections=3, timeout=1, **FAST
        )
        use(lambda: client_of(RedisCache(library.Redis(connection_pool=pool))), lent=True)
        pool.disconnect()

    def test_must_give_bytes(self) -> None:
        client = redis.Redis(decode_responses=True)
        with pytest.raises(ValueError, match="decode_responses"):
            client_of(RedisCache(client))

    def test_must_have_a_client(self) -> None:
        with pytest.raises(ValueError, match="no client of redis-py"):
            client_of(RedisCache(object()))

    @pytest.mark.parametrize(
        ("options", "is_slow"), [({}, True), (FAST, True), ({**FAST, "retry": None}, False)]
    )
    def test_that_wait_long_are_named(
        self, options: dict[str, t.Any], is_slow: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        if "retry" in options:
            retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
            options = {**options, "retry": retry}
        with caplog.at_level(logging.WARNING):
            client_of(RedisCache(redis.Redis(**options)))
        assert ("waits long" in caplog.text) is is_slow

    def test_that_unpickle_are_refused(self) -> None:
        base = pytest.importorskip("pymemcache.client.base")
        serde = pytest.importorskip("pymemcache.serde").pickle_serde
        for client in (base.Client(("h", 1)), base.PooledClient(("h", 1), serde=serde)):
            with pytest.raises(ValueError, match="executes what it reads"):
                own_memcached(MemcachedCache(client))
        own_memcached(MemcachedCache(base.PooledClient(("h", 1), timeout=1, connect_timeout=1)))


class TestAUserWithFewRights:
    def test_is_enough(self, redis: Redis) -> None:
        rules = ("on", ">secret", "~{site:}*", "resetchannels", "-@all")
        redis.do("ACL", "SETUSER", "few", "reset", *rules, *RIGHTS.split())
        use(redis_client(redis.url.replace("//", "//few:secret@")))

    def test_may_do_without_the_servers_run(self, redis: Redis) -> None:
        rules = ("on", ">secret", "~*", "resetchannels", "+@all", "-info")
        redis.do("ACL", "SETUSER", "silent", "reset", *rules)
        store = RedisStore(redis_client(redis.url.replace("//", "//silent:secret@")), "site:")
        store.put(make_record("page", store.number()))
        store.invalidate(["page:page"], False)
        stored = store.get("page")
        assert stored is not None and stored.validity.invalidated is STALE
        store.close()


class Sentinel(Server):
    def __init__(self, folder: t.Any, primary: Redis) -> None:
        port = free_port()
        path = folder / "sentinel.conf"
        path.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds main 500\n"
        )
        command = [find("redis-server"), str(path), "--sentinel"]
        super().__init__(command, port, b"PING\r\n", b"+PONG")


class TestSentinels:
    @pytest.fixture
    def servers(self, tmp_path: t.Any) -> Iterator[tuple[Redis, Redis, Sentinel]]:
        for name in ("primary", "replica", "sentinel"):
            (tmp_path / name).mkdir()
        with contextlib.ExitStack() as stack:
            primary = t.cast(Redis, stack.enter_context(running(Redis(tmp_path / "primary"))))
            options = f"--save '' --replicaof 127.0.0.1 {primary.port}"
            other = Redis(tmp_path / "replica", options)
            replica = t.cast(Redis, stack.enter_context(running(other)))
            assert eventually(lambda: b"connected" in replica.do("ROLE"), 10)
            sentinel = stack.enter_context(running(Sentinel(tmp_path / "sentinel", primary)))
            yield primary, replica, t.cast(Sentinel, sentinel)

    def test_lead_to_the_primary_also_after_a_failover(
        self, servers: tuple[Redis, Redis, Sentinel]
    ) -> None:
        primary, replica, sentinel = servers
        for scheme in ("redis", "valkey"):
            use(redis_client(f"{scheme}+sentinel://127.0.0.1:{sentinel.port}/main/0"))
        watch = redis.Sentinel([("127.0.0.1", sentinel.port)], sentinel_kwargs=FAST)
        lent = RedisCache(watch.master_for("main", **FAST))
        use(lambda: client_of(lent), lent=True)
        client_of(lent).connection_pool.disconnect()
        store = RedisStore(
            redis_client(f"redis+sentinel://127.0.0.1:{sentinel.port}/main?max_connections=2"), "s"
        )
        store.put(make_record("page", store.number()))
        assert eventually(lambda: replica.do("DBSIZE") == primary.do("DBSIZE"), 5)
        asking = redis.Redis(port=sentinel.port)
        assert eventually(lambda: asking.execute_command("SENTINEL", "REPLICAS", "main"), 15)
        primary.kill()

        def holds() -> bool:
            with contextlib.suppress(Exception):
                store.invalidate(["page:page"], False)
                return True
            return False

        assert eventually(holds, 30)
        stored = store.get("page")
        assert stored is not None and stored.validity.invalidated is STALE
        store.close(), asking.close(), watch.sentinels[0].close()


class TestClusters:
    @pytest.fixture
    def nodes(self, tmp_path: t.Any) -> Iterator[list[Redis]]:
        with contextlib.ExitStack() as stack:
            nodes = []
            for index, slots in enumerate([(0, 5460), (5461, 10922), (10923, 16383)]):
                (tmp_path / f"{index}").mkdir()
                options = f"--save '' --cluster-enabled yes --cluster-port {free_port()}"
                node = Redis(tmp_path / f"{index}", f"{options} --databases 1")
                nodes.append(t.cast(Redis, stack.enter_context(running(node))))
                node.do("CLUSTER", "ADDSLOTSRANGE", *slots)
            first = nodes[0]
            for node in nodes[1:]:
                _, own, *_ = self.me(node).split()
                bus = own.partition(b"@")[2].partition(b",")[0]
                first.do("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
            for node in nodes:
                ready = lambda node=node: b"cluster_state:ok" in self.info(node)  # noqa: E731
                assert eventually(ready, 20)
            yield nodes

    def info(self, node: Redis) -> bytes:
        with contextlib.closing(node.client()) as client:
            client.set_response_callback("CLUSTER INFO", lambda data, **_: data)
            return t.cast(bytes, client.execute_command("CLUSTER INFO"))

    def me(self, node: Redis) -> bytes:
        with contextlib.closing(node.client()) as client:
            client.set_response_callback("CLUSTER NODES", lambda data, **_: data)
            return t.cast(bytes, client.execute_command("CLUSTER NODES"))

    def test_have_all_keys_of_a_site_on_one_node(self, nodes: list[Redis]) -> None:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes[:2])
        for scheme in ("redis", "valkey"):
            for prefix in ("a", "b", "c"):
                use(redis_client(f"{scheme}+cluster://{hosts}"), prefix)
        assert sum(node.do("DBSIZE") > 0 for node in nodes) > 1
        cache = RedisCache(redis.RedisCluster(host="127.0.0.1", port=nodes[0].port, **FAST))
        use(lambda: client_of(cache), "d", lent=True)
        client_of(cache).close()
