"""The one order of renders and invalidations on a Redis server, and what it loses."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from network import coordination
from network import HOME
from network import RULES
from redis_server import Redis
from redis_server import running
from redis_server import SlowNetwork
from steps import result
from steps import start
from steps import Steps
from steps import visit
from steps import wait_until

from wsgi_isr import ISRMiddleware

pytestmark = pytest.mark.servers


def broken(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
    return [b"broken"]


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """``/`` is a page whose renders the test holds and lets go."""
    steps = Steps()
    site.page("/", steps, revalidate=10)
    yield steps
    steps.release()


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
        redis.do(*(["FLUSHDB"] if lost == "everything" else ["DEL", lost]))
        assert lost == "everything" or status_of(visit(make(redis.url))) == "isr; hit; ttl=0"
        # Stale, and rendered again behind whoever saw it first.
        wait_until(lambda: visit(isr).text == "render 2")

    def test_that_was_lost_is_told_once_by_each_process(
        self, redis: Redis, site: Site, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.page("/", "body")
        isr = make(redis.url)
        visit(isr)
        before = coordination(isr).signal[0]
        redis.do("FLUSHDB")
        wait_until(lambda: coordination(isr).signal[0] != before)
        coordination(isr).follow()
        (record,) = caplog.records
        assert record.message.startswith("the store has lost its invalidations")

    def test_that_was_lost_does_not_bring_back_what_had_to_go(
        self, redis: Redis, site: Site, make: Make
    ) -> None:
        """A page that nobody may see any more stays expired where it is still in memory."""
        site.page("/", lambda environ: f"render {site.renders()}", revalidate=False)
        isr = make(redis.url)
        visit(isr)
        isr.invalidate("/", expire=True)
        before = coordination(isr).signal[0]
        site.answers["/"] = broken
        assert visit(isr).status_code == 500
        redis.do("FLUSHDB")
        wait_until(lambda: coordination(isr).signal[0] != before)
        assert visit(isr).status_code == 500

    def test_demanded_holds_also_where_the_server_is_emptied_meanwhile(
        self, redis: Redis, steps: Steps, make: Make
    ) -> None:
        isr, other = make(redis.url, rules=RULES), make(redis.url, rules=RULES)
        steps.release(1)
        visit(isr), visit(other)
        demanded = start(isr.revalidate, HOME)
        steps.wait(2)
        redis.do("FLUSHDB")
        steps.release()
        result(demanded)
        assert visit(isr).text == "render 2"
        wait_until(lambda: visit(other).text != "render 1")

    def test_that_was_lost_lets_no_older_render_in(
        self, redis: Redis, steps: Steps, make: Make
    ) -> None:
        isr, other = make(redis.url, rules=RULES), make(redis.url, rules=RULES)
        waiting = start(visit, isr)
        steps.wait(1)
        redis.do("FLUSHDB")
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

    def test_forgotten_here_sooner_than_on_the_server_stays_forgotten(
        self, redis: Redis, site: Site, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that looks seldom has more labels than the server, and forgets more."""
        monkeypatch.setattr("wsgi_isr.store.redis.MAX_LABELS", 10)
        # When it is told to, and not on a thread of its own besides.
        monkeypatch.setattr("wsgi_isr.store.following.Follower.start", lambda follower: None)
        site.page("/", "body")
        one, other = coordination(make(redis.url)), make(redis.url)
        for number in range(10):
            one.invalidate([f"tag:{number}"], False)
        visit(other)
        late = coordination(other)
        late.follow()
        for number in range(10, 14):
            one.invalidate([f"tag:{number}"], False)
        late.follow()
        forgotten = late.epochs().floor
        assert forgotten > one.epochs().floor
        late.follow()
        assert late.epochs().floor == forgotten

    def test_of_two_databases_is_not_the_same(self, redis: Redis, site: Site, make: Make) -> None:
        site.page("/", "body")
        isr, other = make(redis.url), make(f"{redis.url}0")
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

    def test_that_promote_a_late_replica_make_pages_stale(
        self, redis: Redis, site: Site, make: Make, tmp_path: t.Any
    ) -> None:
        """It has not got the last invalidations; whoever has seen one tells all others."""
        site.page("/", lambda environ: f"render {site.renders()}", tags=["tag"], revalidate=False)
        (tmp_path / "replica").mkdir()
        with running(Redis(tmp_path)) as primary, running(Redis(tmp_path / "replica")) as replica:
            assert isinstance(primary, Redis) and isinstance(replica, Redis)
            network = SlowNetwork(primary.port, 0)
            url = f"redis://127.0.0.1:{network.port}/0"
            isr, other = make(url), make(url)
            visit(isr), visit(other)
            replica.do("REPLICAOF", "127.0.0.1", primary.port)
            wait_until(lambda: replica.do("EXISTS", "isr:clock"))
            replica.do("REPLICAOF", "NO", "ONE")
            isr.revalidate_tag("tag")
            network.close()
            primary.kill()
            with SlowNetwork(replica.port, 0, network.port):
                for there in (isr, other):
                    wait_until(lambda there=there: visit(there).text != "render 1")
                # In the store, too.
                later = make(url, memory_size=0)
                wait_until(lambda: visit(later).text != "render 1")

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
