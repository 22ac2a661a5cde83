"""Answers that call themselves pages but are not the same for all: refused, and never shared."""

from __future__ import annotations

import logging
import typing as t

import pytest
from conftest import status_of

from wsgi_isr import page_headers
from wsgi_isr import Rule

PLAIN = ("Content-Type", "text/plain")


def page_with(*headers: tuple[str, str], status: str = "200 OK", body: bytes = b"refused") -> t.Any:
    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response(status, [PLAIN, *page_headers(60), *headers])
        return [body]

    return app


class Case(t.NamedTuple):
    detail: str
    app: t.Any
    #: A word of the remedy.
    remedy: str


CASES = {
    "a cookie": Case("set-cookie", page_with(("Set-Cookie", "session=1")), "cookie"),
    "no-store": Case("cache-control", page_with(("Cache-Control", "no-store")), "no-store"),
    "private": Case("cache-control", page_with(("Cache-Control", "private")), "private"),
    "no-cache": Case("cache-control", page_with(("Cache-Control", "no-cache")), "no-cache"),
    "among others": Case(
        "cache-control", page_with(("Cache-Control", "max-age=60, Private")), "private"
    ),
    "of a field": Case(
        "cache-control", page_with(("Cache-Control", 'private="X-User"')), "private"
    ),
    "in a second line": Case(
        "cache-control",
        page_with(("Cache-Control", "max-age=60"), ("Cache-Control", "no-store")),
        "no-store",
    ),
    "a language": Case("vary", page_with(("Vary", "Accept-Language")), "vary"),
    "everything": Case("vary", page_with(("Vary", "*")), "vary"),
    "one of several": Case("vary", page_with(("Vary", "Cookie, User-Agent")), "vary"),
    "a second Vary": Case("vary", page_with(("Vary", "Cookie"), ("Vary", "Origin")), "vary"),
    "a status": Case("status", page_with(status="403 Forbidden"), "200"),
}
DECLARED = {"/x": Rule()}
URL = "http://example.com/x"


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


class TestCold:
    @pytest.fixture(params=[None, DECLARED], ids=["undeclared", "declared"])
    def client(self, request: pytest.FixtureRequest, browse: t.Any) -> t.Any:
        return browse(rules=request.param)

    def test_nothing_is_stored(self, site: t.Any, client: t.Any, case: Case) -> None:
        site.answers["/x"] = case.app
        for _ in range(2):
            assert client.get("/x").text == "refused"
        assert list(client.isr.pages()) == []

    def test_the_answer_is_the_visitors_alone(self, site: t.Any, client: t.Any, case: Case) -> None:
        site.answers["/x"] = case.app
        for _ in range(3):
            response = client.get("/x")
            assert response.headers.getlist("Cache-Control") == ["private, no-store"]
            assert status_of(response) == f"isr; fwd=uri-miss; detail={case.detail}"

    def test_he_gets_the_answer_to_his_own_request(self, site: t.Any, client: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            who = environ.get("HTTP_COOKIE", "nobody")
            cookie = ("Set-Cookie", f"seen={who.partition('=')[2]}")
            start_response("200 OK", [PLAIN, *page_headers(60), cookie])
            return [f"hello {who}".encode()]

        site.answers["/x"] = app
        for name in ("ada", "bob"):
            client.set_cookie("who", name)
            response = client.get("/x")
            assert response.text.startswith("hello ")
            assert f"who={name}" in response.text
            assert "nobody" not in response.headers["Set-Cookie"]

    def test_one_warning_names_the_page_and_the_remedy(
        self, site: t.Any, client: t.Any, case: Case, caplog: pytest.LogCaptureFixture
    ) -> None:
        site.answers["/x"] = case.app
        for _ in range(3):
            client.get("/x", base_url="http://example.com")
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("wsgi_isr", logging.WARNING)
        assert URL in record.getMessage()
        assert case.detail in record.getMessage()
        assert case.remedy in record.getMessage()

    def test_the_page_is_not_rendered_in_vain_for_a_minute(
        self, site: t.Any, client: t.Any, case: Case
    ) -> None:
        site.answers["/x"] = case.app
        for _ in range(4):
            client.get("/x")
        assert site.renders("/x") == 1

    def test_an_invalidation_ends_that_minute(self, site: t.Any, client: t.Any, case: Case) -> None:
        site.answers["/x"] = case.app
        client.get("/x")
        site.page("/x", "corrected")
        client.isr.invalidate("/x")
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        assert client.get("/x").text == "corrected"

    def test_a_prerender_ends_that_minute(self, site: t.Any, client: t.Any, case: Case) -> None:
        site.answers["/x"] = case.app
        client.get("/x", base_url="http://example.com")
        site.page("/x", "corrected")
        (result,) = client.isr.prerender([URL])
        assert result.error is None
        response = client.get("/x", base_url="http://example.com")
        assert (response.text, status_of(response)) == ("corrected", "isr; hit; ttl=60")


class TestRegeneration:
    def test_the_page_stays(
        self, site: t.Any, browse: t.Any, clock: t.Any, listable: str, case: Case
    ) -> None:
        site.page("/x", "good")
        client = browse(listable)
        client.get("/x")
        site.answers["/x"] = case.app
        clock.advance(61)
        for _ in range(3):
            response = client.get("/x")
            client.isr.close()
            assert response.text == "good"
            assert status_of(response) == "isr; hit; ttl=-1"
        (page,) = client.isr.pages()
        assert case.detail in page.last_error

    def test_one_warning_names_the_page_and_the_remedy(
        self,
        site: t.Any,
        browse: t.Any,
        clock: t.Any,
        case: Case,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        site.page("/x", "good")
        client = browse()
        client.get("/x", base_url="http://example.com")
        site.answers["/x"] = case.app
        clock.advance(61)
        for _ in range(2):
            client.get("/x", base_url="http://example.com")
            client.isr.close()
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert URL in record.getMessage()
        assert case.remedy in record.getMessage()

    def test_where_the_page_has_expired_the_visitor_gets_his_own_answer(
        self, site: t.Any, browse: t.Any, clock: t.Any, case: Case
    ) -> None:
        site.page("/x", "good", revalidate=60, expire=60)
        client = browse()
        client.get("/x")
        site.answers["/x"] = case.app
        clock.advance(60)
        response = client.get("/x")
        assert response.text == "refused"
        assert response.headers["Cache-Control"] == "private, no-store"
        assert len(list(client.isr.pages())) == 1


class TestVary:
    """What a page may say it depends on."""

    @pytest.mark.parametrize("fields", ["Accept-Encoding", "accept-encoding", "Cookie"])
    @pytest.mark.parametrize("more", ["", ", Authorization"])
    def test_of_what_the_canonical_request_has_not_is_dropped(
        self, site: t.Any, browse: t.Any, fields: str, more: str
    ) -> None:
        site.page("/x", "a page", headers=[("Vary", fields + more)])
        client = browse()
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        assert "Vary" not in client.get("/x").headers

    def test_of_what_its_rule_declares_is_kept(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", headers=[("Vary", "accept-language, Cookie")])
        client = browse(rules={"/x": Rule(vary={"Accept-Language": ["en"]})})
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        assert client.get("/x").headers["Vary"].lower() == "accept-language"

    def test_of_another_header_than_its_rule_declares_is_refused(
        self, site: t.Any, browse: t.Any
    ) -> None:
        site.page("/x", headers=[("Vary", "Accept-Language, X-Theme")])
        client = browse(rules={"/x": Rule(vary={"Accept-Language": ["en"]})})
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; detail=vary"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Injected", "a\r\nSet-Cookie: admin=1"),
        ("X-Injected", "a\nb"),
        ("X-Injected", "a\rb"),
        ("X-Injected", "a\x00b"),
        ("X-Injected", "a\x07b"),
        ("X-Injected", "5 €"),
        ("X Injected", "a"),
        ("X-Injected:", "a"),
        ("X-Injected\r\nSet-Cookie", "a"),
        ("", "a"),
    ],
)
class TestHeadersThatHttpDoesNotAllow:
    """Nothing that could split a response gets into the store."""

    def test_are_never_stored(self, site: t.Any, unchecked: t.Any, name: str, value: str) -> None:
        site.answers["/x"] = page_with((name, value))
        client = unchecked(rules=DECLARED)
        run(client.isr)
        assert list(client.isr.pages()) == []

    def test_never_replace_a_page(
        self, site: t.Any, unchecked: t.Any, clock: t.Any, name: str, value: str
    ) -> None:
        site.page("/x", "good")
        client = unchecked()
        client.get("/x")
        site.answers["/x"] = page_with((name, value))
        clock.advance(61)
        client.get("/x")
        client.isr.close()
        assert client.get("/x").text == "good"


@pytest.mark.parametrize("status", ["200 OK\r\nSet-Cookie: admin=1", "200 \x00", "200 €"])
def test_a_status_line_that_http_does_not_allow_is_never_stored(
    site: t.Any, unchecked: t.Any, status: str
) -> None:
    site.answers["/x"] = page_with(status=status)
    client = unchecked(rules=DECLARED)
    run(client.isr)
    assert list(client.isr.pages()) == []


def run(app: t.Any) -> None:
    """Call an app as a server without any checks."""
    from werkzeug.test import create_environ

    list(app(create_environ("/x"), lambda status, headers, exc_info=None: lambda data: None))


def test_a_failed_render_hands_its_cookies_to_nobody(site: t.Any, browse: t.Any) -> None:
    """The error page of a cold page is shared by all who waited for it."""

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response("500 Internal Server Error", [PLAIN, ("Set-Cookie", "session=of-nobody")])
        return [b"oops"]

    site.answers["/x"] = app
    response = browse(rules={"/x": 60}).get("/x")
    assert (response.status_code, response.text) == (500, "oops")
    assert "Set-Cookie" not in response.headers
