"""Content codings, validators and 304: a client gets what it can read and has not got yet."""

from __future__ import annotations

import gzip
import typing as t

import pytest
from conftest import status_of

from wsgi_isr import page_headers
from wsgi_isr import Rule

LONG = "a long page, " * 100


def typed(kind: str, *headers: tuple[str, str], body: bytes = LONG.encode()) -> t.Any:
    """A page of a content type."""

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", kind), *page_headers(60), *headers])
        return [body]

    return app


@pytest.fixture
def client(site: t.Any, browse: t.Any) -> t.Any:
    """A client of a site with a stored page at /x."""
    site.page("/x", LONG)
    client = browse()
    client.get("/x")
    return client


class TestCodings:
    def test_a_client_that_reads_gzip_gets_it(self, client: t.Any) -> None:
        response = client.get("/x", headers={"Accept-Encoding": "gzip, deflate"})
        assert response.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(response.data).decode() == LONG
        assert response.headers["Content-Length"] == str(len(response.data))

    def test_others_get_the_page_as_it_is(self, client: t.Any) -> None:
        response = client.get("/x")
        assert "Content-Encoding" not in response.headers
        assert response.text == LONG

    def test_the_first_visitor_gets_it_too(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", LONG)
        response = browse().get("/x", headers={"Accept-Encoding": "gzip"})
        assert response.headers["Content-Encoding"] == "gzip"

    @pytest.mark.parametrize(
        ("accepted", "coding"),
        [
            ("gzip", "gzip"),
            ("GZIP", "gzip"),
            ("gzip;q=0.5", "gzip"),
            ("compress, gzip;q=0.8, *;q=0.1", "gzip"),
            ("*, br;q=0, zstd;q=0", "gzip"),
            ("gzip, identity;q=0.5", "gzip"),
            ("identity, gzip;q=0.5", None),
            ("gzip;q=0", None),
            ("gzip;q=0, br;q=0, zstd;q=0, *", None),
            ("*;q=0", None),
            ("deflate", None),
            ("identity", None),
            ("", None),
            ("nonsense;;;=", None),
        ],
    )
    def test_the_client_chooses(self, client: t.Any, accepted: str, coding: str | None) -> None:
        response = client.get("/x", headers={"Accept-Encoding": accepted})
        assert response.status_code == 200
        assert response.headers.get("Content-Encoding") == coding

    @pytest.mark.parametrize(
        "kind",
        [
            "text/html; charset=utf-8",
            "text/css",
            "TEXT/PLAIN",
            "application/json",
            "application/javascript",
            "application/ld+json",
            "application/atom+xml",
            "image/svg+xml",
        ],
    )
    def test_compressible_types_always_have_gzip(
        self, site: t.Any, browse: t.Any, kind: str
    ) -> None:
        site.answers["/x"] = typed(kind)
        client = browse()
        client.get("/x")
        assert "gzip" in next(client.isr.pages()).codings

    def test_but_not_where_the_app_forbids_it(self, site: t.Any, browse: t.Any) -> None:
        site.answers["/x"] = typed("text/html", ("Cache-Control", "public, No-Transform"))
        client = browse()
        client.get("/x")
        assert next(client.isr.pages()).codings == ()

    @pytest.mark.parametrize("kind", ["image/png", "application/zip", "video/mp4", "font/woff2"])
    def test_others_have_one_body_and_do_not_vary(
        self, site: t.Any, browse: t.Any, kind: str
    ) -> None:
        site.answers["/x"] = typed(kind)
        client = browse()
        for _ in range(2):
            response = client.get("/x", headers={"Accept-Encoding": "gzip"})
            assert "Content-Encoding" not in response.headers
            assert "Vary" not in response.headers

    def test_a_body_that_the_app_has_encoded_is_left_alone(
        self, site: t.Any, browse: t.Any
    ) -> None:
        # Not compressed at all, so that a second coding would be worth it.
        packed = gzip.compress(LONG.encode(), 0)
        site.answers["/x"] = typed("text/html", ("Content-Encoding", "gzip"), body=packed)
        client = browse()
        for _ in range(2):
            response = client.get("/x", headers={"Accept-Encoding": "gzip"})
            assert response.headers.getlist("Content-Encoding") == ["gzip"]
            assert response.data == packed

    def test_a_large_page_has_it_when_its_first_visitor_has_gone(
        self, site: t.Any, browse: t.Any
    ) -> None:
        site.page("/x", LONG * 1000)
        client = browse()
        for _ in range(2):
            response = client.get("/x", headers={"Accept-Encoding": "gzip"})
            client.isr.close()
            assert response.headers["Vary"] == "Accept-Encoding"
        assert gzip.decompress(response.data).decode() == LONG * 1000

    def test_both_answers_tell_caches_that_they_differ(self, client: t.Any) -> None:
        for accepted in ("gzip", "identity"):
            response = client.get("/x", headers={"Accept-Encoding": accepted})
            assert response.headers["Vary"] == "Accept-Encoding"

    def test_beside_declared_headers(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", LONG, headers=[("Vary", "Accept-Encoding, Accept-Language, Cookie")])
        client = browse(rules={"/x": Rule(vary={"Accept-Language": ["en"]})})
        for _ in range(2):
            (value,) = client.get("/x").headers.getlist("Vary")
            fields = value.lower().split(", ")
            assert sorted(fields) == ["accept-encoding", "accept-language"]

    def test_never_reach_the_app(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", LONG)
        client = browse(rules={"/x": Rule()})
        client.get("/x", headers={"Accept-Encoding": "gzip"})
        assert "HTTP_ACCEPT_ENCODING" not in site.environs[0]


class TestETag:
    def test_is_strong_and_one_for_each_coding(self, client: t.Any) -> None:
        tags = set()
        for accepted in ("gzip", "identity"):
            tag, weak = client.get("/x", headers={"Accept-Encoding": accepted}).get_etag()
            assert tag
            assert not weak
            tags.add(tag)
        assert len(tags) == 2

    def test_is_that_of_the_content(
        self, site: t.Any, browse: t.Any, clock: t.Any, files: str
    ) -> None:
        site.page("/x", LONG)
        client = browse(files)
        tags = [client.get("/x").get_etag() for _ in range(2)]
        tags.append(browse(files).get("/x").get_etag())
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        tags.append(client.get("/x").get_etag())
        assert len(set(tags)) == 1
        site.page("/x", LONG + "!")
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        assert client.get("/x").get_etag() not in tags

    def test_of_the_app_is_kept_but_for_the_coding(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", LONG, headers=[("ETag", '"v1"')])
        client = browse()
        for _ in range(2):
            assert client.get("/x").headers.getlist("ETag") == ['"v1"']
            coded = client.get("/x", headers={"Accept-Encoding": "gzip"}).headers["ETag"]
            assert coded.startswith('"')
            assert coded != '"v1"'

    def test_of_the_app_that_is_weak_stays_weak(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", LONG, headers=[("ETag", 'W/"v1"')])
        client = browse()
        client.get("/x")
        assert client.get("/x").headers["ETag"] == 'W/"v1"'
        assert client.get("/x", headers={"If-None-Match": 'W/"v1"'}).status_code == 304

    @pytest.mark.parametrize(
        "tag", ["v1", 'W\\"v1"', 'W"v1"', 'w/"v1"', '"v1', 'v"1', '"v 1"', '"v1", "v2"', "W/", '"']
    )
    def test_of_the_app_that_is_none_is_left_alone(
        self, site: t.Any, unchecked: t.Any, tag: str
    ) -> None:
        site.page("/x", LONG, headers=[("ETag", tag)])
        client = unchecked()
        for _ in range(2):
            response = client.get("/x")
            assert (response.status_code, response.headers.getlist("ETag")) == (200, [tag])
            coded = client.get("/x", headers={"Accept-Encoding": "gzip"})
            assert coded.get_etag()[0] is not None
            assert coded.headers["ETag"] != tag


class TestIfNoneMatch:
    @pytest.mark.parametrize("form", ["{}", "W/{}", '"a", {}, "b"', 'W/"a",W/{}', "*"])
    def test_what_the_client_has_is_not_sent_again(self, client: t.Any, form: str) -> None:
        tag = client.get("/x").headers["ETag"]
        response = client.get("/x", headers={"If-None-Match": form.format(tag)})
        assert (response.status_code, response.data) == (304, b"")

    @pytest.mark.parametrize("value", ['"other"', 'W/"other"', "nonsense", "", '"*"'])
    def test_what_it_has_not_is_sent(self, client: t.Any, value: str) -> None:
        response = client.get("/x", headers={"If-None-Match": value})
        assert (response.status_code, response.text) == (200, LONG)

    def test_a_tag_stands_for_one_coding(self, client: t.Any) -> None:
        tag = client.get("/x").headers["ETag"]
        sent = {"If-None-Match": tag, "Accept-Encoding": "gzip"}
        assert client.get("/x", headers=sent).status_code == 200
        coded = client.get("/x", headers={"Accept-Encoding": "gzip"}).headers["ETag"]
        sent = {"If-None-Match": coded, "Accept-Encoding": "gzip"}
        assert client.get("/x", headers=sent).status_code == 304

    def test_the_answer_has_the_headers_that_matter_to_a_cache(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        kept = [("Content-Location", "/x.en"), ("Expires", "Thu, 01 Jan 1970 00:00:00 GMT")]
        site.page("/x", LONG, headers=[*kept, ("X-Own", "1"), ("Last-Modified", kept[1][1])])
        client = browse()
        whole = client.get("/x")
        clock.advance(10)
        headers = client.get("/x", headers={"If-None-Match": whole.headers["ETag"]}).headers
        assert [headers[name] for name, _ in kept] == [value for _, value in kept]
        assert headers["ETag"] == whole.headers["ETag"]
        assert headers["Vary"] == "Accept-Encoding"
        assert "s-maxage=50" in headers["Cache-Control"]
        assert headers["Cache-Status"] == "isr; hit; ttl=50"
        for name in ("Content-Type", "Content-Length", "Content-Encoding"):
            assert name not in headers

    def test_a_head_request_may_ask_too(self, client: t.Any) -> None:
        tag = client.get("/x").headers["ETag"]
        assert client.head("/x", headers={"If-None-Match": tag}).status_code == 304

    def test_a_stale_page_is_regenerated_all_the_same(
        self, site: t.Any, client: t.Any, clock: t.Any
    ) -> None:
        tag = client.get("/x").headers["ETag"]
        site.page("/x", "new")
        clock.advance(61)
        response = client.get("/x", headers={"If-None-Match": tag})
        assert (response.status_code, status_of(response)) == (304, "isr; hit; ttl=-1")
        client.isr.close()
        assert client.get("/x", headers={"If-None-Match": tag}).text == "new"

    @pytest.mark.parametrize("rules", [None, {"/x": Rule()}], ids=["undeclared", "declared"])
    def test_on_a_cold_page_does_not_keep_it_from_being_stored(
        self, site: t.Any, browse: t.Any, rules: t.Any
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            if "HTTP_IF_NONE_MATCH" in environ:
                start_response("304 Not Modified", page_headers(60))
                return []
            return t.cast("list[bytes]", typed("text/html")(environ, start_response))

        site.answers["/x"] = app
        client = browse(rules=rules)
        client.get("/x", headers={"If-None-Match": "*"})
        response = client.get("/x")
        assert (response.text, status_of(response)) == (LONG, "isr; hit; ttl=60")

    @pytest.mark.parametrize(
        "status", ["404 Not Found", "410 Gone", "301 Moved Permanently", "308 Permanent Redirect"]
    )
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
    MODIFIED = "Wed, 01 May 2024 12:00:00 GMT"

    @pytest.fixture
    def dated(self, site: t.Any, browse: t.Any) -> t.Any:
        site.page("/x", LONG, headers=[("Last-Modified", self.MODIFIED)])
        client = browse()
        client.get("/x")
        return client

    @pytest.mark.parametrize(
        ("since", "status"),
        [
            (MODIFIED, 304),
            ("Thu, 02 May 2024 00:00:00 GMT", 304),
            ("Wednesday, 01-May-24 12:00:00 GMT", 304),
            ("Wed, 01 May 2024 11:59:59 GMT", 200),
            ("yesterday", 200),
            ("", 200),
        ],
    )
    def test_is_compared_with_the_date_of_the_page(
        self, dated: t.Any, since: str, status: int
    ) -> None:
        assert dated.get("/x", headers={"If-Modified-Since": since}).status_code == status

    def test_means_nothing_to_a_page_without_a_date(self, client: t.Any) -> None:
        sent = {"If-Modified-Since": self.MODIFIED}
        assert client.get("/x", headers=sent).status_code == 200

    def test_means_nothing_beside_if_none_match(self, dated: t.Any) -> None:
        sent = {"If-Modified-Since": self.MODIFIED, "If-None-Match": '"other"'}
        assert dated.get("/x", headers=sent).status_code == 200
