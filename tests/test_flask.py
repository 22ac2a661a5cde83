"""``isr_page``: views whose responses are pages."""

from __future__ import annotations

import functools
import typing as t
from collections.abc import Callable
from pathlib import Path

import flask
import pytest
from conftest import Browser, Clock, status_of
from flask import Flask
from flask.views import MethodView, View
from flasks import COLD, HIT, flask_app, flask_browser, twice
from werkzeug.routing import BaseConverter

from wsgi_isr.flask import isr_page


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return flask_app(tmp_path)


@pytest.fixture
def browser(app: Flask, clock: Clock) -> t.Iterator[Browser]:
    """A client of the app; views may be added before its first request."""
    browser = flask_browser(app, clock)
    yield browser
    browser.isr.close()


class TestItsForms:
    @pytest.mark.parametrize("decorator", [isr_page, isr_page()], ids=["bare", "called"])
    def test_without_arguments_it_means_until_it_is_revalidated_on_demand(
        self, app: Flask, browser: Browser, clock: Clock, decorator: t.Any
    ) -> None:
        app.get("/")(decorator(lambda: "home"))
        assert twice(browser, "/") == (COLD, HIT)
        clock.advance(10**9)
        assert status_of(browser.get("/")) == HIT

    def test_with_a_window_and_an_expiry(self, app: Flask, browser: Browser, clock: Clock) -> None:
        app.get("/<slug>")(isr_page(revalidate=60, expire=90)(lambda slug: f"post {slug}"))
        assert twice(browser, "/a") == (COLD, "isr; hit; ttl=60")
        assert browser.get("/b").text == "post b"
        clock.advance(60)
        assert status_of(browser.get("/a")) == "isr; hit; ttl=0"
        clock.advance(30)
        assert status_of(browser.get("/b")) == "isr; fwd=stale; stored"

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
        blog.get("/<slug>")(isr_page(revalidate=60)(lambda slug: slug))
        app.register_blueprint(blog)
        assert twice(browser, "/blog/a") == (COLD, "isr; hit; ttl=60")

    def test_with_a_converter_that_needs_the_app(self, app: Flask, browser: Browser) -> None:
        class Slug(BaseConverter):
            def to_python(self, value: str) -> str:
                return f"{value} of {flask.current_app.name}"

        app.url_map.converters["slug"] = Slug
        app.get("/<slug:post>")(isr_page(lambda post: post))
        assert twice(browser, "/a") == (COLD, HIT)
        assert browser.get("/a").text == "a of site"

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
        async def home() -> str:
            return "home"

        app.get("/")(isr_page(revalidate=60)(home))
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
            {"revalidate": False, "expire": 60},
            {"tags": ["a,b"]},
            {"tags": "post"},
            {"query": "page"},
            {"vary": {"Cookie": ["a"]}},
            {"fallback": True},
            {"paths": "/blog/a"},
        ],
    )
    def test_with_values_that_cannot_work_it_is_an_error_at_once(
        self, options: dict[str, t.Any]
    ) -> None:
        with pytest.raises((TypeError, ValueError)):
            isr_page(**options)

    def test_on_what_is_no_view_it_is_an_error_at_once(self) -> None:
        with pytest.raises(TypeError, match=r"as in isr_page\(revalidate=60\)"):
            isr_page(60)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="on a view function, below the route"):
            isr_page(revalidate=60)(60)  # type: ignore[type-var]

    def test_on_a_class_it_is_an_error_at_once(self) -> None:
        class Home(MethodView):
            pass

        with pytest.raises(TypeError, match="among the decorators of the class"):
            isr_page(Home)

    def test_twice_on_a_view_it_is_an_error_at_once(self) -> None:
        with pytest.raises(TypeError, match="stands twice on"):
            isr_page(isr_page(lambda: "home"))


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

    @pytest.mark.parametrize("tags", ["post:a", b"post:a", None, 3])
    def test_a_function_that_returns_no_list_is_an_error_that_names_the_view(
        self, app: Flask, browser: Browser, tags: t.Any
    ) -> None:
        @app.get("/blog/<slug>")
        @isr_page(tags=lambda slug: tags)
        def post(slug: str) -> str:
            return slug

        app.testing = app.config["ISR_ENABLED"] = True
        with pytest.raises(TypeError, match=f"tags of .*post takes a list.*, not {tags!r}"):
            browser.get("/blog/a")


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
