"""Renders that fail: the last good page stays, and the next visitor tries again."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from steps import result
from steps import start
from steps import Steps
from steps import visit
from steps import visitors
from werkzeug.middleware.lint import WSGIWarning

from wsgi_isr import ISRMiddleware
from wsgi_isr import page_headers
from wsgi_isr import Rule
from wsgi_isr.render import RenderError
from wsgi_isr.store.coordination import Held

Browse = Callable[..., Browser]
Answer = Callable[[t.Any, t.Any], t.Any]

RULES = {"/**": Rule()}
HTML = ("Content-Type", "text/html")
LIMIT = 1000


def raises(environ: t.Any, start_response: t.Any) -> t.Any:
    raise ZeroDivisionError("the render failed")


def breaks_off(environ: t.Any, start_response: t.Any) -> t.Any:
    start_response("200 OK", [HTML, *page_headers(10)])
    yield b"<p>the first half"
    raise ZeroDivisionError("the render broke off")


def gives_up_after_it_began(environ: t.Any, start_response: t.Any) -> t.Any:
    start_response("200 OK", [HTML, *page_headers(10)])
    try:
        raise ZeroDivisionError("too late")
    except ZeroDivisionError:
        start_response("200 OK", [HTML, *page_headers(10)], sys.exc_info())
    return [b"<p>something went wrong"]


def answers(status: str, *headers: tuple[str, str], body: bytes = b"bad") -> Answer:
    def answer(environ: t.Any, start_response: t.Any) -> t.Any:
        start_response(status, [HTML, *headers])
        return [body]

    return answer


def page_with(*headers: tuple[str, str], **kwargs: t.Any) -> Answer:
    return answers("200 OK", *page_headers(10), *headers, **kwargs)


FAILURES: dict[str, Answer] = {
    "raises": raises,
    "breaks off": breaks_off,
    "gives up after it began": gives_up_after_it_began,
    "answers 500": answers("500 Internal Server Error"),
    "answers 500 as a page": answers("500 Internal Server Error", *page_headers(10)),
    "answers 503": answers("503 Service Unavailable"),
    "answers 403": answers("403 Forbidden"),
    "sends less than its Content-Length": page_with(("Content-Length", "100")),
    "sends more than its Content-Length": page_with(("Content-Length", "1")),
    "sets a cookie": page_with(("Set-Cookie", "session=1")),
    "says private": page_with(("Cache-Control", "private")),
    "says no-store": page_with(("Cache-Control", "no-store")),
    "says no-cache": page_with(("Cache-Control", "no-cache, max-age=60")),
    "varies by an undeclared header": page_with(("Vary", "User-Agent")),
    "is partial": answers("206 Partial Content", *page_headers(10)),
    "has metadata that does not parse": answers("200 OK", ("ISR-Revalidate", "soon")),
    "is too large": page_with(body=b"x" * (LIMIT + 1)),
}
# It is Lint's to complain of the app, and ours to live with it.
pytestmark = pytest.mark.filterwarnings(f"ignore::{WSGIWarning.__module__}.WSGIWarning")

failing = pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)


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


class TestOfAColdPage:
    @pytest.mark.parametrize("name", ["answers 500", "answers 500 as a page", "answers 503"])
    def test_the_visitor_gets_the_error_of_the_app(
        self, site: Site, browse: Browse, cache: str, name: str
    ) -> None:
        site.answers["/"] = FAILURES[name]
        answer = browse(cache, rules=RULES).get("/")
        assert (answer.status_code // 100, answer.text) == (5, "bad")
        assert status_of(answer) == "isr; fwd=uri-miss; detail=status"
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert not [name for name in answer.headers.keys() if name.startswith("ISR-")]

    @pytest.mark.parametrize("failure", [raises, breaks_off])
    def test_an_exception_reaches_the_server(
        self, browse: Browse, site: Site, cache: str, failure: Answer
    ) -> None:
        site.answers["/"] = failure
        with pytest.raises(ZeroDivisionError):
            browse(cache, rules=RULES).get("/")

    @failing
    def test_nothing_is_stored(
        self, site: Site, browse: Browse, listable: str, failure: Answer
    ) -> None:
        site.answers["/"] = failure
        browser = browse(listable, rules=RULES, max_body_size=LIMIT)
        with contextlib.suppress(ZeroDivisionError, RenderError):
            browser.get("/")
        assert list(browser.isr.pages()) == []
        assert browser.isr.stats()["hits"] == 0

    @pytest.mark.parametrize("failure", [raises, breaks_off, FAILURES["answers 500"]])
    def test_there_is_no_back_off(
        self, site: Site, browse: Browse, cache: str, failure: Answer
    ) -> None:
        browser = browse(cache, rules=RULES)
        site.answers["/"] = failure
        for _ in range(5):
            with contextlib.suppress(ZeroDivisionError):
                assert browser.get("/").status_code == 500
        assert site.renders("/") == 5
        site.page("/", "the page")
        assert browser.get("/").text == "the page"

    def test_all_who_wait_share_the_error_page(self, site: Site, make: Make, cache: str) -> None:
        steps = Steps()
        site.page("/", steps, status="500 Internal Server Error")
        isr = make(cache, rules=RULES)
        waiting = visitors(isr, 8)
        steps.release()
        answers = [result(visitor) for visitor in waiting]
        assert {(answer.status_code, answer.text) for answer in answers} == {(500, "render 1")}
        assert site.renders("/") == 1
        assert visit(isr).text == "render 2"

    def test_all_who_wait_share_the_exception(self, site: Site, make: Make, cache: str) -> None:
        steps = Steps()

        def fail(environ: t.Any, start_response: t.Any) -> t.Any:
            raise ZeroDivisionError(steps(environ))

        site.answers["/"] = fail
        isr = make(cache, rules=RULES)
        waiting = visitors(isr, 8)
        steps.release()
        assert {str(visitor.exception(10)) for visitor in waiting} == {"render 1"}

    def test_those_who_wait_elsewhere_on_the_same_files_share_it(
        self, site: Site, make: Make, files: str
    ) -> None:
        steps = Steps()
        site.page("/", steps, status="500 Internal Server Error")
        one, other = make(files, rules=RULES), make(files, rules=RULES)
        first = start(visit, one)
        steps.wait(1)
        seen = threading.Event()
        store = other._here().store
        acquire = store.acquire

        def acquire_and_tell(*args: t.Any, **kwargs: t.Any) -> t.Any:
            lease = acquire(*args, **kwargs)
            if isinstance(lease, Held):
                seen.set()
            return lease

        store.acquire = acquire_and_tell  # type: ignore[method-assign]
        waiting = visitors(other, 4)
        assert seen.wait(10)
        steps.release(1)
        assert {result(visitor).text for visitor in [first, *waiting]} == {"render 1"}
        steps.release()

    def test_of_an_undeclared_page_the_visitor_gets_his_own_answer(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        def only_for_visitors(environ: t.Any) -> str:
            if "wsgi_isr.reason" in environ:
                raise ZeroDivisionError
            return "for you alone"

        site.page("/", only_for_visitors)
        answer = browse(cache).get("/")
        assert (answer.status_code, answer.text) == (200, "for you alone")
        assert answer.headers["Cache-Control"] == "private, no-store"
