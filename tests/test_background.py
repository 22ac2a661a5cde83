"""What renders after the answer: a few threads, bounded, and no harm if they cannot run."""

from __future__ import annotations

import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Clock, Make, Site, status_of
from steps import Steps, result, start, visit, wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import threads as threads_module
from wsgi_isr.threads import Background


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """``/`` is a page whose renders wait for the test."""
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


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "wsgi-isr"}


class TestTheQueue:
    def test_is_bounded_and_has_each_page_once(
        self, monkeypatch: pytest.MonkeyPatch, steps: Steps, site: Site, busy: ISRMiddleware
    ) -> None:
        monkeypatch.setattr(threads_module, "MAX_QUEUE", 2)
        for number in (1, 1, 1, 2, 3, 4):
            # However often a page is visited, it has one place.
            assert visit(busy, f"/{number}").text == f"old {number}"
        steps.release()
        busy.close()
        assert [site.renders(f"/{number}") for number in range(1, 5)] == [2, 2, 1, 1]
        # The next visitor asks again.
        visit(busy, "/3")
        busy.close()
        assert visit(busy, "/3").text == "new 3"


class TestThreads:
    def test_start_when_a_page_is_stale_and_are_no_more_than_were_asked_for(
        self, site: Site, make: Make, clock: Clock
    ) -> None:
        steps = Steps()
        before = threads()
        isr = make(workers=2)
        for number in range(5):
            site.page(f"/{number}", "body", revalidate=10)
            visit(isr, f"/{number}")
            site.page(f"/{number}", steps, revalidate=10)
        assert not threads() - before
        clock.advance(10)
        for number in range(5):
            visit(isr, f"/{number}")
        steps.wait(2)
        mine = threads() - before
        assert len(mine) == steps.begun == 2
        # They do not keep a process from ending.
        assert all(thread.daemon for thread in mine)
        steps.release()
        isr.close()
        assert steps.begun == 5

    def test_stand_in_for_hung_ones_but_not_without_end(
        self, site: Site, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # On a slow machine a visitor's thread would help.
        monkeypatch.setattr("wsgi_isr.threads.STALLED", 1000.0)
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


class TestWithoutThreads:
    @pytest.fixture
    def no_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)

    def test_a_visitors_thread_renders_when_they_have_their_answer(
        self,
        site: Site,
        browse: t.Any,
        clock: Clock,
        no_threads: None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}")
        client = browse()
        client.get("/")
        clock.advance(60)
        response = client.get("/", buffered=False)
        assert (response.text, site.renders("/")) == ("render 1", 1)
        response.close()
        assert site.renders("/") == 2
        again = client.get("/")
        assert (again.text, status_of(again)) == ("render 2", "isr; hit; ttl=60")
        assert "threads do not run here" in caplog.text
        # An error in it does not reach the server.
        site.fail("/")
        clock.advance(60)
        assert client.get("/").text == "render 2"
        assert client.isr.stats()["failures"] == 1

    def test_work_of_a_cold_page_delays_no_later_render(
        self, site: Site, browse: t.Any, clock: Clock, no_threads: None
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}")
        client = browse()
        client.get("/")
        for name in ("/a", "/b"):
            # It is compressed behind its answer.
            site.page(name, "large " * 20_000)
            client.get(name)
            again = client.get(name, headers={"Accept-Encoding": "gzip"})
            assert again.headers["Content-Encoding"] == "gzip"
        clock.advance(60)
        client.get("/")
        assert client.get("/").text == "render 2"

    @pytest.mark.servers
    def test_an_edit_elsewhere_reaches_the_first_visitor_after_a_second(
        self,
        site: Site,
        make: Make,
        browse: t.Any,
        redis: t.Any,
        no_threads: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}", tags=["x"])
        client, other = browse(redis.url), make(redis.url)
        client.get("/")
        other.revalidate_tag("x", expire=True)
        # As if the second was over.
        monkeypatch.setattr("wsgi_isr.process.POLL", 0.0)
        assert client.get("/").text == "render 2"

    def test_that_start_and_stand_still_show_by_a_job_that_nothing_runs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As under uWSGI without --enable-threads.
        monkeypatch.setattr(threading.Thread, "start", lambda self: None)
        monkeypatch.setattr(threads_module, "STALLED", 0.0)
        done: list[int] = []
        background = Background(1, 60)
        background.submit(lambda: done.append(1))
        assert background.is_stalled
        background.run_one()
        assert (done, background.is_stalled, background.wait(0)) == ([1], False, True)


class TestClose:
    @pytest.fixture
    def isr(self, steps: Steps, make: Make, clock: Clock) -> ISRMiddleware:
        """A middleware that renders a stale page."""
        isr = make()
        steps.release(1)
        visit(isr)
        clock.advance(10)
        visit(isr)
        steps.wait(2)
        return isr

    def test_waits_for_running_regenerations(self, isr: ISRMiddleware, steps: Steps) -> None:
        closing = start(isr.close)
        assert not closing.done()
        steps.release()
        result(closing)

    def test_waits_no_longer_than_its_timeout(self, isr: ISRMiddleware, steps: Steps) -> None:
        began = time.monotonic()
        isr.close(timeout=0.05)
        assert time.monotonic() - began < 5
        assert visit(isr).text == "render 1"
        steps.release()
