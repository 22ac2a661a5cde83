"""Fresh, then stale, then expired; on demand only; and the last good page, which stays."""

from __future__ import annotations

import sys
import threading
import typing as t

import pytest
from conftest import status_of

from wsgi_isr import page_headers


def error_page(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
    return [b"oops"]


def lying(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    length = ("Content-Length", "1000")
    start_response("200 OK", [("Content-Type", "text/plain"), length, *page_headers(60)])
    return [b"short"]


def breaking_off(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
    start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(60)])
    yield b"half"
    raise ConnectionError("the database went away")


def replaced(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(60)])
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        headers = [("Content-Type", "text/plain"), *page_headers(60)]
        start_response("200 OK", headers, sys.exc_info())
    return [b"sorry"]


def forbidden(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    start_response("403 Forbidden", [("Content-Type", "text/plain")])
    return [b"no"]


def personal(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    cookie = ("Set-Cookie", "a=1")
    start_response("200 OK", [("Content-Type", "text/plain"), cookie, *page_headers(60)])
    return [b"hello"]


def never_starting(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    return [b"a body without a head"]


def starting_twice(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    for _ in range(2):
        start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(60)])
    return [b"twice"]


def yielding_text(environ: dict[str, t.Any], start_response: t.Any) -> list[t.Any]:
    start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(60)])
    return [b"bytes ", "and text"]


def without_a_number(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    start_response("OK", [("Content-Type", "text/plain"), *page_headers(60)])
    return [b"what?"]


def raising(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    raise ZeroDivisionError("the render failed")


class TestFresh:
    def test_for_its_window_nobody_asks_the_app(
        self, site: t.Any, browse: t.Any, clock: t.Any, cache: str
    ) -> None:
        site.page("/x", revalidate=10)
        client = browse(cache)
        client.get("/x")
        calls = site.calls("/x")
        for _ in range(9):
            clock.advance(1)
            assert client.get("/x").text == "a page"
        assert site.calls("/x") == calls

    def test_a_page_with_false_is_fresh_for_ever(
        self, site: t.Any, browse: t.Any, clock: t.Any, cache: str
    ) -> None:
        site.page("/x", "first", revalidate=False)
        client = browse(cache)
        client.get("/x")
        site.page("/x", "second", revalidate=False)
        clock.advance(3 * 365 * 86400)
        response = client.get("/x")
        client.isr.close()
        assert (response.text, status_of(response)) == ("first", "isr; hit")
        assert client.get("/x").text == "first"

    def test_it_is_so_for_all_middlewares_of_a_store(
        self, site: t.Any, browse: t.Any, files: str
    ) -> None:
        site.page("/x")
        browse(files).get("/x")
        assert status_of(browse(files).get("/x")) == "isr; hit; ttl=60"


class TestStale:
    def test_the_old_page_is_served_and_the_new_one_follows(
        self, site: t.Any, browse: t.Any, clock: t.Any, cache: str
    ) -> None:
        site.page("/x", "old")
        client = browse(cache)
        client.get("/x")
        site.page("/x", "new")
        clock.advance(60)
        assert client.get("/x").text == "old"
        client.isr.close()
        response = client.get("/x")
        assert (response.text, status_of(response)) == ("new", "isr; hit; ttl=60")

    def test_nobody_waits_for_the_render(self, site: t.Any, browse: t.Any, clock: t.Any) -> None:
        site.page("/x", "old")
        client = browse()
        client.get("/x")
        go = threading.Event()

        def slow(environ: dict[str, t.Any]) -> str:
            assert go.wait(10)
            return "new"

        site.page("/x", slow)
        clock.advance(61)
        assert [client.get("/x").text for _ in range(5)] == ["old"] * 5
        go.set()
        client.isr.close()
        assert client.get("/x").text == "new"
        assert site.renders("/x") == 2

    def test_without_an_expiry_there_is_no_limit(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", "old")
        client = browse()
        client.get("/x")
        clock.advance(10 * 365 * 86400)
        assert client.get("/x").text == "old"

    def test_a_render_behind_says_so_to_the_app(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x")
        client = browse()
        client.get("/x")
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        assert site.environs[-1]["wsgi_isr.reason"] == "stale"

    def test_a_head_request_starts_a_regeneration_too(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", "old")
        client = browse()
        client.get("/x")
        site.page("/x", "new")
        clock.advance(61)
        client.head("/x")
        client.isr.close()
        assert client.get("/x").text == "new"


class TestExpired:
    def test_the_next_visitor_waits_for_the_new_page(
        self, site: t.Any, browse: t.Any, clock: t.Any, cache: str
    ) -> None:
        site.page("/x", "old", revalidate=60, expire=90)
        client = browse(cache)
        client.get("/x")
        site.page("/x", "new", revalidate=60, expire=90)
        clock.advance(90)
        response = client.get("/x")
        assert (response.text, status_of(response)) == ("new", "isr; fwd=stale; stored")

    def test_until_then_the_stale_page_is_served(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", "old", revalidate=60, expire=90)
        client = browse()
        client.get("/x")
        site.fail("/x")
        clock.advance(89)
        assert client.get("/x").text == "old"

    def test_with_an_expiry_equal_to_the_window_the_page_is_never_stale(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", "old", revalidate=60, expire=60)
        client = browse()
        client.get("/x")
        site.page("/x", "new", revalidate=60, expire=60)
        clock.advance(59)
        assert status_of(client.get("/x")) == "isr; hit; ttl=1"
        clock.advance(1)
        assert client.get("/x").text == "new"

    def test_an_error_then_reaches_the_visitor_but_the_page_is_not_lost(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", "good", revalidate=60, expire=90)
        client = browse()
        client.get("/x")
        site.answers["/x"] = error_page
        clock.advance(91)
        assert client.get("/x").status_code == 500
        (page,) = client.isr.pages()
        assert (page.status, page.state) == (200, "expired")

    def test_after_an_error_the_next_visitor_is_a_new_attempt(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", "good", revalidate=60, expire=90)
        client = browse()
        client.get("/x")
        site.answers["/x"] = error_page
        clock.advance(91)
        for _ in range(3):
            client.get("/x")
        assert site.renders("/x") == 4
        site.page("/x", "healed")
        assert client.get("/x").text == "healed"


class TestTheLastGoodPageStays:
    """Promise 3."""

    @pytest.mark.parametrize(
        "bad",
        [raising, error_page, lying, breaking_off, replaced, forbidden, personal],
        ids=lambda app: app.__name__,
    )
    def test_whatever_a_regeneration_comes_to(
        self, site: t.Any, browse: t.Any, clock: t.Any, listable: str, bad: t.Any
    ) -> None:
        site.page("/x", "good")
        client = browse(listable)
        client.get("/x")
        site.answers["/x"] = bad
        clock.advance(61)
        for _ in range(3):
            assert client.get("/x").text == "good"
            client.isr.close()
        (page,) = client.isr.pages()
        assert (page.status, page.state) == (200, "stale")
        assert page.last_error

    @pytest.mark.parametrize(
        "bad",
        [never_starting, starting_twice, yielding_text, without_a_number],
        ids=lambda app: app.__name__,
    )
    def test_whatever_of_wsgi_an_app_breaks(
        self, site: t.Any, unchecked: t.Any, clock: t.Any, bad: t.Any
    ) -> None:
        site.page("/x", "good")
        client = unchecked()
        client.get("/x")
        site.answers["/x"] = bad
        clock.advance(61)
        for _ in range(3):
            assert client.get("/x").text == "good"
            client.isr.close()
        assert next(client.isr.pages()).last_error

    def test_a_good_render_heals_it(
        self, site: t.Any, browse: t.Any, clock: t.Any, listable: str
    ) -> None:
        site.page("/x", "good")
        client = browse(listable)
        client.get("/x")
        site.fail("/x")
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        site.page("/x", "better")
        client.get("/x")
        client.isr.close()
        assert client.get("/x").text == "better"
        assert next(client.isr.pages()).last_error is None

    def test_after_one_failure_the_next_visitor_tries_again_and_then_pauses_grow(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x")
        client = browse()
        client.get("/x")
        site.fail("/x")
        clock.advance(61)
        began = clock.now
        at = []
        for _ in range(400):
            before = site.renders("/x")
            client.get("/x")
            client.isr.close()
            if site.renders("/x") > before:
                at.append(clock.now - began)
            clock.advance(0.25)
        pauses = [later - earlier for earlier, later in zip(at, at[1:], strict=False)]
        assert pauses == [0.25, 1, 2, 4, 8, 16, 30, 30]

    def test_a_first_failure_is_logged_with_its_traceback(
        self, site: t.Any, browse: t.Any, clock: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.page("/x")
        client = browse()
        client.get("/x", base_url="http://example.com")
        site.fail("/x")
        clock.advance(61)
        client.get("/x", base_url="http://example.com")
        client.isr.close()
        assert "http://example.com/x" in caplog.text
        assert "ZeroDivisionError" in caplog.text
