"""``POST /_isr/revalidate``: what a CMS calls when something was published."""

from __future__ import annotations

import io
import json
import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Browser, status_of
from flask import Flask
from flasks import blog_app, flask_app, flask_browser

from wsgi_isr.flask import isr_page
from wsgi_isr.route import MAX_LENGTH, MAX_NAMES
from wsgi_isr.store.protocol import StoreError

SECRET = "correct horse battery staple"
URL = "/_isr/revalidate"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return blog_app(tmp_path)


@pytest.fixture
def browser(app: Flask) -> Iterator[Browser]:
    """A visitor of an app whose two pages are stored; the text is a new one by now."""
    browser = flask_browser(app, secret=SECRET)
    browser.get("/blog/a")
    browser.get("/blog/b")
    app.extensions["text"] = "new"
    yield browser
    browser.isr.close()


def call(browser: Browser, token: str | None = SECRET, **body: t.Any) -> t.Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return browser.post(URL, json=body, headers=headers)


class TestACall:
    def test_renders_paths_and_says_what_happened_to_each(self, browser: Browser) -> None:
        answer = call(browser, paths=["/blog/a", "/blog/c"])
        assert answer.status_code == 200
        assert answer.json == {
            "revalidated": True,
            "results": [
                {
                    "path": path,
                    "url": f"http://localhost{path}",
                    "status": 200,
                    "error": None,
                    "outcome": "rendered",
                }
                for path in ("/blog/a", "/blog/c")
            ],
            "failures": {},
        }
        assert browser.get("/blog/a").text == "new a"
        assert browser.get("/blog/b").text == "old b"

    @pytest.mark.parametrize("body", [{"tags": ["posts"]}, {"patterns": ["/blog/*"]}])
    def test_invalidates_tags_and_patterns_and_renders_nothing(
        self, browser: Browser, body: dict[str, list[str]]
    ) -> None:
        renders = browser.isr.stats()["renders"]
        answer = call(browser, **body)
        assert answer.json == {"revalidated": True, "results": [], "failures": {}}
        assert browser.isr.stats()["renders"] == renders
        assert {page.state for page in browser.isr.pages()} == {"stale"}

    def test_may_render_several_at_a_time(self, app: Flask, browser: Browser) -> None:
        barrier = threading.Barrier(3)
        app.view_functions["post"] = isr_page(lambda slug: str(barrier.wait(10)))
        paths = ["/blog/a", "/blog/b", "/blog/c"]
        assert call(browser, paths=paths, workers=3).status_code == 200

    def test_may_have_the_next_visitor_wait(self, browser: Browser) -> None:
        call(browser, tags=["posts"], expire=True)
        assert browser.get("/blog/a").text == "new a"

    def test_invalidates_before_it_renders(self, browser: Browser) -> None:
        call(browser, tags=["posts"], paths=["/blog/a"])
        states = {page.url[-1]: page.state for page in browser.isr.pages()}
        assert states == {"a": "fresh", "b": "stale"}

    def test_that_fails_says_which_and_why_and_the_old_pages_stay(
        self, app: Flask, browser: Browser
    ) -> None:
        app.extensions["text"] = "broken"
        answer = call(browser, paths=["/blog/a"])
        assert answer.status_code == 500
        assert answer.json["revalidated"] is False
        assert list(answer.json["failures"]) == ["/blog/a"]
        (result,) = answer.json["results"]
        assert (result["path"], result["status"]) == ("/blog/a", 500)
        assert "500" in result["error"]
        assert browser.get("/blog/a").text == "old a"

    def test_that_the_store_does_not_take_says_so(
        self, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: t.Any) -> t.NoReturn:
            raise StoreError("disk full")

        monkeypatch.setattr(browser.isr.store, "invalidate", fail)
        answer = call(browser, tags=["posts"], paths=["/blog/a"])
        assert answer.status_code == 500
        assert set(answer.json["failures"]) == {"posts", "/blog/a"}

    def test_while_the_library_is_off_invalidates_and_renders_nothing(
        self, app: Flask, browser: Browser
    ) -> None:
        app.config["ISR_ENABLED"] = False
        assert call(browser, paths=["/blog/a"]).json["revalidated"] is True
        app.config["ISR_ENABLED"] = True
        assert status_of(browser.get("/blog/a")) == "isr; hit; ttl=0"


class TestTheToken:
    WRONG: t.ClassVar = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {SECRET}x"},
        {"Authorization": f"Bearer {SECRET[:-1]}"},
        {"Authorization": SECRET},
        {"Authorization": f"Basic {SECRET}"},
        {"Authorization": "Bearer caf\u00e9"},
        {"Authorization": "Bearer \u00ff\u00fe"},
        {"X-Secret": SECRET},
    ]

    def test_every_wrong_one_gets_the_same_answer(self, browser: Browser) -> None:
        answers = set()
        for headers in self.WRONG:
            for body in (b'{"paths": ["/blog/a"]}', b"no JSON", b"x" * (MAX_LENGTH + 1)):
                answer = browser.post(URL, data=body, headers=headers)
                answers.add((answer.status, answer.data, tuple(sorted(answer.headers.items()))))
        ((status, data, headers_sent),) = answers
        assert status == "401 UNAUTHORIZED"
        assert json.loads(data) == {"error": "unauthorized"}
        assert ("WWW-Authenticate", "Bearer") in headers_sent
        assert browser.get("/blog/a").text == "old a"

    def test_in_the_query_or_the_body_counts_for_nothing(self, browser: Browser) -> None:
        body = {"paths": ["/blog/a"], "secret": SECRET, "token": SECRET}
        answer = browser.post(f"{URL}?secret={SECRET}&token={SECRET}", json=body)
        assert answer.status_code == 401

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_has_a_scheme_in_whatever_case(self, browser: Browser, scheme: str) -> None:
        headers = {"Authorization": f"{scheme} {SECRET}"}
        assert browser.post(URL, json={"tags": ["posts"]}, headers=headers).status_code == 200

    @pytest.mark.parametrize("secret", ["pässwörd €", "pässwörd €".encode(), b"plain bytes"])
    def test_may_be_any_bytes(self, app: Flask, secret: str | bytes) -> None:
        browser = flask_browser(app, secret=secret)
        sent = secret.encode() if isinstance(secret, str) else secret
        # Bytes of a header are latin-1 in WSGI.
        token = sent.decode("latin-1")
        assert call(browser, token, tags=["posts"]).status_code == 200
        assert call(browser, token + "x", tags=["posts"]).status_code == 401

    @pytest.mark.parametrize("secret", [None, "", b""])
    def test_that_is_not_set_means_no_route(self, app: Flask, secret: t.Any) -> None:
        browser = flask_browser(app, secret=secret)
        assert call(browser, "", tags=["posts"]).status_code == 404

    def test_that_is_neither_text_nor_bytes_is_an_error(self, app: Flask) -> None:
        app.config["ISR_SECRET"] = 123
        with pytest.raises(TypeError, match="secret takes a string or bytes"):
            flask_browser(app)

    def test_that_can_be_guessed_is_a_warning(
        self, app: Flask, caplog: pytest.LogCaptureFixture
    ) -> None:
        flask_browser(app, secret="fifteen letters")
        assert "ISR_SECRET) has fewer than 16 characters" in caplog.text
        caplog.clear()
        flask_browser(flask_app(Path(app.root_path)), secret="sixteen letters.")
        assert caplog.text == ""


class TestABodyThatWillNotDo:
    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"", "the body is a JSON object"),
            (b"paths=/blog/a", "the body is a JSON object"),
            (b'["/blog/a"]', "the body is a JSON object"),
            (b"\xff\xfe", "the body is a JSON object"),
            (b"[" * 100_000, "the body is a JSON object"),
            (b"{}", "name at least one of paths, tags, patterns"),
            (b'{"paths": []}', "name at least one of paths, tags, patterns"),
            # What is right beside a mistake is not done either.
            (
                b'{"tags": ["posts"], "path": ["/blog/a"]}',
                "unknown: path; there are paths, tags, patterns",
            ),
            (b'{"tags": ["posts"], "paths": "/blog/a"}', "paths is a list of strings"),
            (b'{"tags": ["posts", 1]}', "tags is a list of strings"),
            (b'{"tags": ["posts"], "patterns": null}', "patterns is a list of strings"),
            (b'{"tags": ["posts"], "expire": 1}', "expire is true or false"),
            (b'{"tags": ["posts"], "workers": 0}', "workers is a whole number from 1 to 16"),
            (b'{"tags": ["posts"], "workers": 17}', "workers is a whole number from 1 to 16"),
            (b'{"tags": ["posts"], "workers": true}', "workers is a whole number from 1 to 16"),
            (b'{"tags": ["posts"], "paths": ["blog"]}', "a path starts with /"),
            (b'{"tags": ["posts"], "paths": ["//evil"]}', "has //"),
            (
                b'{"tags": ["posts"], "paths": ["http://other.example/"]}',
                "on a host that has no pages",
            ),
            (b'{"tags": ["posts"], "paths": ["/excluded"]}', "a rule of None excludes it"),
            (b'{"tags": ["posts", "a,b"]}', "a,b"),
            (b'{"tags": ["posts"], "patterns": ["blog/*"]}', "blog/*"),
        ],
    )
    def test_is_told_and_nothing_is_done(self, app: Flask, body: bytes, message: str) -> None:
        rules = {"/excluded": None}
        browser = flask_browser(app, secret=SECRET, trusted_hosts=["localhost"], rules=rules)
        browser.get("/blog/a")
        headers = {"Authorization": f"Bearer {SECRET}"}
        answer = browser.post(URL, data=body, headers=headers)
        assert answer.status_code == 400
        assert answer.content_type == "application/json"
        assert message in answer.json["error"]
        assert {page.state for page in browser.isr.pages()} == {"fresh"}

    def test_with_too_many_names(self, browser: Browser) -> None:
        answer = call(browser, tags=["t"] * (MAX_NAMES + 1))
        assert answer.status_code == 400
        assert answer.json == {"error": f"tags has at most {MAX_NAMES} items"}

    @pytest.mark.parametrize("length", [None, MAX_LENGTH + 1])
    def test_that_is_too_large_is_not_read_to_its_end(
        self, browser: Browser, length: int | None
    ) -> None:
        stream = io.BytesIO(b" " * 4 * MAX_LENGTH)
        environ = {"wsgi.input_terminated": True} if length is None else {}
        answer = browser.post(
            URL,
            input_stream=stream,
            content_length=length,
            headers={"Authorization": f"Bearer {SECRET}"},
            environ_overrides=environ,
        )
        assert answer.status_code == 413
        assert answer.json == {"error": f"the body has at most {MAX_LENGTH} bytes"}
        assert stream.tell() < 2 * MAX_LENGTH


class TestThePrefix:
    def test_may_be_another(self, app: Flask) -> None:
        browser = flask_browser(app, secret=SECRET, url_prefix="/hooks/")
        headers = {"Authorization": f"Bearer {SECRET}"}
        body = {"tags": ["posts"]}
        assert browser.post("/hooks/revalidate", json=body, headers=headers).status_code == 200
        assert browser.post(URL, json=body, headers=headers).status_code == 404

    @pytest.mark.parametrize("prefix", ["hooks", "/", "//"])
    def test_that_is_no_path_of_its_own_is_an_error(self, app: Flask, prefix: str) -> None:
        with pytest.raises(ValueError, match="ISR_URL_PREFIX starts with / and is a path of its"):
            flask_browser(app, secret=SECRET, url_prefix=prefix)

    def test_other_methods_are_not_allowed(self, browser: Browser) -> None:
        assert browser.get(URL).status_code == 405
