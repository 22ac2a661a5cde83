"""How a page is found: the flows of declared and undeclared URLs."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Clock, Site, status_of
from failures import answers, page_with, raises

from wsgi_isr import Rule, page_headers

Browse = Callable[..., Browser]

DECLARED = {"/x": Rule()}


def only_for(reason: str | None, one: t.Any, other: t.Any) -> t.Any:
    """An app that answers the library's own requests differently from a visitor's."""

    def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
        chosen = one if environ.get("wsgi_isr.reason") == reason else other
        return chosen(environ, start_response)

    return app


@pytest.fixture
def asked(browse: Browse, files: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Browser, list[str]]:
    """A client, and the pages that the store is asked for."""
    client = browse(files)
    names: list[str] = []
    get = client.isr.store.get
    monkeypatch.setattr(client.isr.store, "get", lambda name: (names.append(name), get(name))[1])
    return client, names


class TestUndeclared:
    """Only the response headers show that a URL is a page."""

    def test_the_first_request_goes_to_the_app_as_it_is_and_the_visitor_gets_the_page(
        self, site: Site, browse: Browse
    ) -> None:
        site.page("/x", lambda environ: environ.get("HTTP_COOKIE", "anonymous"))
        client = browse()
        client.set_cookie("a", "1")
        response = client.get("/x?utm=1", headers={"User-Agent": "curl"})
        assert (response.text, status_of(response)) == ("anonymous", "isr; fwd=uri-miss; stored")
        seen = site.environs[0]
        assert "wsgi_isr.reason" not in seen
        assert (seen["QUERY_STRING"], seen["HTTP_COOKIE"]) == ("utm=1", "a=1")
        assert seen["HTTP_USER_AGENT"] == "curl"

    def test_from_then_on_the_app_sees_only_canonical_requests(
        self, site: Site, browse: Browse, clock: Clock
    ) -> None:
        site.page("/x", expire=90)
        client = browse()
        client.get("/x")
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"
        client.set_cookie("a", "1")
        for seconds in (61, 100):
            clock.advance(seconds)
            client.get("/x")
            client.isr.close()
        reasons = [environ.get("wsgi_isr.reason") for environ in site.environs]
        assert reasons == [None, "miss", "stale", "stale"]

    def test_a_head_request_finds_a_page_too(self, site: Site, browse: Browse) -> None:
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
        self, site: Site, browse: Browse, environ: dict[str, str]
    ) -> None:
        def partial(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            if "HTTP_RANGE" not in environ:
                start_response("304 Not Modified", page_headers(60))
                return []
            headers = [("Content-Type", "text/plain"), *page_headers(60)]
            start_response("206 Partial Content", headers)
            return [b"th"]

        site.answers["/x"] = only_for(None, partial, page_with(body=b"the whole page"))
        client = browse()
        client.get("/x", environ_overrides=environ)
        assert client.get("/x").text == "the whole page"

    @pytest.mark.parametrize(
        "canonical", [answers("200 OK"), raises, answers("500 Oops")], ids=["none", "raises", "500"]
    )
    def test_without_a_canonical_page_the_visitor_gets_their_own_answer_and_for_a_minute_so(
        self, site: Site, browse: Browse, clock: Clock, canonical: t.Any
    ) -> None:
        site.answers["/x"] = only_for("miss", canonical, page_with(body=b"hello Ada"))
        client = browse()
        for _ in range(3):
            response = client.get("/x")
            assert (response.status_code, response.text) == (200, "hello Ada")
            assert response.headers["Cache-Control"] == "private, no-store"
        assert site.renders("/x") == 1
        clock.advance(61)
        client.get("/x")
        assert site.renders("/x") == 2
        assert not [page for page in client.isr.pages() if page.state != "failed"]

    def test_the_error_of_the_app_reaches_the_visitor(self, site: Site, browse: Browse) -> None:
        site.fail("/x")
        with pytest.raises(ZeroDivisionError):
            browse().get("/x")
        site.page("/y", "oops", status="500 Internal Server Error")
        response = browse().get("/y")
        assert (response.status_code, response.text) == (500, "oops")
        assert response.headers["Cache-Control"] == "private, no-store"
        assert (site.calls("/x"), site.calls("/y")) == (1, 1)


class TestNotAPage:
    """A URL without ISR metadata costs no round trip to the store, but for one a minute."""

    @pytest.mark.parametrize("status", ["200 OK", "302 Found", "404 Not Found"])
    def test_the_store_is_asked_once_a_minute(
        self, site: Site, asked: tuple[Browser, list[str]], clock: Clock, status: str
    ) -> None:
        headers = [("Location", "http://localhost/y")] if status == "302 Found" else []
        site.answers["/x"] = answers(status, *headers)
        client, names = asked
        for _ in range(5):
            client.get("/x")
        assert (len(names), site.calls("/x")) == (1, 5)
        clock.advance(61)
        client.get("/x")
        assert len(names) == 2

    @pytest.mark.parametrize("status", ["500 Internal Server Error", "403 Forbidden"])
    def test_an_error_says_nothing_of_its_url(
        self, site: Site, asked: tuple[Browser, list[str]], status: str
    ) -> None:
        site.answers["/x"] = answers(status)
        client, names = asked
        for _ in range(3):
            client.get("/x")
        assert len(names) == 3

    def test_a_url_that_becomes_a_page_is_one_at_once_and_ages_like_any_other(
        self, site: Site, browse: Browse, clock: Clock
    ) -> None:
        site.answers["/x"] = answers("404 Not Found")
        client = browse()
        client.get("/x")
        site.page("/x", "old")
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        calls = site.calls("/x")
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"
        assert site.calls("/x") == calls
        site.page("/x", "new")
        clock.advance(61)
        assert client.get("/x").text == "old"
        client.isr.close()
        assert client.get("/x").text == "new"

    def test_one_visitors_answer_without_metadata_says_nothing_of_a_page(
        self, site: Site, browse: Browse
    ) -> None:
        site.page("/x")
        client = browse(bypass=["member"])
        client.get("/x")
        client.set_cookie("member", "1")
        site.answers["/x"] = answers("200 OK", body=b"for members")
        assert client.get("/x").text == "for members"
        client.delete_cookie("member")
        assert (client.get("/x").text, status_of(client.get("/x"))) == (
            "a page",
            "isr; hit; ttl=60",
        )


class TestDeclared:
    """A rule covers the URL: the app only ever sees canonical requests for it."""

    def test_a_cold_page_is_rendered_once_and_canonically(self, site: Site, browse: Browse) -> None:
        site.page("/x", lambda environ: environ.get("HTTP_COOKIE", "anonymous"))
        client = browse(rules=DECLARED)
        client.set_cookie("a", "1")
        response = client.get("/x")
        assert (response.text, status_of(response)) == ("anonymous", "isr; fwd=uri-miss; stored")
        assert [environ["wsgi_isr.reason"] for environ in site.environs] == ["miss"]

    def test_a_page_that_asks_for_itself_does_not_wait_for_itself(
        self, site: Site, browse: Browse
    ) -> None:
        def body(environ: dict[str, t.Any]) -> str:
            return "outer" if "wsgi_isr.reason" not in environ else client.get("/x").text

        site.page("/x", body)
        client = browse(rules=DECLARED)
        assert client.get("/x").text == "outer"
