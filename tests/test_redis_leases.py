"""Leases on a Redis server, and the processes that hold them."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Make
from conftest import Site
from conftest import status_of
from elsewhere import Elsewhere
from network import coordination
from network import HOME
from network import neighbour
from network import RULES
from redis_server import Redis
from redis_server import running
from steps import PATIENCE
from steps import result
from steps import start
from steps import visit
from steps import wait_until
from wsgi_isr.store.coordination import Held

from wsgi_isr.store import leases
from wsgi_isr.store.redis import RedisCoordination

pytestmark = pytest.mark.servers


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
        monkeypatch.setattr(leases, "LEASE", 1.5)
        monkeypatch.setattr(leases, "BEAT", 0.05)
        one, other = pair
        began = time.monotonic()
        lease = one.acquire("page", 2.5, False)
        assert not isinstance(lease, Held)
        while isinstance(other.acquire("page", 60, False), Held):
            assert redis.do("PTTL", "isr:lease:page") <= 1500
            time.sleep(0.02)
        assert 2.4 < time.monotonic() - began < PATIENCE

    def test_that_a_slow_server_gave_after_all_are_given_back(
        self, tmp_path: t.Any, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody else has to wait until they lapse."""
        monkeypatch.setattr(leases, "LEASE", 3600)
        monkeypatch.setattr(leases, "BEAT", 0.05)
        with running(Redis(tmp_path)) as server:
            assert isinstance(server, Redis)
            one, other = coordination(make(server.url)), coordination(make(server.url))
            one.next_number()
            server.freeze()
            for name in ("page", "another"):
                with pytest.raises(Exception, match="(?i)timeout|timed out"):
                    one.acquire(name, 3600, False)
            server.thaw()
            for name in ("page", "another"):
                wait_until(lambda name=name: not isinstance(other.acquire(name, 60, False), Held))

    def test_that_others_left_for_ever_are_none(
        self, pair: tuple[RedisCoordination, RedisCoordination], redis: Redis
    ) -> None:
        redis.do("SET", "isr:lease:page", "whoever|1")
        assert not isinstance(pair[0].acquire("page", 60, False), Held)


@pytest.mark.processes
class TestProcesses:
    @pytest.fixture
    def content(self, tmp_path: t.Any) -> t.Any:
        path = tmp_path / "content"
        path.write_text("first")
        return path

    @pytest.fixture
    def elsewhere(self, redis: Redis, content: t.Any) -> Iterator[Elsewhere]:
        there = Elsewhere(redis.url, str(content), rules=RULES, lease=2.0)
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
            assert time.monotonic() - returned < PATIENCE

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
        assert time.monotonic() - began < leases.LEASE + PATIENCE
