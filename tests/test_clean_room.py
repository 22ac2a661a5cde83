"""What is stored was rendered from the page's key alone (promise 1).

The app reflects everything that it sees, so that whatever got in would show.
"""

from __future__ import annotations

import contextvars
import io
import json
import typing as t
from urllib.parse import quote

import pytest
from conftest import status_of
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from werkzeug.test import create_environ
from werkzeug.test import run_wsgi_app

from wsgi_isr import ISRMiddleware
from wsgi_isr import page_headers
from wsgi_isr import Rule

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

#: Part of the key, or of the library's own making.
OURS = {"wsgi_isr.reason"}


def reflect(environ: dict[str, t.Any]) -> str:
    """All that an app can see of a request."""
    plain = {
        name: value
        for name, value in environ.items()
        if isinstance(value, str | int | tuple) and name not in OURS
    }
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length) if length else b""
    return json.dumps([sorted(plain.items()), body.decode("latin-1"), user.get()])


def mirror(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    """An app that reflects too much, in its body and in a header."""
    seen = reflect(environ)
    headers = [("Content-Type", "application/json"), ("X-Seen", quote(seen)), *page_headers(60)]
    start_response("200 OK", headers)
    return [seen.encode()]


def answer_to(app: t.Any, **environ: t.Any) -> tuple[str, str]:
    """Body and ``X-Seen`` of an answer to a visitor at /x."""
    if "wsgi.input" in environ:
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"])
    body, _, headers = run_wsgi_app(app, {**create_environ("/x"), **environ}, buffered=True)
    return b"".join(body).decode(), headers["X-Seen"]


@pytest.fixture(params=[None, {"/x": Rule()}], ids=["undeclared", "declared"])
def rules(request: pytest.FixtureRequest) -> t.Any:
    return request.param


@pytest.fixture(scope="session")
def clean() -> tuple[str, str]:
    """The page as it looks where nobody has ever sent anything."""
    return answer_to(ISRMiddleware(mirror, "memory://"))


POISONS: dict[str, dict[str, t.Any]] = {
    "a cookie": {"HTTP_COOKIE": "session=secret"},
    "credentials": {"HTTP_AUTHORIZATION": "Basic c2VjcmV0"},
    "a user of the server": {"REMOTE_USER": "ada", "AUTH_TYPE": "Basic"},
    "an address": {"REMOTE_ADDR": "127.0.0.1", "REMOTE_HOST": "localhost", "REMOTE_PORT": "5"},
    "a user agent": {"HTTP_USER_AGENT": "<script>"},
    "a referer": {"HTTP_REFERER": "http://evil.example/"},
    "an origin": {"HTTP_ORIGIN": "http://evil.example"},
    "accepted types": {"HTTP_ACCEPT": "application/json"},
    "accepted languages": {"HTTP_ACCEPT_LANGUAGE": "de"},
    "accepted codings": {"HTTP_ACCEPT_ENCODING": "identity"},
    "a forwarded host": {"HTTP_X_FORWARDED_HOST": "evil.example"},
    "a forwarded address": {"HTTP_X_FORWARDED_FOR": "10.0.0.1"},
    "a forwarded scheme": {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_SCHEME": "https"},
    "a forwarded port": {"HTTP_X_FORWARDED_PORT": "444"},
    "a forwarded prefix": {"HTTP_X_FORWARDED_PREFIX": "/evil", "HTTP_X_SCRIPT_NAME": "/evil"},
    "forwarded, the standard": {"HTTP_FORWARDED": "host=evil.example;proto=https"},
    "another host": {"HTTP_X_HOST": "evil.example", "HTTP_X_ORIGINAL_HOST": "evil.example"},
    "a rewritten URL": {"HTTP_X_ORIGINAL_URL": "/admin", "HTTP_X_REWRITE_URL": "/admin"},
    "another method": {"HTTP_X_HTTP_METHOD_OVERRIDE": "DELETE"},
    "the raw URL": {"RAW_URI": "/x?secret=1", "REQUEST_URI": "/x?secret=1"},
    "a range": {"HTTP_RANGE": "bytes=0-1", "HTTP_IF_RANGE": '"x"'},
    "a condition": {"HTTP_IF_MATCH": '"a"', "HTTP_IF_UNMODIFIED_SINCE": "x"},
    "cache directives": {"HTTP_CACHE_CONTROL": "no-cache", "HTTP_PRAGMA": "no-cache"},
    "our own headers": {"HTTP_ISR_REVALIDATE": "1", "HTTP_ISR_TAGS": "evil"},
    "our own words": {"wsgi_isr.reason": "revalidate"},
    "an undeclared query": {"QUERY_STRING": "utm_source=evil&page=2"},
    "a body": {
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": "6",
        "wsgi.input": b"secret",
    },
    "a certificate": {"SSL_CLIENT_S_DN": "CN=ada"},
    "the server's own": {"SERVER_SOFTWARE": "x/1", "SERVER_PROTOCOL": "HTTP/1.0", "PATH": "/bin"},
    "the server's name": {"SERVER_NAME": "backend-7", "SERVER_PORT": "8001"},
    "how it is run": {"wsgi.multithread": False, "wsgi.multiprocess": False, "wsgi.run_once": True},
    "a framework's": {"werkzeug.session": "secret", "flask.user": "ada"},
}


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS.keys())
class TestNothingOfAVisitor:
    def test_gets_into_a_cold_page(
        self, unchecked: t.Any, rules: t.Any, poison: dict[str, t.Any], clean: tuple[str, str]
    ) -> None:
        isr = unchecked(app=mirror, rules=rules).isr
        assert answer_to(isr, **poison) == clean
        assert answer_to(isr) == clean

    def test_gets_into_a_regenerated_page(
        self,
        unchecked: t.Any,
        clock: t.Any,
        rules: t.Any,
        poison: dict[str, t.Any],
        clean: tuple[str, str],
    ) -> None:
        renders = []

        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            renders.append(environ.get("wsgi_isr.reason"))
            return mirror(environ, start_response)

        isr = unchecked(app=app, rules=rules).isr
        answer_to(isr)
        clock.advance(61)
        answer_to(isr, **poison)
        isr.close()
        assert renders[-1] == "stale"
        assert answer_to(isr) == clean

    def test_gets_into_an_expired_page(
        self, unchecked: t.Any, rules: t.Any, poison: dict[str, t.Any], clean: tuple[str, str]
    ) -> None:
        isr = unchecked(app=mirror, rules=rules).isr
        answer_to(isr)
        isr.invalidate("/x", expire=True)
        assert answer_to(isr, **poison) == clean
        assert answer_to(isr) == clean

    def test_gets_into_a_page_that_his_request_revalidates(
        self, unchecked: t.Any, rules: t.Any, poison: dict[str, t.Any], clean: tuple[str, str]
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            if environ["REQUEST_METHOD"] == "POST":
                token = user.set("ada")
                environ["wsgi_isr.middleware"].revalidate("/x")
                user.reset(token)
            return mirror(environ, start_response)

        isr = unchecked(app=app, rules=rules).isr
        answer_to(isr, **poison, REQUEST_METHOD="POST")
        assert answer_to(isr) == clean


@pytest.mark.parametrize("condition", [{"HTTP_IF_NONE_MATCH": "*"}, {"REQUEST_METHOD": "HEAD"}])
def test_a_first_request_without_an_answer_of_its_own_does_not_empty_the_page(
    unchecked: t.Any, rules: t.Any, condition: dict[str, str], clean: tuple[str, str]
) -> None:
    isr = unchecked(app=mirror, rules=rules).isr
    list(isr({**create_environ("/x"), **condition}, lambda *args: lambda data: None))
    assert answer_to(isr) == clean


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("enabled", [True, False])
def test_no_visitor_can_pass_for_the_library(
    site: t.Any, browse: t.Any, method: str, enabled: bool
) -> None:
    client = browse(enabled=enabled)
    client.open("/x", method=method, environ_overrides={"wsgi_isr.reason": "revalidate"})
    (environ,) = site.environs
    assert "wsgi_isr.reason" not in environ
    assert environ["wsgi_isr.middleware"] is client.isr


header_names = st.from_regex(r"HTTP_[A-Z0-9_]{1,20}", fullmatch=True).filter(
    lambda name: name != "HTTP_HOST"
)
header_values = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
poisons = st.fixed_dictionaries(
    {},
    optional={
        "QUERY_STRING": st.text(st.sampled_from("ab=&;%41+"), max_size=20),
        "REMOTE_ADDR": st.ip_addresses().map(str),
        "SERVER_PROTOCOL": st.sampled_from(["HTTP/1.0", "HTTP/2"]),
        "REQUEST_METHOD": st.sampled_from(["GET", "HEAD"]),
    },
).flatmap(
    lambda own: st.dictionaries(header_names, header_values, max_size=8).map(
        lambda headers: {**headers, **own}
    )
)


@given(poisons, st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_request_whatsoever_leaves_a_trace(
    clean: tuple[str, str], poison: dict[str, t.Any], declared: bool
) -> None:
    isr = ISRMiddleware(mirror, "memory://", rules={"/x": Rule()} if declared else None)
    list(isr({**create_environ("/x"), **poison}, lambda *args: lambda data: None))
    assert answer_to(isr) == clean


class TestContext:
    """The context variables of a request: ``flask.g``, the session, a transaction."""

    @staticmethod
    def logged_in(isr: t.Any) -> t.Any:
        """A middleware outside that knows who is there."""

        def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            token = user.set("ada")
            try:
                return isr(environ, start_response)
            finally:
                user.reset(token)

        return app

    def test_does_not_get_into_a_cold_page(
        self, unchecked: t.Any, rules: t.Any, clean: tuple[str, str]
    ) -> None:
        isr = unchecked(app=mirror, rules=rules).isr
        assert answer_to(self.logged_in(isr)) == clean

    def test_does_not_get_into_a_regenerated_page(
        self, unchecked: t.Any, clock: t.Any, clean: tuple[str, str]
    ) -> None:
        isr = unchecked(app=mirror).isr
        answer_to(isr)
        clock.advance(61)
        answer_to(self.logged_in(isr))
        isr.close()
        assert answer_to(isr) == clean
        assert isr.stats()["renders"] == 2

    def test_does_not_get_into_a_generator_of_blocks(self, unchecked: t.Any, rules: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(60)])
            yield user.get().encode()

        logged_in = self.logged_in(unchecked(app=app, rules=rules).isr)
        for _ in range(2):
            body, _, _ = run_wsgi_app(logged_in, create_environ("/x"), buffered=True)
            assert b"".join(body) == b"nobody"

    def test_of_a_page_does_not_get_out(self, unchecked: t.Any, rules: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            if "wsgi_isr.reason" in environ:
                user.set("the page's own")
            return mirror(environ, start_response)

        answer_to(unchecked(app=app, rules=rules).isr)
        assert user.get() == "nobody"

    def test_still_reaches_what_is_no_page(self, site: t.Any, unchecked: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [user.get().encode()]

        logged_in = self.logged_in(unchecked(app=app).isr)
        body, _, _ = run_wsgi_app(logged_in, create_environ("/x"), buffered=True)
        assert b"".join(body) == b"ada"


def test_errors_of_a_render_are_not_those_of_the_request(unchecked: t.Any) -> None:
    streams = []

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        streams.append(environ["wsgi.errors"])
        return mirror(environ, start_response)

    request = io.StringIO()
    answer_to(unchecked(app=app, rules={"/x": Rule()}).isr, **{"wsgi.errors": request})
    assert request not in streams


class TestHosts:
    """The host is part of the key, or it is not seen."""

    @staticmethod
    def host(environ: dict[str, t.Any]) -> str:
        return f"{environ['wsgi.url_scheme']}://{environ.get('HTTP_HOST')}"

    def test_two_hosts_have_two_pages(self, site: t.Any, browse: t.Any, rules: t.Any) -> None:
        site.page("/x", self.host)
        client = browse(rules=rules)
        for _ in range(2):
            for url in ("http://a.example", "http://b.example", "https://a.example"):
                assert client.get("/x", base_url=url).text == url
        assert site.renders("/x") == 3

    def test_two_spellings_of_a_host_have_one(
        self, site: t.Any, browse: t.Any, rules: t.Any
    ) -> None:
        site.page("/x", self.host)
        client = browse(rules=rules)
        for spelling in ("a.example", "A.Example", "a.example:80", "a.example."):
            response = client.get("/x", headers={"Host": spelling})
            assert response.text == "http://a.example"
        assert site.renders("/x") == 1

    @pytest.mark.parametrize("host", ["localhost", "evil.example", "shop@evil", "a, b"])
    def test_with_a_base_url_all_have_one(
        self, site: t.Any, browse: t.Any, rules: t.Any, host: str
    ) -> None:
        site.page("/x", self.host)
        client = browse(rules=rules, base_url="https://www.example.com")
        assert client.get("/x", headers={"Host": host}).text == "https://www.example.com"
        response = client.get("/x")
        assert response.text == "https://www.example.com"
        assert status_of(response) == "isr; hit; ttl=60"

    def test_with_a_base_url_the_visitors_host_chooses_no_rule(
        self, site: t.Any, browse: t.Any
    ) -> None:
        def rule(environ: dict[str, t.Any]) -> Rule | None:
            at_home = environ["HTTP_HOST"] == "www.example.com"
            return Rule(tags=["a"]) if at_home and environ["wsgi.url_scheme"] == "https" else None

        site.page("/x")
        client = browse(rules=rule, base_url="https://www.example.com")
        client.get("/x", headers={"Host": "evil.example"})
        (page,) = client.isr.pages()
        assert page.tags == ("a",)

    def test_with_a_base_url_trusted_hosts_have_no_say(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", self.host)
        client = browse(base_url="https://www.example.com", trusted_hosts=["other.example"])
        client.get("/x")
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"

    @pytest.mark.parametrize(
        ("host", "trusted"),
        [
            ("example.com", True),
            ("EXAMPLE.com:80", True),
            ("www.example.com", False),
            ("a.example.org", True),
            ("example.org", True),
            ("evil.example", False),
            ("example.com.evil.example", False),
        ],
    )
    def test_that_are_not_trusted_go_to_the_app_and_are_never_stored(
        self, site: t.Any, browse: t.Any, rules: t.Any, host: str, trusted: bool
    ) -> None:
        site.page("/x", self.host)
        client = browse(rules=rules, trusted_hosts=["example.com", ".example.org"])
        for _ in range(2):
            response = client.get("/x", headers={"Host": host})
        assert status_of(response).startswith("isr; hit") is trusted
        assert bool(list(client.isr.pages())) is trusted
        if not trusted:
            assert response.text == f"http://{host}"
            assert response.headers["Cache-Control"] == "private, no-store"
            assert site.renders() == 0
