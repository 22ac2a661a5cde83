"""Totals of all processes, and gauges."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import typing as t
from collections.abc import Callable, Iterator

import pytest
from conftest import Browser, Clock, Make, Site
from steps import Steps, result, visit, visitors, wait_until

from wsgi_isr import RevalidationError, Rule

Browse = Callable[..., Browser]

HOME = "http://localhost/"
TOTALS = (
    "hits",
    "stale_hits",
    "misses",
    "passed",
    "bypassed",
    "renders",
    "failures",
    "rejections",
    "evictions",
    "store_errors",
    "invalidations",
)
GAUGES = ("pages", "bytes", "memory_bytes", "rendering", "waiting", "processes")
#: Serves a page again and again, and lives until its input ends.
WORKER = """
import sys
from werkzeug.test import Client
from wsgi_isr import ISRMiddleware, page_headers

def app(environ, start_response):
    start_response("200 OK", page_headers(60))
    return [b"a page"]

isr = ISRMiddleware(app, sys.argv[1])
for _ in range(5):
    assert Client(isr).get("/").text == "a page"
isr.stats()
print("ready", flush=True)
sys.stdin.read()
isr.close()
"""


class TestTotals:
    def test_count_what_was_done(
        self, site: Site, browse: Browse, listable: str, clock: Clock
    ) -> None:
        site.page("/", "body", revalidate=10)
        browser = browse(listable, bypass=["member"])
        assert not any(browser.isr.stats()[name] for name in (*TOTALS, *GAUGES))
        for _ in range(3):
            browser.get("/")
        browser.post("/")
        browser.set_cookie("member", "1")
        browser.get("/")
        browser.delete_cookie("member")
        for answer in ("good", "failing", "failing"):
            if answer == "failing":
                site.fail("/")
            clock.advance(10)
            browser.get("/")
            browser.isr.close()
        site.page("/refused", "body", headers=[("Set-Cookie", "a=b")])
        with pytest.raises(RevalidationError):
            browser.isr.revalidate(HOME + "refused")
        browser.isr.invalidate("/**")
        stats = browser.isr.stats()
        assert {name: stats[name] for name in TOTALS} == {
            "hits": 2,
            "stale_hits": 3,
            "misses": 1,
            "passed": 1,
            "bypassed": 1,
            "renders": 5,
            "failures": 2,
            "rejections": 1,
            "evictions": 0,
            "store_errors": 0,
            "invalidations": 2,
        }
        seconds = stats["render_seconds"]
        assert 0 < seconds["sum"] < 10
        assert seconds["count"] == seconds["buckets"]["+Inf"] == 5
        counts = list(seconds["buckets"].values())
        assert counts == sorted(counts)
        assert set(stats) == {*TOTALS, *GAUGES, "render_seconds"}

    def test_count_each_request_once(self, site: Site, browse: Browse) -> None:
        site.page("/page")
        site.page("/refused", headers=[("Set-Cookie", "a=b")])

        def fail(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            start_response("500 Oops", [("Content-Type", "text/plain")])
            return [b""]

        site.answers["/error"] = fail
        browser = browse(rules={"/none": None, "/refused": Rule()})
        for path in ("/page", "/refused", "/nowhere", "/error", "/none", "//page"):
            for _ in range(3):
                browser.get(path)
        stats = browser.isr.stats()
        assert {name: stats[name] for name in TOTALS[:5]} == {
            "hits": 2,
            "stale_hits": 0,
            "misses": 1 + 3,
            "passed": 3 * 4,
            "bypassed": 0,
        }

    def test_are_those_of_all_processes_over_restarts(
        self, site: Site, make: Make, shared: str
    ) -> None:
        site.page("/")
        one, other = make(shared), make(shared)
        for isr in (one, one, other, other, other):
            visit(isr)
        one.close()
        other.close()
        stats = make(shared).stats()
        assert (stats["hits"], stats["misses"], stats["renders"]) == (4, 1, 1)
        visit(one)
        one.close()
        assert make(shared).stats()["hits"] == 5

    def test_that_cannot_be_written_are_written_later(
        self, site: Site, make: Make, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(counts: t.Any) -> None:
            raise OSError("the disk is full")

        site.page("/")
        isr = make(files)
        with monkeypatch.context() as patch:
            patch.setattr(isr.store, "add", refuse)
            visit(isr)
            visit(isr)
            isr.stats()
        assert make(files).stats()["hits"] == 0
        assert isr.stats()["hits"] == make(files).stats()["hits"] == 1


class TestGauges:
    def test_say_what_there_is_now(self, site: Site, make: Make, listable: str) -> None:
        steps = Steps()
        site.page("/", "x" * 1000)
        site.page("/slow", steps)
        isr = make(listable, rules={"/**": Rule()})
        visit(isr)
        waiting = visitors(isr, 4, "/slow")
        steps.wait(1)
        wait_until(lambda: isr.stats()["waiting"] == 3)
        stats = isr.stats()
        assert (stats["pages"], stats["rendering"], stats["processes"]) == (1, 1, 1)
        assert stats["memory_bytes"] > 1000
        steps.release()
        for visitor in waiting:
            result(visitor)
        stats = isr.stats()
        assert (stats["pages"], stats["rendering"], stats["waiting"]) == (2, 0, 0)

    def test_do_not_count_a_process_that_only_reads(
        self, site: Site, make: Make, files: str
    ) -> None:
        site.page("/")
        visit(make(files))
        wait_until(lambda: make(files).stats()["processes"] == 1)
        assert len(list(make(files).pages())) == make(files).stats()["processes"] == 1


@pytest.mark.processes
class TestProcesses:
    @pytest.fixture
    def worker(self, shared: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
        started = []

        def worker() -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, shared],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            return process

        yield worker
        for process in started:
            process.kill()
            process.communicate()

    def test_a_killed_process_leaves_its_totals_and_is_not_counted(
        self, worker: t.Any, make: Make, shared: str
    ) -> None:
        two = [worker(), worker()]
        isr = make(shared)
        assert (isr.stats()["processes"], isr.stats()["hits"]) == (2, 9)
        two[0].send_signal(signal.SIGKILL)
        two[0].wait()
        two[1].communicate("")
        if shared.startswith("file:"):
            # A server learns of a killed process when it has not been heard of for a while.
            wait_until(lambda: isr.stats()["processes"] == 0)
        stats = isr.stats()
        assert stats["processes"] <= 1
        assert (stats["hits"], stats["renders"]) == (9, 1)

    # Python 3.12 and newer warn of any fork of a process with threads.
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_child_counts_its_own(
        self, site: Site, browse: Browse, files: str, clock: Clock
    ) -> None:
        site.page("/")
        browser = browse(files)
        browser.get("/")
        browser.get("/")
        # What is kept ready for a second is the parent's.
        clock.advance(2)
        child = os.fork()
        if not child:
            browser.get("/")
            browser.isr.stats()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert browser.isr.stats()["hits"] == 2
