"""Renders that fail: the last good page stays, and the next visitor tries again."""

from __future__ import annotations

import logging
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from failures import Answer
from failures import failing
from failures import FAILURES
from failures import LIMIT
from failures import raises
from steps import visit
from werkzeug.middleware.lint import WSGIWarning

from wsgi_isr import ISRMiddleware
from wsgi_isr import Rule

Browse = Callable[..., Browser]

RULES = {"/**": Rule()}

# It is Lint's to complain of the app, and ours to live with it.
pytestmark = pytest.mark.filterwarnings(f"ignore::{WSGIWarning.__module__}.WSGIWarning")


@pytest.fixture
def browser(site: Site, make: Make, browse: Browse, cache: str, clock: Clock) -> Browser:
    return old_page(site, browse, cache, clock)


def old_page(site: Site, browse: Browse, cache: str, clock: Clock) -> Browser:
    """``/`` is a page that is 10 seconds old, and so has become stale."""
    site.page("/", "the old page", revalidate=10)
    browser = browse(cache, max_body_size=LIMIT)
    browser.get("/")
    clock.advance(10)
    return browser


def attempt(browser: Browser) -> t.Any:
    """A visit, and all that it sets off."""
    answer = browser.get("/")
    browser.isr.close()
    return answer


def last_error(isr: ISRMiddleware) -> str | None:
    (page,) = isr.pages()
    return page.last_error


class TestOfAStalePage:
    @failing
    def test_the_old_page_stays_and_is_served_as_stale(
        self, site: Site, browser: Browser, failure: Answer
    ) -> None:
        site.answers["/"] = failure
        for _ in range(3):
            answer = attempt(browser)
            assert (answer.status_code, answer.text) == (200, "the old page")
            assert status_of(answer) == "isr; hit; ttl=0"
            assert "s-maxage=0" in answer.headers["Cache-Control"]

    @failing
    def test_the_next_visitor_tries_again_at_once(
        self, site: Site, browser: Browser, failure: Answer
    ) -> None:
        site.answers["/"] = failure
        attempt(browser)
        attempt(browser)
        assert site.renders("/") == 3

    @failing
    def test_repeated_failures_back_off(
        self, site: Site, browser: Browser, failure: Answer
    ) -> None:
        site.answers["/"] = failure
        for _ in range(6):
            attempt(browser)
        assert site.renders("/") == 3

    @failing
    def test_the_next_good_render_heals_it(
        self, site: Site, browser: Browser, failure: Answer
    ) -> None:
        site.answers["/"] = failure
        attempt(browser)
        site.page("/", "the new page", revalidate=10)
        assert attempt(browser).text == "the old page"
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("the new page", "isr; hit; ttl=10")

    @failing
    def test_is_seen_in_the_list_of_pages_until_it_is_healed(
        self, site: Site, browse: Browse, listable: str, clock: Clock, failure: Answer
    ) -> None:
        browser = old_page(site, browse, listable, clock)
        site.answers["/"] = failure
        attempt(browser)
        assert last_error(browser.isr)
        site.page("/", "the new page", revalidate=10)
        attempt(browser)
        assert last_error(browser.isr) is None

    def test_the_log_has_the_traceback(
        self, site: Site, browser: Browser, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.answers["/"] = raises
        attempt(browser)
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.getMessage() == (
            "render of http://localhost/ failed; the last good page stays"
        )
        assert record.exc_info and record.exc_info[0] is ZeroDivisionError

    def test_a_refusal_is_one_warning_that_names_the_page_and_the_remedy(
        self, site: Site, browser: Browser, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.answers["/"] = FAILURES["sets a cookie"]
        attempt(browser)
        attempt(browser)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "http://localhost/ is not stored (set-cookie)" in record.getMessage()
        assert "set cookies on another URL" in record.getMessage()

    def test_past_its_expiry_is_not_served_instead_of_an_error(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        site.page("/", "the old page", revalidate=10, expire=20)
        browser = browse(cache)
        browser.get("/")
        clock.advance(20)
        site.answers["/"] = FAILURES["answers 500"]
        assert browser.get("/").status_code == 500
        site.page("/", "the new page", revalidate=10, expire=20)
        assert browser.get("/").text == "the new page"


class TestBackOff:
    PAUSES = (1, 2, 4, 8, 16, 30, 30, 30)

    def test_grows_from_one_second_to_thirty(
        self, site: Site, browser: Browser, clock: Clock
    ) -> None:
        site.fail("/")
        attempt(browser)
        attempt(browser)
        renders = 3
        for pause in self.PAUSES:
            clock.advance(pause - 0.01)
            attempt(browser)
            assert site.renders("/") == renders, f"{pause} s had not passed"
            clock.advance(0.01)
            attempt(browser)
            renders += 1
            assert site.renders("/") == renders, f"{pause} s had passed"

    def test_begins_anew_after_a_good_render(
        self, site: Site, browser: Browser, clock: Clock
    ) -> None:
        site.fail("/")
        for pause in (0, *self.PAUSES[:3]):
            attempt(browser)
            clock.advance(pause)
        site.page("/", "the new page", revalidate=10)
        clock.advance(30)
        attempt(browser)
        site.fail("/")
        clock.advance(10)
        renders = site.renders("/")
        attempt(browser)
        attempt(browser)
        assert site.renders("/") == renders + 2

    def test_lets_other_pages_alone(self, site: Site, browser: Browser, clock: Clock) -> None:
        site.page("/other", "old", revalidate=10)
        browser.get("/other")
        clock.advance(10)
        site.fail("/")
        for _ in range(3):
            attempt(browser)
        site.page("/other", "new", revalidate=10)
        browser.get("/other")
        browser.isr.close()
        assert browser.get("/other").text == "new"

    def test_holds_in_all_who_share_the_files(
        self, site: Site, make: Make, files: str, clock: Clock
    ) -> None:
        site.page("/", "the old page", revalidate=10)
        one, other = make(files), make(files)
        visit(one)
        visit(other)
        clock.advance(10)
        site.fail("/")
        for isr in (one, one, other, one, other):
            assert visit(isr).text == "the old page"
            isr.close()
        assert site.renders("/") == 3

    def test_is_remembered_over_a_restart(
        self, site: Site, make: Make, files: str, clock: Clock
    ) -> None:
        site.page("/", "the old page", revalidate=10)
        before = make(files)
        visit(before)
        clock.advance(10)
        site.fail("/")
        for _ in range(3):
            visit(before)
            before.close()
        after = make(files)
        assert visit(after).text == "the old page"
        after.close()
        assert site.renders("/") == 3
        clock.advance(1)
        visit(after)
        after.close()
        assert site.renders("/") == 4

    def test_does_not_keep_anybody_from_revalidating(self, site: Site, browser: Browser) -> None:
        site.fail("/")
        for _ in range(3):
            attempt(browser)
        site.page("/", "the new page", revalidate=10)
        browser.isr.revalidate("http://localhost/")
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("the new page", "isr; hit; ttl=10")
