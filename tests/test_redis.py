"""Redis and Valkey as the shared store: opening, bytes, listing."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import traceback
import typing as t
from collections.abc import Callable

import pytest
from cachelib import RedisCache
from cachelib import ValkeyCache
from conftest import Make
from conftest import Site
from conftest import status_of
from network import coordination
from network import FAST
from network import HOME
from network import quick_client
from network import redis_cache
from redis_server import find
from redis_server import free_port
from redis_server import Redis
from redis_server import running
from steps import visit

from wsgi_isr import ISRMiddleware
from wsgi_isr import RevalidationError
from wsgi_isr.store.clients import PATIENT
from wsgi_isr.store.clients import TIMEOUT

pytestmark = pytest.mark.servers


def valkey_cache(redis: Redis) -> ValkeyCache:
    return ValkeyCache(quick_client(redis, "valkey", "Valkey"))


#: A program that visits a page once for each URL of a store.
VISITS = """
import os, sys
from conftest import Site, status_of
from steps import visit
from wsgi_isr import ISRMiddleware
from wsgi_isr.store import clients
clients.TIMEOUT = clients.PATIENT
for url in sys.argv[1:]:
    site = Site()
    site.page("/", "body", revalidate=10)
    print(status_of(visit(ISRMiddleware(site, url, rules={"/": 10}))), flush=True)
os._exit(0)
"""


KINDS: dict[str, Callable[[Redis], t.Any]] = {
    "redis url": lambda redis: redis.url,
    "valkey url": lambda redis: redis.url.replace("redis:", "valkey:"),
    "RedisCache": redis_cache,
    "ValkeyCache": valkey_cache,
    "callable": lambda redis: lambda: redis_cache(redis),
}


class TestOpening:
    @pytest.mark.parametrize("kind", KINDS)
    def test_whatever_names_a_server_shares_its_pages(
        self, kind: str, redis: Redis, site: Site, make: Make
    ) -> None:
        if kind.startswith("valkey"):
            pytest.importorskip("valkey")
        site.page("/", "body", revalidate=10)
        cache = KINDS[kind](redis)
        assert status_of(visit(make(cache))) == "isr; fwd=uri-miss; stored"
        assert status_of(visit(make(redis.url))) == "isr; hit; ttl=10"
        assert site.renders() == 1

    @pytest.mark.parametrize(
        ("url", "package", "extra"),
        [
            ("redis://localhost", "redis", "wsgi-isr[redis]"),
            ("rediss://localhost", "redis", "wsgi-isr[redis]"),
            ("valkey://localhost", "valkey", "wsgi-isr[valkey]"),
            ("memcached://localhost", "pymemcache.client.base", "wsgi-isr[memcached]"),
        ],
    )
    def test_without_its_client_names_the_extra(
        self, url: str, package: str, extra: str, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError) as raised:
            ISRMiddleware(site, url)
        assert extra in str(raised.value)

    def test_does_not_import_clients_that_nobody_asks_for(self) -> None:
        code = "import sys, wsgi_isr; print({'redis', 'valkey', 'pymemcache'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "set()", done.stderr

    @pytest.mark.parametrize(
        "url",
        [
            "redis://localhost/0?no_such_option=1",
            "redis://localhost:port/0",
            "redis://localhost/0?decode_responses=True",
        ],
    )
    def test_tells_a_mistake_in_a_url_at_once(self, url: str, site: Site) -> None:
        with pytest.raises(ValueError):
            ISRMiddleware(site, url)

    @pytest.mark.parametrize(
        "url",
        [
            "redis://:hunter2@localhost:port/0",
            "redis://:hunter2/x@localhost/0",
            "redis://:hunter2@localhost/0?no_such_option=1",
            "rediss://:hunter2@localhost/x?db=y",
            "valkey://:hunter2@localhost:port",
            "memcached://user:hunter2@localhost",
            "//:hunter2@localhost",
            "reddis://:hunter2@localhost/0",
        ],
    )
    def test_tells_nobody_what_a_mistaken_url_has_for_a_password(
        self, url: str, site: Site
    ) -> None:
        with pytest.raises(ValueError) as raised:
            ISRMiddleware(site, url)
        told = "".join(traceback.format_exception(raised.value))
        assert "hunter2" not in told.partition("ISRMiddleware")[2]

    def test_tells_no_log_the_password(
        self, redis: Redis, site: Site, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        isr = make(redis.url.replace("//", "//nobody:hunter2@"), rules={"/**": 60})
        site.page("/", "body")
        assert status_of(visit(isr)) == "isr; fwd=uri-miss; detail=store-error"
        with pytest.raises(RevalidationError) as raised:
            isr.revalidate(HOME)
        assert "AuthenticationError" in caplog.text
        assert "hunter2" not in caplog.text + str(raised.value) + repr(isr)

    def test_takes_tls(self, tmp_path: t.Any) -> None:
        openssl = find("openssl")
        subprocess.run(
            [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
            + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
            + ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
            check=True,
            capture_output=True,
        )
        port = free_port()
        options = f"--tls-port {port} --tls-cert-file {tmp_path}/cert.pem --tls-auth-clients no"
        with running(Redis(tmp_path, f"{options} --tls-key-file {tmp_path}/key.pem")):
            url = f"rediss://localhost:{port}/0"
            urls = [f"{url}?ssl_ca_certs={tmp_path}/cert.pem"] * 2 + [url]
            # In a process of its own: redis-py leaves the sockets of failed handshakes open.
            done = subprocess.run(
                [sys.executable, "-c", VISITS, *urls],
                capture_output=True,
                text=True,
                timeout=60,
                cwd=os.path.dirname(__file__),
            )
        assert done.stdout.splitlines() == [
            "isr; fwd=uri-miss; stored",
            "isr; hit; ttl=10",
            # One whose certificate nobody vouches for is not spoken to.
            "isr; fwd=uri-miss; detail=store-error",
        ], done.stderr

    def test_reads_no_replica_that_a_cache_has(self, redis: Redis, site: Site, make: Make) -> None:
        """It may not have yet what was stored a moment ago."""
        cache = redis_cache(redis)
        cache._read_client = None
        site.page("/", "body", revalidate=10)
        visit(make(cache))
        assert status_of(visit(make(cache))) == "isr; hit; ttl=10"

    def test_warns_of_a_pool_that_has_visitors_wait_for_a_connection(
        self, redis: Redis, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = pytest.importorskip("redis").BlockingConnectionPool(
            port=redis.port, max_connections=1, **FAST
        )
        client = quick_client(redis, "redis", "Redis", connection_pool=pool)
        ISRMiddleware(site, RedisCache(client))
        assert "waits long" in caplog.text

    def test_by_url_waits_a_quarter_of_a_second_and_tries_once(
        self, redis: Redis, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert TIMEOUT == 0.25
        monkeypatch.setattr("wsgi_isr.store.clients.TIMEOUT", TIMEOUT)
        options = coordination(make(redis.url))._client.connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.25, 0.25)
        assert options["retry"]._retries == 0

    def test_by_url_leaves_the_timeouts_to_the_url(self, redis: Redis, make: Make) -> None:
        isr = make(f"{redis.url}?socket_timeout=1.5")
        options = coordination(isr)._client.connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (1.5, PATIENT)

    def test_warns_once_of_a_client_that_waits_long(
        self, redis: Redis, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        ISRMiddleware(site, RedisCache(port=redis.port, db=redis.database))
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert f"timeouts of {PATIENT} seconds" in caplog.text
        caplog.clear()
        ISRMiddleware(site, redis_cache(redis))
        assert not caplog.records

    def test_refuses_a_client_that_makes_text_of_pages(self, redis: Redis, site: Site) -> None:
        client = quick_client(redis, "redis", "Redis", decode_responses=True)
        with pytest.raises(ValueError, match="decode_responses"):
            ISRMiddleware(site, RedisCache(client))

    def test_leaves_the_cache_of_somebody_else_as_it_is(
        self, redis: Redis, site: Site, make: Make
    ) -> None:
        cache = redis_cache(redis)
        cache.set("mine", {"a": 1})
        site.page("/", "body")
        visit(make(cache))
        assert cache.get("mine") == {"a": 1}

    def test_before_a_fork_mixes_nothing_up_after_it(self, redis: Redis) -> None:
        pytest.importorskip("redis")
        script = os.path.join(os.path.dirname(__file__), "forks.py")
        done = subprocess.run(
            [sys.executable, "-W", "error", script, "redis", str(redis.port)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.split() == ["good"] * 4, done.stderr


class TestEntries:
    def test_are_the_bytes_that_were_made_here(self, redis: Redis, site: Site, make: Make) -> None:
        site.page("/", "body")
        isr = make(redis.url)
        visit(isr)
        (name,) = isr._here().store.storage.names()
        assert redis.do("GET", f"isr:{name}").startswith(b"ISR\x01")

    def test_live_for_years_but_not_for_ever(self, redis: Redis, site: Site, make: Make) -> None:
        site.page("/", "body")
        isr = make(redis.url)
        visit(isr)
        (name,) = isr._here().store.storage.names()
        assert redis.do("TTL", f"isr:{name}") > 365 * 24 * 3600

    def test_have_the_prefix_of_the_cache_they_are_in(
        self, redis: Redis, site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        cache = redis_cache(redis, key_prefix=lambda: "app:")
        isr = make(cache, key_prefix="pages:")
        visit(isr)
        assert all(key.startswith(b"app:pages:") for key in redis.do("KEYS", "*"))
        assert [page.url for page in isr.pages()] == [HOME]

    def test_that_would_run_code_are_not_even_read(
        self, redis: Redis, site: Site, make: Make, tmp_path: t.Any
    ) -> None:
        site.page("/", "body")
        isr = make(redis.url, memory_size=0)
        visit(isr)
        (name,) = isr._here().store.storage.names()
        trace = tmp_path / "trace"

        class Planted:
            def __reduce__(self) -> t.Any:
                return open, (str(trace), "w")

        # As cachelib's own serializer would write it.
        redis.do("SET", f"isr:{name}", b"!" + pickle.dumps(Planted()))
        assert visit(isr).text == "body"
        assert not trace.exists()
        assert redis.do("GET", f"isr:{name}").startswith(b"ISR\x01")

    @pytest.mark.parametrize("command", ["SET", "RPUSH"])
    def test_of_others_under_our_name_are_replaced(
        self, command: str, redis: Redis, site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        isr = make(redis.url, memory_size=0)
        visit(isr)
        (name,) = isr._here().store.storage.names()
        redis.do("DEL", f"isr:{name}")
        redis.do(command, f"isr:{name}", "foreign")
        assert status_of(visit(isr)) == "isr; fwd=uri-miss; stored"
        assert status_of(visit(isr)) == "isr; hit; ttl=60"


class TestListing:
    def test_takes_the_prefix_for_what_it_is(self, redis: Redis, site: Site, make: Make) -> None:
        site.page("/", "body")
        for prefix in ("a*b[c]?\\:", "aXb[c]?\\:", "a*bc?\\:", "a*b[c]?\\:more:"):
            visit(make(redis.url, key_prefix=prefix))
        isr = make(redis.url, key_prefix="a*b[c]?\\:")
        assert [page.url for page in isr.pages()] == [HOME]
        assert len(isr.revalidate(HOME)) == 1

    def test_finds_all_of_many_and_never_stops_the_server(
        self, redis: Redis, site: Site, make: Make
    ) -> None:
        isr = make(redis.url)
        paths = [f"/{number}" for number in range(1100)]
        for path in paths:
            site.page(path, "body")
        isr_of_all = make(redis.url, base_url="http://localhost")
        assert all(done.error is None for done in isr_of_all.prerender(paths))
        assert {page.url for page in isr.pages()} == {f"http://localhost{path}" for path in paths}
        used = redis.do("INFO", "commandstats")
        assert "cmdstat_keys" not in used and "cmdstat_scan" in used

    def test_looks_for_a_path_without_looking_at_all_others(
        self, redis: Redis, site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        isr = make(redis.url)
        visit(isr)
        redis.do("CONFIG", "RESETSTAT")
        isr.revalidate(HOME)
        assert "cmdstat_scan" not in redis.do("INFO", "commandstats")

    def test_forgets_what_the_server_has_evicted(
        self, redis: Redis, site: Site, make: Make
    ) -> None:
        site.page("/", lambda environ: environ["HTTP_HOST"])
        isr = make(redis.url, memory_size=0)
        visit(isr, base_url="http://a.example"), visit(isr, base_url="http://b.example")
        store = isr._here().store
        gone, kept = sorted(store.storage.names())
        redis.do("DEL", f"isr:{gone}")
        (index,) = redis.do("KEYS", "isr:path:*")
        assert list(store.storage.names(gone.partition(".")[0])) == [kept]
        assert redis.do("ZRANGE", index, 0, -1) == [kept[-64:].encode()]
        for key in list(store.siblings("/")):
            store.drop(key)
        assert redis.do("KEYS", "isr:path:*") == []

    def test_finds_the_hosts_of_a_path(self, redis: Redis, site: Site, make: Make) -> None:
        site.page("/", lambda environ: environ["HTTP_HOST"])
        isr = make(redis.url, memory_size=0)
        for host in ("a.example", "b.example"):
            visit(isr, base_url=f"http://{host}")
        done = make(redis.url).revalidate("/")
        assert [page.url for page in done] == ["http://a.example/", "http://b.example/"]
