"""memcached as the shared store: what it can do, and that it says what it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from cachelib import BaseCache
from cachelib import MemcachedCache
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from elsewhere import Elsewhere
from redis_server import Memcached
from redis_server import running
from steps import PATIENCE
from steps import result
from steps import start
from steps import Steps
from steps import visit
from steps import wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import Rule
from wsgi_isr.store import leases
from wsgi_isr.store.clients import PATIENT
from wsgi_isr.store.coordination import Held
from wsgi_isr.store.coordination import LocalCoordination
from wsgi_isr.store.plain import PlainCoordination

pytestmark = pytest.mark.servers

HOME = "http://localhost/"
RULES = {"/**": Rule()}


@pytest.fixture
def server() -> Iterator[Memcached]:
    pytest.importorskip("pymemcache")
    with running(Memcached()) as server:
        assert isinstance(server, Memcached)
        yield server


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """``/`` is a page whose renders the test holds and lets go."""
    steps = Steps()
    site.page("/", steps, revalidate=10)
    yield steps
    steps.release()


def pooled(server: Memcached, **options: t.Any) -> t.Any:
    base = pytest.importorskip("pymemcache.client.base")
    timeouts = {"timeout": PATIENT, "connect_timeout": PATIENT, **options}
    return base.PooledClient(("127.0.0.1", server.port), **timeouts)


def coordination(isr: ISRMiddleware) -> PlainCoordination:
    found = isr._here().store.coordination
    assert isinstance(found, PlainCoordination)
    return found


class TestOpening:
    @pytest.mark.parametrize("kind", ["url", "instance", "callable"])
    def test_whatever_names_a_server_shares_its_pages(
        self, kind: str, server: Memcached, site: Site, make: Make
    ) -> None:
        site.page("/", "body", revalidate=10)
        cache: t.Any = server.url
        if kind == "instance":
            cache = MemcachedCache(pooled(server))
        elif kind == "callable":
            cache = lambda: MemcachedCache(pooled(server))  # noqa: E731
        assert status_of(visit(make(cache))) == "isr; fwd=uri-miss; stored"
        assert status_of(visit(make(server.url))) == "isr; hit; ttl=10"
        assert site.renders() == 1

    @pytest.mark.parametrize(
        "url",
        [
            "memcached://",
            "memcached://a,b",
            "memcached://a:port",
            "memcached://a/0",
            "memcached://a?retries=3",
            "memcached://a?timeout=soon",
        ],
    )
    def test_tells_a_mistake_in_a_url_at_once(self, url: str, site: Site) -> None:
        with pytest.raises(ValueError, match="memcached URL"):
            ISRMiddleware(site, url)

    def test_refuses_clients_that_execute_what_they_read(
        self, server: Memcached, site: Site
    ) -> None:
        serde = pytest.importorskip("pymemcache.serde")
        Client = type("Client", (), {"__module__": "pylibmc.client"})
        for client in (Client(), pooled(server, serde=serde.pickle_serde)):
            with pytest.raises(ValueError, match="pickle"):
                ISRMiddleware(site, MemcachedCache(client))

    def test_says_once_what_it_cannot_promise(
        self,
        server: Memcached,
        site: Site,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("wsgi_isr.store.opening._told", set())
        for _ in range(3):
            ISRMiddleware(site, server.url)
        assert [record.message.partition(":")[0] for record in caplog.records] == ["MemcachedCache"]

    def test_before_a_fork_mixes_nothing_up_after_it(self, server: Memcached) -> None:
        script = os.path.join(os.path.dirname(__file__), "forks.py")
        done = subprocess.run(
            [sys.executable, "-W", "error", script, "memcached", str(server.port)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.split() == ["good"] * 4, done.stderr


class TestOthers:
    def test_that_keep_a_dict_are_for_one_process(self, site: Site, make: Make) -> None:
        class Dict(BaseCache):
            def __init__(self) -> None:
                super().__init__()
                self.items: dict[str, t.Any] = {}

            def get(self, key: str) -> t.Any:
                return self.items.get(key)

            def set(self, key: str, value: t.Any, timeout: t.Any = None) -> bool:
                self.items[key] = value
                return True

        site.page("/", "body", revalidate=10)
        isr = make(Dict())
        assert status_of(visit(isr)) == "isr; fwd=uri-miss; stored"
        assert isinstance(isr._here().store.coordination, LocalCoordination)


class TestPages:
    def test_that_are_too_large_are_delivered_and_leave_the_old_one(
        self, server: Memcached, site: Site, make: Make, clock: Clock
    ) -> None:
        size = 100
        site.page("/", lambda environ: os.urandom(size).hex(), revalidate=10)
        isr = make(server.url, memory_size=0, rules=RULES)
        first = visit(isr)
        clock.advance(10)
        size = 600_000
        with pytest.raises(Exception, match="too-large"):
            isr.revalidate(HOME)
        assert visit(isr).text == first.text
        isr.close()

    def test_that_are_too_large_say_so(self, server: Memcached, site: Site, make: Make) -> None:
        site.page("/", lambda environ: os.urandom(600_000).hex())
        answer = visit(make(server.url, rules=RULES))
        assert status_of(answer) == "isr; fwd=uri-miss; detail=too-large"
        assert len(answer.text) == 1_200_000

    @pytest.mark.parametrize("limit", [1, 2])
    def test_may_be_nearly_as_large_as_the_server_says(
        self, limit: int, site: Site, make: Make
    ) -> None:
        pytest.importorskip("pymemcache")
        with running(Memcached(f"-I {limit}m")) as server:
            assert isinstance(server, Memcached)
            storage: t.Any = make(server.url)._here().store.storage
            name = f"{24 * 'a'}.{64 * 'b'}"
            assert limit * 2**20 - storage.limit < 1000
            storage.set(name, storage.limit * b"x")
            assert len(storage.get(name)) == storage.limit

    def test_cannot_be_listed(self, server: Memcached, site: Site, make: Make) -> None:
        site.page("/", "body")
        isr = make(server.url)
        visit(isr)
        with pytest.raises(NotImplementedError, match="MemcachedCache cannot list"):
            list(isr.pages())


class TestOrder:
    def test_outlives_all_processes(
        self, server: Memcached, site: Site, make: Make, clock: Clock
    ) -> None:
        site.page("/a", "body", tags=["tag"])
        site.page("/b", "body")
        isr = make(server.url)
        visit(isr, "/a"), visit(isr, "/b")
        isr.revalidate_tag("tag")
        clock.advance(20)
        later = make(server.url)
        assert status_of(visit(later, "/a")) == "isr; hit; ttl=0"
        assert status_of(visit(later, "/b")) == "isr; hit; ttl=40"

    @pytest.mark.parametrize("lost", ["clock", "epochs"])
    def test_that_was_lost_makes_pages_stale(
        self, lost: str, server: Memcached, site: Site, make: Make
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders()}")
        isr = make(server.url)
        visit(isr)
        isr.revalidate_tag("another")
        assert status_of(visit(isr)) == "isr; hit; ttl=60"
        isr._here().store.storage.delete(lost)
        assert status_of(visit(make(server.url))) == "isr; hit; ttl=0"
        # Stale, and rendered again behind whoever saw it first.
        wait_until(lambda: visit(isr).text == "render 2")

    def test_lets_no_older_render_in(self, server: Memcached, steps: Steps, make: Make) -> None:
        isr, other = make(server.url, rules=RULES), make(server.url, rules=RULES)
        waiting = start(visit, isr)
        steps.wait(1)
        steps.release(2)
        other.revalidate(HOME)
        steps.release(1)
        assert result(waiting).text == "render 2"
        assert visit(make(server.url)).text == "render 2"

    def test_gives_no_number_twice(self, server: Memcached, make: Make) -> None:
        pairs = [coordination(make(server.url)) for _ in range(4)]
        numbers: list[int] = []

        def take(there: PlainCoordination) -> None:
            for _ in range(50):
                numbers.append(there.next_number().sequence)

        threads = [threading.Thread(target=take, args=[there]) for there in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(numbers) == list(range(1, 201))

    def test_is_bounded_and_what_is_forgotten_is_stale(
        self, server: Memcached, site: Site, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgi_isr.store.plain.MAX_EPOCHS", 400)
        site.page("/", "body")
        isr = make(server.url)
        visit(isr)
        for number in range(30):
            isr.revalidate_tag(f"tag-{number}")
        assert len(coordination(isr).epochs()) < 30
        assert status_of(visit(isr)) == "isr; hit; ttl=0"


class TestLeases:
    def test_are_had_by_one_and_taken_over_on_demand(self, server: Memcached, make: Make) -> None:
        one, other = coordination(make(server.url)), coordination(make(server.url))
        lease = one.acquire("page", 60, False)
        assert not isinstance(lease, Held)
        assert other.acquire("page", 60, False) == Held(lease.token)
        demanded = other.acquire("page", 60, True)
        assert not isinstance(demanded, Held)
        lease.release(b"outcome")
        assert one.acquire("page", 60, True) == Held(demanded.token)
        demanded.release(b"outcome")
        assert one.outcome("page", demanded.token) == b"outcome"
        assert not isinstance(one.acquire("page", 60, False), Held)

    def test_are_kept_up_while_their_process_lives(
        self, server: Memcached, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "LEASE", 2.0)
        monkeypatch.setattr(leases, "BEAT", 0.2)
        one, other = coordination(make(server.url)), coordination(make(server.url))
        lease = one.acquire("page", 60, False)
        assert not isinstance(lease, Held)
        # It counts in whole seconds.
        until = time.monotonic() + leases.LEASE + 1.5
        while time.monotonic() < until:
            assert other.acquire("page", 60, False) == Held(lease.token)
            time.sleep(0.2)


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
    def elsewhere(self, server: Memcached, content: t.Any) -> Iterator[Elsewhere]:
        there = Elsewhere(server.url, str(content), rules=RULES, lease=2.0)
        there.do("renders")
        yield there
        there.kill()

    def test_see_what_was_demanded_elsewhere_within_a_second(
        self, elsewhere: Elsewhere, server: Memcached, content: t.Any, site: Site, make: Make
    ) -> None:
        elsewhere.visit()
        isr = neighbour(make, server.url)
        assert visit(isr).text == "first"
        content.write_text("second")
        elsewhere.do("revalidate", HOME)
        assert elsewhere.visit()[2] == "second"
        returned = time.monotonic()
        while visit(isr).text != "second":
            assert time.monotonic() - returned < PATIENCE

    def test_that_are_killed_with_a_lease_delay_others_no_longer_than_it_lasts(
        self, elsewhere: Elsewhere, server: Memcached, site: Site, make: Make
    ) -> None:
        site.page("/", "rendered here")
        elsewhere.hold()
        elsewhere.begin("visit", "/")
        elsewhere.wait()
        elsewhere.kill()
        began = time.monotonic()
        assert visit(neighbour(make, server.url)).text == "rendered here"
        # It counts in whole seconds.
        assert time.monotonic() - began < leases.LEASE + 1 + PATIENCE
