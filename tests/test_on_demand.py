"""``revalidate()``: paths rendered now, and what becomes of all that is stored of them."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from steps import visit

from wsgi_isr import ISRMiddleware
from wsgi_isr import Result
from wsgi_isr import RevalidationError
from wsgi_isr import Rule

Browse = Callable[..., Browser]

HOME = "http://localhost/"


@pytest.fixture
def browser(site: Site, browse: Browse, cache: str) -> Browser:
    """``/`` is a page that changes on demand only, and has just changed."""
    site.page("/", "old", revalidate=False)
    browser = browse(cache)
    browser.get("/")
    site.page("/", "new", revalidate=False)
    return browser


class TestAPath:
    def test_is_rendered_now_and_the_next_visitor_gets_the_new_page(
        self, site: Site, browser: Browser
    ) -> None:
        assert browser.get("/").text == "old"
        assert browser.isr.revalidate(HOME) == [Result(HOME, 200)]
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("new", "isr; hit")
        assert site.renders("/") == 2

    def test_is_as_fresh_as_after_any_other_render(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        site.page("/", "body", revalidate=60)
        browser = browse(cache)
        browser.get("/")
        clock.advance(50)
        browser.isr.revalidate(HOME)
        assert status_of(browser.get("/")) == "isr; hit; ttl=60"

    def test_that_has_no_page_yet_gets_one(self, site: Site, browse: Browse, cache: str) -> None:
        site.page("/", "body")
        browser = browse(cache)
        assert browser.isr.revalidate(HOME) == [Result(HOME, 200)]
        assert status_of(browser.get("/")) == "isr; hit; ttl=60"
        assert site.renders("/") == 1

    def test_that_has_no_page_is_skipped_with_only_generated(
        self, site: Site, browser: Browser
    ) -> None:
        site.page("/never", "body")
        results = browser.isr.revalidate("http://localhost/never", HOME, only_generated=True)
        assert results == [Result(HOME, 200)]
        assert site.renders("/never") == 0
        assert browser.get("/").text == "new"

    def test_is_rendered_for_the_reason_that_it_was_demanded(
        self, site: Site, browse: Browse
    ) -> None:
        site.page("/", lambda environ: environ["wsgi_isr.reason"])
        browser = browse()
        browser.isr.revalidate(HOME)
        assert browser.get("/").text == "revalidate"

    def test_is_percent_encoded(self, site: Site, browse: Browse, cache: str) -> None:
        path = "/grüße".encode().decode("latin-1")
        site.page(path, "old", revalidate=False)
        browser = browse(cache)
        browser.get("/gr%C3%BC%C3%9Fe")
        site.page(path, "new", revalidate=False)
        url = "http://localhost/gr%C3%BC%C3%9Fe"
        assert browser.isr.revalidate(url) == [Result(url, 200)]
        assert browser.get("/gr%C3%BC%C3%9Fe").text == "new"

    def test_has_the_mount_point(self, site: Site, browse: Browse, cache: str) -> None:
        site.page("/a", "old", revalidate=False)
        browser = browse(cache, base_url="http://localhost")
        browser.get("/a", base_url="http://localhost/blog")
        site.page("/a", "new", revalidate=False)
        assert browser.isr.revalidate("/blog/a") == [Result("http://localhost/blog/a", 200)]
        assert browser.get("/a", base_url="http://localhost/blog").text == "new"
        assert site.environs[-1]["SCRIPT_NAME"] == "/blog"

    def test_is_enough_where_a_base_url_is_set(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        site.page("/", "body")
        isr = browse(cache, base_url="https://www.example.com").isr
        assert isr.revalidate("/") == [Result("https://www.example.com/", 200)]

    def test_several_are_rendered_in_their_order(self, site: Site, browse: Browse) -> None:
        for path in ("/a", "/b", "/c"):
            site.page(path, "body")
        isr = browse(base_url="http://localhost").isr
        assert [result.url for result in isr.revalidate("/b", "/c", "/a")] == [
            "http://localhost/b",
            "http://localhost/c",
            "http://localhost/a",
        ]

    def test_none_is_nothing(self, browse: Browse) -> None:
        assert browse().isr.revalidate() == []

    def test_while_the_library_is_off_is_not_rendered_but_becomes_stale(
        self, site: Site, make: Make, files: str
    ) -> None:
        site.page("/", "body", revalidate=False)
        on, off = make(files), make(files, enabled=False)
        visit(on)
        assert off.revalidate(HOME) == []
        assert site.renders("/") == 1
        assert status_of(visit(on)) == "isr; hit; ttl=0"

    def test_that_is_no_page_any_more_goes_to_the_app_from_now_on(
        self, site: Site, browser: Browser
    ) -> None:
        def dynamic(environ: t.Any, start_response: t.Any) -> t.Any:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"for you alone"]

        site.answers["/"] = dynamic
        assert browser.isr.revalidate(HOME) == [Result(HOME, 200)]
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("for you alone", "")


class TestWhatElseIsStoredOfThePath:
    def test_the_page_of_every_host_is_rendered(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        hosts = ("http://a.example/", "http://b.example/")
        site.page("/", "old", revalidate=False)
        browser = browse(cache)
        for host in hosts:
            browser.get("/", base_url=host)
        site.page("/", lambda environ: f"new at {environ['HTTP_HOST']}", revalidate=False)
        assert browser.isr.revalidate("/") == [Result(host, 200) for host in hosts]
        assert [browser.get("/", base_url=host).text for host in hosts] == [
            "new at a.example",
            "new at b.example",
        ]

    def test_a_whole_url_names_one_host(self, site: Site, browse: Browse, cache: str) -> None:
        site.page("/", "old", revalidate=False)
        browser = browse(cache)
        for host in ("http://a.example", "http://b.example"):
            browser.get("/", base_url=host)
        site.page("/", "new", revalidate=False)
        assert browser.isr.revalidate("http://a.example/") == [Result("http://a.example/", 200)]
        assert browser.get("/", base_url="http://a.example").text == "new"
        answer = browser.get("/", base_url="http://b.example")
        assert (answer.text, status_of(answer)) == ("old", "isr; hit")

    def test_every_variant_is_rendered(self, site: Site, browse: Browse, cache: str) -> None:
        site.page("/", "old", revalidate=False)
        browser = browse(cache, rules={"/": Rule(vary={"Accept-Language": ["en", "de"]})})
        languages: list[dict[str, t.Any]] = [
            {"headers": {"Accept-Language": language}} for language in ("en", "de")
        ]
        for language in languages:
            browser.get("/", **language)
        site.page("/", lambda environ: environ["HTTP_ACCEPT_LANGUAGE"], revalidate=False)
        assert browser.isr.revalidate(HOME) == [Result(HOME, 200)] * 2
        assert [browser.get("/", **language).text for language in languages] == ["en", "de"]

    def test_a_path_means_its_page_without_query_and_the_others_become_stale(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        site.page("/", "old", revalidate=False)
        browser = browse(cache, query=["page"])
        browser.get("/")
        browser.get("/?page=2")
        site.page("/", lambda environ: f"new {environ['QUERY_STRING']}", revalidate=False)
        assert browser.isr.revalidate(HOME) == [Result(HOME, 200)]
        assert browser.get("/").text == "new "
        answer = browser.get("/?page=2")
        assert (answer.text, status_of(answer)) == ("old", "isr; hit; ttl=0")
        browser.isr.close()
        assert browser.get("/?page=2").text == "new page=2"

    def test_a_path_with_a_declared_query_means_that_page(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        site.page("/", "old", revalidate=False)
        browser = browse(cache, query=["page"])
        browser.get("/")
        browser.get("/?page=2")
        site.page("/", "new", revalidate=False)
        assert browser.isr.revalidate(HOME + "?page=2") == [Result(HOME + "?page=2", 200)]
        assert browser.get("/?page=2").text == "new"
        assert status_of(browser.get("/")) == "isr; hit; ttl=0"

    def test_undeclared_parameters_of_a_path_mean_nothing(self, browser: Browser) -> None:
        assert browser.isr.revalidate(HOME + "?utm_source=x") == [Result(HOME, 200)]
        assert browser.get("/").text == "new"


class TestAMistake:
    """A ``ValueError`` before anything is rendered."""

    @pytest.mark.parametrize(
        "path",
        [
            "",
            "blog",
            "//evil",
            "//evil.example/x",
            "/a//b",
            "/a/../b",
            "/..",
            "/./a",
            "/a/%2e%2e/b",
            "/a\\b",
            "/a%5Cb",
            "/a\nb",
            "/a%0Ab",
            "/a%00",
            "/a b",
            "/a#b",
            "/%E0%A4%A",
            "/%ff",
            "?page=2",
            "ftp://localhost/",
            "http:///a",
            "http://a b/",
            "http://user@localhost/",
            "http://localhost:port/",
            "javascript:alert(1)",
            None,
            b"/",
            7,
        ],
    )
    def test_what_is_no_path(self, site: Site, make: Make, path: t.Any) -> None:
        site.page("/", "body")
        isr = make(base_url=None)
        with pytest.raises(ValueError):
            isr.revalidate(HOME, path)
        assert site.environs == []

    @pytest.mark.parametrize(
        "options", [{"base_url": "http://localhost"}, {"trusted_hosts": ["localhost"]}]
    )
    def test_a_host_that_has_no_pages(
        self, site: Site, make: Make, options: dict[str, t.Any]
    ) -> None:
        isr = make(**options)
        with pytest.raises(ValueError, match="on a host that has no pages"):
            isr.revalidate(HOME, "http://evil.example/")
        assert site.environs == []

    def test_a_path_that_no_host_is_known_for(self, site: Site, make: Make) -> None:
        isr = make()
        with pytest.raises(ValueError, match="call revalidate.. in a request, give a whole URL"):
            isr.revalidate("/")
        assert site.environs == []


class TestARenderThatFails:
    @pytest.fixture
    def isr(self, site: Site, browse: Browse, cache: str) -> ISRMiddleware:
        """Three pages that change on demand only; ``/b`` fails from now on."""
        browser = browse(cache, base_url="http://localhost")
        for path in ("/a", "/b", "/c"):
            site.page(path, "old", revalidate=False)
            browser.get(path)
            site.page(path, "new", revalidate=False)
        site.fail("/b")
        return browser.isr

    def test_is_told_after_all_were_tried(self, isr: ISRMiddleware) -> None:
        with pytest.raises(RevalidationError, match="/b: the render failed") as caught:
            isr.revalidate("/b", "/a", "/c")
        assert {path: type(e) for path, e in caught.value.failures.items()} == {
            "/b": ZeroDivisionError
        }
        assert visit(isr, "/a").text == visit(isr, "/c").text == "new"

    def test_is_among_the_results_with_its_error(self, isr: ISRMiddleware) -> None:
        with pytest.raises(RevalidationError) as caught:
            isr.revalidate("/b", "/a", "/c")
        b, a, c = caught.value.results
        assert (b.url, b.status, type(b.error)) == ("http://localhost/b", None, ZeroDivisionError)
        assert (a, c) == (Result("http://localhost/a", 200), Result("http://localhost/c", 200))

    def test_leaves_the_old_page_as_a_stale_one_that_visitors_have_renewed(
        self, site: Site, isr: ISRMiddleware
    ) -> None:
        with pytest.raises(RevalidationError):
            isr.revalidate("/b")
        site.page("/b", "new", revalidate=False)
        answer = visit(isr, "/b")
        assert (answer.text, status_of(answer)) == ("old", "isr; hit; ttl=0")
        isr.close()
        answer = visit(isr, "/b")
        assert (answer.text, status_of(answer)) == ("new", "isr; hit")

    @pytest.mark.parametrize(
        ("status", "headers"),
        [
            ("500 Internal Server Error", []),
            ("403 Forbidden", []),
            ("200 OK", [("Set-Cookie", "a=b")]),
            ("200 OK", [("Cache-Control", "private")]),
        ],
    )
    def test_may_also_be_an_answer_that_is_refused(
        self, site: Site, isr: ISRMiddleware, status: str, headers: t.Any
    ) -> None:
        site.page("/b", "bad", status=status, headers=headers, revalidate=False)
        with pytest.raises(RevalidationError) as caught:
            isr.revalidate("/b")
        assert caught.value.results[0].status == int(status[:3])
        assert visit(isr, "/b").text == "old"

    def test_of_a_page_that_never_was_stores_nothing(self, site: Site, make: Make) -> None:
        isr = make(base_url="http://localhost")
        site.fail("/")
        with pytest.raises(RevalidationError):
            isr.revalidate("/")
        assert list(isr.pages()) == []

    def test_is_told_of_a_path_that_is_no_page(self, site: Site, make: Make) -> None:
        isr = make(base_url="http://localhost")
        with pytest.raises(RevalidationError) as caught:
            isr.revalidate("/unknown")
        assert caught.value.results[0].status == 404
