"""404, 410 and redirects are results, stored like pages (promise 4); what else is, and is not."""

from __future__ import annotations

import typing as t

import pytest
from conftest import status_of

from wsgi_isr import page_headers
from wsgi_isr import Rule

ADDRESS = ("Location", "http://localhost/new")


def answer(status: str, *headers: tuple[str, str], body: bytes = b"an answer") -> t.Any:
    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        kind = [] if status[:3] in ("204", "304") else [("Content-Type", "text/plain")]
        start_response(status, [*kind, *headers])
        return [] if status[:3] in ("204", "304") else [body]

    return app


RESULTS = [
    "200 OK",
    "301 Moved Permanently",
    "308 Permanent Redirect",
    "404 Not Found",
    "410 Gone",
]
TEMPORARY = ["302 Found", "307 Temporary Redirect"]
OTHERS = [
    "201 Created",
    "203 Non-Authoritative Information",
    "206 Partial Content",
    "300 Multiple Choices",
    "303 See Other",
    "400 Bad Request",
    "401 Unauthorized",
    "403 Forbidden",
    "405 Method Not Allowed",
    "429 Too Many Requests",
    "451 Unavailable For Legal Reasons",
    "500 Internal Server Error",
    "503 Service Unavailable",
]


class TestStatuses:
    @pytest.mark.parametrize("status", RESULTS + TEMPORARY)
    def test_results_are_stored(self, site: t.Any, browse: t.Any, cache: str, status: str) -> None:
        site.answers["/x"] = answer(status, ADDRESS, *page_headers(60))
        client = browse(cache)
        first, second = client.get("/x"), client.get("/x")
        assert status_of(first) == "isr; fwd=uri-miss; stored"
        assert status_of(second) == "isr; hit; ttl=60"
        assert (first.status, first.text) == (second.status, second.text) == (status, "an answer")
        assert second.headers["Location"] == "http://localhost/new"

    @pytest.mark.parametrize("status", RESULTS)
    def test_results_are_stored_where_a_rule_says_so(
        self, site: t.Any, browse: t.Any, status: str
    ) -> None:
        site.answers["/x"] = answer(status, ADDRESS)
        client = browse(rules={"/x": 60})
        client.get("/x")
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"

    @pytest.mark.parametrize("status", TEMPORARY)
    def test_a_rule_alone_is_not_enough_for_a_temporary_redirect(
        self, site: t.Any, browse: t.Any, status: str
    ) -> None:
        site.answers["/x"] = answer(status, ADDRESS)
        client = browse(rules={"/x": 60})
        response = client.get("/x")
        assert (response.status, status_of(response)) == (
            status,
            "isr; fwd=uri-miss; detail=status",
        )
        assert list(client.isr.pages()) == []

    @pytest.mark.parametrize("declared", [True, False])
    @pytest.mark.parametrize("status", OTHERS)
    def test_other_statuses_are_never_stored(
        self, site: t.Any, browse: t.Any, status: str, declared: bool
    ) -> None:
        site.answers["/x"] = answer(status, *page_headers(60))
        client = browse(rules={"/x": Rule()} if declared else None)
        response = client.get("/x")
        assert (response.status, response.text) == (status, "an answer")
        assert response.headers["Cache-Control"] == "private, no-store"
        assert list(client.isr.pages()) == []

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
    def test_nor_are_answers_without_a_body(
        self, site: t.Any, unchecked: t.Any, status: str
    ) -> None:
        site.answers["/x"] = answer(status, *page_headers(60))
        client = unchecked()
        assert client.get("/x").status == status
        assert list(client.isr.pages()) == []

    @pytest.mark.parametrize("status", OTHERS)
    def test_other_statuses_never_replace_a_page(
        self, site: t.Any, browse: t.Any, clock: t.Any, status: str
    ) -> None:
        site.page("/x", "good")
        client = browse()
        client.get("/x")
        site.answers["/x"] = answer(status, *page_headers(60))
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        assert client.get("/x").text == "good"

    def test_the_phrase_of_a_status_is_kept(self, site: t.Any, browse: t.Any) -> None:
        site.answers["/x"] = answer("404 Not Here Any More", *page_headers(60))
        client = browse()
        client.get("/x")
        assert client.get("/x").status == "404 Not Here Any More"


class TestGone:
    """Content that is deleted, and returns."""

    @pytest.fixture(params=["404 Not Found", "410 Gone"])
    def gone(self, request: pytest.FixtureRequest) -> str:
        return t.cast(str, request.param)

    def test_a_page_that_turns_404_is_stored_as_one(
        self, site: t.Any, browse: t.Any, clock: t.Any, gone: str
    ) -> None:
        site.page("/x")
        client = browse()
        client.get("/x")
        site.answers["/x"] = answer(gone, *page_headers(30))
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        response = client.get("/x")
        assert (response.status, status_of(response)) == (gone, "isr; hit; ttl=30")

    def test_without_metadata_it_keeps_its_last_window(
        self, site: t.Any, browse: t.Any, clock: t.Any, gone: str
    ) -> None:
        site.page("/x", revalidate=60, expire=90, tags=["a"])
        client = browse()
        client.get("/x")
        site.answers["/x"] = answer(gone)
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        response = client.get("/x")
        assert (response.status, status_of(response)) == (gone, "isr; hit; ttl=60")
        assert next(client.isr.pages()).tags == ("a",)

    def test_also_when_the_visitor_waits_for_it(
        self, site: t.Any, browse: t.Any, clock: t.Any, gone: str
    ) -> None:
        site.page("/x", revalidate=60, expire=60)
        client = browse()
        client.get("/x")
        site.answers["/x"] = answer(gone)
        clock.advance(61)
        response = client.get("/x")
        assert (response.status, status_of(response)) == (gone, "isr; fwd=stale; stored")

    def test_it_stays_so_after_a_restart_and_in_every_worker(
        self, site: t.Any, browse: t.Any, clock: t.Any, files: str, gone: str
    ) -> None:
        site.page("/x")
        client, other = browse(files), browse(files)
        client.get("/x")
        other.get("/x")
        site.answers["/x"] = answer(gone)
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        for worker in (client, other, browse(files)):
            response = worker.get("/x")
            assert (response.status, status_of(response)) == (gone, "isr; hit; ttl=60")

    def test_it_is_replaced_when_the_content_returns(
        self, site: t.Any, browse: t.Any, clock: t.Any, gone: str
    ) -> None:
        site.answers["/x"] = answer(gone, *page_headers(60))
        client = browse()
        client.get("/x")
        site.page("/x", "published")
        clock.advance(61)
        assert client.get("/x").status == gone
        client.isr.close()
        response = client.get("/x")
        assert (response.status_code, response.text) == (200, "published")

    def test_a_404_that_was_never_a_page_is_none(self, site: t.Any, browse: t.Any) -> None:
        client = browse()
        response = client.get("/nowhere")
        assert (response.status_code, response.text) == (404, "no such page")
        assert "Cache-Control" not in response.headers
        assert list(client.isr.pages()) == []


class TestNoPageAnyMore:
    """A known page that answers 200 without metadata is dropped."""

    def test_its_url_goes_to_the_app(self, site: t.Any, browse: t.Any, clock: t.Any) -> None:
        site.page("/x", "a page")
        client = browse()
        client.get("/x")
        site.answers["/x"] = answer("200 OK", body=b"dynamic")
        clock.advance(61)
        assert client.get("/x").text == "a page"
        client.isr.close()
        response = client.get("/x")
        assert (response.text, status_of(response)) == ("dynamic", "")
        assert "wsgi_isr.reason" not in site.environs[-1]
        assert list(client.isr.pages()) == []

    def test_in_every_worker(self, site: t.Any, browse: t.Any, clock: t.Any, files: str) -> None:
        site.page("/x", "a page")
        client, other = browse(files), browse(files)
        client.get("/x")
        other.get("/x")
        site.answers["/x"] = answer("200 OK", body=b"dynamic")
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        assert other.get("/x").text == "dynamic"
        assert browse(files).get("/x").text == "dynamic"

    def test_where_the_visitor_waited_he_gets_his_own_answer(
        self, site: t.Any, browse: t.Any, clock: t.Any
    ) -> None:
        site.page("/x", revalidate=60, expire=60)
        client = browse()
        client.get("/x")
        site.answers["/x"] = answer("200 OK", body=b"dynamic")
        clock.advance(61)
        response = client.get("/x")
        assert response.text == "dynamic"
        assert response.headers["Cache-Control"] == "private, no-store"
        assert "wsgi_isr.reason" not in site.environs[-1]
        assert list(client.isr.pages()) == []

    @pytest.mark.parametrize("status", [*TEMPORARY, *OTHERS, RESULTS[1]])
    def test_any_other_answer_without_metadata_is_refused_and_the_page_stays(
        self, site: t.Any, browse: t.Any, clock: t.Any, status: str
    ) -> None:
        site.page("/x", "good")
        client = browse()
        client.get("/x")
        site.answers["/x"] = answer(status, ADDRESS)
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        assert client.get("/x").text == "good"
        assert len(list(client.isr.pages())) == 1


class TestRedirectsToThemselves:
    """They would send every visitor in circles; mostly the app did not know it is behind TLS."""

    @pytest.mark.parametrize(
        "location",
        [
            "http://example.com/x",
            "https://example.com/x",
            "https://EXAMPLE.com/x",
            "//example.com/x",
            "/x",
            "x",
            "/x#top",
            "/%78",
            "/x?undeclared=1",
            "http://example.com:80/x",
            "https://example.com:443/x",
            "https://example.com./x",
        ],
    )
    @pytest.mark.parametrize("status", ["301 Moved Permanently", "308 Permanent Redirect"])
    def test_are_never_stored(
        self,
        site: t.Any,
        unchecked: t.Any,
        caplog: pytest.LogCaptureFixture,
        status: str,
        location: str,
    ) -> None:
        site.answers["/x"] = answer(status, ("Location", location), *page_headers(60))
        client = unchecked(rules={"/x": 60})
        response = client.get("/x", base_url="http://example.com")
        assert response.status == status
        assert list(client.isr.pages()) == []
        (record,) = caplog.records
        assert "http://example.com/x" in record.getMessage()
        assert "ProxyFix" in record.getMessage()
        assert "base_url" in record.getMessage()

    @pytest.mark.parametrize(
        "location",
        [
            "/y",
            "/x/",
            "/",
            "http://other.example/x",
            "https://www.example.com/x",
            "http://[::1/x",
            "http://example.com:8000/x",
            "https://example.com:8443/x",
            "http://example.com:99999/x",
        ],
    )
    def test_are_not_confused_with_others(
        self, site: t.Any, unchecked: t.Any, location: str
    ) -> None:
        redirect = answer("301 Moved Permanently", ("Location", location), *page_headers(60))
        site.answers["/x"] = redirect
        client = unchecked()
        client.get("/x", base_url="http://example.com")
        (page,) = client.isr.pages()
        assert page.status == 301

    @pytest.mark.parametrize(
        ("location", "stored"),
        [
            ("http://example.com:9000/x", True),
            ("http://example.com/x", True),
            ("http://example.com:8000/x", False),
            ("https://example.com:8000/x", False),
        ],
    )
    def test_another_port_is_another_site(
        self, site: t.Any, unchecked: t.Any, location: str, stored: bool
    ) -> None:
        redirect = answer("301 Moved Permanently", ("Location", location), *page_headers(60))
        site.answers["/x"] = redirect
        client = unchecked()
        client.get("/x", base_url="http://example.com:8000")
        assert bool(list(client.isr.pages())) is stored

    @pytest.mark.parametrize(
        "options",
        [{"rules": {"/x": Rule(revalidate=60, query=["page"])}}, {"query": ["page"]}],
        ids=["by a rule", "for all URLs"],
    )
    def test_another_value_of_a_declared_parameter_is_another_page(
        self, site: t.Any, unchecked: t.Any, options: t.Any
    ) -> None:
        first = ("Location", "/x?page=1")
        site.answers["/x"] = answer("301 Moved Permanently", first, *page_headers(60))
        client = unchecked(**options)
        client.get("/x")
        (page,) = client.isr.pages()
        assert page.url == "http://localhost/x"
