"""A store on the network that is far away, and visitors who all wait for one that is frozen."""

from __future__ import annotations

import statistics
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from patience import be_quick
from patience import FIRST
from patience import OTHERS
from patience import timed
from patience import url_of
from patience import usual
from redis_server import Redis
from redis_server import running
from redis_server import SlowNetwork
from steps import PATIENCE
from steps import result
from steps import start
from steps import visit
from steps import wait_until

from wsgi_isr import Rule

pytestmark = pytest.mark.servers

HOME = "http://localhost/"
RULES = {"/**": Rule()}


@pytest.fixture(autouse=True)
def timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    be_quick(monkeypatch)


class TestADistantServer:
    """200 milliseconds for an answer."""

    #: Answers that a visitor of a cold page waits for: the page, the lease, the page again, a
    #: number, what is there now, storing it, giving the lease back. And a connection is made.
    ANSWERS = 7

    @pytest.fixture
    def far(self, tmp_path: t.Any) -> Iterator[str]:
        with running(Redis(tmp_path)) as server:
            with SlowNetwork(server.port, 0.1) as network:
                yield f"redis://127.0.0.1:{network.port}/0"

    def test_costs_pages_in_memory_nothing(
        self, far: str, site: Site, make: Make, clock: Clock
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}", revalidate=10)
        isr = make(far)
        visit(isr)
        times = []
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            took, answer = timed(isr)
            assert status_of(answer) == "isr; hit; ttl=10"
            times.append(took)
            time.sleep(0.01)
        assert usual(times) < 0.1
        clock.advance(10)
        took, answer = timed(isr)
        assert status_of(answer) == "isr; hit; ttl=0"
        assert took < OTHERS

    def test_costs_a_cold_visitor_a_bounded_number_of_answers(
        self, far: str, site: Site, make: Make
    ) -> None:
        for path in ("/", "/other"):
            site.page(path, "body")
        isr = make(far, rules=RULES)
        visit(isr)
        client: t.Any = isr._here().store.coordination._client  # type: ignore[attr-defined]
        execute, asked = client.execute_command, []

        def count(*command: t.Any, **options: t.Any) -> t.Any:
            if threading.current_thread() is threading.main_thread():
                asked.append(command[0])
            return execute(*command, **options)

        client.execute_command = count
        took, answer = timed(isr, "/other")
        assert answer.text == "body"
        assert len(asked) <= self.ANSWERS, asked
        assert took < (self.ANSWERS + 3) * 0.2 + PATIENCE

    def test_costs_less_than_one_that_is_slower_than_its_timeout(
        self, far: str, site: Site, make: Make
    ) -> None:
        site.page("/", "body")
        isr = make(f"{far}?socket_timeout=0.05", rules=RULES)
        took, answer = timed(isr)
        assert (answer.text, status_of(answer)) == ("body", "isr; fwd=uri-miss; detail=store-error")
        assert took < FIRST

    def test_is_followed_soon(self, far: str, site: Site, make: Make) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}", revalidate=False)
        isr, other = make(far, rules=RULES), make(far, rules=RULES)
        visit(isr), visit(other)
        isr.revalidate(HOME)
        returned = time.monotonic()
        wait_until(lambda: visit(other).text == "render 2")
        # ``-s`` shows how soon: that it was within a second is for a machine that is not busy.
        print(f"\n{time.monotonic() - returned:.2f} s")


class TestManyVisitorsAtOnce:
    def test_wait_for_a_frozen_server_together(
        self, site: Site, make: Make, tmp_path: t.Any
    ) -> None:
        for number in range(20):
            site.page(f"/{number}", "body")
        with running(Redis(tmp_path)) as server:
            isr = make(url_of(server), rules=RULES)
            visit(isr, "/0")
            server.freeze()
            times: list[float] = []
            barrier = threading.Barrier(19)

            def come(number: int) -> None:
                barrier.wait(10)
                times.append(timed(isr, f"/{number}")[0])

            for future in [start(come, number) for number in range(1, 20)]:
                result(future)
            assert max(times) < FIRST + OTHERS + PATIENCE
            # Together, and not one after the other.
            assert statistics.median(times) < FIRST
