"""Renders that fail where nothing is stored: the visitor gets the app's own error."""

from __future__ import annotations

import contextlib
import threading
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser
from conftest import Make
from conftest import Site
from conftest import status_of
from failures import Answer
from failures import breaks_off
from failures import failing
from failures import FAILURES
from failures import LIMIT
from failures import raises
from steps import result
from steps import start
from steps import Steps
from steps import visit
from steps import visitors
from werkzeug.middleware.lint import WSGIWarning

from wsgi_isr import Rule
from wsgi_isr.render import RenderError
from wsgi_isr.store.coordination import Held

Browse = Callable[..., Browser]

RULES = {"/**": Rule()}
# It is Lint's to complain of the app, and ours to live with it.
pytestmark = pytest.mark.filterwarnings(f"ignore::{WSGIWarning.__module__}.WSGIWarning")


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
