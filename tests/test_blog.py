"""The example blog through Flask's test client: one process, the real store on disk."""

from __future__ import annotations

import importlib
import re
import shutil
import sqlite3
import sys
import threading
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

pytest.importorskip("docutils")

EXAMPLE = Path(__file__).parents[1] / "examples" / "flask_blog"
SECRET = "correct horse"


@pytest.fixture(scope="module", autouse=True)
def example() -> t.Iterator[None]:
    """Make the example's package importable, for this module only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        for name in ("BLOG_DATABASE", "BLOG_SECRET", "FLASK_ISR_CACHE"):
            patch.delenv(name, raising=False)
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "blog"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database after the first start of the blog."""
    path = tmp_path_factory.mktemp("blog") / "blog.db"
    module("blog").create_app({"DATABASE": path, "ISR_CACHE": "memory://"})
    return path


@pytest.fixture
def app(filled: Path, tmp_path: Path) -> t.Iterator[Flask]:
    shutil.copy(filled, tmp_path / "blog.db")
    app: Flask = module("blog").create_app(
        {
            "BLOG_SECRET": SECRET,
            "DATABASE": tmp_path / "blog.db",
            "ISR_CACHE": f"file://{tmp_path}/pages",
            "ISR_ENABLED": True,
            "TESTING": True,
        }
    )
    yield app
    with app.app_context():
        app.extensions["isr"].middleware.close()


@pytest.fixture
def visitor(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def editor(app: Flask) -> FlaskClient:
    return app.test_client()


def module(name: str) -> t.Any:
    return importlib.import_module(name)


def form(**fields: str) -> dict[str, str]:
    return {"title": "T", "summary": "S", "body": "B", "tags": "", **fields}


def stamp(response: TestResponse) -> str:
    """When, why and by whom the page was rendered."""
    found = re.search(r"Rendered .* by worker \d+", re.sub("<.*?>", "", response.text))
    assert found
    return found[0]


def headings(response: TestResponse) -> list[str]:
    return re.findall(r"<h2><a [^>]*>(.*?)</a>", response.text)


class TestFirstStart:
    def test_there_is_a_post_for_each_documented_module(self, filled: Path) -> None:
        db = sqlite3.connect(filled)
        rows = dict(db.execute("SELECT slug, summary FROM posts"))
        db.close()
        assert len(rows) >= 200
        assert rows["json"].startswith("JSON (JavaScript Object Notation)")
        assert {"asyncio.tasks", "__future__", "sys"} <= set(rows)
        assert not [slug for slug in rows if slug.startswith(("test", "idlelib"))]

    def test_all_posts_are_valid_text(self, filled: Path) -> None:
        rest = module("blog.rest")
        db = sqlite3.connect(filled)
        bodies = dict(db.execute("SELECT slug, body FROM posts"))
        db.close()
        assert [slug for slug in bodies if rest.complaints(bodies[slug])] == []

    def test_of_several_workers_one_fills_the_database(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stdlib, database = module("blog.stdlib"), module("blog.database")
        calls: list[int] = []

        def one_module() -> list[t.Any]:
            calls.append(1)
            return [stdlib.Module("abc", "Abstract", "", ("language",))]

        def start(app: Flask) -> None:
            barrier.wait()
            database.init_app(app)

        monkeypatch.setattr(stdlib, "documented_modules", one_module)
        barrier = threading.Barrier(4)
        apps = [Flask("blog") for _ in range(4)]
        for app in apps:
            app.config["DATABASE"] = tmp_path / "new" / "blog.db"
        with ThreadPoolExecutor(4) as workers:
            list(workers.map(start, apps))
        assert calls == [1]
        assert len({app.config["SECRET_KEY"] for app in apps} - {None}) == 1

    def test_a_second_start_keeps_what_was_written(self, app: Flask, editor: FlaskClient) -> None:
        editor.post("/edit/json", data=form(title="Kept"))
        again: Flask = module("blog").create_app(
            {"DATABASE": app.config["DATABASE"], "ISR_CACHE": "memory://"}
        )
        assert "Kept" in again.test_client().get("/post/json").text


class TestText:
    def test_markup_is_rendered(self) -> None:
        html = module("blog.rest").render("Some *text* and ``code``.")
        assert "<p>Some <em>text</em> and <span" in html
        assert ">code</span>.</p>" in html

    @pytest.mark.parametrize(
        "text",
        [
            "<script>alert(1)</script>",
            ".. raw:: html\n\n   <script>alert(1)</script>",
            ".. include:: /etc/hostname",
            "`a <javascript:alert(1)>`_",
            "Title\n=\n\n <script>alert(1)</script>",
        ],
    )
    def test_nothing_dangerous_gets_through(self, text: str) -> None:
        html = module("blog.rest").render(text)
        assert "<script" not in html
        assert 'href="javascript' not in html

    def test_a_text_with_errors_is_shown_as_typed(self) -> None:
        html = module("blog.rest").render(".. nonsense::\n\n   <b>")
        assert html == '<pre class="plain">.. nonsense::\n\n   &lt;b&gt;</pre>'

    @pytest.mark.parametrize(
        ("docstring", "rest"),
        [
            ("Usage:\n\n    a = 1\n    b = 2", "Usage::\n\n    a = 1\n    b = 2"),
            ("Usage:\n\na = 1   # one", "Usage::\n\n    a = 1   # one"),
            ("Call f(*args).", "Call f(\\*args)."),
            ("Keep ``*`` and *this*.", "Keep ``*`` and *this*."),
            ("  - one\n  - two", "- one\n- two"),
            ("- one\n      more", "- one\n  more"),
            ("Part\n====\n\nText", "Part\n----\n\nText"),
        ],
    )
    def test_a_docstring_becomes_markup(self, docstring: str, rest: str) -> None:
        assert module("blog.docstring").to_rest(docstring) == rest

    @pytest.mark.parametrize(
        ("name", "is_package", "tags"),
        [
            ("asyncio.tasks", False, ("asyncio", "concurrency")),
            ("asyncio", True, ("asyncio", "concurrency")),
            ("heapq", False, ("data-types",)),
            ("antigravity", False, ("other",)),
        ],
    )
    def test_tags_come_from_the_names(
        self, name: str, is_package: bool, tags: tuple[str, ...]
    ) -> None:
        assert module("blog.stdlib").tags(name, is_package) == tags


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


class TestEditor:
    def test_a_saved_post_is_new_wherever_it_is_shown(
        self, visitor: FlaskClient, editor: FlaskClient
    ) -> None:
        # ``abc`` is on the first page of the index, and nowhere but under ``language``.
        paths = ("/", "/post/abc", "/tag/language")
        for path in paths:
            assert "abc, afresh" not in visitor.get(path).text
        saved = editor.post(
            "/edit/abc",
            data=form(title="abc, afresh", body="Fresh *text*", tags="language"),
            follow_redirects=True,
        )
        assert saved.status_code == 200
        assert "Saved." in saved.text
        for path in paths:
            assert "abc, afresh" in visitor.get(path).text
        post = visitor.get("/post/abc")
        assert "Fresh <em>text</em>" in post.text
        assert "because of a revalidate" in stamp(post)
        assert post.headers["Cache-Status"].startswith("isr; hit")  # nobody waits

    def test_a_changed_tag_is_new_on_both_tag_pages(
        self, visitor: FlaskClient, editor: FlaskClient
    ) -> None:
        assert "abc" in headings(visitor.get("/tag/language"))
        assert visitor.get("/tag/brand-new").status_code == 404
        assert "brand-new" not in visitor.get("/tag").text
        editor.post("/edit/abc", data=form(title="abc", tags="Brand new, brand-new"))
        assert "abc" not in headings(visitor.get("/tag/language"))
        assert headings(visitor.get("/tag/brand-new")) == ["abc"]
        assert "brand-new" in visitor.get("/tag").text

    def test_other_posts_stay_stored(self, visitor: FlaskClient, editor: FlaskClient) -> None:
        before = visitor.get("/post/json").text
        editor.post("/edit/abc", data=form())
        assert visitor.get("/post/json").text == before

    def test_a_404_becomes_a_post_and_again_a_404(
        self, visitor: FlaskClient, editor: FlaskClient
    ) -> None:
        assert visitor.get("/post/my-news").status_code == 404
        assert "My news" not in visitor.get("/").text

        added = editor.post("/new", data=form(title="My news", tags="news"))
        assert added.location == "/edit/my-news"
        assert visitor.get("/post/my-news").status_code == 200
        assert headings(visitor.get("/"))[0] == "My news"
        assert headings(visitor.get("/tag/news")) == ["My news"]

        editor.post("/delete/my-news")
        assert visitor.get("/post/my-news").status_code == 404
        assert "My news" not in visitor.get("/").text
        assert visitor.get("/tag/news").status_code == 404
        assert "deleted" in editor.get("/editor?q=my+news").text

        editor.post("/publish/my-news")
        assert visitor.get("/post/my-news").status_code == 200
        assert headings(visitor.get("/"))[0] == "My news"

    def test_an_address_is_given_once(self, editor: FlaskClient) -> None:
        response = editor.post("/new", data=form(title="Mine", slug="json"))
        assert response.status_code == 400
        assert "There is a post with this address already." in response.text
        assert 'value="Mine"' in response.text  # nothing typed is lost

    @pytest.mark.parametrize("path", ["/new", "/edit/json"])
    def test_a_post_needs_a_title(self, editor: FlaskClient, path: str) -> None:
        response = editor.post(path, data=form(title=" "))
        assert response.status_code == 400
        assert "A post needs a title" in response.text

    def test_the_editor_hears_of_a_text_that_is_not_quite_right(self, editor: FlaskClient) -> None:
        saved = editor.post("/edit/json", data=form(body=".. nonsense::"), follow_redirects=True)
        assert "not quite reStructuredText: line 1: Unknown directive" in saved.text

    def test_a_page_that_cannot_be_rendered_stays_as_it_was(
        self, visitor: FlaskClient, editor: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(text: str) -> str:
            raise RuntimeError("no rendering today")

        before = visitor.get("/post/abc").text
        with monkeypatch.context() as patch:
            patch.setattr(module("blog.pages"), "render", fail)
            saved = editor.post("/edit/abc", data=form(title="Next"), follow_redirects=True)
            assert "the page still shows the previous version" in saved.text
            assert 'value="Next"' in saved.text
            assert visitor.get("/post/abc").text == before
        editor.post("/edit/abc", data=form(title="Next"))
        assert "Next" in visitor.get("/post/abc").text

    @pytest.mark.parametrize(
        "headers",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
        ],
    )
    def test_forms_of_other_sites_are_refused(
        self, editor: FlaskClient, headers: dict[str, str]
    ) -> None:
        response = editor.post("/edit/json", data=form(title="Evil"), headers=headers)
        assert response.status_code == 403
        assert "Evil" not in editor.get("/edit/json").text

    @pytest.mark.parametrize(
        "headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}]
    )
    def test_own_forms_are_taken(self, editor: FlaskClient, headers: dict[str, str]) -> None:
        response = editor.post("/edit/json", data=form(), headers=headers)
        assert response.status_code == 302

    def test_the_editors_pages_are_his_own(self, editor: FlaskClient) -> None:
        for path in ("/editor", "/edit/json", "/new"):
            response = editor.get(path)
            assert "Cache-Status" not in response.headers
            assert response.headers["Cache-Control"] == "private, no-store"

    def test_without_the_library_the_blog_works_the_same(
        self, app: Flask, visitor: FlaskClient, editor: FlaskClient
    ) -> None:
        app.config["ISR_ENABLED"] = False
        assert visitor.get("/post/abc").status_code == 200
        saved = editor.post("/edit/abc", data=form(title="Next"), follow_redirects=True)
        assert "Saved." in saved.text
        assert "Next" in visitor.get("/post/abc").text


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
