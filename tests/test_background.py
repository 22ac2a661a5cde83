"""The threads that render behind the visitors: few, bounded, and no harm if they cannot run."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from steps import result
from steps import start
from steps import Steps
from steps import visit
from steps import wait_until

from wsgi_isr import ISRMiddleware


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """``/`` is a page whose renders the test holds and lets go; it may hold up a whole pool."""
    steps = Steps()
    site.page("/", steps, revalidate=10)
    yield steps
    steps.release()


@pytest.fixture
def busy(steps: Steps, site: Site, make: Make, clock: Clock) -> ISRMiddleware:
    """One thread, which renders ``/`` until it is released; ``/1`` to ``/9`` are stale."""
    isr = make(workers=1)
    steps.release(1)
    visit(isr)
    for number in range(1, 10):
        site.page(f"/{number}", f"old {number}", revalidate=10)
        visit(isr, f"/{number}")
        site.page(f"/{number}", f"new {number}", revalidate=10)
    clock.advance(10)
    visit(isr)
    steps.wait(2)
    return isr


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wsgi-isr"]


class TestTheQueue:
    def test_holds_each_page_once(self, steps: Steps, site: Site, busy: ISRMiddleware) -> None:
        for _ in range(5):
            visit(busy, "/1")
            visit(busy, "/2")
        steps.release()
        busy.close()
        assert [visit(busy, path).text for path in ("/1", "/2")] == ["new 1", "new 2"]
        assert site.renders("/1") == site.renders("/2") == 2

    def test_is_bounded_and_what_does_not_fit_is_served_stale(
        self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, site: Site
    ) -> None:
        monkeypatch.setattr("wsgi_isr.pool.QUEUE_LIMIT", 2)
        busy: ISRMiddleware = request.getfixturevalue("busy")
        for number in (1, 1, 1, 2, 3, 4):
            # However often a page is visited, it has one place.
            assert visit(busy, f"/{number}").text == f"old {number}"
        request.getfixturevalue("steps").release()
        busy.close()
        assert [site.renders(f"/{number}") for number in range(1, 5)] == [2, 2, 1, 1]
        # The next visitor asks again.
        visit(busy, "/3")
        busy.close()
        assert visit(busy, "/3").text == "new 3"

    def test_a_page_that_became_fresh_in_line_is_not_rendered_again(
        self, steps: Steps, site: Site, busy: ISRMiddleware
    ) -> None:
        visit(busy, "/1")
        busy.revalidate("http://localhost/1")
        assert site.renders("/1") == 2
        steps.release()
        busy.close()
        assert visit(busy, "/1").text == "new 1"
        assert site.renders("/1") == 2

    def test_no_more_threads_run_than_were_asked_for(
        self, site: Site, make: Make, clock: Clock
    ) -> None:
        steps = Steps()
        before = set(threads())
        isr = make(workers=2)
        for number in range(5):
            site.page(f"/{number}", "body", revalidate=10)
            visit(isr, f"/{number}")
            site.page(f"/{number}", steps, revalidate=10)
        clock.advance(10)
        for number in range(5):
            visit(isr, f"/{number}")
        steps.wait(2)
        assert len(set(threads()) - before) == 2
        assert steps.begun == 2
        steps.release()
        isr.close()
        assert steps.begun == 5


class TestThreads:
    def test_nothing_starts_before_a_page_is_stale(
        self, site: Site, make: Make, clock: Clock
    ) -> None:
        before = set(threads())
        site.page("/", "body", revalidate=10)
        isr = make()
        visit(isr)
        visit(isr)
        assert not set(threads()) - before
        clock.advance(10)
        visit(isr)
        isr.close()
        assert len(set(threads()) - before) == 1

    def test_do_not_keep_a_process_from_ending(
        self, steps: Steps, make: Make, clock: Clock
    ) -> None:
        isr = make()
        steps.release(1)
        visit(isr)
        clock.advance(10)
        visit(isr)
        steps.wait(2)
        assert threads() and all(thread.daemon for thread in threads())

    def test_that_cannot_be_started_cost_no_visitor_anything(
        self,
        site: Site,
        make: Make,
        cache: str,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        site.page("/", "old", revalidate=10)
        isr = make(cache)
        visit(isr)
        clock.advance(10)
        site.page("/", "new", revalidate=10)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            answer = visit(isr)
            assert (answer.text, status_of(answer)) == ("old", "isr; hit; ttl=0")
            # When he had his answer, his own thread rendered.
            answer = visit(isr)
            assert (answer.text, status_of(answer)) == ("new", "isr; hit; ttl=10")
        assert "threads do not run here" in caplog.text

    def test_render_in_a_context_of_their_own(self, site: Site, make: Make, clock: Clock) -> None:
        mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="nobody's")
        site.page("/", lambda environ: mine.get(), revalidate=10)
        isr = make(rules={"/": 10})
        mine.set("the visitor's")
        assert visit(isr).text == "nobody's"
        clock.advance(10)
        visit(isr)
        isr.close()
        assert visit(isr).text == "nobody's"

    def test_stand_in_for_hung_ones_but_not_without_end(
        self, site: Site, make: Make, clock: Clock
    ) -> None:
        steps = Steps()
        isr = make(workers=1, render_timeout=0.01)
        for number in range(9):
            site.page(f"/{number}", "body", revalidate=10)
            visit(isr, f"/{number}")
            site.page(f"/{number}", steps, revalidate=10)
        clock.advance(10)

        def hang(number: int) -> bool:
            for page in range(9):
                visit(isr, f"/{page}")
            return steps.begun >= number

        wait_until(lambda: hang(4))
        for _ in range(20):
            hang(9)
        assert steps.begun == 4
        steps.release()


class TestClose:
    def test_waits_for_running_regenerations(self, steps: Steps, make: Make, clock: Clock) -> None:
        isr = make()
        steps.release(1)
        visit(isr)
        clock.advance(10)
        visit(isr)
        steps.wait(2)
        closing = start(isr.close)
        assert not closing.done()
        steps.release(2)
        result(closing)
        assert visit(isr).text == "render 2"

    def test_waits_no_longer_than_its_timeout(self, steps: Steps, make: Make, clock: Clock) -> None:
        isr = make()
        steps.release(1)
        visit(isr)
        clock.advance(10)
        visit(isr)
        began = time.monotonic()
        isr.close(timeout=0.05)
        assert time.monotonic() - began < 5
        assert visit(isr).text == "render 1"

    def test_of_a_middleware_that_nobody_has_visited_is_nothing(self, make: Make) -> None:
        make().close()


class TestLookingAtWhatOthersDo:
    def test_takes_one_look_for_all_pages_of_a_moment(
        self, site: Site, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = ["/a", "/b", "/c"]
        for path in paths:
            site.page(path, revalidate=3600)
        isr = make()
        for path in paths * 2:
            visit(isr, path)
        looks: list[float] = []
        store = isr._here().store
        monkeypatch.setattr(store.coordination, "poll", lambda: looks.append(clock.now))

        # Forward, and back by someone who sets the clock.
        for seconds in (1.5, 1.5, -2.0):
            clock.advance(seconds)
            for path in paths:
                assert status_of(visit(isr, path)).startswith("isr; hit; ttl=3")

        began = clock.now + 2.0 - 3.0
        assert looks == [began + 1.5, began + 3.0, began + 1.0]
