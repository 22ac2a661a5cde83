"""The example blog's editor: what is saved is new wherever it is shown, and for everybody."""

from __future__ import annotations

import pytest
from blogs import app as app
from blogs import editor as editor
from blogs import example as example
from blogs import filled as filled
from blogs import form, headings, module, stamp
from blogs import visitor as visitor
from flask import Flask
from flask.testing import FlaskClient

pytestmark = pytest.mark.usefixtures("example")


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
        assert "not published" in editor.get("/editor?q=my+news").text

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


class TestPreview:
    def test_is_seen_by_the_editor_alone(self, visitor: FlaskClient, editor: FlaskClient) -> None:
        before = visitor.get("/post/abc").text
        shown = editor.post(
            "/edit/abc",
            data=form(title="Next", body="Soon *here*", preview="1"),
            follow_redirects=True,
        )
        assert shown.request.path == "/post/abc"
        assert "Soon <em>here</em>" in shown.text
        assert "Leave preview" in shown.text
        assert shown.headers["Cache-Status"] == "isr; fwd=bypass; detail=draft"
        assert shown.headers["Cache-Control"] == "private, no-store"
        assert "for this visit alone" in stamp(shown)
        assert visitor.get("/post/abc").text == before

    def test_of_a_new_post_is_a_404_for_others(
        self, visitor: FlaskClient, editor: FlaskClient
    ) -> None:
        shown = editor.post("/new", data=form(title="My news", preview="1"), follow_redirects=True)
        assert "<h1>My news</h1>" in shown.text
        assert visitor.get("/post/my-news").status_code == 404
        assert "My news" not in visitor.get("/").text
        editor.post("/publish/my-news", data=form(title="My news!"))
        assert "<h1>My news!</h1>" in visitor.get("/post/my-news").text

    def test_ends_when_the_editor_leaves_it(
        self, visitor: FlaskClient, editor: FlaskClient
    ) -> None:
        editor.post("/edit/abc", data=form(title="Next", preview="1"))
        editor.post("/preview/leave")
        response = editor.get("/post/abc")
        assert response.text == visitor.get("/post/abc").text
        assert "Next" not in response.text

    def test_goes_on_in_the_form_until_it_is_saved(
        self, visitor: FlaskClient, editor: FlaskClient
    ) -> None:
        editor.post("/edit/abc", data=form(title="Next", tags="one, two", preview="1"))
        draft = editor.get("/edit/abc").text
        assert 'value="Next"' in draft and 'value="one, two"' in draft and "A draft" in draft
        editor.post("/edit/abc", data=form(title="Next"))
        assert "A draft" not in editor.get("/edit/abc").text
        assert "<h1>Next</h1>" in visitor.get("/post/abc").text

    def test_is_gone_when_it_is_discarded(self, editor: FlaskClient) -> None:
        editor.post("/edit/abc", data=form(title="Next", preview="1"))
        editor.post("/discard/abc")
        assert "<h1>abc</h1>" in editor.get("/post/abc").text
        assert "A draft" not in editor.get("/edit/abc").text

    def test_of_a_post_that_does_not_exist_is_not_found(self, editor: FlaskClient) -> None:
        assert editor.post("/edit/nothing", data=form(preview="1")).status_code == 404
