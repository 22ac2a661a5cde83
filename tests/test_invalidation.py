"""Tags and patterns: many pages invalidated at once, and none of them rendered in the call."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Make, Site, status_of
from steps import visit

from wsgi_isr import RevalidationError
from wsgi_isr.store.protocol import StoreError

Browse = Callable[..., Browser]

HOME = "http://localhost/"
PATHS = ("/", "/blog", "/blog/1", "/blog/2", "/blog/2/comments", "/about", "/gr\xc3\xbc\xc3\x9fe")
TAGS = {"/": ["posts", "home"], "/blog/1": ["posts", "post:1"], "/blog/2": ["posts", "post:2"]}
HIT, STALE, WAITED = "isr; hit", "isr; hit; ttl=0", "isr; fwd=stale; stored"


def publish(site: Site, text: str) -> None:
    for path in PATHS:
        site.page(path, text, revalidate=False, tags=TAGS.get(path, ()))


@pytest.fixture
def browser(site: Site, browse: Browse, cache: t.Any) -> Browser:
    """All pages change on demand only, and have just changed."""
    return filled(site, browse, cache)


@pytest.fixture
def plain(site: Site, browse: Browse) -> Browser:
    """The same in memory."""
    return filled(site, browse, "memory://")


def filled(site: Site, browse: Browse, cache: t.Any) -> Browser:
    publish(site, "old")
    browser = browse(cache)
    for path in PATHS:
        browser.get(path.encode("latin-1").decode())
    publish(site, "new")
    site.environs.clear()
    return browser


def states(browser: Browser) -> dict[str, str]:
    """What the answers to visitors of all pages say."""
    return {path: status_of(browser.get(path.encode("latin-1").decode())) for path in PATHS}


def not_fresh(browser: Browser) -> set[str]:
    return {path for path, state in states(browser).items() if state != HIT}


class TestTags:
    def test_however_many_leave_other_pages_in_memory(self, plain: Browser) -> None:
        plain.isr.revalidate_tag(*(f"tag {number}" for number in range(3000)))
        for number in range(600):
            plain.isr.revalidate_tag(f"{number}", f"again {number}")
        assert not_fresh(plain) == set()

    def test_too_many_make_pages_stale_at_most(
        self, plain: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsgi_isr.store.epochs.MAX_LABELS", 100)
        plain.isr.revalidate_tag(*(f"tag {number}" for number in range(300)))
        assert set(states(plain).values()) == {STALE}

    def test_all_pages_with_the_tag_become_stale_and_no_other(
        self, site: Site, browser: Browser
    ) -> None:
        browser.isr.revalidate_tag("posts")
        browser.isr.close()
        assert site.environs == [], "nothing is rendered in the call"
        found = states(browser)
        assert {path for path in found if found[path] == STALE} == set(TAGS)
        assert set(found.values()) == {STALE, HIT}
        browser.isr.close()
        answer = browser.get("/blog/1")
        assert (answer.text, status_of(answer)) == ("new", HIT)

    def test_with_expire_the_next_visitor_waits_for_the_new_page(self, browser: Browser) -> None:
        browser.isr.revalidate_tag("post:1", expire=True)
        # A soft one does not soften a hard one.
        browser.isr.revalidate_tag("post:1")
        answer = browser.get("/blog/1")
        assert (answer.text, status_of(answer)) == ("new", WAITED)
        # What was rendered since is not invalidated by it.
        assert not_fresh(browser) == set()

    def test_many_at_once_and_some_that_no_page_has(self, plain: Browser) -> None:
        plain.isr.revalidate_tag("post:1", "post:2", *(f"unknown {n}" for n in range(300)))
        assert not_fresh(plain) == {"/blog/1", "/blog/2"}

    def test_the_tags_of_the_last_render_count(self, site: Site, plain: Browser) -> None:
        site.page("/about", "new", revalidate=False, tags=["Grüße €"])
        site.page("/blog/1", "new", revalidate=False)
        plain.isr.revalidate(HOME + "about", HOME + "blog/1")
        plain.isr.revalidate_tag("posts", "Grüße €")
        assert not_fresh(plain) == {"/", "/blog/2", "/about"}

    @pytest.mark.parametrize("tag", ["", " a", "a,b", "x" * 257, "a\nb", "\ud800", 7, None])
    def test_what_is_no_tag_is_an_error_and_nothing_happens(
        self, plain: Browser, tag: t.Any
    ) -> None:
        with pytest.raises(ValueError):
            plain.isr.revalidate_tag("posts", tag)
        assert not_fresh(plain) == set()


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "matched"),
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
        self, site: Site, plain: Browser, pattern: str, matched: set[str]
    ) -> None:
        plain.isr.invalidate(pattern)
        plain.isr.close()
        assert site.environs == []
        found = states(plain)
        assert {path for path in found if found[path] == STALE} == matched
        assert {path for path in found if found[path] == HIT} == set(PATHS) - matched

    def test_with_expire_the_next_visitor_waits_for_the_new_page(self, browser: Browser) -> None:
        browser.isr.invalidate("/blog/*", expire=True)
        answer = browser.get("/blog/1")
        assert (answer.text, status_of(answer)) == ("new", WAITED)
        assert status_of(browser.get("/about")) == HIT

    def test_pages_of_all_hosts_and_queries_are_meant(self, site: Site, browse: Browse) -> None:
        site.page("/", "old", revalidate=False)
        browser = browse(query=["page"])
        urls = [("/", "http://a.example"), ("/", "http://b.example"), ("/?page=2", HOME)]
        for path, host in urls:
            browser.get(path, base_url=host)
        browser.isr.invalidate("/")
        assert {status_of(browser.get(path, base_url=host)) for path, host in urls} == {STALE}

    @pytest.mark.parametrize(
        "pattern",
        [
            *("", "blog/*", "//x", "*", "/a?page=2", "/a#b", "/a/../b", "/./a"),
            *("/blog/<slug>", "/blog/[slug]", "/a\\b", "/" + "a" * 1025, None, 7),
        ],
    )
    def test_what_can_never_match_is_an_error_and_nothing_happens(
        self, plain: Browser, pattern: t.Any
    ) -> None:
        with pytest.raises(ValueError):
            plain.isr.invalidate("/**", pattern)
        assert not_fresh(plain) == set()

    def test_what_is_outside_of_the_mount_can_never_match(self, site: Site, make: Make) -> None:
        isr = make(base_url="https://www.example.com/app")
        for pattern in ("/blog/*", "/", "/ap"):
            with pytest.raises(ValueError, match="/app"):
                isr.invalidate(pattern)
        isr.invalidate("/app/blog/*", "/app", "/*", "/**")


class TestInvalidations:
    @pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
    def test_hold_at_once_for_other_workers_and_over_a_restart(
        self, site: Site, make: Make, files: str, hard: bool
    ) -> None:
        publish(site, "old")
        one, other = make(files), make(files)
        for path in PATHS[:3]:
            visit(one, path)
            assert status_of(visit(other, path)) == HIT
        one.revalidate_tag("home", expire=hard)
        one.invalidate("/blog", expire=hard)
        expected = WAITED if hard else STALE
        assert status_of(visit(other)) == expected
        assert status_of(visit(make(files), "/blog")) == expected
        assert status_of(visit(other, "/blog/1")) == HIT

    def test_of_another_worker_are_not_missed_by_one_that_makes_its_own(
        self, site: Site, make: Make, files: str
    ) -> None:
        publish(site, "old")
        here, elsewhere = make(files), make(files)
        assert [visit(each).text for each in (here, elsewhere, elsewhere)] == 3 * ["old"]
        publish(site, "new")
        here.revalidate_tag("home", expire=True)
        elsewhere.revalidate_tag("no page has it")
        assert visit(elsewhere).text == "new"

    def test_are_before_what_is_rendered_in_an_outage_that_follows(
        self, site: Site, make: Make, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(site, "page")
        isr = make(files)
        for tag in ("posts", "home"):
            isr.revalidate_tag(tag)

        def fail(*args: t.Any, **kwargs: t.Any) -> t.NoReturn:
            raise StoreError("away")

        for name in ("get", "put", "number", "lease", "changes", "probe"):
            monkeypatch.setattr(isr.store, name, fail)
        visit(isr)
        assert status_of(visit(isr)) == HIT

    def test_are_not_lost_by_a_failing_render(self, site: Site, browser: Browser) -> None:
        site.fail("/blog/1")
        browser.isr.revalidate_tag("post:1")
        for _ in range(3):
            assert status_of(browser.get("/blog/1")) == STALE
            browser.isr.close()

    def test_that_the_store_did_not_take_are_an_error_and_hold_here_all_the_same(
        self, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: t.Any) -> t.Any:
            raise OSError("the disk is full")

        monkeypatch.setattr(browser.isr.store, "invalidate", refuse)
        for call, names in (
            (lambda: browser.isr.revalidate_tag("posts", "none"), {"posts", "none"}),
            (lambda: browser.isr.invalidate("/about"), {"/about"}),
            (lambda: browser.isr.revalidate(HOME + "blog"), {HOME + "blog"}),
        ):
            with pytest.raises(RevalidationError) as caught:
                call()
            assert set(caught.value.failures) == names
        assert not_fresh(browser) == {*TAGS, "/about", "/blog"}

    def test_while_a_visitor_is_served_show_in_their_answer(
        self, site: Site, make: Make, cache: t.Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between two reads of the page: whether it is fresh, and what is said of that."""
        site.page("/", "old", revalidate=False)
        isr = make(cache)
        visit(isr)
        process = isr._here()
        (entry,) = process.pages.memory

        def meanwhile() -> None:
            monkeypatch.undo()
            isr.invalidate("/")
            # Another thread serves the page, too.
            process.pages.memory.confirm(entry)

        monkeypatch.setattr(process, "poll", meanwhile)
        assert status_of(visit(isr)) == STALE


@pytest.mark.parametrize("how", ["path", "tag", "window"])
def test_content_that_comes_and_goes_is_followed(
    site: Site, browse: Browse, listable: str, clock: Clock, how: str
) -> None:
    browser = browse(listable)
    for status, text in (
        ("404 Not Found", "not yet"),
        ("200 OK", "here it is"),
        ("410 Gone", "gone for good"),
        ("404 Not Found", "never existed"),
        ("200 OK", "here again"),
    ):
        site.page("/post", text, status=status, tags=["post"])
        if how == "path":
            (result,) = browser.isr.revalidate(HOME + "post")
            outcome = "rendered" if status == "200 OK" else "gone"
            assert (result.status, result.outcome) == (int(status[:3]), outcome)
        elif how == "tag":
            browser.isr.revalidate_tag("post")
        else:
            clock.advance(60)
        browser.get("/post")
        browser.isr.close()
        answer = browser.get("/post")
        assert (answer.status, answer.text) == (status, text)
        assert status_of(browser.get("/post")) == "isr; hit; ttl=60"
