"""What an operator is told: who called what, and logs."""

from __future__ import annotations

import logging
import subprocess
import sys
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Browser, Clock, Make, Site
from flasks import flask_app, flask_browser
from steps import visit, wait_until

from wsgi_isr.listing import PageInfo, percentile
from wsgi_isr.ondemand import MAX_NAMES, called_by
from wsgi_isr.page import MAX_RENDERS

Browse = Callable[..., Browser]

HOME = "http://localhost/"
SECRET = "correct horse battery staple"
DAY = 86_400


class TestPeriods:
    def test_are_the_store_the_day_and_the_build(
        self, site: Site, make: Make, shared: str, clock: Clock
    ) -> None:
        site.page("/")

        def periods(build: str, visits: int) -> t.Any:
            isr = make(shared, build_id=build)
            for _ in range(visits):
                visit(isr)
            found = isr.on_demand().overview()["periods"]
            isr.close()
            return {name: (it["hits"], it["misses"], it["at"]) for name, it in found.items()}

        began = clock.now
        assert periods("one", 4) == dict.fromkeys(("store", "day", "build"), (3, 1, began))
        clock.advance(1)
        deployed = clock.now
        assert periods("two", 3) == {
            "store": (5, 2, began),
            "day": (5, 2, began),
            "build": (2, 1, deployed),
        }
        clock.advance(DAY)
        # A process of the build before, which still runs, is no deploy.
        assert periods("one", 1)["build"] == (2, 1, deployed)
        assert periods("two", 1) == {
            "store": (5, 2, began),
            "day": (0, 0, clock.now),
            "build": (2, 1, deployed),
        }


class TestTheStore:
    def test_is_as_it_is_since_the_first_process_or_the_last_change(
        self, site: Site, make: Make, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.page("/")
        worker = make(files)
        visit(worker)
        worker.stats()

        def store() -> tuple[str, float]:
            found = make(files).on_demand().overview()
            (one,) = found["workers"]
            assert one["store"] == "ok"
            return found["store"]["state"], found["store"]["since"] - one["began"]

        assert store() == ("ok", 0)
        guard = worker._here().pages.guard
        guard.failed("get", OSError("no disk"))
        guard.failed("get", OSError("no disk"))
        assert worker.on_demand().overview()["store"]["state"] in ("away", "ok")
        wait_until(lambda: guard.is_well)
        worker.stats()
        state, later = store()
        assert state == "ok" and later > 0


class TestRendersOfAPage:
    def test_are_kept_with_it(
        self, site: Site, browse: Browse, listable: str, clock: Clock
    ) -> None:
        site.page("/")
        browser = browse(listable)
        browser.get("/")
        began = clock.now
        for _ in range(MAX_RENDERS + 2):
            clock.advance(1)
            browser.isr.revalidate(HOME)
        (page,) = browser.isr.pages()
        assert len(page.renders) == MAX_RENDERS
        assert [render.at - began for render in page.renders[:2]] == [12, 11]
        assert {render.reason for render in page.renders} == {"revalidate"}
        assert browser.isr.explain(HOME).renders == page.renders

    def test_have_percentiles(self) -> None:
        seconds = [0.5, 0.1, 0.9, 0.3]
        assert [percentile(seconds, share) for share in (0.25, 0.5, 0.95)] == [0.1, 0.3, 0.9]
        assert PageInfo("", 0, "failed", 0, 0, (), 0, (), None, {}).render_seconds(0.5) == 0


class TestJournal:
    def test_says_who_called_what(
        self, site: Site, browse: Browse, make: Make, listable: str, clock: Clock
    ) -> None:
        site.page("/", tags=["home"])
        browser = browse(listable)
        isr = browser.isr
        browser.get("/")
        isr.revalidate(HOME)
        with called_by("an editor"):
            isr.revalidate_tag("home", expire=True)
        isr.invalidate(*(f"/{number}/**" for number in range(MAX_NAMES + 1)))
        isr.prune(everything=True)
        other = isr if listable == "memory://" else make(listable)
        wait_until(lambda: len(other.on_demand().journal()) == 4)
        clear, pattern, tag, path = other.on_demand().journal()
        assert (path["kind"], path["what"], path["pages"]) == ("revalidate", ["/"], 1)
        assert (tag["kind"], tag["what"], tag["expire"]) == ("tags", ["home"], True)
        assert tag["pages"] == pattern["pages"] == 0
        assert (pattern["kind"], pattern["expire"]) == ("invalidate", False)
        assert len(pattern["what"]) == MAX_NAMES
        assert (clear["what"], clear["expire"]) == (["/**"], True)
        assert [entry["by"] for entry in (path, tag, pattern)] == [None, "an editor", None]
        assert all(entry["host"] and entry["pid"] and entry["at"] == clock.now for entry in (path,))

    @pytest.mark.processes
    def test_has_the_calls_of_a_script_that_ends(self, make: Make, shared: str) -> None:
        script = (
            "import sys\n"
            "from wsgi_isr import ISRMiddleware\n"
            "from werkzeug.test import run_wsgi_app, create_environ\n"
            "def app(environ, start_response):\n"
            "    start_response('200 OK', [])\n"
            "    return []\n"
            "isr = ISRMiddleware(app, sys.argv[1])\n"
            "run_wsgi_app(isr, create_environ('/'))\n"
            "isr.revalidate_tag('a')\n"
            "isr.revalidate_tag('b')\n"
        )
        subprocess.run([sys.executable, "-c", script, shared], check=True)
        isr = make(shared)
        assert [call["what"] for call in isr.on_demand().journal()] == [["b"], ["a"]]
        stats = isr.stats()
        assert (stats["passed"], stats["invalidations"], stats["processes"]) == (1, 2, 0)

    def test_names_a_call_of_the_route(self, tmp_path: Path) -> None:
        app = flask_app(tmp_path)
        browser = flask_browser(app, secret=SECRET)
        headers = {"Authorization": f"Bearer {SECRET}"}
        browser.post("/_isr/revalidate", json={"tags": ["a"]}, headers=headers)
        browser.isr.revalidate_tag("b")
        later, call = browser.isr.on_demand().journal()
        assert call["by"].startswith("POST /_isr/revalidate from ")
        assert later["by"] is None
        both = {"tags": ["a"], "patterns": ["/b"]}
        browser.post("/_isr/revalidate", json=both, headers=headers)
        by_pattern, by_tag, *_ = browser.isr.on_demand().journal()
        assert (by_pattern["what"], by_tag["what"]) == (["/b"], ["a"])
        assert by_pattern["number"] == by_tag["number"]


class TestLogs:
    @staticmethod
    def events(caplog: pytest.LogCaptureFixture) -> list[t.Any]:
        return [record for record in caplog.records if hasattr(record, "isr_event")]

    def test_have_each_render_and_each_call(
        self, site: Site, browse: Browse, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "wsgi_isr")
        site.page("/")
        browser = browse()
        browser.get("/")
        with called_by("an editor"):
            browser.isr.revalidate(HOME)
        first, call, second = self.events(caplog)
        assert (first.levelname, first.isr_event) == ("DEBUG", "rendered")
        assert first.getMessage().startswith(f"rendered {HOME} 200 in ")
        assert first.getMessage().endswith(" ms (miss)")
        assert (first.isr_url, first.isr_status, first.isr_reason) == (HOME, 200, "miss")
        assert call.getMessage() == (
            "on demand: paths / invalidated, pages to render: 1, by an editor"
        )
        assert (call.levelname, call.isr_kind, call.isr_what) == ("INFO", "revalidate", ["/"])
        assert second.isr_reason == "revalidate"

    def test_say_once_a_minute_and_site_what_is_refused_or_fails(
        self, site: Site, make: Make, shared: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.page("/refused", headers=[("Set-Cookie", "a=b")])
        site.fail("/failing")
        for isr in (make(shared), make(shared), make(shared)):
            visit(isr, "/refused")
            assert [it.outcome for it in isr.prerender([f"{HOME}failing"])] == ["failed"]
        refused, failed = self.events(caplog)
        assert (refused.levelname, refused.isr_detail) == ("WARNING", "set-cookie")
        assert refused.isr_culprit == "a"
        assert (failed.levelname, failed.isr_url) == ("ERROR", f"{HOME}failing")
        assert failed.exc_info[0] is ZeroDivisionError

    def test_say_it_in_each_process_without_the_store(
        self, site: Site, make: Make, files: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(name: str, seconds: float) -> t.NoReturn:
            raise OSError("no disk")

        site.page("/", headers=[("Set-Cookie", "a=b")])
        for isr in (make(files), make(files)):
            isr.store.once = refuse  # type: ignore[method-assign]
            visit(isr)
            visit(isr)
        assert [record.isr_event for record in self.events(caplog)].count("refused") == 2
