"""The config of an app with the extension: its keys, their defaults, and what is a mistake."""

from __future__ import annotations

import inspect
import typing as t
from pathlib import Path

import pytest
from conftest import Browser, status_of
from flask import Flask, request
from flasks import COLD, HIT, blog_app, flask_app, flask_browser, twice

from wsgi_isr import ISRMiddleware, Rule
from wsgi_isr.flask import ISR, isr_page

TOKEN = "correct horse battery staple"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return blog_app(tmp_path)


class TestConfiguration:
    def test_keys(self, app: Flask) -> None:
        def plain() -> str:
            return request.host_url + request.query_string.decode()

        @isr_page
        def large() -> str:
            return "x" * 101

        app.config.update(
            ISR_CACHE="memory://",
            ISR_BASE_URL="https://www.example.com",
            ISR_QUERY=["page"],
            ISR_MAX_BODY_SIZE=100,
            ISR_RULES={"/plain": Rule(revalidate=7)},
        )
        app.add_url_rule("/plain", view_func=plain)
        app.add_url_rule("/large", view_func=large)
        ISR(app)
        browser = Browser(app)
        assert browser.get("/plain?page=2&a=b").text == "https://www.example.com/page=2"
        assert status_of(browser.get("/plain?page=2")) == "isr; hit; ttl=7"
        assert status_of(browser.get("/large")) == "isr; fwd=uri-miss; detail=too-large"

    def test_an_argument_wins_over_a_key_and_is_seen_there(self, app: Flask) -> None:
        app.config["ISR_BASE_URL"] = "https://key.example"
        browser = flask_browser(app, base_url="https://argument.example")
        browser.get("/blog/a")
        (page,) = browser.isr.pages()
        assert page.url == "https://argument.example/blog/a"
        assert app.config["ISR_BASE_URL"] == "https://argument.example"

    def test_every_argument_of_the_middleware_is_one_and_a_key(self, tmp_path: Path) -> None:
        parameters = inspect.signature(ISRMiddleware).parameters
        defaults = {name: p.default for name, p in parameters.items() if name != "app"}
        ISR(**defaults)
        app = flask_app(tmp_path)
        app.config.update({f"ISR_{name.upper()}": value for name, value in defaults.items()})
        app.config["ISR_CACHE"] = "memory://"
        assert ISR(app).middleware.workers == defaults["workers"]

    def test_an_argument_that_does_not_exist_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="ISR has no argument cash"):
            ISR(cash="memory://")

    def test_is_read_at_the_first_request(self, app: Flask) -> None:
        ISR(app)
        app.config["ISR_CACHE"] = "memory://"
        app.config["ISR_BASE_URL"] = "https://www.example.com"
        app.config["ISR_SECRET"] = TOKEN
        browser = Browser(app)
        call = {"json": {"paths": ["/blog/a"]}, "headers": {"Authorization": f"Bearer {TOKEN}"}}
        answer = browser.post("/_isr/revalidate", **call)  # type: ignore[arg-type]
        assert answer.json["results"][0]["url"] == "https://www.example.com/blog/a"
        assert status_of(browser.get("/blog/a")) == HIT

    def test_a_value_that_cannot_work_is_an_error_then(self, app: Flask) -> None:
        ISR(app)
        app.config["ISR_BASE_URL"] = "www.example.com"
        for _ in range(2):
            with pytest.raises(ValueError, match="base_url"):
                app.test_client().get("/blog/a")

    def test_a_key_that_is_mistyped_is_an_error_then(self, app: Flask) -> None:
        ISR(app, cache="memory://")
        app.config["ISR_BASEURL"] = "https://www.example.com"
        with pytest.raises(ValueError, match="no config key ISR_BASEURL: did you mean ISR_BASE_UR"):
            app.test_client().get("/blog/a")

    def test_a_key_that_is_not_ours_is_a_warning(
        self, app: Flask, caplog: pytest.LogCaptureFixture
    ) -> None:
        app.config["ISR_COUNTRY"] = "il"
        assert twice(flask_browser(app), "/blog/a") == (COLD, HIT)
        assert "there is no config key ISR_COUNTRY: it has no effect" in caplog.text

    @pytest.mark.parametrize(
        ("value", "is_on"),
        [("true", True), ("1", True), ("On", True), (1, True), (True, True)]
        + [("false", False), ("0", False), ("NO", False), (0, False), (False, False)],
    )
    def test_a_truth_value_may_be_a_text_from_the_environment(
        self, app: Flask, value: t.Any, is_on: bool
    ) -> None:
        app.config["ISR_ENABLED"] = value
        browser = flask_browser(app)
        assert status_of(browser.get("/blog/a")) == (
            COLD if is_on else "isr; fwd=bypass; detail=disabled"
        )

    @pytest.mark.parametrize("key", ["ISR_ENABLED", "ISR_CDN_PURGED"])
    @pytest.mark.parametrize("value", ["", "maybe", "2", 2, [True]])
    def test_but_none_that_says_neither(self, app: Flask, key: str, value: t.Any) -> None:
        app.config[key] = value
        with pytest.raises(TypeError, match=f"{key} takes True or False"):
            flask_browser(app)

    def test_visitors_may_bypass(self, app: Flask) -> None:
        browser = flask_browser(app, bypass=["member"])
        assert twice(browser, "/blog/a") == (COLD, HIT)
        browser.set_cookie("member", "1")
        assert status_of(browser.get("/blog/a")) == "isr; fwd=bypass; detail=bypass"
        app.config["ISR_ENABLED"] = False
        assert status_of(browser.get("/blog/a")) == "isr; fwd=bypass; detail=disabled"

    def test_a_cdn_that_is_purged_may_keep_pages(self, app: Flask) -> None:
        browser = flask_browser(app, cdn_purged="yes")
        assert "s-maxage=31536000" in browser.get("/blog/a").headers["Cache-Control"]

    def test_pages_are_in_the_instance_folder_by_default(self, app: Flask) -> None:
        browser = flask_browser(app, cache=None)
        browser.get("/blog/a")
        assert Path(app.instance_path, "isr-cache", "site").is_dir()
        again = flask_app(Path(app.root_path))
        again.add_url_rule("/blog/<slug>", "post", app.view_functions["post"])
        assert status_of(flask_browser(again, cache=None).get("/blog/a")) == HIT

    def test_or_in_memory_where_it_cannot_be_written(
        self, app: Flask, caplog: pytest.LogCaptureFixture
    ) -> None:
        Path(app.instance_path).write_text("not a folder")
        browser = flask_browser(app, cache=None)
        browser.get("/blog/a")
        assert status_of(browser.get("/blog/a")) == HIT
        assert browser.isr.store.kind.name == "memory" and "cannot be written" in caplog.text

    def test_two_apps_in_one_folder_have_no_pages_in_common(self, app: Flask) -> None:
        flask_browser(app, cache=None).get("/blog/a")
        other = flask_app(Path(app.root_path), "shop")
        other.add_url_rule("/blog/<slug>", "post", isr_page(lambda slug: "of the shop"))
        assert flask_browser(other, cache=None).get("/blog/a").text == "of the shop"

    def test_other_rules_have_other_pages(self, app: Flask) -> None:
        flask_browser(app, cache=None).get("/blog/a")
        again = flask_app(Path(app.root_path))
        again.add_url_rule("/blog/<slug>", "post", app.view_functions["post"])
        browser = flask_browser(again, cache=None, rules={"/plain": 60})
        assert status_of(browser.get("/blog/a")) == COLD

    def test_a_rule_of_none_excludes_a_view_that_is_declared(self, app: Flask) -> None:
        browser = flask_browser(app, rules={"/blog/b": None})
        assert twice(browser, "/blog/a") == (COLD, HIT)
        assert twice(browser, "/blog/b") == ("", "")

    def test_rules_may_be_a_callable(self, app: Flask) -> None:
        app.add_url_rule("/plain", "plain", lambda: "plain")

        def rules(environ: dict[str, t.Any]) -> Rule | None:
            return Rule(revalidate=7) if environ["PATH_INFO"] == "/plain" else None

        browser = flask_browser(app, rules=rules)
        assert twice(browser, "/plain") == (COLD, "isr; hit; ttl=7")
        assert twice(browser, "/blog/a") == (COLD, HIT)

    def test_a_view_that_is_declared_wins_over_the_rules(self, app: Flask) -> None:
        browser = flask_browser(app, rules={"/**": 7})
        assert twice(browser, "/blog/a") == (COLD, HIT)
