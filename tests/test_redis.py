"""Redis and Valkey as the shared store: opening, bytes, listing, order, leases."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from cachelib import RedisCache
from cachelib import ValkeyCache
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from elsewhere import Elsewhere
from redis_server import Redis
from redis_server import running
from steps import result
from steps import start
from steps import Steps
from steps import visit
from steps import wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import Rule
from wsgi_isr.store import leases
from wsgi_isr.store.coordination import Held
from wsgi_isr.store.redis import RedisCoordination

pytestmark = pytest.mark.servers

HOME = "http://localhost/"
RULES = {"/**": Rule()}
FAST: dict[str, t.Any] = {"socket_timeout": 0.25, "socket_connect_timeout": 0.25}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running(Redis(tmp_path_factory.mktemp("redis"))) as server:
        assert isinstance(server, Redis)
        yield server


@pytest.fixture
def redis(server: Redis) -> Redis:
    """A server with nothing in it."""
    server.do("FLUSHALL")
    server.do("CONFIG", "RESETSTAT")
    return server


def quick_client(redis: Redis, package: str, name: str, **options: t.Any) -> t.Any:
    library = pytest.importorskip(package)
    retry = pytest.importorskip(f"{package}.retry").Retry
    pause = pytest.importorskip(f"{package}.backoff").NoBackoff()
    return getattr(library, name)(port=redis.port, retry=retry(pause, 0), **FAST, **options)


def redis_cache(redis: Redis, **options: t.Any) -> RedisCache:
    return RedisCache(quick_client(redis, "redis", "Redis"), **options)


def valkey_cache(redis: Redis) -> ValkeyCache:
    return ValkeyCache(quick_client(redis, "valkey", "Valkey"))


KINDS: dict[str, Callable[[Redis], t.Any]] = {
    "redis url": lambda redis: redis.url,
    "valkey url": lambda redis: redis.url.replace("redis:", "valkey:"),
    "RedisCache": redis_cache,
    "ValkeyCache": valkey_cache,
    "callable": lambda redis: lambda: redis_cache(redis),
}


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """``/`` is a page whose renders the test holds and lets go."""
    steps = Steps()
    site.page("/", steps, revalidate=10)
    yield steps
    steps.release()


def coordination(isr: ISRMiddleware) -> RedisCoordination:
    found = isr._here().store.coordination
    assert isinstance(found, RedisCoordination)
    return found


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

    def test_tells_nobody_the_password(self, site: Site) -> None:
        with pytest.raises(ValueError) as raised:
            ISRMiddleware(site, "reddis://:secret@localhost/0")
        assert "secret" not in str(raised.value)

    def test_by_url_waits_a_quarter_of_a_second_and_tries_once(
        self, redis: Redis, make: Make
    ) -> None:
        options = coordination(make(redis.url))._client.connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.25, 0.25)
        assert options["retry"]._retries == 0

    def test_by_url_leaves_the_timeouts_to_the_url(self, redis: Redis, make: Make) -> None:
        isr = make(f"{redis.url}?socket_timeout=1.5")
        options = coordination(isr)._client.connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (1.5, 0.25)

    def test_warns_once_of_a_client_that_waits_long(
        self, redis: Redis, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        ISRMiddleware(site, RedisCache(port=redis.port))
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "timeouts of 0.25 seconds" in caplog.text
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
        paths = [f"/{number}" for number in range(1500)]
        for path in paths:
            site.page(path, "body")
        isr_of_all = make(redis.url, base_url="http://localhost")
        assert all(done.error is None for done in isr_of_all.prerender(paths))
        assert {page.url for page in isr.pages()} == {f"http://localhost{path}" for path in paths}
        used = redis.do("INFO", "commandstats")
        assert "cmdstat_keys" not in used and "cmdstat_scan" in used

    def test_finds_the_hosts_of_a_path(self, redis: Redis, site: Site, make: Make) -> None:
        site.page("/", lambda environ: environ["HTTP_HOST"])
        isr = make(redis.url, memory_size=0)
        for host in ("a.example", "b.example"):
            visit(isr, base_url=f"http://{host}")
        done = make(redis.url).revalidate("/")
        assert [page.url for page in done] == ["http://a.example/", "http://b.example/"]


class TestOrder:
    def test_outlives_all_processes(
        self, redis: Redis, site: Site, make: Make, clock: Clock
    ) -> None:
        site.page("/a", "body", tags=["tag"])
        site.page("/b", "body")
        isr = make(redis.url)
        visit(isr, "/a"), visit(isr, "/b")
        isr.revalidate_tag("tag")
        clock.advance(20)
        later = make(redis.url)
        assert status_of(visit(later, "/a")) == "isr; hit; ttl=0"
        assert status_of(visit(later, "/b")) == "isr; hit; ttl=40"

    def test_that_was_hard_is_hard_for_others(self, redis: Redis, site: Site, make: Make) -> None:
        site.page("/", "body")
        one, other = make(redis.url), make(redis.url)
        visit(one), visit(other)
        one.invalidate("/**", expire=True)
        wait_until(lambda: status_of(visit(other)) == "isr; fwd=stale; stored")

    @pytest.mark.parametrize("lost", ["everything", "isr:clock", "isr:labels"])
    def test_that_was_lost_makes_pages_stale(
        self, lost: str, redis: Redis, site: Site, make: Make
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders()}")
        isr = make(redis.url)
        visit(isr)
        # So that something is in each key.
        isr.revalidate_tag("another")
        assert status_of(visit(isr)) == "isr; hit; ttl=60"
        redis.do(*(["FLUSHALL"] if lost == "everything" else ["DEL", lost]))
        assert lost == "everything" or status_of(visit(make(redis.url))) == "isr; hit; ttl=0"
        # Stale, and rendered again behind whoever saw it first.
        wait_until(lambda: visit(isr).text == "render 2")

    def test_that_was_lost_lets_no_older_render_in(
        self, redis: Redis, steps: Steps, make: Make
    ) -> None:
        isr, other = make(redis.url, rules=RULES), make(redis.url, rules=RULES)
        waiting = start(visit, isr)
        steps.wait(1)
        redis.do("FLUSHALL")
        steps.release(2)
        other.revalidate(HOME)
        steps.release(1)
        assert result(waiting).text == "render 2"
        assert visit(make(redis.url)).text == "render 2"

    def test_is_bounded_and_what_is_forgotten_is_stale(
        self, redis: Redis, site: Site, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgi_isr.store.redis.MAX_LABELS", 10)
        site.page("/", "body")
        isr, other = make(redis.url), make(redis.url)
        visit(isr), visit(other)
        for number in range(30):
            isr.revalidate_tag(f"tag {number}".replace(" ", "-"))
        assert redis.do("ZCARD", "isr:labels") <= 10
        assert len(coordination(isr).epochs()) <= 10
        assert status_of(visit(isr)) == "isr; hit; ttl=0"
        wait_until(lambda: status_of(visit(other)) != "isr; hit; ttl=60" or site.renders() > 1)

    def test_of_two_databases_is_not_the_same(self, redis: Redis, site: Site, make: Make) -> None:
        site.page("/", "body")
        isr, other = make(redis.url), make(redis.url.replace("/0", "/1"))
        visit(isr), visit(other)
        isr.revalidate_tag("tag")
        assert coordination(isr).epochs().sequence == 2
        assert coordination(other).epochs().sequence == 1

    def test_is_known_without_being_asked_for(
        self, site: Site, make: Make, tmp_path: t.Any
    ) -> None:
        site.page("/", "body", revalidate=False)
        with running(Redis(tmp_path)) as redis:
            assert isinstance(redis, Redis)
            self._ask_seldom(redis, make(redis.url))

    def _ask_seldom(self, redis: Redis, isr: ISRMiddleware) -> None:
        visit(isr)
        calls = redis.do("INFO", "stats")["total_commands_processed"]
        began = time.monotonic()
        for _ in range(2000):
            assert status_of(visit(isr)) == "isr; hit"
        looks = (time.monotonic() - began) / 0.5 + 2
        # A look is a script and the ten commands in it, and the statistics are a few, too.
        made = redis.do("INFO", "stats")["total_commands_processed"] - calls
        assert made < 12 * looks + 20


class TestRestarts:
    @pytest.fixture
    def durable(self, tmp_path: t.Any) -> Iterator[Redis]:
        server = Redis(tmp_path, "--appendonly yes --appendfsync always --save ''")
        with running(server):
            yield server

    @pytest.fixture
    def forgetful(self, tmp_path: t.Any) -> Iterator[Redis]:
        """A server that saves when it is told to."""
        server = Redis(tmp_path, "--save ''")
        with running(server):
            yield server

    def test_that_lose_nothing_change_nothing(self, durable: Redis, site: Site, make: Make) -> None:
        site.page("/a", "body", tags=["tag"])
        site.page("/b", "body")
        isr = make(durable.url)
        visit(isr, "/a"), visit(isr, "/b")
        isr.revalidate_tag("tag")
        durable.restart()
        wait_until(lambda: not isr._here().store._breaker.open)
        for there in (make(durable.url), isr):
            assert status_of(visit(there, "/b")) == "isr; hit; ttl=60"
        assert status_of(visit(make(durable.url, memory_size=0), "/a")) == "isr; hit; ttl=0"

    def test_that_lose_an_invalidation_make_pages_stale(
        self, forgetful: Redis, site: Site, make: Make
    ) -> None:
        site.page("/", "body", tags=["tag"], revalidate=False)
        isr = make(forgetful.url)
        visit(isr)
        forgetful.do("SAVE")
        # Rendered on demand, and lost with its page when the server comes back.
        isr.revalidate(HOME)
        forgetful.kill()
        forgetful.start()
        wait_until(
            lambda: status_of(visit(make(forgetful.url, memory_size=0))) == "isr; hit; ttl=0"
        )

    def test_that_lose_numbers_give_none_of_them_twice(
        self, forgetful: Redis, site: Site, make: Make
    ) -> None:
        isr = make(forgetful.url)
        there = coordination(isr)
        there.next_number()
        forgetful.do("SAVE")
        last = [there.next_number() for _ in range(10)][-1]
        forgetful.kill()
        forgetful.start()
        # A process that knows nothing of the ten is the first to ask.
        first = coordination(make(forgetful.url)).next_number()
        assert first.lineage == last.lineage
        assert first.sequence > last.sequence
        # One that does sees that something is missing.
        assert there.next_number().lineage != last.lineage


class TestLeases:
    @pytest.fixture
    def pair(self, redis: Redis, make: Make) -> tuple[RedisCoordination, RedisCoordination]:
        return coordination(make(redis.url)), coordination(make(redis.url))

    def test_are_had_by_one(self, pair: tuple[RedisCoordination, RedisCoordination]) -> None:
        one, other = pair
        lease = one.acquire("page", 60, False)
        assert not isinstance(lease, Held)
        assert other.acquire("page", 60, False) == Held(lease.token)
        lease.release()
        assert not isinstance(other.acquire("page", 60, False), Held)

    def test_are_taken_over_on_demand_but_not_from_a_demanded_render(
        self, pair: tuple[RedisCoordination, RedisCoordination]
    ) -> None:
        one, other = pair
        early = one.acquire("page", 60, False)
        assert not isinstance(early, Held)
        demanded = other.acquire("page", 60, True)
        assert not isinstance(demanded, Held)
        # It is not his any more, and his outcome is nobody's.
        early.release(b"outcome")
        assert one.acquire("page", 60, True) == Held(demanded.token)
        assert one.outcome("page", early.token) is None

    def test_leave_an_outcome_for_a_moment(
        self, pair: tuple[RedisCoordination, RedisCoordination], redis: Redis
    ) -> None:
        one, other = pair
        lease = one.acquire("page", 60, False)
        assert not isinstance(lease, Held)
        lease.release(b"outcome")
        assert other.outcome("page", lease.token) == b"outcome"
        assert 0 < redis.do("PTTL", f"isr:outcome:{lease.token}") <= 2000

    def test_are_kept_up_while_their_process_lives_and_not_past_their_deadline(
        self,
        pair: tuple[RedisCoordination, RedisCoordination],
        redis: Redis,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(leases, "LEASE", 0.3)
        monkeypatch.setattr(leases, "BEAT", 0.05)
        one, other = pair
        began = time.monotonic()
        lease = one.acquire("page", 1, False)
        assert not isinstance(lease, Held)
        while isinstance(other.acquire("page", 60, False), Held):
            assert 0 < redis.do("PTTL", "isr:lease:page") <= 300
            time.sleep(0.02)
        assert 0.9 < time.monotonic() - began < 1.5

    def test_that_others_left_for_ever_are_none(
        self, pair: tuple[RedisCoordination, RedisCoordination], redis: Redis
    ) -> None:
        redis.do("SET", "isr:lease:page", "whoever|1")
        assert not isinstance(pair[0].acquire("page", 60, False), Held)


def neighbour(make: Make, url: str) -> ISRMiddleware:
    """A middleware in this process that goes by the same clock as one elsewhere."""
    isr = make(url, rules=RULES)
    isr._clock = time.time
    return isr


@pytest.mark.processes
class TestProcesses:
    @pytest.fixture
    def content(self, tmp_path: t.Any) -> t.Any:
        path = tmp_path / "content"
        path.write_text("first")
        return path

    @pytest.fixture
    def elsewhere(self, redis: Redis, content: t.Any) -> Iterator[Elsewhere]:
        there = Elsewhere(redis.url, str(content), rules=RULES)
        there.do("renders")
        yield there
        there.kill()

    def test_wait_for_the_render_of_another(
        self, elsewhere: Elsewhere, redis: Redis, site: Site, make: Make
    ) -> None:
        site.page("/", "rendered here")
        elsewhere.hold()
        theirs = elsewhere.begin("visit", "/")
        elsewhere.wait()
        ours = start(visit, neighbour(make, redis.url))
        time.sleep(0.1)
        elsewhere.release()
        assert result(theirs)[2] == "first"
        answer = result(ours)
        assert (answer.text, status_of(answer)) == ("first", "isr; fwd=uri-miss; stored; collapsed")
        assert site.renders() == 0

    def test_see_what_was_demanded_elsewhere_within_a_second(
        self, elsewhere: Elsewhere, redis: Redis, content: t.Any, site: Site, make: Make
    ) -> None:
        elsewhere.visit()
        isr = neighbour(make, redis.url)
        assert visit(isr).text == "first"
        content.write_text("second")
        elsewhere.do("revalidate", HOME)
        assert elsewhere.visit()[2] == "second"
        returned = time.monotonic()
        while visit(isr).text != "second":
            assert time.monotonic() - returned < 1

    def test_that_are_killed_with_a_lease_delay_others_no_longer_than_it_lasts(
        self, elsewhere: Elsewhere, redis: Redis, site: Site, make: Make
    ) -> None:
        site.page("/", "rendered here")
        elsewhere.hold()
        elsewhere.begin("visit", "/")
        elsewhere.wait()
        elsewhere.kill()
        began = time.monotonic()
        assert visit(neighbour(make, redis.url)).text == "rendered here"
        assert time.monotonic() - began < leases.LEASE + 0.5
