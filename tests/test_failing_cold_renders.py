"""Renders that fail where nothing is stored: the visitor gets the app's own error."""

from __future__ import annotations

import contextlib
import traceback
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Make, Site, status_of
from failures import FAILURES, Answer, breaks_off, failing, raises
from steps import Steps, result, start, visit, visitors, wait_until
from werkzeug.middleware.lint import WSGIWarning

from wsgi_isr import RevalidationError, Rule
from wsgi_isr.render import RenderError

Browse = Callable[..., Browser]

RULES = {"/**": Rule()}
EXITS = pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
# It is Lint's to complain of the app, and ours to live with it.
pytestmark = pytest.mark.filterwarnings(f"ignore::{WSGIWarning.__module__}.WSGIWarning")


class TestTheVisitor:
    @pytest.mark.parametrize("name", ["answers 500", "answers 503 as a page", "answers 429"])
    def test_gets_the_error_of_the_app(
        self, site: Site, browse: Browse, cache: t.Any, name: str
    ) -> None:
        site.answers["/"] = FAILURES[name]
        answer = browse(cache, rules=RULES).get("/")
        assert (answer.status_code >= 429, answer.text) == (True, "bad")
        assert status_of(answer) == "isr; fwd=uri-miss; detail=status"
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert not [name for name in answer.headers.keys() if name.startswith("ISR-")]

    def test_gets_the_answer_whose_metadata_do_not_parse(
        self, site: Site, browse: Browse, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.answers["/"] = FAILURES["has metadata that does not parse"]
        browser = browse(rules=RULES)
        answer = browser.get("/")
        assert (answer.status_code, answer.text) == (200, "bad")
        assert status_of(answer) == "isr; fwd=uri-miss; detail=metadata"
        assert "http://localhost/" in caplog.text and "soon" in caplog.text

    @pytest.mark.parametrize("failure", [raises, breaks_off])
    def test_causes_the_exception_of_the_app(
        self, browse: Browse, site: Site, cache: t.Any, failure: Answer
    ) -> None:
        site.answers["/"] = failure
        with pytest.raises(ZeroDivisionError):
            browse(cache, rules=RULES).get("/")

    @failing
    def test_finds_no_back_off(self, site: Site, browse: Browse, failure: Answer) -> None:
        browser = browse(rules=RULES)
        site.answers["/"] = failure
        for _ in range(3):
            with contextlib.suppress(ZeroDivisionError, RenderError):
                browser.get("/")
        assert site.renders("/") == 3
        (page,) = browser.isr.pages()
        assert (page.state, page.url) == ("failed", "http://localhost/") and page.last_error
        site.page("/", "the page")
        assert browser.get("/").text == "the page"
        assert [page.state for page in browser.isr.pages()] == ["fresh"]

    def test_of_an_undeclared_page_gets_their_own_answer(
        self, site: Site, browse: Browse, cache: t.Any
    ) -> None:
        def only_for_visitors(environ: t.Any) -> str:
            if "wsgi_isr.reason" in environ:
                raise ZeroDivisionError
            return "for you alone"

        site.page("/", only_for_visitors)
        answer = browse(cache).get("/")
        assert (answer.status_code, answer.text) == (200, "for you alone")
        assert answer.headers["Cache-Control"] == "private, no-store"


class TestAllWhoWait:
    @pytest.fixture(params=["one worker", "two workers"])
    def pair(self, request: pytest.FixtureRequest, make: Make, shared: str) -> t.Any:
        one = make(shared, rules=RULES)
        return (one, one) if request.param == "one worker" else (one, make(shared, rules=RULES))

    def crowd(self, pair: t.Any, steps: Steps) -> list[t.Any]:
        one, other = pair
        first = start(visit, one)
        steps.wait(1)
        waiting = visitors(other, 6)
        # The one among them that asks the store, too.
        wait_until(lambda: len(other._here().renders.waiting) == 6)
        steps.release(1)
        return [first, *waiting]

    def test_share_the_error_page(self, site: Site, pair: t.Any) -> None:
        steps = Steps()
        cookie = ("Set-Cookie", "session=1")
        site.page("/", steps, status="500 Internal Server Error", headers=[cookie])
        answers = [result(visitor) for visitor in self.crowd(pair, steps)]
        assert {(answer.status_code, answer.text) for answer in answers} == {(500, "render 1")}
        # It would be one session for all of them.
        assert not any("Set-Cookie" in answer.headers for answer in answers)
        assert site.renders("/") == 1
        steps.release()
        assert visit(pair[0]).text == "render 2"

    def test_get_exceptions_of_their_own_with_one_cause(self, site: Site, pair: t.Any) -> None:
        steps = Steps()

        def fail(environ: t.Any, start_response: t.Any) -> t.Any:
            raise ZeroDivisionError(steps(environ))

        site.answers["/"] = fail
        first, *waiting = self.crowd(pair, steps)
        error = first.exception(10)
        assert (type(error), str(error)) == (ZeroDivisionError, "render 1")
        others = [visitor.exception(10) for visitor in waiting]
        assert all("render 1" in str(other) for other in others)
        if pair[0] is pair[1]:
            assert {type(other) for other in others} == {RenderError}
            assert len({id(other) for other in [error, *others]}) == 7
            assert {id(other.__cause__) for other in others} == {id(error)}
            # No traceback grows with the number of those who wait.
            assert max(len(traceback.format_exception(other)) for other in others) < 80
        assert steps.begun == 1


class TestAnAppThatExits:
    """The render has failed, and nothing else ends."""

    @staticmethod
    def leave(site: Site, path: str, error: BaseException) -> None:
        def answer(environ: t.Any, start_response: t.Any) -> t.Any:
            raise error

        site.answers[path] = answer

    @EXITS
    def test_behind_a_stale_page_leaves_it(
        self, site: Site, make: Make, clock: t.Any, error: BaseException
    ) -> None:
        site.page("/", "old", revalidate=10)
        isr = make(workers=1)
        visit(isr)
        clock.advance(10)
        self.leave(site, "/", error)
        for _ in range(4):
            assert visit(isr).text == "old"
            isr.close()
        assert site.renders("/") == 3
        (page,) = isr.pages()
        assert page.last_error == f"the app raised {error!r}"
        site.page("/", "new", revalidate=10)
        clock.advance(1)
        visit(isr)
        isr.close()
        assert visit(isr).text == "new"

    @EXITS
    def test_on_a_cold_page_is_an_error(
        self, site: Site, make: Make, cache: t.Any, error: BaseException
    ) -> None:
        self.leave(site, "/", error)
        isr = make(cache, rules={"/": 10})
        raised = start(visit, isr).exception(10)
        assert isinstance(raised, RenderError) and raised.__cause__ is error
        assert str(raised) == f"the app raised {error!r}"
        site.page("/", "the page")
        assert result(start(visit, isr)).text == "the page"
        # A server that is told to end raises it on the main thread, in whatever runs there.
        self.leave(site, "/other", error)
        with pytest.raises(type(error)):
            visit(make(rules={"/other": 10}), "/other")

    def test_on_demand_does_not_keep_others_from_being_rendered(
        self, site: Site, make: Make
    ) -> None:
        self.leave(site, "/a", SystemExit(3))
        site.page("/b")
        isr = make(base_url="http://localhost")
        with pytest.raises(RevalidationError) as caught:
            isr.revalidate("/a", "/b")
        assert list(caught.value.failures) == ["/a"]
        assert {page.url[-1]: page.state for page in isr.pages()} == {"a": "failed", "b": "fresh"}
        results = {found.url[-1]: found for found in isr.prerender(["/a", "/b"], workers=1)}
        assert str(results["a"].error) == "the app raised SystemExit(3)"
        assert results["b"].error is None
