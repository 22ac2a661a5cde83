"""Tags and patterns: many pages marked at once, and none of them rendered in the call."""

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

from wsgi_isr import Result
from wsgi_isr import RevalidationError

Browse = Callable[..., Browser]

HOME = "http://localhost/"
PATHS = ("/", "/blog", "/blog/1", "/blog/2", "/blog/2/comments", "/about", "/gr\xc3\xbc\xc3\x9fe")
TAGS = {"/": ["posts", "home"], "/blog/1": ["posts", "post:1"], "/blog/2": ["posts", "post:2"]}


def publish(site: Site, text: str) -> None:
    for path in PATHS:
        site.page(path, text, revalidate=False, tags=TAGS.get(path, ()))


@pytest.fixture
def browser(site: Site, browse: Browse, cache: str) -> Browser:
    """All pages change on demand only, and have just changed."""
    publish(site, "old")
    browser = browse(cache)
    for path in PATHS:
        browser.get(path.encode("latin-1").decode())
    publish(site, "new")
    site.environs.clear()
    return browser


def answers(browser: Browser) -> dict[str, str]:
    """What visitors of all pages are told."""
    return {path: status_of(browser.get(path.encode("latin-1").decode())) for path in PATHS}


def not_fresh(browser: Browser) -> set[str]:
    return {path for path, told in answers(browser).items() if told != "isr; hit"}


class TestTags:
    def test_all_pages_with_the_tag_become_stale_and_no_other(self, browser: Browser) -> None:
        browser.isr.revalidate_tag("posts")
        told = answers(browser)
        assert {path for path in told if told[path] == "isr; hit; ttl=0"} == set(TAGS)
        assert set(told.values()) == {"isr; hit; ttl=0", "isr; hit"}

    def test_nothing_is_rendered_in_the_call(self, site: Site, browser: Browser) -> None:
        browser.isr.revalidate_tag("posts")
        browser.isr.close()
        assert site.environs == []

    def test_the_next_visitor_gets_the_old_page_and_the_one_after_the_new_one(
        self, browser: Browser
    ) -> None:
        browser.isr.revalidate_tag("post:1")
        assert browser.get("/blog/1").text == "old"
        browser.isr.close()
        answer = browser.get("/blog/1")
        assert (answer.text, status_of(answer)) == ("new", "isr; hit")

    def test_with_expire_the_next_visitor_waits_for_the_new_page(self, browser: Browser) -> None:
        browser.isr.revalidate_tag("post:1", expire=True)
        answer = browser.get("/blog/1")
        assert (answer.text, status_of(answer)) == ("new", "isr; fwd=stale; stored")
        assert status_of(browser.get("/blog/1")) == "isr; hit"

    def test_a_soft_one_does_not_soften_a_hard_one(self, browser: Browser) -> None:
        browser.isr.revalidate_tag("post:1", expire=True)
        browser.isr.revalidate_tag("post:1")
        assert browser.get("/blog/1").text == "new"

    def test_several_at_once(self, browser: Browser) -> None:
        browser.isr.revalidate_tag("post:1", "post:2")
        assert not_fresh(browser) == {"/blog/1", "/blog/2"}

    def test_a_tag_that_no_page_has_is_nothing(self, browser: Browser) -> None:
        browser.isr.revalidate_tag("unknown")
        assert not_fresh(browser) == set()

    def test_a_page_rendered_since_is_not_marked_again(self, browser: Browser) -> None:
        browser.isr.revalidate_tag("post:1", expire=True)
        browser.get("/blog/1")
        assert not_fresh(browser) == set()

    def test_the_tags_of_the_last_render_count(self, site: Site, browser: Browser) -> None:
        site.page("/about", "new", revalidate=False, tags=["posts"])
        browser.isr.revalidate(HOME + "about")
        browser.isr.revalidate_tag("posts")
        assert "/about" in not_fresh(browser)

    def test_a_page_that_lost_a_tag_is_not_marked_by_it(self, site: Site, browser: Browser) -> None:
        site.page("/blog/1", "new", revalidate=False)
        browser.isr.revalidate(HOME + "blog/1")
        browser.isr.revalidate_tag("posts")
        assert "/blog/1" not in not_fresh(browser)

    @pytest.mark.parametrize("tag", ["", " a", "a,b", "x" * 257, "a\nb", 7, None])
    def test_what_is_no_tag_is_an_error_and_marks_nothing(
        self, browser: Browser, tag: t.Any
    ) -> None:
        with pytest.raises(ValueError):
            browser.isr.revalidate_tag("posts", tag)
        assert not_fresh(browser) == set()

    def test_tags_are_not_limited_to_ascii(self, site: Site, browser: Browser) -> None:
        site.page("/about", "new", revalidate=False, tags=["Grüße €"])
        browser.isr.revalidate(HOME + "about")
        browser.isr.revalidate_tag("Grüße €")
        assert "/about" in not_fresh(browser)


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "marked"),
        [
            ("/blog/*", {"/blog/1", "/blog/2"}),
            ("/blog/**", {"/blog", "/blog/1", "/blog/2", "/blog/2/comments"}),
            ("/blog/2", {"/blog/2"}),
            ("/", {"/"}),
            ("/**", set(PATHS)),
            ("/*/*/comments", {"/blog/2/comments"}),
            ("/gr%C3%BC*", {"/gr\xc3\xbc\xc3\x9fe"}),
            ("/nothing", set()),
        ],
    )
    def test_all_pages_whose_path_matches_become_stale(
        self, browser: Browser, pattern: str, marked: set[str]
    ) -> None:
        browser.isr.invalidate(pattern)
        told = answers(browser)
        assert {path for path in told if told[path] == "isr; hit; ttl=0"} == marked
        assert {path for path in told if told[path] == "isr; hit"} == set(PATHS) - marked

    def test_nothing_is_rendered_in_the_call(self, site: Site, browser: Browser) -> None:
        browser.isr.invalidate("/**")
        browser.isr.close()
        assert site.environs == []

    def test_with_expire_the_next_visitor_waits_for_the_new_page(self, browser: Browser) -> None:
        browser.isr.invalidate("/blog/*", expire=True)
        answer = browser.get("/blog/1")
        assert (answer.text, status_of(answer)) == ("new", "isr; fwd=stale; stored")

    def test_pages_of_all_hosts_and_queries_are_meant(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        site.page("/", "old", revalidate=False)
        browser = browse(cache, query=["page"])
        urls = ["http://a.example/", "http://b.example/", "http://a.example/?page=2"]
        for url in urls:
            browser.get(url)
        browser.isr.invalidate("/")
        assert {status_of(browser.get(url)) for url in urls} == {"isr; hit; ttl=0"}

    def test_the_mount_point_belongs_to_the_path(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        site.page("/a", "old", revalidate=False)
        browser = browse(cache)
        blog = {"base_url": "http://localhost/blog"}
        browser.get("/a", **blog)
        browser.isr.invalidate("/a")
        assert status_of(browser.get("/a", **blog)) == "isr; hit"
        browser.isr.invalidate("/blog/a")
        assert status_of(browser.get("/a", **blog)) == "isr; hit; ttl=0"

    @pytest.mark.parametrize("pattern", ["", "blog/*", "//x", "*", None, "/" + "a" * 1025])
    def test_what_is_no_pattern_is_an_error_and_marks_nothing(
        self, browser: Browser, pattern: t.Any
    ) -> None:
        with pytest.raises(ValueError):
            browser.isr.invalidate("/**", pattern)
        assert not_fresh(browser) == set()


class TestInvalidations:
    @pytest.mark.parametrize(
        ("operation", "argument"), [("revalidate_tag", "posts"), ("invalidate", "/**")]
    )
    def test_hold_at_once_for_others_on_the_same_files(
        self, site: Site, make: Make, files: str, operation: str, argument: str
    ) -> None:
        publish(site, "old")
        one, other = make(files), make(files)
        visit(one)
        assert status_of(visit(other)) == "isr; hit"
        getattr(one, operation)(argument)
        assert status_of(visit(other)) == "isr; hit; ttl=0"

    @pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
    def test_are_remembered_over_a_restart(
        self, site: Site, make: Make, files: str, hard: bool
    ) -> None:
        publish(site, "old")
        before = make(files)
        visit(before)
        before.revalidate_tag("posts", expire=hard)
        after = make(files)
        expected = "isr; fwd=stale; stored" if hard else "isr; hit; ttl=0"
        assert status_of(visit(after)) == expected

    def test_are_not_lost_by_a_failing_render(self, site: Site, browser: Browser) -> None:
        site.fail("/blog/1")
        browser.isr.revalidate_tag("post:1")
        for _ in range(3):
            assert status_of(browser.get("/blog/1")) == "isr; hit; ttl=0"
            browser.isr.close()

    def test_that_the_store_did_not_take_are_an_error(
        self, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: t.Any) -> t.Any:
            raise OSError("the disk is full")

        monkeypatch.setattr(browser.isr._here().store.coordination, "invalidate", refuse)
        with pytest.raises(RevalidationError) as caught:
            browser.isr.revalidate_tag("posts", "home")
        assert set(caught.value.failures) == {"posts", "home"}
        with pytest.raises(RevalidationError) as caught:
            browser.isr.invalidate("/**")
        assert set(caught.value.failures) == {"/**"}
        with pytest.raises(RevalidationError) as caught:
            browser.isr.revalidate(HOME)
        assert set(caught.value.failures) == {HOME}


class TestContentThatComesAndGoes:
    """A page that turns 404, and a 404 that turns into a page."""

    @pytest.fixture(params=["path", "tag", "window"])
    def renew(
        self, request: pytest.FixtureRequest, browser: Browser, clock: Clock
    ) -> Callable[[], None]:
        """Bring the change about: demanded, or by a visitor after a mark or the window."""

        def renew() -> None:
            if request.param == "path":
                browser.isr.revalidate(HOME + "post")
                return
            if request.param == "tag":
                browser.isr.revalidate_tag("post")
            else:
                clock.advance(60)
            browser.get("/post")
            browser.isr.close()

        return renew

    def test_is_followed(self, site: Site, browser: Browser, renew: Callable[[], None]) -> None:
        site.page("/post", "not yet", status="404 Not Found", tags=["post"])
        for status, text in (
            ("404 Not Found", "not yet"),
            ("200 OK", "here it is"),
            ("410 Gone", "gone for good"),
            ("200 OK", "here again"),
            ("404 Not Found", "never existed"),
        ):
            site.page("/post", text, status=status, tags=["post"])
            renew()
            answer = browser.get("/post")
            assert (answer.status, answer.text) == (status, text)
            assert status_of(browser.get("/post")) == "isr; hit; ttl=60"

    def test_on_demand_is_no_error(self, site: Site, browser: Browser) -> None:
        site.page("/blog/1", "gone", status="404 Not Found", revalidate=False)
        assert browser.isr.revalidate(HOME + "blog/1") == [Result(HOME + "blog/1", 404)]

    def test_needs_no_metadata_of_the_404(self, site: Site, browser: Browser) -> None:
        del site.answers["/blog/1"]
        assert browser.isr.revalidate(HOME + "blog/1") == [Result(HOME + "blog/1", 404)]
        answer = browser.get("/blog/1")
        assert (answer.status_code, status_of(answer)) == (404, "isr; hit")


def test_while_a_visitor_is_served_shows_in_his_answer(
    site: Site, make: Make, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at the page: at whether it is fresh, and at what is said of that."""
    site.page("/", "old", revalidate=False)
    isr = make(cache)
    visit(isr)
    store = isr._here().store
    (entry,) = isr._here().memory

    def meanwhile() -> None:
        monkeypatch.undo()
        isr.invalidate("/")
        store.confirm(entry)

    monkeypatch.setattr(store, "poll", meanwhile)
    assert status_of(visit(isr)) == "isr; hit; ttl=0"
