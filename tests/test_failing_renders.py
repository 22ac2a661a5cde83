"""Renders that fail: the last good page stays, and the next visitor tries again."""

from __future__ import annotations

import logging
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Make, Site, status_of
from failures import Answer, failing
from steps import visit
from werkzeug.middleware.lint import WSGIWarning

from wsgi_isr import PageInfo, page_headers

Browse = Callable[..., Browser]

# It is Lint's to complain of the app, and ours to live with it.
pytestmark = pytest.mark.filterwarnings(f"ignore::{WSGIWarning.__module__}.WSGIWarning")


def old_page(site: Site, browse: Browse, cache: t.Any, clock: Clock) -> Browser:
    """``/`` is a page that is 10 seconds old, and so has become stale."""
    site.page("/", "the old page", revalidate=10)
    browser = browse(cache)
    browser.get("/")
    clock.advance(10)
    return browser


@pytest.fixture
def browser(site: Site, browse: Browse, cache: t.Any, clock: Clock) -> Browser:
    return old_page(site, browse, cache, clock)


def attempt(browser: Browser) -> t.Any:
    """A visit, and all that it sets off."""
    answer = browser.get("/")
    browser.isr.close()
    return answer


#: Status lines that are none.
STATUSES: dict[str, t.Any] = {"no number": "OK", "no text": 200, "four digits": "2000 OK"}
BREACHES = ["never starts", "starts twice", "sends text", *STATUSES]


class TestOfAStalePage:
    @failing
    def test_the_old_page_stays_and_a_good_render_heals_it(
        self, site: Site, browse: Browse, listable: str, clock: Clock, failure: Answer
    ) -> None:
        browser = old_page(site, browse, listable, clock)

        def listed() -> PageInfo:
            (page,) = browser.isr.pages()
            return page

        site.answers["/"] = failure
        for _ in range(4):
            answer = attempt(browser)
            assert (answer.status_code, answer.text) == (200, "the old page")
            assert status_of(answer) == "isr; hit; ttl=0"
            assert "s-maxage=0" in answer.headers["Cache-Control"]
        # The cold one, the failure, the next visitor's at once, and then a pause.
        assert site.renders("/") == 3
        assert (listed().status, listed().state) == (200, "stale") and listed().last_error
        site.page("/", "the new page", revalidate=10)
        clock.advance(1)
        assert attempt(browser).text == "the old page"
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("the new page", "isr; hit; ttl=10")
        assert listed().last_error is None

    @pytest.mark.parametrize("breach", BREACHES)
    def test_whatever_of_wsgi_an_app_breaks_it_stays(
        self, site: Site, unchecked: Browse, clock: Clock, breach: str
    ) -> None:
        def bad(environ: t.Any, start_response: t.Any) -> t.Any:
            status = STATUSES.get(breach, "200 OK")
            for _ in range({"never starts": 0, "starts twice": 2}.get(breach, 1)):
                start_response(status, [("Content-Type", "text/plain"), *page_headers(60)])
            return ["text" if breach == "sends text" else b"bytes"]

        browser = old_page(site, unchecked, "memory://", clock)
        site.answers["/"] = bad
        for _ in range(3):
            assert attempt(browser).text == "the old page"
        assert next(browser.isr.pages()).last_error

    def test_the_log_has_the_traceback(
        self, site: Site, browser: Browser, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.fail("/")
        attempt(browser)
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.getMessage() == (
            "render of http://localhost/ failed; the last good page stays"
        )
        assert record.exc_info and record.exc_info[0] is ZeroDivisionError


class TestBackOff:
    PAUSES = (1, 2, 4, 8, 16, 30, 30)

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

    def test_holds_in_all_workers_and_over_a_restart(
        self, site: Site, make: Make, shared: str, clock: Clock
    ) -> None:
        site.page("/", "the old page", revalidate=10)
        one, other = make(shared), make(shared)
        visit(one)
        visit(other)
        clock.advance(10)
        site.fail("/")
        for isr in (one, one, other, one, other, make(shared)):
            assert visit(isr).text == "the old page"
            isr.close()
        assert site.renders("/") == 3
        clock.advance(1)
        after = make(shared)
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

    def test_ends_with_a_good_render_in_whatever_process(
        self, site: Site, make: Make, shared: str, clock: Clock
    ) -> None:
        site.page("/", "old", revalidate=10)
        isr, other = make(shared), make(shared)
        visit(isr)
        clock.advance(10)
        site.fail("/")
        for _ in range(3):
            visit(isr)
            isr.close()
        site.page("/", "new", revalidate=10)
        other.revalidate("http://localhost/")
        clock.advance(10)
        site.fail("/")
        for _ in range(3):
            visit(isr)
            isr.close()
        # Two at once, as if the page had never failed before.
        assert site.renders("/") == 3 + 1 + 2
