"""``revalidate()`` where it is called: in requests, and while a page is rendered."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Make, Site
from steps import result, start, visit

from wsgi_isr import Result, RevalidationError

Browse = Callable[..., Browser]

HOME = "http://localhost/"


def saved(start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"saved"]


@pytest.fixture
def browser(site: Site, browse: Browse, cache: str) -> Browser:
    """``/`` is a page that changes on demand only, and has just changed."""
    site.page("/", "old", revalidate=False)
    browser = browse(cache)
    browser.get("/")
    site.page("/", "new", revalidate=False)
    return browser


class TestInARequest:
    """``environ["wsgi_isr.middleware"]``, in an app without a framework."""

    @pytest.fixture
    def handler(self, site: Site) -> list[t.Any]:
        """``POST /save`` revalidates ``/``; its results are in the list."""
        results: list[t.Any] = []

        def save(environ: t.Any, start_response: t.Any) -> t.Any:
            results.extend(environ["wsgi_isr.middleware"].revalidate("/"))
            return saved(start_response)

        site.answers["/save"] = save
        return results

    def test_a_path_is_that_of_the_host_of_the_request(
        self, site: Site, browser: Browser, handler: list[t.Any]
    ) -> None:
        browser.post("/save")
        assert browser.get("/").text == "new"
        assert handler == [Result(HOME, 200)]

    def test_a_path_is_that_of_the_mount_point_of_the_request(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        def save(environ: t.Any, start_response: t.Any) -> t.Any:
            environ["wsgi_isr.middleware"].revalidate(environ["SCRIPT_NAME"] + "/a")
            return saved(start_response)

        site.page("/a", "old", revalidate=False)
        site.answers["/save"] = save
        browser = browse(cache)
        blog = {"base_url": "http://localhost/blog"}
        browser.get("/a", **blog)
        site.page("/a", "new", revalidate=False)
        browser.post("/save", **blog)
        assert browser.get("/a", **blog).text == "new"

    def test_a_path_outside_of_the_mount_point_is_an_error(
        self, site: Site, browse: Browse
    ) -> None:
        def save(environ: t.Any, start_response: t.Any) -> t.Any:
            with pytest.raises(ValueError, match="not under the mount point '/blog'"):
                environ["wsgi_isr.middleware"].revalidate("/a")
            return saved(start_response)

        site.answers["/save"] = save
        assert browse().post("/save", base_url="http://localhost/blog").text == "saved"

    def test_a_handler_may_be_a_generator(self, site: Site, browser: Browser) -> None:
        def save(environ: t.Any, start_response: t.Any) -> t.Any:
            environ["wsgi_isr.middleware"].revalidate("/never-visited")
            yield from saved(start_response)

        site.page("/never-visited", "body")
        site.answers["/save"] = save
        assert browser.post("/save").text == "saved"
        assert browser.get("/never-visited").text == "body"
        assert site.renders("/never-visited") == 1


class TestWhileAPageIsRendered:
    """The render of ``/parent`` revalidates another page, or itself."""

    def parent(self, site: Site, *paths: str, errors: list[Exception] | None = None) -> None:
        def body(environ: dict[str, t.Any]) -> str:
            try:
                environ["wsgi_isr.middleware"].revalidate(*paths)
            except Exception as error:
                if errors is None:
                    raise
                errors.append(error)
            return "parent"

        site.page("/parent", body, revalidate=10)

    def test_another_page_is_rendered_at_once(self, site: Site, browser: Browser) -> None:
        self.parent(site, HOME)
        browser.isr.revalidate(HOME + "parent")
        assert browser.get("/").text == "new"
        assert browser.get("/parent").text == "parent"

    def test_another_page_is_rendered_even_if_there_is_one_thread_only(
        self, site: Site, make: Make, cache: str, clock: Clock
    ) -> None:
        site.page("/", "old", revalidate=False)
        isr = make(cache, workers=1)
        visit(isr)
        site.page("/", "new", revalidate=False)
        site.page("/parent", "parent", revalidate=10)
        visit(isr, "/parent")
        self.parent(site, HOME)
        clock.advance(10)
        visit(isr, "/parent")
        isr.close()
        assert visit(isr).text == "new"

    def test_a_path_is_that_of_the_host_of_the_page(self, site: Site, browser: Browser) -> None:
        site.page("/unknown", lambda environ: environ["HTTP_HOST"])
        self.parent(site, "/unknown")
        browser.isr.revalidate("http://a.example/parent")
        assert browser.get("/unknown", base_url="http://a.example").text == "a.example"
        assert site.renders("/unknown") == 1

    @pytest.mark.parametrize("way", ["visit", "revalidate", "regeneration"])
    def test_itself_never_waits_for_itself(
        self, site: Site, make: Make, cache: str, clock: Clock, way: str
    ) -> None:
        isr = make(cache, rules={"/parent": 10}, workers=1)
        if way == "regeneration":
            site.page("/parent", "old", revalidate=10)
            visit(isr, "/parent")
            clock.advance(10)
        errors: list[Exception] = []
        self.parent(site, HOME + "parent", errors=errors)
        if way == "revalidate":
            result(start(isr.revalidate, HOME + "parent"))
        else:
            result(start(visit, isr, "/parent"))
            isr.close()
        assert visit(isr, "/parent").text == "parent"
        assert isinstance(errors[0], RevalidationError)
        assert "a page cannot wait for its own render" in str(errors[0])

    def test_itself_is_visited_without_a_page(self, site: Site, make: Make, cache: str) -> None:
        def body(environ: dict[str, t.Any]) -> str:
            if "wsgi_isr.reason" not in environ:
                return "own"
            return f"the page with {visit(isr, '/parent').text}"

        site.page("/parent", body)
        isr = make(cache, rules={"/parent": 10})
        assert result(start(visit, isr, "/parent")).text == "the page with own"

    def test_itself_cannot_be_prerendered_and_the_other_paths_are(
        self, site: Site, make: Make, cache: str
    ) -> None:
        results: list[Result] = []

        def body(environ: dict[str, t.Any]) -> str:
            paths = [HOME + "parent", HOME]
            results.extend(environ["wsgi_isr.middleware"].prerender(paths, workers=1))
            return "parent"

        site.page("/parent", body)
        site.page("/")
        assert make(cache).revalidate(HOME + "parent")[0].error is None
        assert [r.outcome for r in results] == ["failed", "rendered"]

    def test_a_page_that_nobody_declared_can_ask_for_itself(
        self, site: Site, make: Make, cache: str
    ) -> None:
        isr = make(cache)

        def body(environ: dict[str, t.Any]) -> str:
            if environ["QUERY_STRING"]:
                return "a part"
            return f"the whole with {visit(isr, '/parent?part').text}"

        site.page("/parent", body)
        assert isr.revalidate(HOME + "parent")[0].error is None
        assert visit(isr, "/parent").text == "the whole with a part"

    def test_a_child_that_revalidates_its_parent_is_an_error_too(
        self, site: Site, make: Make, cache: str
    ) -> None:
        """Otherwise each would wait for the other."""
        errors: list[Exception] = []
        self.parent(site, HOME + "child", errors=errors)

        def child(environ: dict[str, t.Any]) -> str:
            environ["wsgi_isr.middleware"].revalidate(HOME + "parent")
            return "child"

        site.page("/child", child)
        isr = make(cache)
        assert result(start(isr.revalidate, HOME + "parent")) == [Result(HOME + "parent", 200)]
        assert [type(error) for error in errors] == [RevalidationError]

    def test_two_pages_that_revalidate_each_other_at_once_do_not_wait_for_ever(
        self, site: Site, make: Make, cache: str
    ) -> None:
        def other(path: str) -> Callable[[dict[str, t.Any]], str]:
            def body(environ: dict[str, t.Any]) -> str:
                try:
                    environ["wsgi_isr.middleware"].revalidate(HOME + path)
                except RevalidationError:
                    return "it could not be"
                return "it could"

            return body

        site.page("/a", other("b"))
        site.page("/b", other("a"))
        isr = make(cache, render_timeout=0.2)
        both = [start(isr.revalidate, HOME + path) for path in ("a", "b")]
        for call in both:
            call.exception(10)
