"""An app that exits in the middle of a render: the render has failed, and nothing else ends."""

from __future__ import annotations

import typing as t

import pytest
from conftest import Clock
from conftest import Make
from conftest import Site
from steps import result
from steps import start
from steps import Steps
from steps import visit

from wsgi_isr import RevalidationError
from wsgi_isr.render import RenderError

EXITS = pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)


def leave(site: Site, path: str, error: BaseException) -> None:
    def answer(environ: t.Any, start_response: t.Any) -> t.Any:
        raise error

    site.answers[path] = answer


@EXITS
class TestBehindAStalePage:
    def test_the_old_page_stays_and_the_error_is_listed(
        self,
        site: Site,
        make: Make,
        listable: str,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
        error: BaseException,
    ) -> None:
        site.page("/", "old", revalidate=10)
        isr = make(listable, workers=1)
        visit(isr)
        clock.advance(10)
        leave(site, "/", error)
        for _ in range(2):
            assert visit(isr).text == "old"
            isr.close()
        (page,) = isr.pages()
        assert page.last_error == f"the app raised {error!r}"
        assert "render of http://localhost/ failed; the last good page stays" in caplog.text

    def test_attempts_back_off_and_the_next_good_render_heals_it(
        self, site: Site, make: Make, cache: str, clock: Clock, error: BaseException
    ) -> None:
        site.page("/", "old", revalidate=10)
        isr = make(cache, workers=1)
        visit(isr)
        clock.advance(10)
        leave(site, "/", error)
        for _ in range(4):
            visit(isr)
            isr.close()
        # The cold one, the failure, the next attempt at once, and then a pause.
        assert site.renders("/") == 3
        site.page("/", "new", revalidate=10)
        clock.advance(1)
        visit(isr)
        isr.close()
        assert visit(isr).text == "new"


@EXITS
class TestOnAColdPage:
    def test_all_who_wait_get_an_error(
        self, site: Site, make: Make, cache: str, error: BaseException
    ) -> None:
        steps = Steps()

        def exit_after(environ: t.Any, start_response: t.Any) -> t.Any:
            steps(environ)
            raise error

        site.answers["/"] = exit_after
        isr = make(cache, rules={"/": 10})
        first = start(visit, isr)
        steps.wait(1)
        steps.release()
        raised = first.exception(10)
        assert isinstance(raised, RenderError)
        assert str(raised) == f"the app raised {error!r}"
        assert raised.__cause__ is error
        site.page("/", "the page")
        assert result(start(visit, isr)).text == "the page"

    def test_what_may_be_a_signal_to_the_main_thread_goes_on(
        self, site: Site, make: Make, error: BaseException
    ) -> None:
        # A server that is told to end raises it there, in the middle of whatever runs.
        leave(site, "/", error)
        isr = make(rules={"/": 10})
        with pytest.raises(type(error)):
            visit(isr)


class TestAheadOfVisitors:
    @EXITS
    def test_the_other_pages_are_rendered(
        self, site: Site, make: Make, cache: str, error: BaseException
    ) -> None:
        leave(site, "/a", error)
        site.page("/b")
        isr = make(cache, base_url="http://localhost")
        results = {result.url[-1]: result for result in isr.prerender(["/a", "/b"], workers=1)}
        assert str(results["a"].error) == f"the app raised {error!r}"
        assert results["b"].error is None


class TestOnDemand:
    def test_the_other_pages_are_rendered(self, site: Site, make: Make, listable: str) -> None:
        leave(site, "/a", SystemExit(3))
        site.page("/b")
        isr = make(listable, base_url="http://localhost")
        with pytest.raises(RevalidationError) as caught:
            isr.revalidate("/a", "/b")
        assert list(caught.value.failures) == ["/a"]
        assert [page.url for page in isr.pages()] == ["http://localhost/b"]

    def test_ctrl_c_ends_the_call(self, site: Site, make: Make, cache: str) -> None:
        leave(site, "/a", KeyboardInterrupt())
        isr = make(cache, base_url="http://localhost")
        with pytest.raises(KeyboardInterrupt):
            isr.revalidate("/a")
