"""What is prerendered of a Flask app: generators in the vocabulary of Frozen-Flask."""

from __future__ import annotations

import typing as t
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Blueprint, Flask, request, url_for
from flasks import flask_app, flask_browser

from wsgi_isr.flask import ISR, isr_page


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    """A page with a URL value, ``post``."""
    app = flask_app(tmp_path)
    app.get("/blog/<slug>", endpoint="post")(isr_page(lambda slug: slug))
    return app


@pytest.fixture
def isr(app: Flask) -> ISR:
    return ISR(app, cache="memory://", base_url="http://localhost")


def paths(app: Flask, isr: ISR) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return list(isr.prerender_paths(app))


class TestAGenerator:
    @pytest.mark.parametrize(
        ("items", "expected"),
        [
            ([{"slug": "a"}, {"slug": "h\u00e9"}], ["/blog/a", "/blog/h%C3%A9"]),
            ([("post", {"slug": "a"}), ("index", {})], ["/blog/a", "/index"]),
            # With the time of the last change.
            ([("post", {"slug": "a"}, 1700000000.0)], ["/blog/a"]),
            (["/blog/a", "/elsewhere"], ["/blog/a", "/elsewhere"]),
        ],
    )
    @pytest.mark.parametrize("lazy", [True, False])
    def test_has_a_vocabulary_and_its_name_is_the_endpoint(
        self, app: Flask, isr: ISR, items: list[t.Any], expected: list[str], lazy: bool
    ) -> None:
        app.get("/index", endpoint="index")(lambda: "no page")

        @isr.paths
        def post() -> t.Iterable[t.Any]:
            return iter(items) if lazy else items

        assert paths(app, isr) == expected

    def test_may_build_urls(self, app: Flask, isr: ISR) -> None:
        isr.paths(lambda: [url_for("post", slug="b")])
        assert paths(app, isr) == ["/blog/b"]

    def test_runs_in_a_request_of_its_own(self, app: Flask, isr: ISR) -> None:
        @isr.paths
        def all_posts() -> Iterator[str]:
            yield f"/blog/{request.method}"

        assert paths(app, isr) == ["/blog/GET"]

    def test_yields_what_others_did_and_it_counts_once(self, app: Flask, isr: ISR) -> None:
        @isr.paths
        def post() -> Iterator[dict[str, str]]:
            yield {"slug": "a"}
            yield {"slug": "a"}

        @isr.paths
        def others() -> Iterator[str]:
            yield "/blog/a"

        assert paths(app, isr) == ["/blog/a"]

    @pytest.mark.parametrize("item", [1, None, ("post",), ("post", "a"), ("post", {}, 1, 2)])
    def test_that_yields_something_else_is_an_error(
        self, app: Flask, isr: ISR, item: t.Any
    ) -> None:
        isr.paths(lambda: [item])
        with pytest.raises(TypeError, match="a generator yields paths, dicts of URL values or"):
            paths(app, isr)

    def test_of_frozen_flask_works_as_it_is(self, app: Flask, isr: ISR) -> None:
        freezer = isr

        @freezer.register_generator
        def post() -> Iterator[dict[str, str]]:
            yield {"slug": "a"}

        assert paths(app, isr) == ["/blog/a"]

    def test_leaves_the_request_that_asks_for_them_as_it_is(self, app: Flask) -> None:
        @app.get("/first")
        def first() -> str:
            for path in isr.prerender_paths(app):
                return f"{request.path} {path}"
            return ""

        browser = flask_browser(app)
        isr: ISR = app.extensions["isr"]
        isr.paths(lambda: ["/blog/a", "/blog/b"])
        assert browser.get("/first").text == "/first /blog/a"


class TestAView:
    def test_without_url_values_is_found_by_itself(self, app: Flask, isr: ISR) -> None:
        app.get("/")(isr_page(lambda: "home"))
        app.get("/archive/", defaults={"page": 1}, endpoint="archive")(isr_page(lambda page: "x"))
        assert paths(app, isr) == ["/", "/archive/"]

    def test_that_is_no_page_is_not(self, app: Flask, isr: ISR) -> None:
        app.get("/about")(lambda: "no page")
        app.post("/save", endpoint="save")(isr_page(lambda: "not for GET"))
        assert paths(app, isr) == []

    def test_may_have_its_paths_beside_it(self, app: Flask, isr: ISR) -> None:
        def slugs() -> Iterator[dict[str, str]]:
            yield {"slug": "a"}

        app.get("/one/<slug>", endpoint="one")(isr_page(paths=slugs)(lambda slug: slug))
        app.get("/two/<slug>", endpoint="two")(
            isr_page(paths=["/two/a", {"slug": "b"}])(lambda slug: slug)
        )
        assert paths(app, isr) == ["/one/a", "/two/a", "/two/b"]

    def test_may_have_paths_that_can_be_read_but_once(self, app: Flask, isr: ISR) -> None:
        app.get("/one/<slug>", endpoint="one")(
            isr_page(paths=({"slug": slug} for slug in "ab"))(lambda slug: slug)
        )
        assert paths(app, isr) == paths(app, isr) == ["/one/a", "/one/b"]

    def test_in_a_blueprint(self, app: Flask, isr: ISR) -> None:
        shop = Blueprint("shop", __name__, url_prefix="/shop")
        shop.get("/")(isr_page(lambda: "shop"))
        shop.get("/<name>", endpoint="item")(
            isr_page(paths=lambda: [{"name": "hat"}])(lambda name: name)
        )
        app.register_blueprint(shop)
        assert paths(app, isr) == ["/shop/", "/shop/hat"]


class TestACoverThatIsMissing:
    def test_is_a_warning_that_names_the_page(self, app: Flask, isr: ISR) -> None:
        with pytest.warns(UserWarning, match="no generator covers the page 'post'"):
            list(isr.prerender_paths(app))

    @pytest.mark.parametrize("item", [{"slug": "a"}, ("post", {"slug": "a"}), "/blog/a"])
    def test_is_none_where_a_generator_yields_one_of_its_paths(
        self, app: Flask, isr: ISR, item: t.Any
    ) -> None:
        def post() -> list[t.Any]:
            return [item]

        isr.paths(post)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(isr.prerender_paths(app)) == ["/blog/a"]

    def test_is_none_where_there_are_no_posts_yet(self, app: Flask, isr: ISR) -> None:
        @isr.paths
        def post() -> list[dict[str, str]]:
            return []

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(isr.prerender_paths(app)) == []


class TestPrerendering:
    def test_makes_hits_of_first_visits(self, app: Flask) -> None:
        browser = flask_browser(app, base_url="http://localhost")
        isr: ISR = app.extensions["isr"]
        isr.paths(lambda: ["/blog/a", "/blog/b"])
        results = list(browser.isr.prerender(paths(app, isr)))
        assert [result.outcome for result in results] == ["rendered", "rendered"]
        assert browser.get("/blog/b").headers["Cache-Status"] == "isr; hit"

    def test_a_second_time_renders_what_is_stale_only(self, app: Flask) -> None:
        browser = flask_browser(app, base_url="http://localhost")
        list(browser.isr.prerender(["/blog/a", "/blog/b"]))
        browser.isr.invalidate("/blog/b")
        again = {
            result.url[-1]: result.outcome
            for result in browser.isr.prerender(["/blog/a", "/blog/b"])
        }
        assert again == {"a": "skipped", "b": "rendered"}


class TestUnderAMountPoint:
    """`APPLICATION_ROOT` is what `flask.url_for` goes by outside of a request, or the base URL."""

    @pytest.fixture(params=["APPLICATION_ROOT", "base_url"])
    def isr(self, app: Flask, request: pytest.FixtureRequest) -> ISR:
        if request.param == "base_url":
            return ISR(app, cache="memory://", base_url="https://www.example.com/site")
        app.config["APPLICATION_ROOT"] = "/site"
        return ISR(app, cache="memory://", base_url="http://localhost")

    @pytest.mark.parametrize("item", [{"slug": "a"}, "/site/blog/a"])
    def test_paths_have_it_and_cover_their_page(self, app: Flask, isr: ISR, item: t.Any) -> None:
        def post() -> list[t.Any]:
            return [item]

        if isinstance(item, str):
            post.__name__ = "by_path"
        isr.paths(post)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(isr.prerender_paths(app)) == ["/site/blog/a"]

    def test_what_is_listed_by_its_path_is_no_404(self, app: Flask) -> None:
        app.config["APPLICATION_ROOT"] = "/site"
        view = isr_page(paths=["/site/only/a"], fallback=False)(lambda slug: slug)
        app.add_url_rule("/only/<slug>", "only", view)
        browser = flask_browser(app)
        mounted = {"base_url": "http://localhost/site"}
        assert browser.get("/only/a", **mounted).status_code == 200
        assert browser.get("/only/b", **mounted).status_code == 404

    def test_what_a_base_url_says_is_what_url_for_says(self, app: Flask) -> None:
        def only() -> Iterator[str]:
            yield url_for("only", slug="a", _external=True)

        view = isr_page(paths=only, fallback=False)(lambda slug: slug)
        app.add_url_rule("/only/<slug>", "only", view)
        browser = flask_browser(app, base_url="https://www.example.com/site")
        assert browser.get("/only/a").status_code == 200
        assert browser.get("/only/b").status_code == 404

    def test_so_does_a_command(self, app: Flask) -> None:
        app.get("/")(isr_page(lambda: "home"))
        ISR(app)
        command = ["isr", "prerender", "--base-url", "http://localhost/site"]
        assert (
            "rendered 200 http://localhost/site/"
            in app.test_cli_runner().invoke(args=command).output
        )
