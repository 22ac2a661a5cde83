"""The threads that render behind visitors, and what happens where there are none."""

from __future__ import annotations

import threading
import typing as t

import pytest
from conftest import Site
from conftest import status_of

from wsgi_isr import pool as pool_module
from wsgi_isr.pool import WorkerPool


class TestWithoutThreads:
    @pytest.fixture(autouse=True)
    def no_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Forbidden(threading.Thread):
            def start(self) -> None:
                raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading, "Thread", Forbidden)

    def test_a_stale_page_is_rendered_after_its_visitor_was_served(
        self, site: Site, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}")
        client = browse()
        client.get("/")
        clock.advance(61)
        response = client.get("/", buffered=False)
        assert (response.text, site.renders("/")) == ("render 1", 1)
        response.close()
        assert site.renders("/") == 2
        again = client.get("/")
        assert (again.text, status_of(again)) == ("render 2", "isr; hit; ttl=60")

    def test_an_error_in_that_render_does_not_reach_the_server(
        self, site: Site, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/", "good")
        client = browse()
        client.get("/")
        site.fail("/")
        clock.advance(61)
        assert client.get("/").text == "good"
        assert client.isr.stats()["failures"] == 1


class TestStalled:
    def test_a_job_that_no_idle_thread_takes_shows_that_threads_do_not_run(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As under uWSGI without --enable-threads: they start, and stand still.
        monkeypatch.setattr(threading.Thread, "start", lambda self: None)
        monkeypatch.setattr(pool_module, "STALLED", 0.0)
        done = []
        pool = WorkerPool(1, 60)
        pool.submit(lambda: done.append(1))
        assert pool.is_stalled
        pool.run_one()
        assert (done, pool.is_stalled, pool.wait(0)) == ([1], False, True)

    def test_a_busy_pool_is_not_stalled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool_module, "STALLED", 0.0)
        begun, go_on = threading.Event(), threading.Event()
        pool = WorkerPool(1, 60)

        def job() -> None:
            begun.set()
            go_on.wait(10)

        pool.submit(job)
        assert begun.wait(10)
        pool.submit(lambda: None)
        assert not pool.is_stalled
        go_on.set()
        assert pool.wait(10)
