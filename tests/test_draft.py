"""Draft mode: a visitor with a signed cookie gets a fresh render, which nobody else ever sees."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Browser, status_of, strict
from flask import Flask, make_response, request
from flasks import COLD, HIT, flask_app, flask_browser, settle
from itsdangerous import URLSafeTimedSerializer

from wsgi_isr.flask import ISR, isr_page
from wsgi_isr.flask.extension import COOKIE, LIFETIME

DRAFT = "isr; fwd=bypass; detail=draft"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    """``/blog/a`` shows a text that tests change, and whether it is a draft."""
    app = flask_app(tmp_path)
    app.extensions["text"] = "published"

    @app.get("/blog/<slug>")
    @isr_page(revalidate=60)
    def post(slug: str) -> str:
        draft = " (draft)" if isr_of(app).is_draft else ""
        return f"{app.extensions['text']}{draft} {request.cookies.get('user')}"

    app.get("/simple")(isr_page(lambda: "a page"))

    @app.get("/plain")
    def plain() -> str:
        return "no page"

    @app.post("/preview")
    def preview() -> t.Any:
        response = make_response("on")
        isr_of(app).enable_draft(response)
        return response

    @app.post("/leave")
    def leave() -> t.Any:
        response = make_response("off")
        isr_of(app).disable_draft(response)
        return response

    return app


def isr_of(app: Flask) -> ISR:
    return t.cast(ISR, app.extensions["isr"])


@pytest.fixture
def visitor(app: Flask) -> Iterator[Browser]:
    browser = flask_browser(app)
    yield browser
    browser.isr.close()


@pytest.fixture
def editor(app: Flask, visitor: Browser) -> Browser:
    """A visitor who is in draft mode; the page was stored before."""
    visitor.get("/blog/a")
    browser = Browser(strict(app))
    assert browser.post("/preview").text == "on"
    browser.set_cookie("user", "ann")
    return browser


class TestDraftMode:
    def test_renders_what_is_not_published_for_the_editor_alone(
        self, app: Flask, editor: Browser, visitor: Browser
    ) -> None:
        for text in ("one", "two"):
            app.extensions["text"] = text
            answer = editor.get("/blog/a")
            assert (answer.text, status_of(answer)) == (f"{text} (draft) ann", DRAFT)
            assert answer.headers.getlist("Cache-Control") == ["private, no-store"]
            assert not [name for name in answer.headers.keys() if name.startswith("ISR")]
        assert visitor.get("/blog/a").text == "published None"

    def test_is_never_stored(self, app: Flask, editor: Browser, visitor: Browser) -> None:
        before = list(visitor.isr.pages())
        editor.get("/blog/a")
        # Of a page that was not there before neither.
        editor.get("/blog/b")
        settle(visitor)
        assert [page.url for page in visitor.isr.pages()] == [page.url for page in before]
        assert status_of(visitor.get("/blog/a")).startswith(HIT)
        assert status_of(visitor.get("/blog/b")) == COLD

    def test_counts_in_no_render_of_a_page(self, editor: Browser, visitor: Browser) -> None:
        # A revalidation that the editor causes shows what visitors see.
        visitor.isr.revalidate("http://localhost/blog/a")
        assert visitor.get("/blog/a").text == "published None"

    def test_leaves_what_is_no_page_as_it_is(self, editor: Browser) -> None:
        answer = editor.get("/plain")
        assert (answer.text, status_of(answer)) == ("no page", "")
        assert "Cache-Control" not in answer.headers

    def test_passes_by_both_fallbacks(self, app: Flask) -> None:
        for name, fallback in {"none": False, "shell": lambda slug: "shell"}.items():
            view = isr_page(fallback=fallback)(lambda slug: f"draft of {slug}")
            app.add_url_rule(f"/{name}/<slug>", name, view)
        editor = flask_browser(app)
        editor.post("/preview")
        for path in ("/none/a", "/shell/a"):
            assert editor.get(path).text == "draft of a"

    def test_ends_when_it_is_disabled(self, editor: Browser) -> None:
        assert status_of(editor.get("/blog/a")) == DRAFT
        assert editor.post("/leave").text == "off"
        answer = editor.get("/blog/a")
        assert answer.text == "published None"
        assert status_of(answer).startswith(HIT)


def signed(key: str, purpose: str, value: t.Any) -> t.Any:
    return URLSafeTimedSerializer(key, salt=purpose).dumps(value)


FORGED: dict[str, Callable[[str], str]] = {
    "a word": lambda value: "draft",
    "nothing": lambda value: "",
    # Not the last character, of whose bits some mean nothing in Base64.
    "another signature": lambda v: v[:-2] + ("A" if v[-2] != "A" else "B") + v[-1],
    "no signature": lambda value: value.partition(".")[0],
    "beyond ASCII": lambda value: "caf\u00e9." + value,
    "another key": lambda value: signed("guessed", "wsgi-isr-draft", "draft"),
    "another purpose": lambda value: signed("not a secret", "x", "draft"),
    "another value": lambda value: signed("not a secret", "wsgi-isr-draft", 1),
}


class TestTheCookie:
    def test_is_out_of_reach_of_scripts_and_other_sites(self, app: Flask, visitor: Browser) -> None:
        cookie = visitor.post("/preview").headers["Set-Cookie"]
        for attribute in ("HttpOnly", "SameSite=Lax", "Path=/", f"Max-Age={LIFETIME}"):
            assert attribute in cookie
        assert "Secure" not in cookie
        cookie = visitor.post("/preview", base_url="https://localhost").headers["Set-Cookie"]
        assert "Secure" in cookie

    @pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
    def test_that_is_forged_makes_an_ordinary_visitor(
        self, editor: Browser, visitor: Browser, forge: Callable[[str], str]
    ) -> None:
        cookie = editor.get_cookie(COOKIE)
        assert cookie is not None
        visitor.set_cookie(COOKIE, forge(cookie.value))
        assert status_of(visitor.get("/blog/a")).startswith(HIT)

    @pytest.mark.parametrize("odd", ["isr_draft=\xff", "isr_draft=\xe9.x.y", 'isr_draft="\\377"'])
    def test_whose_bytes_are_no_text_makes_an_ordinary_visitor(
        self, app: Flask, editor: Browser, odd: str
    ) -> None:
        visitor = Browser(app, use_cookies=False)
        answer = visitor.get("/blog/a", environ_overrides={"HTTP_COOKIE": odd})
        assert status_of(answer).startswith(HIT)

    def test_beside_one_whose_bytes_are_no_text_goes_on(self, app: Flask, editor: Browser) -> None:
        visitor = Browser(app, use_cookies=False)
        cookie = editor.get_cookie(COOKIE)
        assert cookie is not None
        both = f"name=J\xf6rg; {COOKIE}={cookie.value}"
        # This view reads no cookies, which Werkzeug could not read.
        answer = visitor.get("/simple", environ_overrides={"HTTP_COOKIE": both})
        assert status_of(answer) == DRAFT

    def test_that_is_too_old_makes_an_ordinary_visitor(
        self, editor: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = URLSafeTimedSerializer.make_signer

        def later(self: t.Any, salt: t.Any) -> t.Any:
            signer = real(self, salt)
            now = signer.get_timestamp()
            signer.get_timestamp = lambda: now + LIFETIME + 1
            return signer

        assert status_of(editor.get("/blog/a")) == DRAFT
        monkeypatch.setattr(URLSafeTimedSerializer, "make_signer", later)
        answer = editor.get("/blog/a")
        assert answer.text == "published None"
        assert status_of(answer).startswith(HIT)

    @pytest.mark.parametrize("is_still_read", [True, False])
    def test_goes_on_as_long_as_its_key_is_read(
        self, app: Flask, editor: Browser, is_still_read: bool
    ) -> None:
        app.config["SECRET_KEY_FALLBACKS"] = [app.secret_key] if is_still_read else []
        app.secret_key = "a new secret"
        status = status_of(editor.get("/blog/a"))
        assert status == DRAFT if is_still_read else status.startswith(HIT)


class TestWithoutASecretKey:
    def test_it_is_an_error_where_it_is_switched_on(self, app: Flask, visitor: Browser) -> None:
        app.secret_key = None
        with app.test_request_context(), pytest.raises(RuntimeError, match="set app.secret_key"):
            isr_of(app).enable_draft(make_response())

    def test_nobody_is_in_draft_mode(self, app: Flask, editor: Browser) -> None:
        app.secret_key = None
        assert status_of(editor.get("/blog/a")).startswith(HIT)
