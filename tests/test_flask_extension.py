"""``ISR``: the extension of an app, and revalidation in route handlers."""

from __future__ import annotations

import functools
import secrets
import threading
import typing as t
from pathlib import Path

import pytest
from conftest import Browser, status_of
from flask import Flask, request, url_for
from flasks import COLD, HIT, blog_app, flask_app, flask_browser, settle, twice
from werkzeug.middleware.proxy_fix import ProxyFix

from wsgi_isr import ISRMiddleware, Result, RevalidationError
from wsgi_isr.flask import ISR, invalidate, isr_page, pages, revalidate, revalidate_tag

TOKEN = "correct horse battery staple"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return blog_app(tmp_path)


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

    def test_leaves_the_route_what_it_has_in_its_thread(self, app: Flask, browser: Browser) -> None:
        """Such as a session of SQLAlchemy, which ``teardown_appcontext`` removes."""
        session = threading.local()

        @app.teardown_appcontext
        def remove(error: BaseException | None) -> None:
            session.__dict__.clear()

        @app.post("/session")
        def work() -> str:
            session.post = "a post"
            revalidate("/blog/a", "/blog/b")
            revalidate_tag("posts")
            return str(session.post)

        assert browser.post("/session").text == "a post"

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
