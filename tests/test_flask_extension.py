"""``ISR``: the extension of an app, its configuration, and revalidation in route handlers."""

from __future__ import annotations

import inspect
import secrets
import typing as t
from pathlib import Path

import pytest
from conftest import Browser
from conftest import status_of
from flask import Flask
from flask import request
from flask import url_for
from flasks import COLD
from flasks import flask_app
from flasks import flask_browser
from flasks import HIT
from flasks import twice

from wsgi_isr import ISRMiddleware
from wsgi_isr import Result
from wsgi_isr import RevalidationError
from wsgi_isr import Rule
from wsgi_isr.flask import extension
from wsgi_isr.flask import invalidate
from wsgi_isr.flask import ISR
from wsgi_isr.flask import isr_page
from wsgi_isr.flask import revalidate
from wsgi_isr.flask import revalidate_tag

TOKEN = "correct horse battery staple"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    """``/blog/<slug>`` shows a text, which tests change."""
    app = flask_app(tmp_path)
    app.extensions["text"] = "old"

    @app.get("/blog/<slug>")
    @isr_page(tags=["posts"])
    def post(slug: str) -> str:
        return f"{app.extensions['text']} {slug}"

    return app


@pytest.fixture
def browser(app: Flask) -> t.Iterator[Browser]:
    browser = flask_browser(app)
    yield browser
    browser.isr.close()


class TestInARoute:
    @pytest.fixture(autouse=True)
    def visited(self, app: Flask) -> None:
        """Routes are added before the first request, which is what Flask asks for."""

        @app.post("/save/<slug>")
        def save(slug: str) -> t.Any:
            app.extensions["text"] = request.form["text"]
            return [result.url for result in revalidate(url_for("post", slug=slug))]

        @app.post("/tag")
        def tag() -> str:
            revalidate_tag("posts", expire="expire" in request.form)
            return "marked"

        @app.post("/pattern")
        def pattern() -> str:
            invalidate("/blog/*", expire="expire" in request.form)
            return "marked"

        @app.route("/path-to-revalidate")
        @isr_page
        def page() -> str:
            if app.extensions["text"] == "broken":
                raise ZeroDivisionError
            return str(app.extensions["text"])

        @app.route("/api/revalidate")
        def hook() -> t.Any:  # the Next.js handler, line for line
            if not secrets.compare_digest(request.args.get("secret", "").encode(), TOKEN.encode()):
                return {"message": "Invalid token"}, 401
            try:
                revalidate("/path-to-revalidate")
                return {"revalidated": True}
            except RevalidationError:
                return "Error revalidating", 500

    def test_what_is_saved_is_seen_by_the_next_visitor(self, browser: Browser) -> None:
        browser.get("/blog/a")
        saved = browser.post("/save/a", data={"text": "new"})
        assert saved.json == ["http://localhost/blog/a"]
        answer = browser.get("/blog/a")
        assert (answer.text, status_of(answer)) == ("new a", HIT)

    def test_url_for_under_a_mount_point(self, browser: Browser) -> None:
        mounted = {"base_url": "http://localhost/mounted"}
        browser.get("/blog/a", **mounted)
        browser.post("/save/a", data={"text": "new"}, **mounted)
        assert browser.get("/blog/a", **mounted).text == "new a"

    @pytest.mark.parametrize("route", ["/tag", "/pattern"])
    def test_tags_and_patterns(self, app: Flask, browser: Browser, route: str) -> None:
        browser.get("/blog/a")
        app.extensions["text"] = "new"
        browser.post(route)
        assert browser.get("/blog/a").text == "old a"
        browser.isr.close()
        assert browser.get("/blog/a").text == "new a"
        app.extensions["text"] = "newer"
        browser.post(route, data={"expire": "1"})
        assert browser.get("/blog/a").text == "newer a"

    def test_the_hook_of_the_next_js_documentation(self, app: Flask, browser: Browser) -> None:
        assert browser.get("/path-to-revalidate").text == "old"
        app.extensions["text"] = "new"
        for secret in ("", "?secret=", "?secret=wrong", "?secret=%E2%82%AC"):
            answer = browser.get(f"/api/revalidate{secret}")
            assert (answer.status_code, answer.json) == (401, {"message": "Invalid token"})
        assert browser.get("/path-to-revalidate").text == "old"
        answer = browser.get("/api/revalidate", query_string={"secret": TOKEN})
        assert (answer.status_code, answer.json) == (200, {"revalidated": True})
        assert browser.get("/path-to-revalidate").text == "new"

    def test_the_hook_tells_of_a_failure_and_the_old_page_stays(
        self, app: Flask, browser: Browser
    ) -> None:
        browser.get("/path-to-revalidate")
        app.extensions["text"] = "broken"
        answer = browser.get("/api/revalidate", query_string={"secret": TOKEN})
        assert (answer.status_code, answer.text) == (500, "Error revalidating")
        answer = browser.get("/path-to-revalidate")
        assert (answer.text, status_of(answer)) == ("old", "isr; hit; ttl=0")

    def test_behind_a_server_that_knows_the_host(self, app: Flask, browser: Browser) -> None:
        browser.get("/blog/a", base_url="https://www.example.com")
        saved = browser.post("/save/a", data={"text": "x"}, base_url="https://www.example.com")
        assert saved.json == ["https://www.example.com/blog/a"]


class TestOutsideOfARequest:
    def test_a_base_url_tells_the_host(self, app: Flask) -> None:
        flask_browser(app, base_url="https://www.example.com")
        with app.app_context():
            assert revalidate("/blog/a") == [Result("https://www.example.com/blog/a", 200)]

    def test_without_one_a_path_is_an_error(self, app: Flask, browser: Browser) -> None:
        with app.app_context(), pytest.raises(ValueError, match="no host is known"):
            revalidate("/blog/a")

    def test_in_a_test_request_context_its_host_counts(self, app: Flask, browser: Browser) -> None:
        with app.test_request_context(base_url="http://a.example"):
            assert revalidate("/blog/a") == [Result("http://a.example/blog/a", 200)]

    @pytest.mark.parametrize("function", [revalidate, revalidate_tag, invalidate])
    def test_without_an_app_context_is_a_clear_error(self, function: t.Any) -> None:
        with pytest.raises(RuntimeError, match="work in an app context"):
            function("/x")

    @pytest.mark.parametrize("function", [revalidate, revalidate_tag, invalidate])
    def test_in_an_app_without_the_extension_is_a_clear_error(
        self, app: Flask, function: t.Any
    ) -> None:
        with app.app_context(), pytest.raises(RuntimeError, match="this app has no ISR extension"):
            function("/x")


class TestSwitchedOff:
    @pytest.mark.parametrize("key", ["DEBUG", "TESTING"])
    def test_in_debug_mode_and_with_testing_as_they_stand_when_a_request_comes(
        self, app: Flask, browser: Browser, key: str
    ) -> None:
        assert twice(browser, "/blog/a") == (COLD, HIT)
        app.config[key] = True
        app.extensions["text"] = "new"
        answer = browser.get("/blog/a")
        assert (answer.text, status_of(answer)) == ("new a", "isr; fwd=bypass; detail=disabled")
        app.config[key] = False
        assert browser.get("/blog/a").text == "old a"

    @pytest.mark.parametrize("key", ["DEBUG", "TESTING"])
    def test_on_all_the_same_if_it_is_asked_for(self, app: Flask, key: str) -> None:
        app.config[key] = True
        assert twice(flask_browser(app, enabled=True), "/blog/a") == (COLD, HIT)

    def test_off_if_it_is_asked_for(self, app: Flask) -> None:
        app.config["ISR_ENABLED"] = False
        browser = flask_browser(app)
        assert status_of(browser.get("/blog/a")) == "isr; fwd=bypass; detail=disabled"

    def test_views_and_hooks_work_as_without_it(self, app: Flask) -> None:
        browser = flask_browser(app, enabled=False)
        with app.test_request_context():
            assert revalidate("/blog/a") == []
            revalidate_tag("posts")
        answer = browser.get("/blog/a", headers={"Cookie": "a=b"})
        assert answer.text == "old a"
        assert "ISR-Revalidate" not in answer.headers

    def test_the_debug_flag_of_the_app_counts(self, app: Flask, browser: Browser) -> None:
        app.debug = True
        assert status_of(browser.get("/blog/a")) == "isr; fwd=bypass; detail=disabled"


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

    def test_every_argument_of_the_middleware_is_one(self) -> None:
        names = set(inspect.signature(ISRMiddleware).parameters) - {"app"}
        assert names <= {*extension._OPTIONS, *extension._OWN_OPTIONS}

    def test_an_argument_that_does_not_exist_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="ISR has no argument cash"):
            ISR(cash="memory://")

    def test_a_value_that_cannot_work_is_an_error_when_the_app_is_made(self, app: Flask) -> None:
        app.config["ISR_BASE_URL"] = "www.example.com"
        with pytest.raises(ValueError, match="base_url"):
            ISR(app)

    def test_pages_are_files_in_the_instance_folder_by_default(self, app: Flask) -> None:
        browser = flask_browser(app, cache=None)
        browser.get("/blog/a")
        folder = Path(app.instance_path, "isr-cache")
        assert any(path.is_file() for path in folder.rglob("pages/**/*"))
        again = flask_app(Path(app.root_path))
        again.add_url_rule("/blog/<slug>", "post", app.view_functions["post"])
        assert status_of(flask_browser(again, cache=None).get("/blog/a")) == HIT

    def test_a_view_that_is_declared_wins_over_the_rules(self, app: Flask) -> None:
        browser = flask_browser(app, rules={"/**": 7})
        assert twice(browser, "/blog/a") == (COLD, HIT)

    def test_the_test_client_of_the_app_goes_through_it(self, app: Flask, browser: Browser) -> None:
        client = app.test_client()
        client.get("/blog/a")
        assert status_of(client.get("/blog/a")) == HIT


class TestTheExtension:
    def test_may_be_made_before_the_app(self, app: Flask) -> None:
        isr = ISR(cache="memory://")
        isr.init_app(app)
        assert app.extensions["isr"] is isr
        assert twice(Browser(app), "/blog/a") == (COLD, HIT)

    def test_may_be_made_before_the_views(self, tmp_path: Path) -> None:
        app = flask_app(tmp_path)
        browser = flask_browser(app)
        app.get("/")(isr_page(lambda: "home"))
        assert twice(browser, "/") == (COLD, HIT)

    def test_twice_on_an_app_is_an_error(self, app: Flask, browser: Browser) -> None:
        with pytest.raises(RuntimeError, match="registered on this app already"):
            ISR(app)

    def test_serves_two_apps_apart(self, app: Flask, tmp_path: Path) -> None:
        other = flask_app(tmp_path, "other")
        other.get("/blog/<slug>")(isr_page(lambda slug: f"other {slug}"))
        isr = ISR(cache="memory://")
        isr.init_app(app)
        isr.init_app(other)
        one, two = Browser(app), Browser(other)
        assert (one.get("/blog/a").text, two.get("/blog/a").text) == ("old a", "other a")
        app.extensions["text"] = "new"
        with app.test_request_context():
            revalidate("/blog/a")
        assert one.get("/blog/a").text == "new a"
        with other.app_context():
            assert isr.middleware.stats()["renders"] == 1
        with pytest.raises(RuntimeError, match="work in an app context"):
            _ = isr.middleware
