"""A store on the network that is killed, frozen, full or cut off.

Visitors never see an error and never wait for it twice; no call says that an invalidation holds
when it may not; and all of it ends by itself.
"""

from __future__ import annotations

import logging
import re
import time
import typing as t
from collections.abc import Callable, Iterator

import pytest
from conftest import Clock, Make, Site, status_of
from patience import FIRST, OTHERS, RECOVERY, be_quick, timed, url_of, usual
from redis_server import Memcached, Redis, Server, SlowNetwork, running
from steps import Steps, result, start, visit, wait_until

from wsgi_isr import RevalidationError, Rule
from wsgi_isr.signals import store_failed

pytestmark = pytest.mark.servers

HOME = "http://localhost/"
RULES = {"/**": Rule()}


class Outage(t.NamedTuple):
    begin: Callable[[Server], None]
    end: Callable[[Server], None]
    #: Whether the store can still be read.
    readable: bool = False
    #: Whether it takes requests and does not answer.
    hangs: bool = False


def fill_up(server: Server) -> None:
    assert isinstance(server, Redis)
    server.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.do("CONFIG", "SET", "maxmemory", "1")


def make_room(server: Server) -> None:
    assert isinstance(server, Redis)
    server.do("CONFIG", "SET", "maxmemory", "0")


OUTAGES = {
    "killed": Outage(Server.kill, Server.start),
    "frozen": Outage(Server.freeze, Server.thaw, hangs=True),
    "full": Outage(fill_up, make_room, readable=True),
}
CASES = [("redis", name) for name in OUTAGES] + [("memcached", "killed")]


@pytest.fixture(autouse=True)
def timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    be_quick(monkeypatch)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def server(case: tuple[str, str], tmp_path: t.Any) -> Iterator[Server]:
    if case[0] == "memcached":
        pytest.importorskip("pymemcache")
    with running(Memcached() if case[0] == "memcached" else Redis(tmp_path)) as server:
        yield server


@pytest.fixture
def outage(case: tuple[str, str]) -> Outage:
    return OUTAGES[case[1]]


@pytest.fixture
def failures() -> Iterator[list[t.Any]]:
    seen: list[t.Any] = []

    def receive(sender: object, **extra: t.Any) -> None:
        seen.append((sender, extra["operation"]))

    with store_failed.connected_to(receive):
        yield seen


def logged(caplog: pytest.LogCaptureFixture, server: Server) -> list[str]:
    """What was logged, but for what threads of a test before this one say of its server."""
    theirs = re.compile(rf"connecting to 127\.0\.0\.1:(?!{server.port}\.)")
    return [record.message for record in caplog.records if not theirs.search(record.message)]


class TestAnOutage:
    def test_costs_pages_in_memory_nothing(
        self, server: Server, outage: Outage, site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        isr = make(url_of(server), rules=RULES)
        visit(isr)
        outage.begin(server)
        # Longer than a thread that hangs goes unnoticed, where one may hang.
        end = time.monotonic() + (2.5 if outage.hangs else 0.7)
        times = []
        while time.monotonic() < end:
            took, answer = timed(isr)
            assert (answer.text, status_of(answer)) == ("body", "isr; hit; ttl=60")
            times.append(took)
            time.sleep(0.01)
        assert usual(times) < OTHERS

    def test_costs_one_visitor_a_timeout_and_the_others_nothing(
        self, server: Server, outage: Outage, site: Site, make: Make
    ) -> None:
        for number in range(20):
            site.page(f"/{number}", "body")
        isr = make(url_of(server), rules=RULES)
        visit(isr, "/0")
        outage.begin(server)
        times = []
        for number in range(1, 20):
            took, answer = timed(isr, f"/{number}")
            assert answer.text == "body"
            assert status_of(answer) == "isr; fwd=uri-miss; detail=store-error"
            times.append(took)
        first, others = times[0], times[1:]
        assert first < FIRST
        assert usual(others) < OTHERS
        # By now they are in memory.
        assert status_of(visit(isr, "/5")) == "isr; hit; ttl=60"

    def test_keeps_nobody_from_regenerating(
        self, server: Server, outage: Outage, site: Site, make: Make, clock: Clock
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}", revalidate=10)
        isr = make(url_of(server), rules=RULES)
        visit(isr)
        outage.begin(server)
        for number in range(1, 4):
            clock.advance(10)
            assert visit(isr).text == f"render {number}"
            wait_until(lambda text=f"render {number + 1}": visit(isr).text == text)
            assert status_of(visit(isr)) == "isr; hit; ttl=10"

    def test_fails_those_who_invalidate(
        self, server: Server, outage: Outage, site: Site, make: Make
    ) -> None:
        site.page("/", "body", tags=["tag"])
        isr = make(url_of(server), rules=RULES)
        visit(isr)
        outage.begin(server)
        calls: list[Callable[[], object]] = [
            lambda: isr.revalidate(HOME),
            lambda: isr.revalidate_tag("tag"),
            lambda: isr.invalidate("/**"),
        ]
        for call in [*calls, calls[0]]:
            began = time.monotonic()
            with pytest.raises(RevalidationError):
                call()
            assert time.monotonic() - began < 2 * FIRST

    def test_is_logged_once_when_it_begins_and_when_it_ends(
        self,
        server: Server,
        outage: Outage,
        site: Site,
        make: Make,
        failures: list[t.Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for number in range(10):
            site.page(f"/{number}", "body")
        isr = make(url_of(server), rules=RULES)
        visit(isr, "/0")
        caplog.clear()
        outage.begin(server)
        for number in range(1, 10):
            visit(isr, f"/{number}")
            time.sleep(0.05)
        begun = "the store takes no writes" if outage.readable else "the store is away"
        assert [message[: len(begun)] for message in logged(caplog, server)] == [begun]
        assert any(sender is isr for sender, _ in failures)
        outage.end(server)
        wait_until(lambda: "the store answers again" in logged(caplog, server), RECOVERY)
        assert isr.stats()["store_errors"] >= 1
        assert {record.levelno for record in caplog.records} == {logging.WARNING}

    def test_ends_by_itself(self, server: Server, outage: Outage, site: Site, make: Make) -> None:
        site.page("/", "body")
        site.page("/later", "body")
        isr = make(url_of(server), rules=RULES)
        visit(isr)
        outage.begin(server)
        visit(isr, "/during")
        time.sleep(0.3)
        outage.end(server)
        ended = time.monotonic()
        wait_until(lambda: isr._here().pages.guard.is_well, RECOVERY)
        assert time.monotonic() - ended < RECOVERY
        assert status_of(visit(isr, "/later")) == "isr; fwd=uri-miss; stored"
        assert status_of(visit(make(url_of(server), rules=RULES), "/later")) == "isr; hit; ttl=60"
        isr.invalidate("/later")
        assert status_of(visit(isr, "/later")) == "isr; hit; ttl=0"

    def test_that_a_process_begins_in_costs_it_the_same(
        self, server: Server, outage: Outage, site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        site.page("/other", "body")
        outage.begin(server)
        isr = make(url_of(server), rules=RULES)
        took, answer = timed(isr)
        assert answer.text == "body" and took < 2 * FIRST
        times = []
        for path in 5 * ("/", "/other"):
            took, answer = timed(isr, path)
            assert answer.text == "body"
            times.append(took)
        assert usual(times) < OTHERS
        outage.end(server)
        wait_until(lambda: isr._here().pages.guard.is_well, RECOVERY)
        if not outage.readable:
            # Nobody knows what was invalidated when it was rendered.
            wait_until(lambda: status_of(visit(isr)) == "isr; hit; ttl=0" or site.renders("/") > 1)


class TestARenderDuringAnOutage:
    @pytest.fixture
    def redis(self, tmp_path: t.Any) -> Iterator[Redis]:
        with running(Redis(tmp_path)) as server:
            assert isinstance(server, Redis)
            yield server

    @pytest.fixture
    def steps(self, site: Site, make: Make) -> Iterator[Steps]:
        steps = Steps()
        site.page("/", steps, revalidate=False)
        yield steps
        steps.release()

    @pytest.mark.parametrize("seen", [True, False], ids=["page seen before", "cold page"])
    def test_does_not_overwrite_a_newer_page_afterwards(
        self, seen: bool, redis: Redis, steps: Steps, make: Make, clock: Clock
    ) -> None:
        """It has no number of its own, or none at all, and ends when the store is back."""
        isr, slow = make(redis.url, rules=RULES), 2 if seen else 1
        if seen:
            steps.release(1)
            visit(isr)
            isr.invalidate("/**", expire=True)
        redis.freeze()
        late = start(visit, isr)
        steps.wait(slow)
        redis.thaw()
        wait_until(lambda: isr._here().pages.guard.is_well, RECOVERY)
        other = make(redis.url, rules=RULES)
        steps.release(slow + 1)
        other.revalidate(HOME)
        newest = f"render {slow + 1}"
        steps.release(slow)
        result(late)
        for there in (other, make(redis.url, rules=RULES)):
            assert visit(there).text == newest
        wait_until(lambda: visit(isr).text == newest)
        assert steps.begun == slow + 1

    def test_is_stale_when_it_missed_an_invalidation(
        self, redis: Redis, site: Site, make: Make
    ) -> None:
        """Only this process was cut off; the others went on."""
        site.page("/", lambda environ: f"render {site.renders('/')}", revalidate=False)
        with SlowNetwork(redis.port, 0) as network:
            isr = make(f"redis://127.0.0.1:{network.port}/0", rules=RULES)
            visit(isr)
        visit(isr, "/unknown")
        other = make(redis.url, rules=RULES)
        other.revalidate(HOME)
        assert visit(isr).text == "render 1"
        with SlowNetwork(redis.port, 0, network.port):
            wait_until(lambda: visit(isr).text == "render 2")
