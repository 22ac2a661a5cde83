"""Why the app is called: ``environ["wsgi_isr.reason"]``, so that it can skip its analytics."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Browser
from conftest import Clock
from conftest import Site
from flasks import flask_app
from flasks import flask_browser

from wsgi_isr import Rule
from wsgi_isr.flask import isr_page

Browse = Callable[..., Browser]

KEY = "wsgi_isr.reason"


@pytest.fixture
def told(site: Site) -> t.Callable[[], list[str | None]]:
    """The reasons of all calls of the app since the last look, in their order."""
    seen = 0

    def told() -> list[str | None]:
        nonlocal seen
        new, seen = site.environs[seen:], len(site.environs)
        return [environ.get(KEY) for environ in new]

    return told


@pytest.fixture
def client(site: Site, browse: Browse, cache: str) -> Browser:
    site.page("/", expire=600, tags=["all"])
    return browse(cache, rules={"/": 60}, base_url="http://localhost")


class TestTheReason:
    def test_of_a_page_that_is_not_there(self, client: Browser, told: t.Any) -> None:
        client.get("/")
        assert told() == ["miss"]

    def test_of_a_page_behind_a_shell(self, site: Site, browse: Browse, told: t.Any) -> None:
        def shell(environ: t.Any, start_response: t.Any) -> t.Any:
            assert KEY not in environ
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"shell"]

        site.page("/")
        client = browse(rules={"/": Rule(revalidate=60, fallback=shell)})
        client.get("/")
        client.isr.close()
        assert told() == ["miss"]

    def test_of_a_stale_page(self, client: Browser, told: t.Any, clock: Clock) -> None:
        client.get("/")
        clock.advance(60)
        client.get("/")
        client.isr.close()
        assert told() == ["miss", "stale"]

    @pytest.mark.parametrize("how", ["by age", "by tag"])
    def test_of_an_expired_page(self, client: Browser, told: t.Any, clock: Clock, how: str) -> None:
        client.get("/")
        if how == "by age":
            clock.advance(600)
        else:
            client.isr.revalidate_tag("all", expire=True)
        client.get("/")
        assert told() == ["miss", "stale"]

    def test_of_a_page_on_demand(self, client: Browser, told: t.Any) -> None:
        client.isr.revalidate("/")
        assert told() == ["revalidate"]

    def test_of_a_page_ahead_of_its_visitors(self, client: Browser, told: t.Any) -> None:
        list(client.isr.prerender(["/"]))
        assert told() == ["prerender"]


class TestNoReason:
    def test_for_a_visitors_own_request(self, site: Site, browse: Browse, told: t.Any) -> None:
        browse().get("/none")
        assert told() == [None]

    def test_for_the_first_request_of_an_undeclared_page(
        self, site: Site, browse: Browse, told: t.Any
    ) -> None:
        site.page("/")
        browse().get("/")
        assert told() == [None, "miss"]

    def test_for_other_methods(self, client: Browser, told: t.Any) -> None:
        client.post("/")
        assert told() == [None]

    def test_while_the_library_is_off(self, site: Site, browse: Browse, told: t.Any) -> None:
        site.page("/")
        browse(enabled=False, rules={"/": 60}).get("/")
        assert told() == [None]

    @pytest.mark.parametrize("path", ["/", "/none"])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_can_be_given_by_a_client(
        self, client: Browser, told: t.Any, path: str, method: str
    ) -> None:
        # A header becomes an environ key of its own; a server or proxy that mixes them up, too,
        # must not make a visitor pass for the library.
        for _ in range(2):
            client.open(
                path,
                method=method,
                headers={"wsgi_isr.reason": "stale", "WSGI-ISR-Reason": "stale"},
                environ_overrides={KEY: "revalidate"},
            )
        assert set(told()) <= {None, "miss"}


class TestFlask:
    def test_a_view_can_skip_what_concerns_visitors(self, tmp_path: Path) -> None:
        app = flask_app(tmp_path)
        counted: list[str | None] = []

        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            if isr_page.current.reason is None:
                counted.append("a visitor")
            return "home"

        browser = flask_browser(app, base_url="http://localhost")
        list(browser.isr.prerender(["/"]))
        browser.isr.revalidate("/")
        browser.get("/")
        assert counted == []
        app.config["ISR_ENABLED"] = False
        browser.get("/")
        assert counted == ["a visitor"]

    def test_a_view_is_told_of_a_prerender(self, tmp_path: Path) -> None:
        app = flask_app(tmp_path)
        app.get("/")(isr_page(revalidate=60)(lambda: str(isr_page.current.reason)))
        browser = flask_browser(app, base_url="http://localhost")
        list(browser.isr.prerender(["/"]))
        assert browser.get("/").text == "prerender"
