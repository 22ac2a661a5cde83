"""404, 410 and redirects are results, stored like pages (promise 4); what else is, and is not."""

from __future__ import annotations

import typing as t

import pytest
from answers import answer, page, renew
from conftest import status_of

from wsgi_isr import Rule

ADDRESS = ("Location", "http://localhost/new")

RESULTS = [
    "200 OK",
    "301 Moved Permanently",
    "308 Permanent Redirect",
    "404 Not Found",
    "410 Gone",
]
TEMPORARY = ["302 Found", "307 Temporary Redirect"]
#: What is a decision of the app, and what says that the render has failed.
REFUSED = ["203 Non-Authoritative Information", "206 Partial Content", "303 See Other"]
REFUSED += ["401 Unauthorized", "403 Forbidden", "451 Unavailable For Legal Reasons"]
FAILED = ["408 Request Timeout", "425 Too Early", "429 Too Many Requests"]
FAILED += ["500 Internal Server Error", "503 Service Unavailable"]


class TestStatuses:
    @pytest.mark.parametrize("status", RESULTS + TEMPORARY)
    def test_results_are_stored(
        self, site: t.Any, browse: t.Any, listable: str, status: str
    ) -> None:
        site.answers["/x"] = page(ADDRESS, status=status)
        client = browse(listable)
        first, second = client.get("/x"), client.get("/x")
        assert status_of(first) == "isr; fwd=uri-miss; stored"
        assert status_of(second) == "isr; hit; ttl=60"
        assert (first.status, first.text) == (second.status, second.text) == (status, "a page")
        assert second.headers["Location"] == "http://localhost/new"

    @pytest.mark.parametrize("status", RESULTS)
    def test_results_are_stored_where_a_rule_says_so(
        self, site: t.Any, browse: t.Any, status: str
    ) -> None:
        site.answers["/x"] = answer(ADDRESS, status=status)
        client = browse(rules={"/x": 60})
        client.get("/x")
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"

    @pytest.mark.parametrize("status", TEMPORARY)
    def test_a_rule_alone_is_not_enough_for_a_temporary_redirect(
        self, site: t.Any, browse: t.Any, status: str
    ) -> None:
        site.answers["/x"] = answer(ADDRESS, status=status)
        client = browse(rules={"/x": 60})
        response = client.get("/x")
        assert response.status == status
        assert status_of(response) == "isr; fwd=uri-miss; detail=status"
        assert list(client.isr.pages()) == []

    @pytest.mark.parametrize("declared", [True, False])
    @pytest.mark.parametrize("status", REFUSED + FAILED)
    def test_other_statuses_are_never_stored(
        self, site: t.Any, browse: t.Any, status: str, declared: bool
    ) -> None:
        site.answers["/x"] = page(status=status)
        client = browse(rules={"/x": Rule()} if declared else None)
        response = client.get("/x")
        assert (response.status, response.text) == (status, "a page")
        assert response.headers["Cache-Control"] == "private, no-store"
        # A page that was declared, and never rendered well, is to be found.
        states = [found.state for found in client.isr.pages()]
        assert states == (["failed"] if declared and status in FAILED else [])

    @pytest.mark.parametrize("status", FAILED)
    def test_that_say_not_now_leave_the_page(
        self, site: t.Any, browse: t.Any, clock: t.Any, status: str
    ) -> None:
        site.page("/x", "good")
        client = browse()
        client.get("/x")
        site.answers["/x"] = page(status=status)
        assert renew(client, clock).text == "good"
        (found,) = client.isr.pages()
        assert status in found.last_error

    def test_the_phrase_of_a_status_is_kept(self, site: t.Any, browse: t.Any) -> None:
        site.answers["/x"] = page(status="404 Not Here Any More")
        client = browse()
        client.get("/x")
        assert client.get("/x").status == "404 Not Here Any More"


@pytest.mark.parametrize("gone", ["404 Not Found", "410 Gone"])
class TestGone:
    """Content that is deleted, and returns."""

    def test_a_page_that_turns_404_is_stored_as_one(
        self, site: t.Any, browse: t.Any, clock: t.Any, gone: str
    ) -> None:
        site.page("/x")
        client = browse()
        client.get("/x")
        site.page("/x", revalidate=30, status=gone)
        response = renew(client, clock)
        assert (response.status, status_of(response)) == (gone, "isr; hit; ttl=30")

    def test_without_metadata_it_keeps_its_last_window(
        self, site: t.Any, browse: t.Any, clock: t.Any, gone: str
    ) -> None:
        site.page("/x", revalidate=60, expire=90, tags=["a"])
        client = browse()
        client.get("/x")
        site.answers["/x"] = answer(status=gone)
        response = renew(client, clock)
        assert (response.status, status_of(response)) == (gone, "isr; hit; ttl=60")
        assert next(client.isr.pages()).tags == ("a",)

    def test_it_stays_so_after_a_restart_and_in_every_worker(
        self, site: t.Any, browse: t.Any, clock: t.Any, files: str, gone: str
    ) -> None:
        site.page("/x")
        client, other = browse(files), browse(files)
        client.get("/x")
        other.get("/x")
        site.answers["/x"] = answer(status=gone)
        renew(client, clock)
        for worker in (client, other, browse(files)):
            response = worker.get("/x")
            assert (response.status, status_of(response)) == (gone, "isr; hit; ttl=60")

    def test_it_is_replaced_when_the_content_returns(
        self, site: t.Any, browse: t.Any, clock: t.Any, gone: str
    ) -> None:
        site.answers["/x"] = page(status=gone)
        client = browse()
        client.get("/x")
        site.page("/x", "published")
        assert client.get("/x").status == gone
        response = renew(client, clock)
        assert (response.status_code, response.text) == (200, "published")


def test_a_404_that_was_never_a_page_is_none(browse: t.Any) -> None:
    client = browse()
    response = client.get("/nowhere")
    assert (response.status_code, response.text) == (404, "no such page")
    assert "Cache-Control" not in response.headers
    assert list(client.isr.pages()) == []


class TestRedirects:
    @pytest.mark.parametrize(
        ("query", "stored"),
        [("", True), ("utm_source=x", False), ("p=2", False), ("p=2&utm_source=x", False)],
    )
    def test_are_for_requests_without_undeclared_parameters(
        self, site: t.Any, unchecked: t.Any, query: str, stored: bool
    ) -> None:
        """The app knows where to send the others, and what the page there counts."""

        def slash(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            query = environ["QUERY_STRING"]
            location = f"/x/?{query}" if query else "/x/"
            start_response("301 Moved Permanently", [("Location", location)])
            return []

        client = unchecked(app=slash, rules={"/**": 60})
        for _ in range(3):
            client.get("/x")
            response = client.get(f"/x?{query}")
            if stored:
                assert status_of(response) == "isr; hit; ttl=60"
                assert response.headers["Location"] == "/x/"
            else:
                assert status_of(response) == "isr; fwd=uri-miss; detail=query"
                assert response.headers["Location"] == f"/x/?{query}"
                assert response.headers["Cache-Control"] == "private, no-store"

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ([("Location", "/login"), ("Vary", "Cookie")], "302 Found"),
            ([("Location", "/login?next=/x")], "302 Found"),
            ([("Location", "/login?next=%2Fx")], "307 Temporary Redirect"),
            ([("Location", "/login?next=http://localhost/x?a=b")], "302 Found"),
        ],
    )
    def test_to_a_login_are_not_stored(
        self,
        site: t.Any,
        unchecked: t.Any,
        caplog: pytest.LogCaptureFixture,
        headers: t.Any,
        status: str,
    ) -> None:
        site.answers["/x"] = page(*headers, status=status)
        client = unchecked(rules={"/x": Rule()})
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; detail=login"
        assert list(client.isr.pages()) == []
        assert "bypass=" in caplog.text

    @pytest.mark.parametrize(
        ("location", "leads_to_itself"),
        [
            ("http://example.com/x", True),
            ("https://EXAMPLE.com./x", True),
            ("//example.com/x", True),
            ("x", True),
            ("/x#top", True),
            ("/%78", True),
            ("/x?undeclared=1", True),
            ("https://example.com:443/x", True),
            ("/x?page=1", False),
            ("/y", False),
            ("/x/", False),
            ("http://other.example/x", False),
            ("http://[::1/x", False),
            ("http://example.com:8000/x", False),
            ("http://example.com:99999/x", False),
        ],
    )
    def test_to_themselves_are_never_stored(
        self,
        site: t.Any,
        unchecked: t.Any,
        caplog: pytest.LogCaptureFixture,
        location: str,
        leads_to_itself: bool,
    ) -> None:
        """They send visitors in circles; mostly the app does not know that it is behind TLS."""
        site.answers["/x"] = page(("Location", location), status="301 Moved Permanently")
        client = unchecked(rules={"/x": Rule(query=["page"])})
        response = client.get("/x", base_url="http://example.com")
        assert response.status_code == 301
        assert len(list(client.isr.pages())) == (0 if leads_to_itself else 1)
        if leads_to_itself:
            (record,) = caplog.records
            for word in ("http://example.com/x", location, "ProxyFix", "base_url"):
                assert word in record.getMessage()
