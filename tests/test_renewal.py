"""Answers that are kept for a second and made anew, those of stale pages too."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from steps import PATIENCE
from steps import result
from steps import start
from steps import visit

from wsgi_isr import known
from wsgi_isr.attempt import MAX_BACK_OFF
from wsgi_isr.known import Known

Browse = Callable[..., Browser]


class TestAStalePage:
    def test_what_is_said_of_a_stale_page_changes_with_its_age(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        site.page("/", "old", revalidate=10, expire=30)
        browser = browse(cache)
        browser.get("/")
        # So that it stays as it is.
        site.fail("/")
        told = []
        for seconds in (10.25, 0.5, 1, 17.5):
            clock.advance(seconds)
            for _ in range(3):
                answer = browser.get("/")
                told.append((status_of(answer), answer.headers["Cache-Control"].split("=")[-1]))
        assert told == [
            item
            for left, stale in ((0, "19"), (0, "19"), (-1, "18"), (-19, "0"))
            for item in [(f"isr; hit; ttl={left}", stale)] * 3
        ]
        browser.isr.close()
        site.page("/", "new", revalidate=10, expire=30)
        clock.advance(1)
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("new", "isr; fwd=stale; stored")

    def test_a_page_of_a_rule_is_rendered_by_its_rule(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"render %d" % site.renders("/")]

        site.answers["/"] = app
        browser = browse(cache, rules={"/": 10})
        for _ in range(2):
            assert browser.get("/").text == "render 1"
        clock.advance(10)
        assert status_of(browser.get("/")) == "isr; hit; ttl=0"
        browser.isr.close()
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("render 2", "isr; hit; ttl=10")


class TestAnAnswerThatIsMadeAnewByTwoAtOnce:
    """One still knows nothing of an invalidation, the other does."""

    def test_is_never_fresh_under_the_new_generation(
        self, site: Site, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.page("/", "old", revalidate=False)
        isr = make()
        for _ in range(2):
            visit(isr)
        # Nothing new comes meanwhile.
        (entry,) = isr._here().memory
        entry.retry_at = clock.now + MAX_BACK_OFF
        clock.advance(2)

        headers, slot, lock = known.moment_headers, Known.generation, isr._here()._renewing
        first, both = threading.Event(), threading.Event()
        first_may, second_may = threading.Event(), threading.Event()
        roles: dict[int, str] = {}

        def role() -> str | None:
            return roles.get(threading.get_ident())

        def late_headers(*args: t.Any) -> t.Any:
            # By now it has looked at what invalidations have made of the page.
            if role() == "first":
                first.set()
                assert first_may.wait(PATIENCE)
            return headers(*args)

        def late_generation(self: Known, value: object) -> None:
            if role() == "second":
                both.set()
                assert second_may.wait(PATIENCE)
            slot.__set__(self, value)  # type: ignore[attr-defined]

        class Noted:
            def __enter__(self) -> None:
                if role() == "second":
                    both.set()
                lock.acquire()

            def __exit__(self, *args: object) -> None:
                lock.release()

        monkeypatch.setattr(known, "moment_headers", late_headers)
        monkeypatch.setattr(Known, "generation", property(slot.__get__, late_generation))  # type: ignore[attr-defined]
        monkeypatch.setattr(isr._here(), "_renewing", Noted())

        def come(name: str) -> t.Any:
            roles[threading.get_ident()] = name
            return visit(isr)

        one = start(come, "first")
        assert first.wait(PATIENCE)
        isr.invalidate("/")
        other = start(come, "second")
        assert both.wait(PATIENCE)
        first_may.set()
        result(one)
        second_may.set()
        assert status_of(result(other)) == "isr; hit; ttl=0"
        assert status_of(visit(isr)) == "isr; hit; ttl=0"
