"""``explain()``: why a page is as it is, and what a visitor would get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Browser, Clock, Make, Site, status_of
from flasks import flask_app, flask_browser
from steps import visit

from wsgi_isr import Rule
from wsgi_isr.ondemand import called_by

Browse = Callable[..., Browser]

HOME = "http://localhost/"


class TestAPage:
    @pytest.fixture
    def browser(self, site: Site, browse: Browse, listable: str) -> Browser:
        site.page("/", "body", revalidate=10, tags=["a"])
        return browse(listable, rules={"/admin": None, "/**": Rule()}, build_id="b1")

    def test_says_how_a_page_came_to_be_and_what_it_is_now(
        self, browser: Browser, clock: Clock
    ) -> None:
        browser.get("/")
        rendered_at = clock.now
        clock.advance(4)
        found = browser.isr.explain(HOME)
        assert (found.url, found.state, found.age, found.ttl) == (HOME, "fresh", 4.0, 6)
        assert (found.tags, found.build, found.reason) == (("a",), "b1", "miss")
        assert found.rendered_at == rendered_at and found.seconds is not None
        assert (found.key["host"], found.error, found.invalidated_by) == ("localhost", None, None)
        assert found.rule is not None and "Rule" in found.rule
        clock.advance(6)
        assert browser.isr.explain(HOME).state == "stale"
        browser.isr.revalidate_tag("a", expire=True)
        found = browser.isr.explain("/")
        assert found.state == "expired" and found.invalidated_by

    def test_says_why_there_is_no_page(self, site: Site, browser: Browser) -> None:
        site.fail("/bad")
        with pytest.raises(ZeroDivisionError):
            browser.get("/bad")
        found = {path: browser.isr.explain(HOME + path) for path in ("never", "admin", "bad")}
        assert [it.state for it in found.values()] == ["unknown", "excluded", "failed"]
        assert found["bad"].error == "the render failed"

    def test_renders_nothing_and_takes_what_has_a_host(self, site: Site, make: Make) -> None:
        isr = make(base_url="http://localhost")
        assert isr.explain("/").state == "unknown"
        assert site.environs == []
        with pytest.raises(ValueError, match="no host is known"):
            make().explain("/")
        with pytest.raises(ValueError):
            isr.explain("//evil")


class TestWhatIsKnownOfIt:
    def test_names_the_invalidation_and_the_call(
        self, site: Site, browse: Browse, listable: str
    ) -> None:
        site.page("/blog/a", tags=["one", "two"])
        browser = browse(listable)
        browser.get("/blog/a")
        explain = lambda: browser.isr.explain(f"{HOME}blog/a")  # noqa: E731
        assert (explain().invalidated_by, explain().invalidation) == (None, None)
        with called_by("an editor"):
            browser.isr.revalidate_tag("two")
        browser.isr.revalidate_tag("another")
        found = explain()
        assert found.invalidated_by == "tag:two"
        assert found.invalidation is not None and found.invalidation["by"] == "an editor"
        browser.isr.invalidate("/blog/*", expire=True)
        browser.isr.revalidate_tag("one")
        # A page that is expired by one does not become stale by another.
        assert (explain().state, explain().invalidated_by) == ("expired", "pattern:/blog/*")

    def test_names_the_path_as_it_is_written(
        self, site: Site, browse: Browse, listable: str
    ) -> None:
        site.page("/caf\xc3\xa9")
        isr = browse(listable, base_url="http://localhost").isr
        isr.revalidate("/caf%C3%A9")
        isr.invalidate("/caf%C3%A9")
        found = isr.explain("/caf%C3%A9")
        assert (found.key["path"], found.invalidated_by) == ("/caf%C3%A9", "path:/caf%C3%A9")

    def test_names_the_build_whose_page_is_lent(self, site: Site, make: Make, shared: str) -> None:
        site.page("/")
        visit(make(shared, build_id="one"))
        found = make(shared, build_id="two", previous_builds=1).explain(HOME)
        assert (found.state, found.invalidated_by) == ("stale", "the deploy: it is of build 'one'")

    def test_shows_a_refusal_in_another_process_until_the_page_is_rendered(
        self, site: Site, browse: Browse, make: Make, shared: str, clock: Clock
    ) -> None:
        site.page("/", headers=[("Set-Cookie", "a=b")])
        browser = browse(shared)
        browser.get("/")
        other = make(shared)
        found = other.explain(HOME)
        assert (found.state, found.refusal) == ("unknown", "set-cookie: a")
        assert "detail=set-cookie" in found.answer and "ignore=" in (found.remedy or "")
        assert list(other.pages()) == []
        site.page("/")
        clock.advance(1)
        other.revalidate(HOME)
        found = other.explain(HOME)
        assert (found.state, found.refusal, found.remedy) == ("fresh", None, None)

    def test_counts_failures_until_another_process_has_rendered_the_page(
        self, site: Site, browse: Browse, make: Make, shared: str, clock: Clock
    ) -> None:
        site.fail("/")
        browser = browse(shared, rules={"/": Rule()})
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                browser.get("/")
        (page,) = browser.isr.pages()
        assert (page.state, page.failures, browser.isr.explain(HOME).failures) == ("failed", 2, 2)
        site.page("/")
        clock.advance(1)
        other = make(shared, rules={"/": Rule()})
        visit(other)
        (page,) = other.pages()
        assert (page.state, page.failures, page.last_error) == ("fresh", 0, None)
        assert other.explain(HOME).error is None

    def test_lists_what_else_there_is_of_the_path(
        self, site: Site, browse: Browse, listable: str
    ) -> None:
        site.page("/")
        rules = {"/": Rule(vary={"Accept-Language": ["en", "de"]})}
        browser = browse(listable, rules=rules)
        browser.get("/")
        browser.get("/", headers={"Accept-Language": "de"})
        browser.get("/", base_url="https://other.example")
        assert sorted(browser.isr.explain(HOME).variants) == [
            "http://localhost/ fresh, accept-language: de",
            "https://other.example/ fresh, accept-language: en",
        ]

    @pytest.mark.parametrize(
        "kind",
        [
            *("fresh", "stale", "expired", "never", "excluded", "member"),
            *("passed?a=1", "moved?a=1", "moved-expired?a=1", "shell", "unlisted"),
        ],
    )
    def test_foretells_what_a_visitor_gets(
        self, site: Site, browse: Browse, clock: Clock, kind: str
    ) -> None:
        for path in ("/fresh", "/stale", "/expired", "/never", "/member", "/excluded", "/shell"):
            site.page(path)
        for path in ("/moved", "/moved-expired"):
            site.page(path, status="301 Moved Permanently", headers=[("Location", HOME)])
        rules = {
            "/excluded": None,
            "/passed": Rule(undeclared="pass"),
            "/shell": Rule(fallback=site),
            "/unlisted": Rule(fallback=False),
            "/**": Rule(),
        }
        browser = browse(rules=rules, bypass=["member"])
        headers = [("Cookie", "member=1")] if kind == "member" else []
        if headers:
            browser.set_cookie("member", "1")
        path = f"/{kind.partition('?')[0]}"
        if path in ("/fresh", "/stale", "/expired", "/moved", "/moved-expired"):
            browser.get(path)
            clock.advance(70 if kind == "stale" else 0)
        if path.endswith("expired"):
            browser.isr.invalidate(path, expire=True)
        url = f"{HOME}{kind}"
        foretold = browser.isr.on_demand().explain(url, headers).answer
        status = status_of(browser.get(f"/{kind}"))
        assert f"({status})" in foretold if status else "a rule of None" in foretold

    def test_names_the_view_of_a_flask_app(self, tmp_path: Path) -> None:
        app = flask_app(tmp_path)
        app.add_url_rule("/plain", "plain", lambda: "")
        browser = flask_browser(app, base_url="http://localhost")
        assert browser.isr.explain("/plain").rules == ("view 'plain' has no @isr_page",)
        assert browser.isr.explain("/none").rules == ("no view matches",)
