"""Answers that call themselves pages but are not the same for all: refused, and never shared."""

from __future__ import annotations

import logging
import typing as t

import pytest
from answers import BOTH, PLAIN, answer, page, run
from conftest import status_of

from wsgi_isr import Rule, page_headers

DECLARED = {"/x": Rule()}
URL = "http://example.com/x"
COOKIE = ("Set-Cookie", "session=1")
ADDRESS = ("Location", "http://localhost/there")


class Case(t.NamedTuple):
    """
    :param words: which a warning has: the culprit, and one of the remedy.
    """

    detail: str
    app: t.Any
    words: tuple[str, ...]


def control(value: str, culprit: str, *more: tuple[str, str]) -> Case:
    words = (culprit, "ignore=('Cache-Control',)")
    return Case("cache-control", page(("Cache-Control", value), *more), words)


def vary(value: str, culprit: str, *more: tuple[str, str]) -> Case:
    return Case("vary", page(("Vary", value), *more), (culprit, "Rule(vary={...})"))


CASES = {
    "a cookie": Case("set-cookie", page(COOKIE, ("Set-Cookie", "b=2")), ("session, b", "ignore=")),
    "a token of forms": Case(
        "set-cookie",
        page(("Set-Cookie", "csrftoken=x")),
        ("csrftoken", "fetch the form separately"),
    ),
    "no-store": control("no-store", "no-store"),
    "no-cache among others": control("max-age=60, No-Cache", "no-cache"),
    "private of a field": control('private="X-User"', "private"),
    "behind a semicolon": control("private; max-age=0", "private"),
    "behind a colon": control("private: max-age=0", "private"),
    "in quotes": control('max-age=0, "no-store"', "no-store"),
    "behind a space": control("max-age=0 no-store", "no-store"),
    "in a second line": control("max-age=60", "no-store", ("Cache-Control", "no-store")),
    "everything": vary("*", "*"),
    "one of several": vary("Cookie, User-Agent", "user-agent"),
    "a second Vary": vary("Cookie", "origin", ("Vary", "Origin")),
    "a status": Case("status", page(status="403 Forbidden"), ("403", "200, 301")),
    "a redirect": Case(
        "status", page(ADDRESS, status="303 See Other"), (f"303 to {ADDRESS[1]}", "301")
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def is_warning_of(record: logging.LogRecord, case: Case) -> bool:
    words = (URL, case.detail, *case.words)
    return record.levelno == logging.WARNING and all(w in record.getMessage() for w in words)


@BOTH
class TestCold:
    def test_nothing_is_stored_and_the_answer_is_the_visitors_alone(
        self, site: t.Any, browse: t.Any, case: Case, rules: t.Any
    ) -> None:
        site.answers["/x"] = case.app
        client = browse(rules=rules)
        for _ in range(3):
            response = client.get("/x")
            assert response.text == "a page"
            assert response.headers.getlist("Cache-Control") == ["private, no-store"]
            assert status_of(response) == f"isr; fwd=uri-miss; detail={case.detail}"
        assert list(client.isr.pages()) == []
        # Not rendered in vain for a minute; and a first answer may say enough.
        assert site.renders("/x") <= 1

    def test_they_get_the_answer_to_their_own_request(
        self, site: t.Any, browse: t.Any, rules: t.Any
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            who = environ.get("HTTP_COOKIE", "nobody")
            cookie = ("Set-Cookie", f"seen={who.partition('=')[2]}")
            start_response("200 OK", [PLAIN, *page_headers(60), cookie])
            return [f"hello {who}".encode()]

        site.answers["/x"] = app
        client = browse(rules=rules)
        for name in ("ada", "bob"):
            client.set_cookie("who", name)
            response = client.get("/x")
            assert f"who={name}" in response.text
            assert "nobody" not in response.headers["Set-Cookie"]

    def test_one_warning_names_page_culprit_and_remedy(
        self,
        site: t.Any,
        browse: t.Any,
        case: Case,
        caplog: pytest.LogCaptureFixture,
        rules: t.Any,
    ) -> None:
        site.answers["/x"] = case.app
        client = browse(rules=rules)
        for _ in range(3):
            client.get("/x", base_url="http://example.com")
        (record,) = caplog.records
        assert is_warning_of(record, case)

    def test_an_invalidation_ends_that_minute(
        self, site: t.Any, browse: t.Any, case: Case, rules: t.Any
    ) -> None:
        site.answers["/x"] = case.app
        client = browse(rules=rules)
        client.get("/x")
        site.page("/x", "corrected")
        client.isr.invalidate("/x")
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        assert client.get("/x").text == "corrected"


class TestRegeneration:
    """See also `test_withdrawal`."""

    def test_warnings_name_page_culprit_and_remedy(
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
        client.get("/x", base_url="http://example.com")
        client.isr.close()
        refused, withdrawn = caplog.records
        assert is_warning_of(refused, case)
        assert URL in withdrawn.getMessage() and case.words[0] in withdrawn.getMessage()


class TestVary:
    """What a page may say it depends on."""

    @pytest.mark.parametrize("fields", ["Accept-Encoding", "Cookie", "cookie, Authorization"])
    def test_of_what_the_canonical_request_has_not_is_dropped(
        self, site: t.Any, browse: t.Any, fields: str
    ) -> None:
        site.page("/x", headers=[("Vary", fields)])
        client = browse()
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        assert "Vary" not in client.get("/x").headers

    def test_of_what_its_rule_declares_is_kept(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", headers=[("Vary", "accept-language, Cookie")])
        client = browse(rules={"/x": Rule(vary={"Accept-Language": ["en"]})})
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"
        assert client.get("/x").headers["Vary"].lower() == "accept-language"
        site.page("/x", headers=[("Vary", "Accept-Language, X-Theme")])
        client.isr.invalidate("/x", expire=True)
        assert status_of(client.get("/x")) == "isr; fwd=stale; detail=vary"

    def test_of_a_first_answer_refuses_the_page(
        self, site: t.Any, browse: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As with CORS: only a request that has an ``Origin`` shows that it makes a difference."""

        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            origin = environ.get("HTTP_ORIGIN")
            cors = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")] if origin else []
            start_response("200 OK", [PLAIN, *page_headers(60), *cors])
            return [b"data"]

        site.answers["/x"] = app
        client = browse()
        for _ in range(2):
            response = client.get("/x", headers={"Origin": "http://a.example"})
            assert response.headers["Access-Control-Allow-Origin"] == "http://a.example"
            assert status_of(response) == "isr; fwd=uri-miss; detail=vary"
        assert list(client.isr.pages()) == []
        # Its word is about the URL: it goes for others, too.
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; detail=vary"
        (record,) = caplog.records
        assert "origin" in record.getMessage() and "Rule(vary={...})" in record.getMessage()


class TestIgnored:
    """``Rule(ignore=...)``: for apps that nobody can change."""

    HEADERS = (COOKIE, ("Cache-Control", "private"), ("Vary", "Accept-Language"))

    def test_fields_keep_no_answer_from_being_a_page(self, site: t.Any, browse: t.Any) -> None:
        site.answers["/x"] = answer(*self.HEADERS)
        ignore = ["set-cookie", "Cache-Control", "Vary"]
        client = browse(rules={"/x": Rule(revalidate=60, ignore=ignore)})
        for expected in ("isr; fwd=uri-miss; stored", "isr; hit; ttl=60"):
            response = client.get("/x")
            assert status_of(response) == expected
            assert not {"Set-Cookie", "Vary"} & set(response.headers.keys())
            assert response.headers["Cache-Control"].startswith("public, max-age=0")

    @pytest.mark.parametrize(
        ("ignore", "detail"),
        [
            (["Set-Cookie", "Vary"], "cache-control"),
            (["Set-Cookie", "Cache-Control"], "vary"),
            (["Vary", "Cache-Control"], "set-cookie"),
        ],
    )
    def test_others_do(self, site: t.Any, browse: t.Any, ignore: t.Any, detail: str) -> None:
        site.answers["/x"] = page(*self.HEADERS)
        client = browse(rules={"/x": Rule(revalidate=60, ignore=ignore)})
        response = client.get("/x")
        assert status_of(response) == f"isr; fwd=uri-miss; detail={detail}"
        # The visitor's own answer is as the app gave it.
        assert response.headers["Set-Cookie"] == COOKIE[1]

    @pytest.mark.parametrize(
        ("field", "is_token"),
        [
            ('<input type="hidden" name="csrfmiddlewaretoken" value="x">', True),
            ("<input value=x name = 'csrf_token'>", True),
            ("<INPUT NAME=authenticity_token value=x>", True),
            ("<input name=_token>", True),
            ("<meta name='csrf-token' content='x'>", True),
            ("<input name=_xsrf>", True),
            ("""<body hx-headers='{"X-CSRFToken": "x"}'>""", True),
            ("<body hx-headers='{&quot;X-CSRFToken&quot;: &quot;x&quot;}'>", True),
            ("<script>window.csrfToken = 'x'</script>", True),
            ('<input name="__RequestVerificationToken">', True),
            ('<input name="__FORM_TOKEN">', True),
            ('<input name="token">', False),
            ("<p>Each form has a csrf_token.", False),
            ('<input name="csrf_token_help">', False),
        ],
    )
    def test_a_form_that_would_fail_is_no_page_all_the_same(
        self,
        site: t.Any,
        browse: t.Any,
        caplog: pytest.LogCaptureFixture,
        field: str,
        is_token: bool,
    ) -> None:
        body = f"<form method=post>{field}</form>".encode()
        site.answers["/x"] = answer(("Content-Type", "text/html"), COOKIE, body=body)
        client = browse(rules={"/x": Rule(revalidate=60, ignore=["Set-Cookie"])})
        stored = "isr; fwd=uri-miss; stored"
        response = client.get("/x")
        refused = "isr; fwd=uri-miss; detail=form-token"
        assert status_of(response) == (refused if is_token else stored)
        assert ("Set-Cookie" in response.headers) is is_token
        assert len(caplog.records) == int(is_token)
        if is_token:
            assert "a rule of None" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Injected", "a\r\nSet-Cookie: admin=1"),
        ("X-Injected", "a\nb"),
        ("X-Injected", "a\x00b"),
        ("X-Injected", "5 €"),
        ("X Injected", "a"),
        ("X-Injected\r\nSet-Cookie", "a"),
        ("", "a"),
        ("status", "200 OK\r\nSet-Cookie: admin=1"),
        ("status", "200 \x00"),
        ("status", "200 €"),
    ],
)
class TestWhatHttpDoesNotAllow:
    """Nothing that could split a response gets into the store; a render of it has failed."""

    @staticmethod
    def app(name: str, value: str) -> t.Any:
        return page(status=value) if name == "status" else page((name, value))

    def test_is_never_stored(self, site: t.Any, unchecked: t.Any, name: str, value: str) -> None:
        site.answers["/x"] = self.app(name, value)
        isr = unchecked(rules=DECLARED).isr
        run(isr)
        (found,) = isr.pages()
        assert (found.state, found.size) == ("failed", 0)

    def test_never_replaces_a_page(
        self, site: t.Any, unchecked: t.Any, clock: t.Any, name: str, value: str
    ) -> None:
        site.page("/x", "good")
        client = unchecked()
        client.get("/x")
        site.answers["/x"] = self.app(name, value)
        clock.advance(61)
        for _ in range(2):
            assert client.get("/x").text == "good"
            client.isr.close()


def test_a_header_that_is_no_text_is_a_failed_render(
    site: t.Any, unchecked: t.Any, clock: t.Any
) -> None:
    site.page("/x", "good")
    client = unchecked()
    client.get("/x")
    site.answers["/x"] = page(("X-Rate", 5))  # type: ignore[arg-type]
    clock.advance(61)
    for _ in range(5):
        assert client.get("/x").text == "good"
        client.isr.close()
    # Two at once, then there is a pause.
    assert client.isr.stats()["failures"] == 2
    assert next(client.isr.pages()).last_error
