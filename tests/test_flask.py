"""``isr_page``: views whose responses are pages."""

from __future__ import annotations

import functools
import typing as t
from collections.abc import Callable
from pathlib import Path

import flask
import pytest
from conftest import Browser
from conftest import Clock
from conftest import status_of
from conftest import strict
from flask import Flask
from flask.views import MethodView
from flask.views import View

from wsgi_isr.flask import ISR
from wsgi_isr.flask import isr_page

COLD = "isr; fwd=uri-miss; stored"
HIT = "isr; hit"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask("site", root_path=str(tmp_path), instance_path=str(tmp_path / "instance"))
    app.secret_key = "not a secret"
    app.wsgi_app = strict(app.wsgi_app)  # type: ignore[method-assign]
    return app


@pytest.fixture
def isr(app: Flask, clock: Clock) -> t.Iterator[ISR]:
    isr = ISR(app, cache="memory://")
    isr.middleware._clock = clock
    yield isr
    isr.middleware.close()


@pytest.fixture
def browser(app: Flask, isr: ISR) -> Browser:
    """A client of the app; views may be added before its first request."""
    browser = Browser(strict(app))
    browser.isr = isr.middleware
    return browser


def twice(browser: Browser, url: str, **kwargs: t.Any) -> tuple[str, str]:
    """What the first and the second visitor are told; both get the same."""
    first, second = browser.get(url, **kwargs), browser.get(url, **kwargs)
    assert (first.status, first.data) == (second.status, second.data)
    assert not [name for name in second.headers.keys() if name.lower().startswith("isr-")]
    return status_of(first), status_of(second)


class TestItsForms:
    def test_bare_it_means_until_it_is_revalidated_on_demand(
        self, app: Flask, browser: Browser, clock: Clock
    ) -> None:
        @app.get("/")
        @isr_page
        def home() -> str:
            return "home"

        assert twice(browser, "/") == (COLD, HIT)
        clock.advance(10**9)
        assert status_of(browser.get("/")) == HIT

    def test_called_without_arguments_it_means_the_same(self, app: Flask, browser: Browser) -> None:
        @app.get("/")
        @isr_page()
        def home() -> str:
            return "home"

        assert twice(browser, "/") == (COLD, HIT)

    def test_with_a_window(self, app: Flask, browser: Browser, clock: Clock) -> None:
        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            return "home"

        assert twice(browser, "/") == (COLD, "isr; hit; ttl=60")
        clock.advance(60)
        assert status_of(browser.get("/")) == "isr; hit; ttl=0"

    def test_with_an_expiry(self, app: Flask, browser: Browser, clock: Clock) -> None:
        @app.get("/")
        @isr_page(revalidate=60, expire=90)
        def home() -> str:
            return "home"

        browser.get("/")
        assert "stale-while-revalidate=30" in browser.get("/").headers["Cache-Control"]
        clock.advance(90)
        assert status_of(browser.get("/")) == "isr; fwd=stale; stored"

    def test_on_a_view_with_url_values(self, app: Flask, browser: Browser) -> None:
        @app.get("/blog/<slug>")
        @isr_page(revalidate=60)
        def post(slug: str) -> str:
            return f"post {slug}"

        assert twice(browser, "/blog/a") == (COLD, "isr; hit; ttl=60")
        assert browser.get("/blog/b").text == "post b"
        assert browser.get("/blog/a").text == "post a"

    def test_on_several_routes_of_a_view(self, app: Flask, browser: Browser) -> None:
        @app.get("/")
        @app.get("/page/<int:number>")
        @isr_page(revalidate=60)
        def index(number: int = 1) -> str:
            return f"page {number}"

        assert browser.get("/page/2").text == "page 2"
        assert twice(browser, "/") == (COLD, "isr; hit; ttl=60")

    def test_in_a_blueprint(self, app: Flask, browser: Browser) -> None:
        blog = flask.Blueprint("blog", __name__, url_prefix="/blog")

        @blog.get("/<slug>")
        @isr_page(revalidate=60)
        def post(slug: str) -> str:
            return slug

        app.register_blueprint(blog)
        assert twice(browser, "/blog/a") == (COLD, "isr; hit; ttl=60")

    def test_among_the_decorators_of_a_method_view(self, app: Flask, browser: Browser) -> None:
        class Post(MethodView):
            decorators = [isr_page(revalidate=60)]

            def get(self, slug: str) -> str:
                return slug

            def post(self, slug: str) -> str:
                return f"saved {slug}"

        app.add_url_rule("/blog/<slug>", view_func=Post.as_view("post"))
        assert twice(browser, "/blog/a") == (COLD, "isr; hit; ttl=60")
        saved = browser.post("/blog/a")
        assert (saved.text, status_of(saved)) == ("saved a", "")
        assert "ISR-Revalidate" not in saved.headers

    def test_among_the_decorators_of_a_plain_view_class(self, app: Flask, browser: Browser) -> None:
        class Home(View):
            decorators = [isr_page]

            def dispatch_request(self) -> str:
                return "home"

        app.add_url_rule("/", view_func=Home.as_view("home"))
        assert twice(browser, "/") == (COLD, HIT)

    def test_on_an_async_view(self, app: Flask, browser: Browser) -> None:
        @app.get("/")
        @isr_page(revalidate=60)
        async def home() -> str:
            return "home"

        assert twice(browser, "/") == (COLD, "isr; hit; ttl=60")

    def test_below_another_decorator(self, app: Flask, browser: Browser) -> None:
        seen = []

        def outer(view: Callable[..., t.Any]) -> Callable[..., t.Any]:
            @functools.wraps(view)
            def wrapper(*args: t.Any, **kwargs: t.Any) -> t.Any:
                seen.append(flask.request.headers.get("User-Agent"))
                return view(*args, **kwargs)

            return wrapper

        @app.get("/")
        @outer
        @isr_page(revalidate=60)
        def home() -> str:
            return "home"

        # It is declared all the same, so not even the first visitor's own request gets there.
        assert twice(browser, "/", headers={"User-Agent": "me"}) == (COLD, "isr; hit; ttl=60")
        assert seen == [None]

    def test_below_a_decorator_that_hides_it_the_response_tells(
        self, app: Flask, browser: Browser
    ) -> None:
        @isr_page(revalidate=60)
        def home() -> str:
            return "home"

        app.add_url_rule("/", "home", lambda: home())
        assert twice(browser, "/") == (COLD, "isr; hit; ttl=60")

    def test_above_another_decorator(self, app: Flask, browser: Browser) -> None:
        def shout(view: Callable[[], str]) -> Callable[[], str]:
            return functools.wraps(view)(lambda: view().upper())

        @app.get("/")
        @isr_page(revalidate=60)
        @shout
        def home() -> str:
            return "home"

        assert twice(browser, "/") == (COLD, "isr; hit; ttl=60")
        assert browser.get("/").text == "HOME"

    def test_leaves_the_view_callable_and_its_name_and_docstring(self) -> None:
        @isr_page(revalidate=60)
        def home() -> str:
            """The home page."""
            return "home"

        assert (home.__name__, home.__doc__) == ("home", "The home page.")

    @pytest.mark.parametrize(
        "result",
        [
            lambda: "text",
            lambda: ("text", 200, {"X-Own": "1"}),
            lambda: {"json": True},
            lambda: [1, 2],
            lambda: flask.Response("response"),
            lambda: flask.Response(iter(["a ", "stream"])),
            lambda: flask.stream_with_context(iter(["a ", "stream"])),
            lambda: flask.render_template_string("{{ request.path }}"),
        ],
    )
    def test_on_whatever_a_view_may_return(
        self, app: Flask, browser: Browser, result: Callable[[], t.Any]
    ) -> None:
        app.get("/")(isr_page(revalidate=60)(lambda: result()))
        assert twice(browser, "/") == (COLD, "isr; hit; ttl=60")

    @pytest.mark.parametrize(
        "options",
        [
            {"revalidate": 0},
            {"revalidate": True},
            {"revalidate": 60, "expire": 59},
            {"revalidate": False, "expire": 60},
            {"tags": ["a,b"]},
            {"vary": {"Cookie": ["a"]}},
            {"fallback": True},
        ],
    )
    def test_with_values_that_cannot_work_it_is_an_error_at_once(
        self, options: dict[str, t.Any]
    ) -> None:
        with pytest.raises(ValueError):
            isr_page(**options)

    @pytest.mark.parametrize("options", [{"tags": "post"}, {"query": "page"}, {"vary": ["a"]}])
    def test_with_a_text_in_place_of_a_list_it_is_an_error_at_once(
        self, options: dict[str, t.Any]
    ) -> None:
        with pytest.raises(TypeError):
            isr_page(**options)

    def test_on_what_is_no_view_it_is_an_error_at_once(self) -> None:
        with pytest.raises(TypeError, match="stands on a view function"):
            isr_page(60)  # type: ignore[call-overload]


class TestTags:
    def test_a_list(self, app: Flask, browser: Browser) -> None:
        app.get("/")(isr_page(tags=["posts", "home"])(lambda: "home"))
        browser.get("/")
        (page,) = browser.isr.pages()
        assert sorted(page.tags) == ["home", "posts"]

    def test_a_function_of_the_urls_values(self, app: Flask, browser: Browser) -> None:
        @app.get("/blog/<slug>")
        @isr_page(tags=lambda slug: [f"post:{slug}"])
        def post(slug: str) -> str:
            return slug

        browser.get("/blog/a")
        browser.get("/blog/b")
        browser.isr.revalidate_tag("post:a")
        assert status_of(browser.get("/blog/a")) == "isr; hit; ttl=0"
        assert status_of(browser.get("/blog/b")) == HIT


class TestKeys:
    def test_declared_parameters_make_pages_and_reach_the_view(
        self, app: Flask, browser: Browser
    ) -> None:
        @app.get("/")
        @isr_page(query=["page"])
        def index() -> str:
            return flask.request.query_string.decode() or "first"

        assert browser.get("/?page=2&utm_source=x").text == "page=2"
        assert browser.get("/?utm_source=y").text == "first"
        assert status_of(browser.get("/?utm_source=z&page=2")) == HIT

    def test_declared_headers_make_pages_and_reach_the_view(
        self, app: Flask, browser: Browser
    ) -> None:
        @app.get("/")
        @isr_page(vary={"Accept-Language": ["en", "de"]})
        def home() -> str:
            return flask.request.headers["Accept-Language"]

        german = browser.get("/", headers={"Accept-Language": "de-AT,de;q=0.9"})
        assert german.text == "de"
        assert "Accept-Language" in german.headers["Vary"]
        assert browser.get("/", headers={"Accept-Language": "fr"}).text == "en"

    def test_external_urls_are_those_of_the_pages_host(self, app: Flask, browser: Browser) -> None:
        app.get("/")(isr_page(lambda: flask.url_for("static", filename="x", _external=True)))
        for host in ("a.example", "b.example"):
            assert browser.get("/", base_url=f"https://{host}").text == f"https://{host}/static/x"


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

    def test_a_value_that_cannot_work_is_logged_and_not_stored(
        self, app: Flask, browser: Browser, caplog: pytest.LogCaptureFixture
    ) -> None:
        @app.get("/")
        @isr_page(revalidate=60)
        def home() -> str:
            isr_page.current.revalidate = 0  # type: ignore[assignment]
            return "home"

        assert browser.get("/").text == "home"
        assert list(browser.isr.pages()) == []
        assert "http://localhost/ is not stored: revalidate takes whole seconds" in caplog.text

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
        browser.isr.close()
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
