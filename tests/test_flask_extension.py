"""``ISR``: the extension of an app, its configuration, and revalidation in route handlers."""

from __future__ import annotations

import functools
import inspect
import secrets
import typing as t
from pathlib import Path

import pytest
from conftest import Browser, status_of
from flask import Flask, request, url_for
from flasks import COLD, HIT, flask_app, flask_browser, settle, twice
from werkzeug.middleware.proxy_fix import ProxyFix

from wsgi_isr import ISRMiddleware, Result, RevalidationError, Rule
from wsgi_isr.flask import ISR, invalidate, isr_page, pages, revalidate, revalidate_tag

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
        settle(browser)
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

    @pytest.mark.parametrize("base_url", [None, "http://localhost"])
    def test_the_config_says_where_pages_are_as_it_does_for_url_for(
        self, app: Flask, base_url: str | None
    ) -> None:
        app.config.update(
            SERVER_NAME="www.example.com",
            PREFERRED_URL_SCHEME="https",
            APPLICATION_ROOT="/site",
            ISR_BASE_URL=base_url,
        )
        browser = flask_browser(app)
        host = base_url or "https://www.example.com"
        browser.get("/blog/a", base_url=f"{host}/site")
        app.extensions["text"] = "new"
        with app.app_context():
            assert revalidate(url_for("post", slug="a", _external=False)) == [
                Result(f"{host}/site/blog/a", 200)
            ]
            with pytest.raises(ValueError, match="not under the mount point '/site'"):
                revalidate("/blog/a")
        assert browser.get("/blog/a", base_url=f"{host}/site").text == "new a"

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

    def test_views_and_hooks_work_as_without_it(self, app: Flask) -> None:
        browser = flask_browser(app, enabled=False)
        with app.test_request_context():
            assert revalidate("/blog/a") == []
            revalidate_tag("posts")
        answer = browser.get("/blog/a", headers={"Cookie": "a=b"})
        assert answer.text == "old a"
        assert "ISR-Revalidate" not in answer.headers


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


class TestMistakes:
    """What the site can go on with is a warning at the first request."""

    def log_of(self, app: Flask, caplog: pytest.LogCaptureFixture, path: str = "/blog/a") -> str:
        ISR(app, cache="memory://")
        for _ in range(2):
            Browser(app).get(path)
        return caplog.text

    def test_isr_page_above_the_route(self, app: Flask, caplog: pytest.LogCaptureFixture) -> None:
        @isr_page
        @app.get("/home")
        def home() -> str:
            return "home"

        text = self.log_of(app, caplog)
        assert text.count("@isr_page of 'home' has no effect, because it stands above") == 1

    def test_isr_page_without_get(self, app: Flask, caplog: pytest.LogCaptureFixture) -> None:
        app.post("/save", endpoint="save")(isr_page(lambda: "saved"))
        assert "@isr_page of 'save' has no effect: pages are answers to GET" in self.log_of(
            app, caplog
        )

    def test_proxy_fix_inside(self, app: Flask, caplog: pytest.LogCaptureFixture) -> None:
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
        assert "ProxyFix is inside of ISR(app)" in self.log_of(app, caplog)

    def test_proxy_fix_inside_is_right_with_a_base_url(
        self, app: Flask, caplog: pytest.LogCaptureFixture
    ) -> None:
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
        app.config["ISR_BASE_URL"] = "https://www.example.com"
        assert self.log_of(app, caplog) == ""

    def test_proxy_fix_outside_is_right(self, app: Flask, caplog: pytest.LogCaptureFixture) -> None:
        ISR(app, cache="memory://")
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
        answer = Browser(app).get("/blog/a", headers={"X-Forwarded-Proto": "https"})
        assert status_of(answer) == COLD
        assert caplog.text == ""

    def test_no_extension(
        self, app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages, "_warn_once", functools.cache(pages._warn_once.__wrapped__))
        for _ in range(2):
            Browser(app).get("/blog/a")
        assert caplog.text.count("the app has no extension, call ISR(app)") == 1

    def test_a_middleware_around_the_app_is_right(
        self, app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages, "_warn_once", functools.cache(pages._warn_once.__wrapped__))
        browser = Browser(ISRMiddleware(app, "memory://"))
        assert twice(browser, "/blog/a") == (COLD, HIT)
        assert caplog.text == ""

    def test_a_list_of_paths(self, app: Flask, browser: Browser) -> None:
        with app.test_request_context():
            with pytest.raises(ValueError, match=r"revalidate\(\*paths\)"):
                revalidate(["/blog/a"])  # type: ignore[arg-type]


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
