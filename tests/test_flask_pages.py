"""Pages of Flask views while they are rendered: what they see, what they say, what is kept."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from pathlib import Path

import flask
import pytest
from conftest import Browser, Clock, status_of
from flask import Flask, abort, g, request, session
from flasks import COLD, HIT, flask_app, flask_browser, settle, twice

from wsgi_isr import RevalidationError
from wsgi_isr.flask import isr_page, revalidate

HOME = "http://localhost/"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return flask_app(tmp_path)


@pytest.fixture
def browser(app: Flask, clock: Clock) -> t.Iterator[Browser]:
    """A client of the app; views may be added before its first request."""
    browser = flask_browser(app, clock)
    yield browser
    browser.isr.close()


class TestCurrent:
    def test_a_view_may_change_its_window(self, app: Flask, browser: Browser) -> None:
        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            isr_page.current.revalidate = 5
            return "home"

        assert twice(browser, "/") == (COLD, "isr; hit; ttl=5")

    def test_a_view_may_make_its_page_one_on_demand(self, app: Flask, browser: Browser) -> None:
        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            isr_page.current.revalidate = False
            return "home"

        assert twice(browser, "/") == (COLD, HIT)

    def test_a_view_may_add_tags_and_an_expiry(self, app: Flask, browser: Browser) -> None:
        @app.get("/")
        @isr_page(revalidate=60, tags=["a"])
        def home() -> str:
            isr_page.current.tags.add("b")
            isr_page.current.expire = 120
            return "home"

        browser.get("/")
        (page,) = browser.isr.pages()
        assert sorted(page.tags) == ["a", "b"]

    def test_tags_that_were_added_do_not_stay_for_the_next_render(
        self, app: Flask, browser: Browser
    ) -> None:
        @app.get("/<slug>")
        @isr_page(tags=["all"])
        def post(slug: str) -> str:
            isr_page.current.tags.add(slug)
            return slug

        browser.get("/a")
        browser.get("/b")
        assert sorted(sorted(page.tags) for page in browser.isr.pages()) == [
            ["a", "all"],
            ["all", "b"],
        ]

    def test_stays_its_own_when_its_view_calls_that_of_another_page(
        self, app: Flask, browser: Browser
    ) -> None:
        other = app.get("/other")(isr_page(tags=["other"])(lambda: "other"))

        @app.get("/")
        @isr_page(tags=["home"])
        def home() -> t.Any:
            text = other()
            isr_page.current.tags.add("late")
            return text

        browser.get("/")
        (page,) = browser.isr.pages()
        assert sorted(page.tags) == ["home", "late"]

    def test_a_value_that_cannot_work_is_logged_and_not_stored(
        self, app: Flask, browser: Browser, caplog: pytest.LogCaptureFixture
    ) -> None:
        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            isr_page.current.revalidate = 0  # type: ignore[assignment]
            return "home"

        assert browser.get("/").text == "home"
        assert [page.state for page in browser.isr.pages()] == ["failed"]
        (record,) = (it for it in caplog.records if it.levelname == "WARNING")
        assert record.getMessage().startswith(
            "http://localhost/ is not stored (metadata: isr-revalidate: 'revalidate takes whole "
            "seconds, 1 or more, or False, not 0' (this is neither whole seconds, 1 or more, nor "
        )

    @pytest.mark.parametrize("value", ["a,b", "\u2603\n", "x" * 257])
    def test_a_value_that_cannot_work_leaves_a_page_that_is_stored(
        self, app: Flask, browser: Browser, value: str
    ) -> None:
        tags = ["good"]

        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            isr_page.current.tags.update(tags)
            return tags[0]

        browser.get("/")
        tags[0] = value
        with pytest.raises(RevalidationError, match="a tag "):
            browser.isr.revalidate("http://localhost/")
        assert browser.get("/").text == "good"
        (page,) = browser.isr.pages()
        assert page.tags == ("good",) and "a tag " in str(page.last_error)

    def test_a_header_that_the_view_sets_itself_wins(self, app: Flask, browser: Browser) -> None:
        app.get("/")(isr_page(revalidate=60)(lambda: ("home", {"ISR-Revalidate": "7"})))
        assert twice(browser, "/") == (COLD, "isr; hit; ttl=7")

    def test_tells_the_reason_of_the_render(
        self, app: Flask, browser: Browser, clock: Clock
    ) -> None:
        app.get("/")(isr_page(revalidate=10)(lambda: str(isr_page.current.reason)))
        assert browser.get("/").text == "miss"
        clock.advance(10)
        browser.get("/")
        settle(browser)
        assert browser.get("/").text == "stale"
        browser.isr.revalidate("http://localhost/")
        assert browser.get("/").text == "revalidate"

    def test_the_reason_is_none_where_a_visitor_gets_his_own_answer(
        self, app: Flask, browser: Browser
    ) -> None:
        app.config["ISR_ENABLED"] = False
        app.get("/")(isr_page(lambda: str(isr_page.current.reason)))
        assert browser.get("/").text == "None"

    def test_outside_of_such_a_view_is_an_error(self, app: Flask, browser: Browser) -> None:
        with pytest.raises(RuntimeError, match="only while a view with @isr_page runs"):
            _ = isr_page.current
        with app.test_request_context(), pytest.raises(RuntimeError):
            _ = isr_page.current


class TestErrors:
    def test_a_404_of_the_view_is_a_page(self, app: Flask, browser: Browser, clock: Clock) -> None:
        posts: set[str] = set()

        @app.get("/<slug>")
        @isr_page(revalidate=60)
        def post(slug: str) -> str:
            if slug not in posts:
                abort(404)
            return slug

        assert twice(browser, "/a") == (COLD, "isr; hit; ttl=60")
        assert browser.get("/a").status_code == 404
        posts.add("a")
        browser.isr.revalidate(HOME + "a")
        assert browser.get("/a").text == "a"

    def test_what_an_error_handler_makes_of_it_is_the_page(
        self, app: Flask, browser: Browser
    ) -> None:
        app.register_error_handler(404, lambda error: ("nothing here", 404))
        app.get("/")(isr_page(lambda: abort(404)))
        assert twice(browser, "/") == (COLD, HIT)
        assert browser.get("/").text == "nothing here"

    def test_a_404_of_no_view_is_none(self, app: Flask, browser: Browser) -> None:
        assert twice(browser, "/unknown") == ("", "")

    @pytest.mark.parametrize("code", [400, 401, 403, 418, 500, 503])
    def test_other_errors_are_not_stored(self, app: Flask, browser: Browser, code: int) -> None:
        app.get("/")(isr_page(revalidate=60)(lambda: abort(code)))
        assert browser.get("/").status_code == code
        assert [page for page in browser.isr.pages() if page.state != "failed"] == []

    def test_an_exception_is_not_stored_and_the_old_page_stays(
        self, app: Flask, browser: Browser, clock: Clock
    ) -> None:
        healthy = True
        app.get("/")(isr_page(revalidate=60)(lambda: "home" if healthy else 1 / 0))
        browser.get("/")
        healthy = False
        clock.advance(60)
        for _ in range(3):
            answer = browser.get("/")
            assert (answer.status_code, answer.text) == (200, "home")
            settle(browser)

    def test_an_exception_is_named_in_the_list_of_pages_and_on_demand(
        self, app: Flask, browser: Browser
    ) -> None:
        working = [True]

        @app.get("/")
        @isr_page
        def home() -> str:
            if not working:
                raise LookupError("no database")
            return "home"

        browser.get("/")
        working.clear()
        with pytest.raises(RevalidationError) as caught:
            browser.isr.revalidate("http://localhost/")
        told = "500 INTERNAL SERVER ERROR: LookupError: no database"
        assert str(caught.value.failures["http://localhost/"]) == told
        (page,) = browser.isr.pages()
        assert page.last_error == told

    def test_an_exception_on_a_cold_page_is_the_apps_own_error_page(
        self, app: Flask, browser: Browser
    ) -> None:
        app.register_error_handler(500, lambda error: ("sorry", 500))
        app.get("/")(isr_page(revalidate=60)(lambda: 1 / 0))
        answer = browser.get("/")
        assert (answer.status_code, answer.text) == (500, "sorry")
        assert answer.headers["Cache-Control"] == "private, no-store"

    def test_a_redirect_of_the_view_is_a_page(self, app: Flask, browser: Browser) -> None:
        app.get("/old")(isr_page(revalidate=60)(lambda: flask.redirect("http://localhost/new")))
        assert twice(browser, "/old") == (COLD, "isr; hit; ttl=60")
        assert browser.get("/old").location == "http://localhost/new"


class TestTheVisitorsContext:
    """Promise 1: nothing of the request that caused a render is in the page."""

    @pytest.fixture
    def seen(self, app: Flask, browser: Browser) -> Callable[[], str]:
        """The page shows all that it can see of a user."""

        @app.before_request
        def identify() -> None:
            g.user = request.cookies.get("user") or request.headers.get("Authorization")

        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            return repr([g.user, dict(session), dict(request.cookies), request.remote_addr])

        @app.post("/login")
        def login() -> str:
            session["user"] = g.user = "alice"
            revalidate("/")
            assert g.user == session["user"] == "alice"
            assert request.path == "/login"
            return "welcome"

        return lambda: browser.get("/").text

    def test_of_a_cold_page(self, browser: Browser, seen: Callable[[], str]) -> None:
        browser.set_cookie("user", "alice")
        assert seen() == "[None, {}, {}, None]"

    def test_of_a_request_that_revalidates_it(
        self, browser: Browser, seen: Callable[[], str]
    ) -> None:
        assert browser.post("/login").text == "welcome"
        assert seen() == "[None, {}, {}, None]"

    def test_of_a_visitor_who_is_logged_in(
        self, browser: Browser, seen: Callable[[], str], clock: Clock
    ) -> None:
        browser.post("/login")
        clock.advance(60)
        seen()
        settle(browser)
        assert seen() == "[None, {}, {}, None]"

    def test_a_view_that_writes_to_the_session_makes_no_page(
        self, app: Flask, browser: Browser
    ) -> None:
        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            session["visits"] = session.get("visits", 0) + 1
            return f"visit {session['visits']}"

        first, second = browser.get("/"), browser.get("/")
        assert (first.text, second.text) == ("visit 1", "visit 2")
        assert status_of(first) == "isr; fwd=uri-miss; detail=set-cookie"
        assert first.headers["Cache-Control"] == second.headers["Cache-Control"]
        assert second.headers["Cache-Control"] == "private, no-store"

    def test_a_view_that_only_reads_the_session_makes_one(
        self, app: Flask, browser: Browser
    ) -> None:
        """Flask adds ``Vary: Cookie`` then, as it does for flashed messages in a template."""
        template = "{{ get_flashed_messages() }} {{ session.user }}"
        app.get("/")(isr_page(lambda: flask.render_template_string(template)))
        assert twice(browser, "/") == (COLD, HIT)
        assert "Cookie" not in browser.get("/").headers.get("Vary", "")

    def test_a_login_that_is_required_makes_no_page(self, app: Flask, browser: Browser) -> None:
        @app.before_request
        def login() -> t.Any:
            return None if "user" in request.cookies else ("log in first", 401)

        app.get("/")(isr_page(lambda: f"hello {request.cookies['user']}"))
        assert browser.get("/").status_code == 401
        browser.set_cookie("user", "alice")
        answer = browser.get("/")
        assert answer.text == "hello alice"
        assert answer.headers["Cache-Control"] == "private, no-store"

    def test_teardown_runs_once_for_each_render(self, app: Flask, browser: Browser) -> None:
        ended = []
        app.teardown_request(lambda error: ended.append(request.path))
        app.get("/")(isr_page(lambda: "home"))
        browser.get("/")
        browser.get("/")
        assert ended == ["/"]
