"""How a page is found, and how it ages: the flows of declared and undeclared URLs."""

from __future__ import annotations

import sys
import threading
import typing as t

import pytest
from cachelib import SimpleCache
from conftest import status_of

from wsgi_isr import page_headers
from wsgi_isr import Rule

DECLARED = {"/x": Rule()}


def plain(text: str, status: str = "200 OK", headers: t.Any = ()) -> t.Any:
    """An answer that is no page."""

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response(status, [("Content-Type", "text/plain"), *headers])
        return [text.encode()]

    return app


def only_for(reason: str | None, one: t.Any, other: t.Any) -> t.Any:
    """An app that answers the library's own requests differently from a visitor's."""

    def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
        chosen = one if environ.get("wsgi_isr.reason") == reason else other
        return chosen(environ, start_response)

    return app


def page(text: str, revalidate: t.Any = 60) -> t.Any:
    return plain(text, headers=page_headers(revalidate))


def broken(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
    raise ZeroDivisionError("the render failed")


class TestUndeclared:
    """Only the response headers tell that a URL is a page."""

    def test_the_first_request_goes_to_the_app_as_it_is(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x")
        client = browse()
        client.set_cookie("a", "1")
        client.get("/x?utm=1", headers={"User-Agent": "curl"})
        seen = site.environs[0]
        assert "wsgi_isr.reason" not in seen
        assert seen["QUERY_STRING"] == "utm=1"
        assert (seen["HTTP_COOKIE"], seen["HTTP_USER_AGENT"]) == ("a=1", "curl")

    def test_the_visitor_gets_the_canonical_answer(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ.get("HTTP_COOKIE", "anonymous"))
        client = browse()
        client.set_cookie("a", "1")
        response = client.get("/x")
        assert response.text == "anonymous"
        assert status_of(response) == "isr; fwd=uri-miss; stored"

    def test_from_then_on_the_page_is_known(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x")
        client = browse()
        client.get("/x")
        calls = site.calls("/x")
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"
        assert site.calls("/x") == calls

    def test_from_then_on_the_app_sees_only_canonical_requests(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", expire=90)
        client = browse()
        client.get("/x")
        client.set_cookie("a", "1")
        for seconds in (61, 100):
            clock.advance(seconds)
            client.get("/x")
            client.isr.close()
        assert [environ.get("wsgi_isr.reason") for environ in site.environs] == [
            None,
            "miss",
            "stale",
            "stale",
        ]

    def test_a_head_request_finds_a_page_too(self, site: t.Any, browse: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            length = ("Content-Length", "6")
            start_response("200 OK", [("Content-Type", "text/plain"), length, *page_headers(60)])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"a page"]

        site.answers["/x"] = app
        client = browse()
        response = client.head("/x")
        assert (response.status_code, status_of(response)) == (200, "isr; fwd=uri-miss; stored")
        assert response.headers["Content-Length"] == "6"
        assert client.get("/x").text == "a page"

    @pytest.mark.parametrize("environ", [{"HTTP_RANGE": "bytes=0-1"}, {"HTTP_IF_NONE_MATCH": "*"}])
    def test_an_answer_to_a_part_finds_the_whole_page(
        self, site: t.Any, browse: t.Any, environ: dict[str, str]
    ) -> None:
        def partial(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            if "HTTP_RANGE" not in environ:
                start_response("304 Not Modified", page_headers(60))
                return []
            start_response(
                "206 Partial Content", [("Content-Type", "text/plain"), *page_headers(60)]
            )
            return [b"th"]

        site.answers["/x"] = only_for(None, partial, page("the whole page"))
        client = browse()
        client.get("/x", environ_overrides=environ)
        assert client.get("/x").text == "the whole page"

    @pytest.mark.parametrize(
        "canonical",
        [plain("please log in"), broken, plain("oops", "500 Internal Server Error")],
        ids=["is no page", "raises", "is an error"],
    )
    def test_without_a_canonical_page_the_visitor_gets_his_own_answer(
        self, site: t.Any, browse: t.Any, canonical: t.Any
    ) -> None:
        site.answers["/x"] = only_for("miss", canonical, page("hello Ada"))
        client = browse()
        response = client.get("/x")
        assert (response.status_code, response.text) == (200, "hello Ada")
        assert response.headers["Cache-Control"] == "private, no-store"
        assert list(client.isr.pages()) == []

    def test_a_url_without_a_canonical_page_is_no_page_for_a_minute(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.answers["/x"] = only_for("miss", broken, page("hello Ada"))
        client = browse()
        for _ in range(3):
            response = client.get("/x")
            assert response.text == "hello Ada"
            assert response.headers["Cache-Control"] == "private, no-store"
        assert site.renders("/x") == 1
        clock.advance(61)
        client.get("/x")
        assert site.renders("/x") == 2

    def test_the_error_of_the_app_reaches_the_visitor(self, site: t.Any, browse: t.Any) -> None:
        site.fail("/x")
        with pytest.raises(ZeroDivisionError):
            browse().get("/x")
        assert site.calls("/x") == 1

    def test_an_error_page_with_metadata_is_not_rendered_again(
        self, site: t.Any, browse: t.Any
    ) -> None:
        site.page("/x", "oops", status="500 Internal Server Error")
        client = browse()
        response = client.get("/x")
        assert (response.status_code, response.text) == (500, "oops")
        assert response.headers["Cache-Control"] == "private, no-store"
        assert list(client.isr.pages()) == []


class CountingCache(SimpleCache):
    """Counts how often it is asked."""

    asked: t.ClassVar[list[str]] = []

    def get(self, key: str) -> t.Any:
        self.asked.append(key)
        return super().get(key)


class TestNotAPage:
    """A URL without ISR metadata costs no round trip to the store, but for one a minute."""

    @pytest.fixture
    def counting(self) -> CountingCache:
        CountingCache.asked.clear()
        return CountingCache()

    @pytest.mark.parametrize("status", ["200 OK", "302 Found", "404 Not Found"])
    def test_the_store_is_asked_once(
        self, site: t.Any, browse: t.Any, counting: CountingCache, status: str
    ) -> None:
        site.answers["/x"] = plain("dynamic", status)
        client = browse(counting)
        for _ in range(5):
            client.get("/x")
        assert len(counting.asked) == 1
        assert site.calls("/x") == 5

    @pytest.mark.parametrize("status", ["500 Internal Server Error", "403 Forbidden"])
    def test_an_error_says_nothing_of_its_url(
        self, site: t.Any, browse: t.Any, counting: CountingCache, status: str
    ) -> None:
        site.answers["/x"] = plain("error", status)
        client = browse(counting)
        for _ in range(3):
            client.get("/x")
        assert len(counting.asked) == 3

    def test_is_forgotten_after_a_minute(
        self, site: t.Any, browse: t.Any, counting: CountingCache, clock: t.Any
    ) -> None:
        site.answers["/x"] = plain("dynamic")
        client = browse(counting)
        client.get("/x")
        clock.advance(61)
        client.get("/x")
        assert len(counting.asked) == 2

    def test_a_url_that_becomes_a_page_is_one_at_once(self, site: t.Any, browse: t.Any) -> None:
        site.answers["/x"] = plain("nothing here yet", "404 Not Found")
        client = browse()
        client.get("/x")
        site.page("/x", "published")
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        calls = site.calls("/x")
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"
        assert site.calls("/x") == calls

    def test_a_url_that_became_a_page_is_served_stale_like_any_other(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.answers["/x"] = plain("nothing here yet", "404 Not Found")
        client = browse()
        client.get("/x")
        site.page("/x", "old")
        client.get("/x")
        site.page("/x", "new")
        clock.advance(61)
        assert client.get("/x").text == "old"
        client.isr.close()
        assert client.get("/x").text == "new"


class TestDeclared:
    """A rule covers the URL: the app only ever sees canonical requests for it."""

    def test_a_cold_page_is_rendered_once_and_canonically(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ.get("HTTP_COOKIE", "anonymous"))
        client = browse(rules=DECLARED)
        client.set_cookie("a", "1")
        response = client.get("/x")
        assert response.text == "anonymous"
        assert status_of(response) == "isr; fwd=uri-miss; stored"
        assert [environ["wsgi_isr.reason"] for environ in site.environs] == ["miss"]

    def test_the_error_of_a_cold_render_reaches_the_visitor(
        self, site: t.Any, browse: t.Any
    ) -> None:
        site.fail("/x")
        client = browse(rules=DECLARED)
        with pytest.raises(ZeroDivisionError):
            client.get("/x")
        assert list(client.isr.pages()) == []

    def test_the_error_page_of_a_cold_render_reaches_the_visitor(
        self, site: t.Any, browse: t.Any
    ) -> None:
        site.answers["/x"] = plain("come back later", "503 Service Unavailable")
        client = browse(rules={"/x": 60})
        response = client.get("/x")
        assert (response.status_code, response.text) == (503, "come back later")
        assert response.headers["Cache-Control"] == "private, no-store"
        assert list(client.isr.pages()) == []
        assert site.renders("/x") == site.calls("/x") == 1

    def test_after_a_failed_cold_render_the_next_visitor_is_a_new_attempt(
        self, site: t.Any, browse: t.Any
    ) -> None:
        site.fail("/x")
        client = browse(rules=DECLARED)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                client.get("/x")
        assert site.renders("/x") == 3
        site.page("/x")
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"

    def test_visitors_at_once_share_one_render(self, site: t.Any, browse: t.Any) -> None:
        go = threading.Event()
        site.page("/x", lambda environ: str(go.wait(10)))
        client = browse(rules=DECLARED)
        statuses: list[str] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(status_of(client.get("/x"))))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        until_all_wait(threads)
        go.set()
        for thread in threads:
            thread.join(10)
        shared = "isr; fwd=uri-miss; stored; collapsed"
        assert sorted(statuses) == ["isr; fwd=uri-miss; stored", shared, shared, shared]
        assert site.renders("/x") == 1

    def test_a_page_that_asks_for_itself_does_not_wait_for_itself(
        self, site: t.Any, browse: t.Any
    ) -> None:
        def body(environ: dict[str, t.Any]) -> str:
            return "outer" if "wsgi_isr.reason" not in environ else client.get("/x").text

        site.page("/x", body)
        client = browse(rules=DECLARED)
        assert client.get("/x").text == "outer"


class TestNoFallback:
    """``fallback=False``: only prerendered paths exist."""

    RULES: t.ClassVar = {"/blog/*": Rule(revalidate=60, fallback=False)}

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_other_paths_are_404_without_asking_the_app(
        self, site: t.Any, browse: t.Any, method: str
    ) -> None:
        site.page("/blog/1")
        client = browse(rules=self.RULES)
        response = client.open("/blog/1", method=method)
        assert response.status_code == 404
        assert response.headers["Cache-Control"] == "private, no-store"
        assert site.environs == []

    def test_prerendered_paths_are_served_and_regenerated(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/blog/1", "old")
        client = browse(rules=self.RULES, base_url="http://localhost")
        list(client.isr.prerender(["/blog/1"]))
        assert client.get("/blog/1").text == "old"
        site.page("/blog/1", "new")
        clock.advance(61)
        client.get("/blog/1")
        client.isr.close()
        assert client.get("/blog/1").text == "new"

    def test_other_methods_still_reach_the_app(self, site: t.Any, browse: t.Any) -> None:
        site.answers["/blog/1"] = plain("posted")
        assert browse(rules=self.RULES).post("/blog/1").text == "posted"


def until_all_wait(threads: list[threading.Thread]) -> None:
    """Return when each of the threads waits for an event."""
    pause = threading.Event()
    for _ in range(5000):
        frames = sys._current_frames()
        at = [frames.get(t.cast(int, thread.ident)) for thread in threads]
        if all(frame and frame.f_code is threading.Condition.wait.__code__ for frame in at):
            return
        pause.wait(0.002)
    raise AssertionError("a thread does not wait")
