"""What a page says of itself to the client and the caches in between (promise 10)."""

from __future__ import annotations

import typing as t

import pytest
from cachelib import SimpleCache
from conftest import status_of
from werkzeug.test import create_environ

from wsgi_isr import page_headers
from wsgi_isr import Rule

PLAIN = ("Content-Type", "text/plain")


def control_of(response: t.Any) -> str:
    """The ``Cache-Control`` of an answer, of which there is one."""
    (value,) = response.headers.getlist("Cache-Control")
    return t.cast(str, value)


class TestCacheStatus:
    @pytest.mark.parametrize("rules", [None, {"/x": Rule()}], ids=["undeclared", "declared"])
    def test_nothing_stored(self, site: t.Any, browse: t.Any, rules: t.Any) -> None:
        site.page("/x")
        assert status_of(browse(rules=rules).get("/x")) == "isr; fwd=uri-miss; stored"

    @pytest.mark.parametrize(
        ("age", "expected"),
        [
            (0, "isr; hit; ttl=60"),
            (0.5, "isr; hit; ttl=60"),
            (1, "isr; hit; ttl=59"),
            (59, "isr; hit; ttl=1"),
            (59.9, "isr; hit; ttl=1"),
            (60, "isr; hit; ttl=0"),
            (61, "isr; hit; ttl=-1"),
            (100, "isr; hit; ttl=-40"),
        ],
    )
    def test_a_page_of_some_age(
        self, site: t.Any, browse: t.Any, clock: t.Any, age: float, expected: str
    ) -> None:
        site.page("/x", revalidate=60)
        client = browse()
        client.get("/x")
        clock.advance(age)
        assert status_of(client.get("/x")) == expected

    def test_the_time_left_runs_down_from_hit_to_hit(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", revalidate=3)
        client = browse()
        client.get("/x")
        seen = []
        for _ in range(8):
            clock.advance(0.5)
            seen.append(status_of(client.get("/x")).partition("ttl=")[2])
            client.isr.close()
            if seen[-1] == "0":
                break
        assert seen == ["3", "2", "2", "1", "1", "0"]

    def test_a_page_with_false(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", revalidate=False)
        client = browse()
        client.get("/x")
        assert status_of(client.get("/x")) == "isr; hit"

    @pytest.mark.parametrize("revalidate", [60, False])
    def test_stale_by_invalidation(self, site: t.Any, browse: t.Any, revalidate: t.Any) -> None:
        site.page("/x", revalidate=revalidate, tags=["a"])
        client = browse()
        client.get("/x")
        client.isr.revalidate_tag("a")
        assert status_of(client.get("/x")) == "isr; hit; ttl=0"

    def test_expired(self, site: t.Any, browse: t.Any, clock: t.Any) -> None:
        site.page("/x", revalidate=60, expire=90)
        client = browse()
        client.get("/x")
        clock.advance(90)
        assert status_of(client.get("/x")) == "isr; fwd=stale; stored"
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"

    @pytest.mark.parametrize("revalidate", [60, False])
    def test_expired_by_invalidation(self, site: t.Any, browse: t.Any, revalidate: t.Any) -> None:
        site.page("/x", revalidate=revalidate)
        client = browse()
        client.get("/x")
        client.isr.invalidate("/x", expire=True)
        assert status_of(client.get("/x")) == "isr; fwd=stale; stored"

    @pytest.mark.parametrize("rules", [None, {"/x": 60}], ids=["undeclared", "declared"])
    def test_a_library_that_is_switched_off(self, site: t.Any, browse: t.Any, rules: t.Any) -> None:
        site.page("/x")
        client = browse(rules=rules, enabled=False)
        for _ in range(2):
            response = client.get("/x")
            assert status_of(response) == "isr; fwd=bypass; detail=disabled"
            assert "Cache-Control" not in response.headers
        assert site.renders() == 0

    def test_a_would_be_page_by_its_rule_alone(self, site: t.Any, browse: t.Any) -> None:
        site.answers["/x"] = answer(PLAIN)
        client = browse(rules={"/x": 60}, enabled=False)
        assert status_of(client.get("/x")) == "isr; fwd=bypass; detail=disabled"

    def test_no_page_while_the_library_is_switched_off(self, site: t.Any, browse: t.Any) -> None:
        site.answers["/x"] = answer(PLAIN)
        assert status_of(browse(enabled=False).get("/x")) == ""

    def test_a_store_that_fails(self, site: t.Any, browse: t.Any) -> None:
        class Full(SimpleCache):
            def set(self, *args: t.Any, **options: t.Any) -> bool:
                return False

        site.page("/x")
        response = browse(Full(threshold=5000), rules={"/x": Rule()}).get("/x")
        assert response.text == "a page"
        assert status_of(response) == "isr; fwd=uri-miss; detail=store-error"

    @pytest.mark.parametrize(
        ("own", "expected"),
        [
            (["inner; hit"], "inner; hit, isr; "),
            (["one; hit, two; fwd=miss"], "one; hit, two; fwd=miss, isr; "),
            (["one; hit", "two; fwd=miss"], "one; hit, two; fwd=miss, isr; "),
        ],
    )
    def test_is_appended_to_a_list_already_there(
        self, site: t.Any, browse: t.Any, own: list[str], expected: str
    ) -> None:
        site.page("/x", headers=[("Cache-Status", value) for value in own])
        client = browse()
        for member in ("fwd=uri-miss; stored", "hit; ttl=60"):
            (value,) = client.get("/x").headers.getlist("Cache-Status")
            assert value == expected + member

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"enabled": False}, "inner; hit, isr; fwd=bypass; detail=disabled"),
            ({"trusted_hosts": ["other.example"]}, "inner; hit, isr; fwd=uri-miss; detail=host"),
            ({"max_body_size": 1}, "inner; hit, isr; fwd=uri-miss; detail=too-large"),
        ],
    )
    def test_is_appended_to_the_list_of_an_answer_that_is_not_stored(
        self, site: t.Any, browse: t.Any, options: t.Any, expected: str
    ) -> None:
        site.page("/x", headers=[("Cache-Status", "inner; hit")])
        assert browse(**options).get("/x").headers.getlist("Cache-Status") == [expected]


class TestCacheControl:
    YEAR = 31536000

    @pytest.mark.parametrize(
        ("revalidate", "expire", "age", "left", "window"),
        [
            (60, None, 0, 60, YEAR),
            (60, None, 10, 50, YEAR),
            (60, None, 60, 0, YEAR),
            (60, None, 1000, 0, YEAR),
            (60, 90, 0, 60, 30),
            (60, 90, 59, 1, 30),
            (60, 90, 60, 0, 30),
            (60, 90, 80, 0, 10),
            (60, 90, 89, 0, 1),
            (60, 60, 10, 50, 0),
            (False, None, 0, YEAR, YEAR),
            (False, None, 10**8, YEAR, YEAR),
        ],
    )
    def test_of_a_page_of_some_age(
        self,
        site: t.Any,
        browse: t.Any,
        clock: t.Any,
        revalidate: t.Any,
        expire: t.Any,
        age: int,
        left: int,
        window: int,
    ) -> None:
        site.page("/x", revalidate=revalidate, expire=expire)
        client = browse()
        client.get("/x")
        clock.advance(age)
        expected = f"public, max-age=0, s-maxage={left}, stale-while-revalidate={window}"
        assert control_of(client.get("/x")) == expected

    def test_of_a_page_just_rendered(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", revalidate=60, expire=90)
        expected = "public, max-age=0, s-maxage=60, stale-while-revalidate=30"
        assert control_of(browse().get("/x")) == expected

    @pytest.mark.parametrize(
        ("revalidate", "expire", "window"), [(60, 90, 80), (60, None, YEAR), (False, None, YEAR)]
    )
    def test_of_a_page_that_was_invalidated(
        self,
        site: t.Any,
        browse: t.Any,
        clock: t.Any,
        revalidate: t.Any,
        expire: t.Any,
        window: int,
    ) -> None:
        site.page("/x", revalidate=revalidate, expire=expire)
        client = browse()
        client.get("/x")
        clock.advance(10)
        client.isr.invalidate("/x")
        expected = f"public, max-age=0, s-maxage=0, stale-while-revalidate={window}"
        assert control_of(client.get("/x")) == expected

    def test_of_a_page_that_expired_while_it_was_rendered(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        def body(environ: dict[str, t.Any]) -> str:
            clock.advance(100)
            return "late"

        site.page("/x", body, revalidate=60, expire=90)
        expected = "public, max-age=0, s-maxage=0, stale-while-revalidate=0"
        assert control_of(browse(rules={"/x": Rule()}).get("/x")) == expected

    def test_of_the_app_is_left_alone(self, site: t.Any, browse: t.Any, clock: t.Any) -> None:
        site.page("/x", headers=[("Cache-Control", "max-age=5, must-revalidate")])
        client = browse()
        for _ in range(3):
            assert control_of(client.get("/x")) == "max-age=5, must-revalidate"
            clock.advance(40)

    def test_makes_an_age_needless(self, site: t.Any, browse: t.Any, clock: t.Any) -> None:
        site.page("/x", headers=[("Age", "5")])
        client = browse()
        for _ in range(2):
            assert "Age" not in client.get("/x").headers
            clock.advance(10)

    def test_for_the_networks_of_others_passes_unchanged(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", headers=[("CDN-Cache-Control", "max-age=600")])
        client = browse()
        for _ in range(2):
            assert client.get("/x").headers["CDN-Cache-Control"] == "max-age=600"


class TestHead:
    LONG = "a long page, " * 100

    @pytest.mark.parametrize("coding", ["identity", "gzip"])
    @pytest.mark.parametrize("age", [0, 10, 70])
    def test_has_the_headers_of_a_get_and_no_body(
        self, site: t.Any, browse: t.Any, clock: t.Any, age: int, coding: str
    ) -> None:
        site.page("/x", self.LONG, headers=[("X-Own", "1")])
        client = browse()
        client.get("/x")
        clock.advance(age)
        sent = {"Accept-Encoding": coding}
        site.fail("/x")
        get, head = client.get("/x", headers=sent), client.head("/x", headers=sent)
        assert head.data == b""
        assert list(head.headers) == list(get.headers)
        assert int(head.headers["Content-Length"]) == len(get.data) > 0

    def test_of_a_cold_page_renders_a_get(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ["REQUEST_METHOD"])
        client = browse(rules={"/x": Rule()})
        response = client.head("/x")
        assert (response.data, response.headers["Content-Length"]) == (b"", "3")
        assert client.get("/x").text == "GET"

    def test_of_a_404_page(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", "gone", status="404 Not Found")
        client = browse()
        client.get("/x")
        response = client.head("/x")
        assert (response.status_code, response.headers["Content-Length"]) == (404, "4")


class TestRange:
    @pytest.mark.parametrize("value", ["bytes=0-1", "bytes=-1", "bytes=9999-", "lines=1-2", "x"])
    def test_is_ignored(self, site: t.Any, browse: t.Any, value: str) -> None:
        site.page("/x", "the whole page")
        client = browse(rules={"/x": Rule()})
        for _ in range(2):
            response = client.get("/x", headers={"Range": value, "If-Range": '"x"'})
            assert (response.status_code, response.text) == (200, "the whole page")
            assert "Content-Range" not in response.headers


def answer(*headers: tuple[str, str], body: bytes = b"a page") -> t.Any:
    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response("200 OK", list(headers))
        return [body]

    return app


class TestHeadersOfThePage:
    def test_survive_with_their_order_and_doubles(self, site: t.Any, browse: t.Any) -> None:
        own = [
            ("Link", "</a.css>; rel=preload"),
            ("Content-Language", "de"),
            ("Link", "</b.css>; rel=preload"),
            ("X-Frame-Options", "DENY"),
            ("Expires", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ]
        site.page("/x", headers=own)
        client = browse()
        for _ in range(2):
            headers = list(client.get("/x").headers)
            assert [item for item in headers if item in own] == own

    @pytest.mark.parametrize(
        "name",
        [
            "Connection",
            "Keep-Alive",
            "Proxy-Authenticate",
            "Proxy-Authorization",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
        ],
    )
    def test_of_one_connection_are_neither_stored_nor_sent(
        self, site: t.Any, unchecked: t.Any, name: str
    ) -> None:
        site.answers["/x"] = answer(PLAIN, *page_headers(60), (name, "chunked"))
        client = unchecked()
        for _ in range(2):
            assert name not in client.get("/x").headers

    def test_named_by_connection_are_of_one_connection(self, site: t.Any, unchecked: t.Any) -> None:
        own = [("Connection", "close, X-Hop"), ("X-Hop", "1"), ("X-Stays", "1")]
        site.answers["/x"] = answer(PLAIN, *page_headers(60), *own)
        client = unchecked()
        for _ in range(2):
            headers = client.get("/x").headers
            assert ("X-Hop" in headers, "X-Stays" in headers) == (False, True)

    def test_a_date_is_not_stored(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", headers=[("Date", "Thu, 01 Jan 1970 00:00:00 GMT")])
        client = browse()
        client.get("/x")
        assert "Date" not in client.get("/x").headers

    @pytest.mark.parametrize("own", [[], [("Content-Length", "6")]])
    def test_have_one_length_always(self, site: t.Any, browse: t.Any, own: t.Any) -> None:
        site.answers["/x"] = answer(PLAIN, *page_headers(60), *own)
        client = browse()
        for _ in range(2):
            assert client.get("/x").headers.getlist("Content-Length") == ["6"]

    @pytest.mark.parametrize("status", ["200 OK", "301 Moved Permanently", "404 Not Found"])
    def test_an_empty_page_has_a_length_too(
        self, site: t.Any, unchecked: t.Any, status: str
    ) -> None:
        site.page("/x", "", status=status)
        client = unchecked()
        for _ in range(2):
            assert client.get("/x").headers["Content-Length"] == "0"

    def test_are_not_shared_between_answers(self, site: t.Any, make: t.Any) -> None:
        site.page("/x")
        isr = make(app=site)

        def spoil(status: str, headers: t.Any, exc_info: t.Any = None) -> t.Any:
            seen.append(list(headers))
            headers[:] = [("Set-Cookie", "session=1")]
            return lambda data: None

        seen: list[list[tuple[str, str]]] = []
        for _ in range(4):
            isr(create_environ("/x"), spoil)
        assert not [item for headers in seen for item in headers if item[0] == "Set-Cookie"]
        assert seen[1] == seen[2] == seen[3] != []
