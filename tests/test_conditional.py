"""Validators and 304: a client gets what it has not got yet."""

from __future__ import annotations

import typing as t

import pytest
from answers import BOTH, renew
from conftest import status_of

from wsgi_isr import page_headers

LONG = "a long page, " * 100
GZIP = {"Accept-Encoding": "gzip"}
DATE = "Wed, 01 May 2024 12:00:00 GMT"


@pytest.fixture
def client(site: t.Any, browse: t.Any) -> t.Any:
    """A client of a site with a stored page at /x."""
    site.page("/x", LONG)
    client = browse()
    client.get("/x")
    return client


class TestETag:
    def test_is_strong_and_one_for_each_coding(self, client: t.Any) -> None:
        tags = set()
        for accepted in ("gzip", "br", "zstd", "identity"):
            tag, weak = client.get("/x", headers={"Accept-Encoding": accepted}).get_etag()
            assert tag
            assert not weak
            tags.add(tag)
        assert len(tags) == 4

    def test_is_that_of_the_content(
        self, site: t.Any, browse: t.Any, clock: t.Any, files: str
    ) -> None:
        site.page("/x", LONG)
        client = browse(files)
        tags = [client.get("/x").get_etag() for _ in range(2)]
        tags.append(browse(files).get("/x").get_etag())
        tags.append(renew(client, clock).get_etag())
        assert len(set(tags)) == 1
        site.page("/x", LONG + "!")
        assert renew(client, clock).get_etag() not in tags

    @pytest.mark.parametrize("weak", ["", "W/"])
    def test_of_the_app_is_kept_but_for_the_coding(
        self, site: t.Any, browse: t.Any, weak: str
    ) -> None:
        site.page("/x", LONG, headers=[("ETag", f'{weak}"v1"')])
        client = browse()
        for _ in range(2):
            assert client.get("/x").headers.getlist("ETag") == [f'{weak}"v1"']
            assert client.get("/x", headers=GZIP).headers["ETag"] == f'{weak}"v1-gzip"'
        assert client.get("/x", headers={"If-None-Match": 'W/"v1"'}).status_code == 304

    @pytest.mark.parametrize("tag", ["v1", 'W\\"v1"', 'w/"v1"', '"v1', '"v 1"', '"v1", "v2"', "W/"])
    def test_of_the_app_that_is_none_is_left_alone(
        self, site: t.Any, unchecked: t.Any, tag: str
    ) -> None:
        site.page("/x", LONG, headers=[("ETag", tag)])
        client = unchecked()
        for _ in range(2):
            response = client.get("/x")
            assert (response.status_code, response.headers.getlist("ETag")) == (200, [tag])
            coded = client.get("/x", headers=GZIP)
            assert coded.get_etag()[0] is not None
            assert coded.headers["ETag"] != tag


class TestIfNoneMatch:
    @pytest.mark.parametrize("form", ["{}", "W/{}", '"a", {}, "b"', 'W/"a",W/{}', "*"])
    def test_what_the_client_has_is_not_sent_again(self, client: t.Any, form: str) -> None:
        tag = client.get("/x").headers["ETag"]
        for method in (client.get, client.head):
            response = method("/x", headers={"If-None-Match": form.format(tag)})
            assert (response.status_code, response.data) == (304, b"")

    @pytest.mark.parametrize("value", ['"other"', 'W/"other"', "nonsense", "", '"*"'])
    def test_what_it_has_not_is_sent(self, client: t.Any, value: str) -> None:
        response = client.get("/x", headers={"If-None-Match": value})
        assert (response.status_code, response.text) == (200, LONG)

    def test_a_tag_stands_for_one_coding(self, client: t.Any) -> None:
        for one in ("gzip", "br", "identity"):
            tag = client.get("/x", headers={"Accept-Encoding": one}).headers["ETag"]
            for other in ("gzip", "br", "identity"):
                sent = {"If-None-Match": tag, "Accept-Encoding": other}
                response = client.get("/x", headers=sent)
                assert response.status_code == (304 if one == other else 200)
                assert response.headers["Vary"] == "Accept-Encoding"

    def test_the_answer_has_the_headers_that_matter_to_a_cache(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        kept = [("Content-Location", "/x.en"), ("Expires", "Thu, 01 Jan 1970 00:00:00 GMT")]
        site.page("/x", LONG, headers=[*kept, ("X-Own", "1"), ("Last-Modified", DATE)])
        client = browse()
        whole = client.get("/x")
        clock.advance(10)
        headers = client.get("/x", headers={"If-None-Match": whole.headers["ETag"]}).headers
        assert [headers[name] for name, _ in kept] == [value for _, value in kept]
        assert headers["ETag"] == whole.headers["ETag"]
        assert headers["Vary"] == "Accept-Encoding"
        assert "s-maxage=50" in headers["Cache-Control"]
        assert headers["Cache-Status"] == "isr; hit; ttl=50"
        for name in ("Content-Type", "Content-Length", "Content-Encoding", "X-Own"):
            assert name not in headers

    def test_a_stale_page_is_regenerated_all_the_same(
        self, site: t.Any, client: t.Any, clock: t.Any
    ) -> None:
        tag = {"If-None-Match": client.get("/x").headers["ETag"]}
        site.page("/x", "new")
        clock.advance(61)
        response = client.get("/x", headers=tag)
        assert (response.status_code, status_of(response)) == (304, "isr; hit; ttl=-1")
        client.isr.close()
        assert client.get("/x", headers=tag).text == "new"

    @BOTH
    def test_on_a_cold_page_does_not_keep_it_from_being_stored(
        self, site: t.Any, browse: t.Any, rules: t.Any
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            if "HTTP_IF_NONE_MATCH" in environ:
                start_response("304 Not Modified", page_headers(60))
                return []
            start_response("200 OK", [("Content-Type", "text/html"), *page_headers(60)])
            return [b"whole"]

        site.answers["/x"] = app
        client = browse(rules=rules)
        client.get("/x", headers={"If-None-Match": "*"})
        response = client.get("/x")
        assert (response.text, status_of(response)) == ("whole", "isr; hit; ttl=60")

    @pytest.mark.parametrize("status", ["404 Not Found", "301 Moved Permanently"])
    def test_other_statuses_than_200_know_no_304(
        self, site: t.Any, browse: t.Any, status: str
    ) -> None:
        site.page("/x", LONG, status=status)
        client = browse()
        tag = client.get("/x").headers.get("ETag", "*")
        for value in (tag, "*"):
            response = client.get("/x", headers={"If-None-Match": value})
            assert (response.status, response.text) == (status, LONG)


class TestIfModifiedSince:
    @pytest.fixture
    def dated(self, site: t.Any, browse: t.Any) -> t.Any:
        site.page("/x", LONG, headers=[("Last-Modified", DATE)])
        client = browse()
        client.get("/x")
        return client

    @pytest.mark.parametrize(
        ("since", "status"),
        [
            (DATE, 304),
            ("Thu, 02 May 2024 00:00:00 GMT", 304),
            ("Wednesday, 01-May-24 12:00:00 GMT", 304),
            ("Wed, 01 May 2024 11:59:59 GMT", 200),
            ("yesterday", 200),
            ("", 200),
            # Dates at the end of the calendar, and beyond it.
            ("Fri, 31 Dec 9999 23:59:59 -0100", 304),
            ("Mon, 01 Jan 0001 00:00:00 +0100", 200),
            ("Wed, 01 May 9999999 12:00:00 GMT", 200),
        ],
    )
    def test_is_compared_with_the_date_of_the_page(
        self, dated: t.Any, since: str, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        response = dated.get("/x", headers={"If-Modified-Since": since})
        assert (response.status_code, status_of(response)) == (status, "isr; hit; ttl=60")
        assert not caplog.records

    def test_means_nothing_to_a_page_without_a_date(self, client: t.Any) -> None:
        assert client.get("/x", headers={"If-Modified-Since": DATE}).status_code == 200

    def test_means_nothing_beside_if_none_match(self, dated: t.Any) -> None:
        sent = {"If-Modified-Since": DATE, "If-None-Match": '"other"'}
        assert dated.get("/x", headers=sent).status_code == 200
