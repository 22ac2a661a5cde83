"""Fallbacks of Flask views: a shell view, and 404 for what no generator lists."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Browser, status_of
from flask import Flask, abort, g, request
from flasks import COLD, HIT, flask_app, flask_browser, settle

from wsgi_isr.flask import ISR, isr_page

GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"


class TestAShellView:
    @pytest.fixture
    def app(self, tmp_path: Path) -> Flask:
        app = flask_app(tmp_path)

        def loading(slug: str) -> str:
            if slug == "none":
                abort(404)
            if slug == "broken":
                raise ZeroDivisionError
            return f"{slug} comes, {request.endpoint}, {g.get('user')}"

        @app.before_request
        def log_in() -> None:
            g.user = request.cookies.get("user")

        @app.get("/blog/<slug>")
        @isr_page(revalidate=60, fallback=loading)
        def post(slug: str) -> str:
            return f"the post {slug}"

        @app.errorhandler(404)
        def none(error: t.Any) -> tuple[str, int]:
            return "our own 404", 404

        return app

    @pytest.fixture
    def browser(self, app: Flask) -> Iterator[Browser]:
        browser = flask_browser(app)
        yield browser
        browser.isr.close()

    def test_is_called_with_the_urls_values_in_a_request_of_its_own(self, browser: Browser) -> None:
        browser.set_cookie("user", "ann")
        answer = browser.get("/blog/hello")
        assert answer.text == "hello comes, post, ann"
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert answer.headers["Refresh"] == "1"
        settle(browser)
        assert browser.get("/blog/hello").text == "the post hello"

    def test_may_have_crawlers_wait(self, browser: Browser) -> None:
        answer = browser.get("/blog/hello", headers={"User-Agent": GOOGLEBOT})
        assert answer.text == "the post hello"

    def test_may_answer_with_a_404(self, browser: Browser) -> None:
        answer = browser.get("/blog/none")
        assert (answer.status_code, answer.text) == (404, "our own 404")

    def test_that_raises_is_an_error_of_the_app(self, browser: Browser) -> None:
        assert browser.get("/blog/broken").status_code == 500

    def test_may_be_a_page_elsewhere(self, app: Flask, browser: Browser) -> None:
        loading = isr_page(lambda slug="": f"loading {slug}")
        app.get("/loading", endpoint="loading")(loading)
        app.get("/news/<slug>", endpoint="news")(isr_page(fallback=loading)(lambda slug: slug))
        assert browser.get("/news/a").text == "loading a"
        settle(browser)
        assert browser.get("/news/a").text == "a"

    def test_may_be_async(self, app: Flask, browser: Browser) -> None:
        async def loading(slug: str) -> str:
            return f"{slug} comes"

        app.get("/async/<slug>")(isr_page(fallback=loading)(lambda slug: slug))
        assert browser.get("/async/a").text == "a comes"


class TestFalse:
    """``fallback=False``: there is what was prerendered, and what a generator lists."""

    @pytest.fixture
    def listed(self) -> list[str]:
        return ["a"]

    @pytest.fixture
    def app(self, tmp_path: Path, listed: list[str]) -> Flask:
        app = flask_app(tmp_path)
        app.extensions["renders"] = []

        def slugs() -> Iterator[dict[str, str]]:
            if "broken" in listed:
                raise ZeroDivisionError("no database")
            yield from ({"slug": slug} for slug in listed)

        @app.get("/blog/<slug>")
        @isr_page(paths=slugs, fallback=False)
        def post(slug: str) -> str:
            app.extensions["renders"].append(slug)
            return f"the post {slug}"

        return app

    @pytest.fixture
    def browser(self, app: Flask) -> Iterator[Browser]:
        browser = flask_browser(app)
        yield browser
        browser.isr.close()

    def test_what_is_not_listed_is_a_404_without_asking_the_app(
        self, app: Flask, browser: Browser
    ) -> None:
        answer = browser.get("/blog/b")
        assert (answer.status_code, answer.headers["Cache-Control"]) == (404, "private, no-store")
        assert app.extensions["renders"] == []

    def test_what_is_listed_is_rendered_for_its_first_visitor(self, browser: Browser) -> None:
        answer = browser.get("/blog/a")
        assert (answer.text, status_of(answer)) == ("the post a", COLD)

    def test_beyond_ascii_too(self, browser: Browser, listed: list[str]) -> None:
        listed.append("h\u00e9 100%")
        assert browser.get("/blog/h%C3%A9%20100%25").text == "the post h\u00e9 100%"
        assert browser.get("/blog/h%C3%A8").status_code == 404

    @pytest.mark.parametrize("whole", [True, False])
    def test_on_a_subdomain_too(self, tmp_path: Path, whole: bool) -> None:
        app = flask_app(tmp_path, subdomain_matching=True)
        app.config["SERVER_NAME"] = "example.com"

        def slugs() -> Iterator[t.Any]:
            yield "http://ACME.example.com:80/post/a" if whole else {"tenant": "acme", "slug": "a"}

        view = isr_page(paths=slugs, fallback=False)(lambda tenant, slug: f"{tenant} {slug}")
        app.add_url_rule("/post/<slug>", "post", view, subdomain="<tenant>")
        browser = flask_browser(app)
        answers = [
            browser.get(f"/post/{slug}", base_url=f"http://{tenant}.example.com").status_code
            for tenant in ("acme", "other")
            for slug in ("a", "b")
        ]
        assert answers == [200, 404, 404, 404]

    def test_with_a_base_url_the_visitors_host_makes_no_difference(
        self, app: Flask, listed: list[str]
    ) -> None:
        app.view_functions["post"] = isr_page(
            paths=["https://www.example.com/blog/a"], fallback=False
        )(lambda slug: slug)
        browser = flask_browser(app, base_url="https://www.example.com")
        assert browser.get("/blog/a", base_url="http://10.0.0.1:8000").text == "a"
        assert browser.get("/blog/b", base_url="http://10.0.0.1:8000").status_code == 404

    def test_under_a_mount_point_too(self, browser: Browser) -> None:
        mounted = {"base_url": "http://localhost/mounted"}
        assert browser.get("/blog/a", **mounted).status_code == 200
        assert browser.get("/blog/b", **mounted).status_code == 404

    def test_what_was_rendered_on_demand_is_there(self, app: Flask, browser: Browser) -> None:
        browser.isr.revalidate("http://localhost/blog/b")
        answer = browser.get("/blog/b")
        assert (answer.text, status_of(answer)) == ("the post b", HIT)

    def test_what_is_listed_since_is_there_within_a_minute(
        self, browser: Browser, listed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert browser.get("/blog/b").status_code == 404
        listed.append("b")
        assert browser.get("/blog/b").status_code == 404
        monkeypatch.setattr("wsgi_isr.views.monotonic", lambda: 10.0**9)
        assert browser.get("/blog/b").status_code == 200

    def test_a_generator_that_fails_leaves_the_list_as_it_was(
        self,
        browser: Browser,
        listed: list[str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        assert browser.get("/blog/b").status_code == 404
        listed.append("broken")
        monkeypatch.setattr("wsgi_isr.views.monotonic", lambda: 10.0**9)
        assert browser.get("/blog/b").status_code == 404
        assert browser.get("/blog/a").status_code == 200
        assert "no list of the paths that exist" in caplog.text

    def test_a_generator_that_never_worked_leaves_the_answer_to_the_app(
        self, browser: Browser, listed: list[str]
    ) -> None:
        # Nobody knows what there is: a 404 for all of it would be worse.
        listed.append("broken")
        assert browser.get("/blog/b").text == "the post b"

    def test_paths_without_a_generator_are_those_that_were_prerendered(
        self, tmp_path: Path, files: str
    ) -> None:
        app = flask_app(tmp_path, "other")
        app.get("/<slug>")(isr_page(fallback=False)(lambda slug: slug))
        middleware = ISR(app, cache=files, base_url="http://localhost").middleware
        list(middleware.prerender(["/a"]))
        browser = Browser(app)
        assert [browser.get(path).status_code for path in ("/a", "/b")] == [200, 404]
