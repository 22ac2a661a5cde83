"""The example blog's public pages, and the route of the Next.js documentation."""

from __future__ import annotations

import re
import typing as t

import pytest
from blogs import SECRET, form, headings, module, stamp
from blogs import app as app
from blogs import editor as editor
from blogs import example as example
from blogs import filled as filled
from blogs import visitor as visitor
from browser import LOOKS, faults, serving
from browser import browser as browser
from flask import Flask
from flask.testing import FlaskClient

pytestmark = pytest.mark.usefixtures("example")


class TestPages:
    def test_the_index_has_pages(self, visitor: FlaskClient) -> None:
        first, second = visitor.get("/"), visitor.get("/?page=2")
        assert len(headings(first)) == len(headings(second)) == 20
        assert not set(headings(first)) & set(headings(second))
        assert 'href="/?page=2"' in first.text
        # Each is stored by itself, for the parameter is declared.
        assert visitor.get("/?page=2").text == second.text
        assert visitor.get("/").text == first.text

    def test_an_undeclared_parameter_makes_no_page(self, visitor: FlaskClient) -> None:
        assert visitor.get("/?utm=x").text == visitor.get("/").text

    @pytest.mark.parametrize("page", ["0", "-1", "01", "x", "", "9999", "2" * 5000, "²"])
    def test_a_page_out_of_range_is_not_found(self, visitor: FlaskClient, page: str) -> None:
        assert visitor.get("/", query_string={"page": page}).status_code == 404

    def test_a_post(self, visitor: FlaskClient) -> None:
        response = visitor.get("/post/heapq")
        assert response.status_code == 200
        assert "<h1>heapq</h1>" in response.text
        assert "heappush(heap, item)" in response.text
        assert 'href="/tag/data-types"' in response.text

    def test_a_drawing_is_set_as_code(self, visitor: FlaskClient) -> None:
        text = visitor.get("/post/concurrent.futures.process").text
        assert re.search(
            r"<pre[^>]*>\|=+ In-process =+.*?\| Call Q    \|.*?</pre>", text, re.DOTALL
        )

    def test_a_post_has_a_date_and_neighbours_that_follow_their_titles(
        self, visitor: FlaskClient, editor: FlaskClient
    ) -> None:
        def neighbours(slug: str) -> list[tuple[str, str]]:
            text = visitor.get(f"/post/{slug}").text
            return re.findall(r'rel="(prev|next)" .*</small> (.*?)</a>', text)

        assert re.search(
            r'Published <time datetime="\d{4}-\d\d-\d\d">\d+ \w+ \d{4}<',
            visitor.get("/post/json").text,
        )
        assert neighbours("json") == [("prev", "itertools"), ("next", "json.decoder")]
        assert neighbours("__future__") == [("next", "abc")]
        editor.post("/edit/json.decoder", data=form(title="json.decoder, new"))
        assert neighbours("json") == [("prev", "itertools"), ("next", "json.decoder, new")]
        editor.post("/delete/json.decoder")
        assert neighbours("json") == [("prev", "itertools"), ("next", "json.encoder")]
        editor.post("/new", data=form(title="Zebra"))
        assert neighbours("__future__") == [("prev", "Zebra"), ("next", "abc")]
        assert neighbours("zebra") == [("next", "__future__")]

    def test_a_tag(self, visitor: FlaskClient) -> None:
        assert set(headings(visitor.get("/tag/json"))) >= {"json", "json.tool"}
        assert visitor.get("/tag/encodings?page=2").status_code == 200
        assert visitor.get("/tag/json?page=2").status_code == 404
        assert 'href="/tag/json"' in visitor.get("/tag").text

    @pytest.mark.parametrize(
        ("path", "window"), [("/", 60), ("/post/json", 300), ("/tag/json", 60)]
    )
    def test_a_page_is_rendered_once(self, visitor: FlaskClient, path: str, window: int) -> None:
        miss, hit = visitor.get(path), visitor.get(path)
        assert miss.headers["Cache-Status"] == "isr; fwd=uri-miss; stored"
        assert hit.headers["Cache-Status"].startswith("isr; hit; ttl=")
        assert window - 5 < int(hit.headers["Cache-Status"].split("=")[1]) <= window
        assert "because of a miss" in stamp(miss)
        assert stamp(hit) == stamp(miss)

    def test_says_when_and_why_it_was_rendered(
        self, visitor: FlaskClient, editor: FlaskClient
    ) -> None:
        def box() -> str:
            return re.sub("<.*?>", "", visitor.get("/post/json").text)

        sentence = r"Rendered \d\d:\d\d:\d\d UTC by worker \d+, {}\. Reload: it stays the same\."
        assert re.search(sentence.format("for its first visitor"), box())
        editor.post("/edit/json", data=form())
        assert re.search(sentence.format("after an edit"), box())
        assert "for you alone. Reload: it is rendered again." in visitor.get("/nowhere").text

    def test_links_to_the_status_page_where_there_is_one(
        self, app: Flask, visitor: FlaskClient
    ) -> None:
        link = 'href="/_isr/"'
        assert link in visitor.get("/").text
        assert visitor.get("/_isr/").status_code == 401
        app.config["ISR_SECRET"] = ""
        assert link not in visitor.get("/nowhere").text

    @LOOKS
    @pytest.mark.servers
    def test_is_legible(self, app: Flask, browser: t.Any, width: int, scheme: str) -> None:
        size = {"width": width, "height": 800}
        context = browser.new_context(viewport=size, color_scheme=scheme)
        with serving(app) as address, context:
            page = context.new_page()
            for path in ("/", "/post/concurrent.futures.process", "/tag", "/editor", "/new"):
                page.goto(address + path)
                page.click("summary")
                assert faults(page) == []

    def test_no_page_depends_on_a_cookie(self, visitor: FlaskClient, editor: FlaskClient) -> None:
        editor.post("/edit/json", data=form(title="Mine"))
        for path in ("/", "/post/json", "/post/nothing", "/tag", "/tag/email"):
            response = editor.get(path)
            assert "Set-Cookie" not in response.headers
            assert "Cookie" not in response.headers.get("Vary", "")
            assert "Saved." not in response.text
            assert visitor.get(path).text == response.text

    @pytest.mark.parametrize("path", ["/post/nothing", "/tag/nothing"])
    def test_a_404_is_a_page(self, visitor: FlaskClient, path: str) -> None:
        miss, hit = visitor.get(path), visitor.get(path)
        assert miss.status_code == hit.status_code == 404
        assert hit.headers["Cache-Status"].startswith("isr; hit")
        assert stamp(hit) == stamp(miss)

    @pytest.mark.parametrize("path", ["/nowhere", "/tag/a,b", "/post/UPPER", "/edit/x"])
    def test_other_errors_are_not_stored(self, visitor: FlaskClient, path: str) -> None:
        response = visitor.get(path)
        assert response.status_code == 404
        assert "Cache-Status" not in response.headers
        assert "for this visit alone" in stamp(response)

    def test_no_script_may_run(self, visitor: FlaskClient) -> None:
        policy = visitor.get("/post/json").headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'")


class TestHook:
    @pytest.mark.parametrize("secret", [None, "", "wrong", "ü", SECRET + "x"])
    def test_a_wrong_secret(self, visitor: FlaskClient, secret: str | None) -> None:
        query = {} if secret is None else {"secret": secret}
        response = visitor.get("/api/revalidate", query_string=query)
        assert response.status_code == 401
        assert response.json == {"message": "Invalid token"}

    @pytest.mark.parametrize("secret", ["", "x"])
    def test_no_secret_is_set(self, app: Flask, visitor: FlaskClient, secret: str) -> None:
        app.config["BLOG_SECRET"] = ""
        response = visitor.get("/api/revalidate", query_string={"secret": secret})
        assert response.status_code == 401

    @pytest.mark.parametrize("path", ["/", "/?page=2", "/post/abc", "/post/nothing"])
    def test_a_path_is_rendered_again(self, visitor: FlaskClient, path: str) -> None:
        before = stamp(visitor.get(path))
        query = {"secret": SECRET, "path": path}
        response = visitor.get("/api/revalidate", query_string=query)
        assert response.status_code == 200
        assert response.json == {"revalidated": True}
        after = stamp(visitor.get(path))
        assert after != before
        assert "because of a revalidate" in after

    @pytest.mark.parametrize("path", ["", "post", "//evil.example", "/a/../b"])
    def test_what_is_not_a_path(self, visitor: FlaskClient, path: str) -> None:
        query = {"secret": SECRET, "path": path}
        response = visitor.get("/api/revalidate", query_string=query)
        assert response.status_code == 400
        assert response.json and response.json["message"]

    def test_a_render_that_fails(
        self, visitor: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(text: str) -> str:
            raise RuntimeError("no rendering today")

        before = visitor.get("/post/abc").text
        monkeypatch.setattr(module("blog.pages"), "render", fail)
        query = {"secret": SECRET, "path": "/post/abc"}
        response = visitor.get("/api/revalidate", query_string=query)
        assert response.status_code == 500
        assert response.json == {"message": "Error revalidating"}
        assert visitor.get("/post/abc").text == before
