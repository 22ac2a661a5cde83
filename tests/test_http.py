"""What a page says of itself to the client and the caches in between (promise 10)."""

from __future__ import annotations

import typing as t

import pytest
from answers import BOTH, page, run
from cachelib import SimpleCache
from conftest import status_of

from wsgi_isr import Rule

YEAR = 31536000


def control_of(response: t.Any) -> str:
    """The ``Cache-Control`` of an answer, of which there is one."""
    (value,) = response.headers.getlist("Cache-Control")
    return t.cast(str, value)


class TestCacheStatus:
    @pytest.mark.parametrize(
        ("age", "expected"),
        [
            (0, "isr; hit; ttl=60"),
            (0.5, "isr; hit; ttl=60"),
            (1, "isr; hit; ttl=59"),
            (59.9, "isr; hit; ttl=1"),
            (60, "isr; hit; ttl=0"),
            (100, "isr; hit; ttl=-40"),
        ],
    )
    @BOTH
    def test_a_page_of_some_age(
        self, site: t.Any, browse: t.Any, clock: t.Any, age: float, expected: str, rules: t.Any
    ) -> None:
        site.page("/x", revalidate=60)
        client = browse(rules=rules)
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        clock.advance(age)
        assert status_of(client.get("/x")) == expected

    @pytest.mark.parametrize("revalidate", [60, False])
    def test_a_page_that_was_invalidated(
        self, site: t.Any, browse: t.Any, revalidate: t.Any
    ) -> None:
        site.page("/x", revalidate=revalidate, tags=["a"])
        client = browse()
        client.get("/x")
        fresh = status_of(client.get("/x"))
        assert fresh == ("isr; hit" if revalidate is False else "isr; hit; ttl=60")
        client.isr.revalidate_tag("a")
        assert status_of(client.get("/x")) == "isr; hit; ttl=0"
        client.isr.close()
        client.isr.invalidate("/x", expire=True)
        assert status_of(client.get("/x")) == "isr; fwd=stale; stored"

    @BOTH
    def test_a_library_that_is_switched_off(self, site: t.Any, browse: t.Any, rules: t.Any) -> None:
        site.page("/x")
        client = browse(rules=rules, enabled=False)
        for _ in range(2):
            response = client.get("/x")
            assert status_of(response) == "isr; fwd=bypass; detail=disabled"
            assert "Cache-Control" not in response.headers
        assert site.renders() == 0

    def test_a_store_that_fails(self, site: t.Any, browse: t.Any) -> None:
        class Full(SimpleCache):
            def set(self, *args: t.Any, **options: t.Any) -> bool:
                return False

        site.page("/x")
        response = browse(Full(threshold=5000), rules={"/x": Rule()}).get("/x")
        assert response.text == "a page"
        assert status_of(response) == "isr; fwd=uri-miss; detail=store-error"

    @pytest.mark.parametrize(
        "own", [["inner; hit"], ["one; hit, two; fwd=miss"], ["one; hit", "two; fwd=miss"]]
    )
    def test_is_appended_to_a_list_already_there(
        self, site: t.Any, browse: t.Any, own: list[str]
    ) -> None:
        site.page("/x", headers=[("Cache-Status", value) for value in own])
        client = browse()
        for member in ("fwd=uri-miss; stored", "hit; ttl=60"):
            (value,) = client.get("/x").headers.getlist("Cache-Status")
            assert value == f"{', '.join(own)}, isr; {member}"


class TestCacheControl:
    """Browsers always ask again; CDNs keep a page as long as its window says."""

    @staticmethod
    def expect(response: t.Any, left: int, window: int | None) -> None:
        """
        :param window: ``None`` where there is nothing for CDNs.
        """
        control = f"public, max-age=0, must-revalidate, s-maxage={left}"
        assert control_of(response) == control
        cdn = [] if window is None else [f"max-age={left}, stale-while-revalidate={window}"]
        assert response.headers.getlist("CDN-Cache-Control") == cdn
        assert "Age" not in response.headers

    @pytest.mark.parametrize(
        ("revalidate", "expire", "age", "left", "window"),
        [
            (60, None, 0, 60, YEAR),
            (60, None, 10, 50, YEAR),
            (60, None, 1000, 0, YEAR),
            (60, 90, 0, 60, 30),
            (60, 90, 0.1, 60, 30),
            (60, 90, 59.9, 1, 30),
            (60, 90, 60, 0, 30),
            (60, 90, 60.1, 0, 29),
            (60, 90, 89, 0, 1),
            (60, 60, 10, 50, 0),
            (60, 2**40, 0, 60, 2**31),
            (False, None, 0, 0, None),
            (False, None, 10**8, 0, None),
        ],
    )
    def test_of_a_page_of_some_age(
        self,
        site: t.Any,
        browse: t.Any,
        clock: t.Any,
        revalidate: t.Any,
        expire: int | None,
        age: float,
        left: int,
        window: int | None,
    ) -> None:
        site.page("/x", revalidate=revalidate, expire=expire)
        client = browse()
        client.get("/x")
        site.fail("/x")
        clock.advance(age)
        response = client.get("/x")
        self.expect(response, left, window)
        etag = {"If-None-Match": response.headers["ETag"]}
        self.expect(client.get("/x", headers=etag), left, window)

    @pytest.mark.parametrize(
        ("revalidate", "expire", "window"), [(60, 90, 80), (60, None, YEAR), (False, None, None)]
    )
    def test_of_a_page_that_was_invalidated(
        self,
        site: t.Any,
        browse: t.Any,
        clock: t.Any,
        revalidate: t.Any,
        expire: int | None,
        window: int | None,
    ) -> None:
        site.page("/x", revalidate=revalidate, expire=expire)
        client = browse()
        client.get("/x")
        clock.advance(10)
        client.isr.invalidate("/x")
        self.expect(client.get("/x"), 0, window)

    def test_of_a_page_that_expired_while_it_was_rendered(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        def body(environ: dict[str, t.Any]) -> str:
            clock.advance(100)
            return "late"

        site.page("/x", body, revalidate=60, expire=90)
        self.expect(browse(rules={"/x": Rule()}).get("/x"), 0, 0)

    def test_of_a_site_that_purges_its_cdn(self, site: t.Any, browse: t.Any, clock: t.Any) -> None:
        """It may keep a page that is fresh until it is revalidated; others as without."""
        site.page("/x", revalidate=False)
        site.page("/y", revalidate=60, expire=90)
        client = browse(cdn_purged=True)
        for _ in range(2):
            self.expect(client.get("/x"), YEAR, YEAR)
            self.expect(client.get("/y"), 60, 30)
        client.isr.invalidate("/x")
        self.expect(client.get("/x"), 0, YEAR)

    def test_of_the_app_is_sent_as_it_is_with_the_age(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        own = [("Cache-Control", "max-age=5, must-revalidate"), ("Age", "3")]
        site.page("/x", headers=own)
        client = browse()
        client.get("/x")
        site.fail("/x")
        for age in ("0", "40", "80"):
            headers = client.get("/x").headers
            assert headers.getlist("Cache-Control") == ["max-age=5, must-revalidate"]
            assert headers.getlist("Age") == [age]
            assert "CDN-Cache-Control" not in headers
            clock.advance(40)

    def test_for_cdns_of_the_app_passes_unchanged(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", headers=[("CDN-Cache-Control", "max-age=600"), ("Age", "3")])
        client = browse()
        client.get("/x")
        site.fail("/x")
        for left in (60, 20, 0):
            headers = client.get("/x").headers
            assert headers.getlist("CDN-Cache-Control") == ["max-age=600"]
            control = f"public, max-age=0, must-revalidate, s-maxage={left}"
            assert headers.getlist("Cache-Control") == [control]
            assert "Age" not in headers
            clock.advance(40)


class TestHead:
    @pytest.mark.parametrize("coding", ["identity", "gzip"])
    @pytest.mark.parametrize("age", [0, 70])
    def test_has_the_headers_of_a_get_and_no_body(
        self, site: t.Any, browse: t.Any, clock: t.Any, age: int, coding: str
    ) -> None:
        site.page("/x", "a long page, " * 100, headers=[("X-Own", "1")])
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


class TestRange:
    @pytest.mark.parametrize("value", ["bytes=0-1", "bytes=9999-", "x"])
    def test_is_ignored(self, site: t.Any, browse: t.Any, value: str) -> None:
        site.page("/x", "the whole page", headers=[("Accept-Ranges", "bytes")])
        client = browse(rules={"/x": Rule()})
        for _ in range(2):
            response = client.get("/x", headers={"Range": value, "If-Range": '"x"'})
            assert (response.status_code, response.text) == (200, "the whole page")
            assert not {"Content-Range", "Accept-Ranges"} & set(response.headers.keys())


class TestHeadersOfThePage:
    def test_survive_with_their_order_and_doubles(self, site: t.Any, browse: t.Any) -> None:
        own = [
            ("Link", "</a.css>; rel=preload"),
            ("Content-Language", "de"),
            ("Link", "</b.css>; rel=preload"),
            ("Expires", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ]
        site.page("/x", headers=[*own, ("Date", "Thu, 01 Jan 1970 00:00:00 GMT")])
        client = browse()
        for _ in range(2):
            headers = client.get("/x").headers
            assert [item for item in headers if item in own] == own
            assert "Date" not in headers

    @pytest.mark.parametrize(
        "name", ["Content-MD5", "Digest", "Repr-Digest", "Content-Digest", "content-digest"]
    )
    def test_that_are_digests_go_only_with_their_bytes(
        self, site: t.Any, browse: t.Any, name: str
    ) -> None:
        site.page("/x", "a long page, " * 100, headers=[(name, "sha-256=:AAAA:")])
        client = browse()
        client.get("/x")
        coded = client.get("/x", headers={"Accept-Encoding": "gzip"})
        assert coded.headers["Content-Encoding"] == "gzip"
        assert name not in coded.headers
        assert client.get("/x").headers[name] == "sha-256=:AAAA:"

    def test_of_one_connection_are_neither_stored_nor_sent(
        self, site: t.Any, unchecked: t.Any
    ) -> None:
        names = ["Keep-Alive", "Proxy-Authenticate", "TE", "Trailer", "Transfer-Encoding"]
        hops = [("Connection", "close, X-Hop"), ("X-Hop", "1"), *((name, "x") for name in names)]
        site.answers["/x"] = page(*hops, ("X-Stays", "1"))
        client = unchecked()
        for _ in range(2):
            headers = client.get("/x").headers
            assert not {name for name, _ in hops} & set(headers.keys())
            assert headers["X-Stays"] == "1"

    @pytest.mark.parametrize("own", [[], [("Content-Length", "6")]])
    def test_have_one_length_always(self, site: t.Any, browse: t.Any, own: t.Any) -> None:
        site.answers["/x"] = page(*own)
        client = browse()
        for _ in range(2):
            assert client.get("/x").headers.getlist("Content-Length") == ["6"]

    def test_are_not_shared_between_answers(self, site: t.Any, make: t.Any) -> None:
        site.page("/x")
        isr = make(app=site)
        seen = []
        for _ in range(4):
            headers = run(isr).headers
            seen.append(list(headers))
            headers[:] = [("Set-Cookie", "session=1")]
        assert seen[1] == seen[2] == seen[3]
        assert not [item for headers in seen for item in headers if item[0] == "Set-Cookie"]


@pytest.mark.parametrize("expire", [None, False, True], ids=["fresh", "stale", "expired"])
def test_pages_in_memory_outlive_a_close(site: t.Any, browse: t.Any, expire: bool | None) -> None:
    """With all that was invalidated before."""
    site.page("/x", "old")
    client = browse()
    client.get("/x")
    if expire is not None:
        client.isr.invalidate("/x", expire=expire)
    client.isr.close()
    site.page("/x", "new")
    response = client.get("/x")
    expected = {
        None: ("old", "isr; hit; ttl=60"),
        False: ("old", "isr; hit; ttl=0"),
        True: ("new", "isr; fwd=stale; stored"),
    }
    assert (response.text, status_of(response)) == expected[expire]
