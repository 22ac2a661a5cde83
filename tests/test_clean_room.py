"""What is stored was rendered from the page's key alone (promise 1).

The app reflects everything that it sees, so that whatever got in would show. See also
`test_poisoning`, for requests of all kinds.
"""

from __future__ import annotations

import contextvars
import io
import typing as t

import pytest
from answers import BOTH, PLAIN, answer, run
from conftest import status_of
from mirror import seen

from wsgi_isr import ISRMiddleware, Rule, page_headers

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


def mirror(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    """An app that reflects too much."""
    start_response("200 OK", [PLAIN, *page_headers(60)])
    return [f"{user.get()} {seen(environ)}".encode()]


def body_of(app: t.Any, **environ: t.Any) -> str:
    if "wsgi.input" in environ:
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"])
    return run(app, **environ).body.decode()


#: What the page is where nobody has ever sent anything.
CLEAN = body_of(ISRMiddleware(mirror, "memory://"))

POISONS: dict[str, dict[str, t.Any]] = {
    "a cookie": {"HTTP_COOKIE": "session=secret", "HTTP_AUTHORIZATION": "Basic c2VjcmV0"},
    "a user of the server": {"REMOTE_USER": "ada", "AUTH_TYPE": "Basic", "SSL_CLIENT_S_DN": "a"},
    "an address": {"REMOTE_ADDR": "127.0.0.1", "REMOTE_HOST": "localhost", "REMOTE_PORT": "5"},
    "what a browser sends": {
        "HTTP_USER_AGENT": "<script>",
        "HTTP_REFERER": "http://evil.example/",
        "HTTP_ACCEPT_LANGUAGE": "de",
        "HTTP_ACCEPT_ENCODING": "identity",
        "HTTP_RANGE": "bytes=0-1",
        "HTTP_CACHE_CONTROL": "no-cache",
    },
    "what a proxy sends": {
        "HTTP_X_FORWARDED_HOST": "evil.example",
        "HTTP_X_FORWARDED_PREFIX": "/evil",
        "HTTP_FORWARDED": "host=evil.example;proto=https",
        "HTTP_X_ORIGINAL_URL": "/admin",
    },
    "a condition": {"HTTP_IF_MATCH": '"a"', "HTTP_IF_UNMODIFIED_SINCE": "x"},
    "the raw URL": {"RAW_URI": "/x?secret=1", "REQUEST_URI": "/x?secret=1"},
    "our own words": {"HTTP_ISR_REVALIDATE": "1", "wsgi_isr.reason": "revalidate"},
    "an undeclared query": {"QUERY_STRING": "utm_source=evil&page=2"},
    "a body": {"CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "6", "wsgi.input": b"secret"},
    "the server's own": {"SERVER_SOFTWARE": "x/1", "SERVER_PROTOCOL": "HTTP/1.0", "PATH": "/bin"},
    "the server's name": {"SERVER_NAME": "backend-7", "SERVER_PORT": "8001"},
    "how it is run": {"wsgi.multithread": False, "wsgi.multiprocess": False, "wsgi.run_once": True},
    "a framework's": {"werkzeug.session": "secret", "flask.user": "ada"},
}


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS.keys())
@BOTH
class TestNothingOfAVisitor:
    def test_gets_into_a_cold_page(
        self, unchecked: t.Any, rules: t.Any, poison: dict[str, t.Any]
    ) -> None:
        isr = unchecked(app=mirror, rules=rules).isr
        assert body_of(isr, **poison) == CLEAN
        assert body_of(isr) == CLEAN

    @pytest.mark.parametrize("expire", [True, False])
    def test_gets_into_a_page_that_is_rendered_anew(
        self, unchecked: t.Any, rules: t.Any, poison: dict[str, t.Any], expire: bool
    ) -> None:
        isr = unchecked(app=mirror, rules=rules).isr
        body_of(isr)
        isr.invalidate("/x", expire=expire)
        assert body_of(isr, **poison) == CLEAN
        isr.close()
        assert body_of(isr) == CLEAN
        assert isr.stats()["renders"] == 2

    def test_gets_into_a_page_that_his_request_revalidates(
        self, unchecked: t.Any, rules: t.Any, poison: dict[str, t.Any]
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            if environ["REQUEST_METHOD"] == "POST":
                token = user.set("ada")
                environ["wsgi_isr.middleware"].revalidate("/x")
                user.reset(token)
            return mirror(environ, start_response)

        isr = unchecked(app=app, rules=rules).isr
        body_of(isr, **poison, REQUEST_METHOD="POST")
        assert body_of(isr) == CLEAN


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

    @BOTH
    def test_does_not_get_into_a_page(self, unchecked: t.Any, clock: t.Any, rules: t.Any) -> None:
        isr = unchecked(app=mirror, rules=rules).isr
        assert body_of(self.logged_in(isr)) == CLEAN
        clock.advance(61)
        body_of(self.logged_in(isr))
        isr.close()
        assert body_of(isr) == CLEAN
        assert isr.stats()["renders"] == 2

    @BOTH
    def test_does_not_get_into_a_generator_of_blocks(self, unchecked: t.Any, rules: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Iterator[bytes]:
            start_response("200 OK", [PLAIN, *page_headers(60)])
            yield user.get().encode()

        logged_in = self.logged_in(unchecked(app=app, rules=rules).isr)
        for _ in range(2):
            assert run(logged_in).body == b"nobody"

    @BOTH
    def test_of_a_page_does_not_get_out(self, unchecked: t.Any, rules: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            if "wsgi_isr.reason" in environ:
                user.set("the page's own")
            return mirror(environ, start_response)

        body_of(unchecked(app=app, rules=rules).isr)
        assert user.get() == "nobody"

    def test_still_reaches_what_is_no_page(self, unchecked: t.Any) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            return answer(body=user.get().encode())(environ, start_response)

        assert body_of(self.logged_in(unchecked(app=app).isr)) == "ada"


def test_errors_of_a_render_are_not_those_of_the_request(unchecked: t.Any) -> None:
    streams = []

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        streams.append(environ["wsgi.errors"])
        return mirror(environ, start_response)

    request = io.StringIO()
    run(unchecked(app=app, rules={"/x": Rule()}).isr, **{"wsgi.errors": request})
    assert request not in streams


@BOTH
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
        for spelling in ("A.Example", "a.example:80", "a.example."):
            assert client.get("/x", headers={"Host": spelling}).text == "http://a.example"
        assert site.renders("/x") == 3

    @pytest.mark.parametrize("trusted", [None, ["other.example"]])
    def test_with_a_base_url_all_have_one(
        self, site: t.Any, browse: t.Any, rules: t.Any, trusted: t.Any
    ) -> None:
        site.page("/x", self.host)
        client = browse(rules=rules, base_url="https://www.example.com", trusted_hosts=trusted)
        for host in ("localhost", "evil.example", "shop@evil", "a, b", ""):
            response = client.get("/x", headers={"Host": host})
            assert response.text == "https://www.example.com"
        assert status_of(response) == "isr; hit; ttl=60"


def test_with_a_base_url_the_visitors_host_chooses_no_rule(site: t.Any, browse: t.Any) -> None:
    def rule(environ: dict[str, t.Any]) -> Rule | None:
        at_home = environ["HTTP_HOST"] == "www.example.com"
        return Rule(tags=["a"]) if at_home and environ["wsgi.url_scheme"] == "https" else None

    site.page("/x")
    client = browse(rules=rule, base_url="https://www.example.com")
    client.get("/x", headers={"Host": "evil.example"})
    (page,) = client.isr.pages()
    assert page.tags == ("a",)
