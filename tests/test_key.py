"""What names a page: hosts, paths and queries in one spelling, and the request made of them."""

from __future__ import annotations

import io
import re
import typing as t
from urllib.parse import quote, unquote, urlencode, urlsplit

import pytest
from answers import BOTH, PLAIN, answer, run
from conftest import status_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsgi_isr import ISRMiddleware
from wsgi_isr.key import PageKey, canonical_query, is_ambiguous, normalize_host

segments = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"),
    min_size=1,
    max_size=12,
).filter(lambda segment: segment not in (".", ".."))
paths = st.lists(segments, max_size=4).map(lambda parts: "/" + "/".join(parts))
values = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
pairs = st.lists(st.tuples(st.sampled_from(["a", "b", "ü", "a[]"]), values), max_size=6)


def latin(text: str) -> str:
    """A text as WSGI spells it."""
    return text.encode().decode("latin-1")


def key_of(path: str = "/", query: t.Any = (), **parts: t.Any) -> PageKey:
    return PageKey("http", parts.pop("host", "example.com"), "", path, tuple(query), **parts)


class TestHosts:
    @pytest.mark.parametrize(
        ("scheme", "host", "normal"),
        [
            ("http", "EXAMPLE.com.", "example.com"),
            ("http", "example.com:80", "example.com"),
            ("https", "example.com:443", "example.com"),
            ("https", "example.com:80", "example.com:80"),
            ("http", "example.com.:8000", "example.com:8000"),
            ("http", "[::1]:80", "[::1]"),
            ("http", "[::1]:8000", "[::1]:8000"),
            ("http", "my_host", "my_host"),
        ],
    )
    def test_have_one_spelling(self, scheme: str, host: str, normal: str) -> None:
        assert normalize_host(host, scheme) == normal

    HOSTILE = ("", ".", "a..", ":80", "shop@evil", "h/evil", "a, b", "a b", "a\r\nb", "a\x00")
    HOSTILE += ("a:b", "a:80:80", "a?b", "[::1", "<script>", "x" * 100_000, "größe", "\xff")

    @pytest.mark.parametrize("trusted", [None, ["example.com"]])
    @BOTH
    def test_that_are_none_have_no_pages(
        self,
        site: t.Any,
        make: t.Any,
        trusted: t.Any,
        rules: t.Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        site.page("/x", "a page")
        isr = make(trusted_hosts=trusted, rules=rules)
        # Without anybody on a trusted host, a warning would say so.
        run(isr, "/other", HTTP_HOST="example.com")
        for host in (*self.HOSTILE, "xn--", f"{'a' * 64}.example.com", "..", "-.-", "a..b"):
            assert host not in self.HOSTILE or normalize_host(host, "http") is None
            sent = run(isr, HTTP_HOST=host)
            assert sent.body == b"a page"
            if trusted or host in self.HOSTILE:
                assert dict(sent.headers)["Cache-Control"] == "private, no-store"
        assert not caplog.records
        if trusted:
            assert site.renders() == 0
            assert list(isr.pages()) == []

    def test_of_a_request_without_a_host_header(self, site: t.Any, make: t.Any) -> None:
        """HTTP/1.0: the server's own name and port."""
        site.page("/x", lambda environ: environ.get("HTTP_HOST", ""))
        isr = make()

        def app(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            del environ["HTTP_HOST"]
            return isr(environ, start_response)

        bodies = [
            run(app, SERVER_NAME=name, SERVER_PORT=port).body
            for name, port in [("a.example", "80"), ("a.example", "8000"), ("b.example", "80")] * 2
        ]
        assert bodies == [b"a.example", b"a.example:8000", b"b.example"] * 2

    @pytest.mark.parametrize(
        ("trusted", "host", "has_pages"),
        [
            (["example.com"], "EXAMPLE.com:80", True),
            (["example.com"], "www.example.com", False),
            (["example.com"], "example.com:8000", False),
            (["example.com:8000"], "example.com:8000", True),
            (["example.com:8000"], "example.com", False),
            ([".example.org"], "a.example.org", True),
            ([".example.org"], "example.org", True),
            (["example.com"], "example.com.evil.example", False),
            ([".example.org"], "an-example.org", False),
            ([".größe.example"], f"a.{'größe'.encode('idna').decode()}.example", True),
        ],
    )
    @BOTH
    def test_that_are_not_trusted_go_to_the_app_and_are_never_stored(
        self,
        site: t.Any,
        browse: t.Any,
        trusted: t.Any,
        host: str,
        has_pages: bool,
        rules: t.Any,
    ) -> None:
        site.page("/x", lambda environ: environ["HTTP_HOST"])
        client = browse(rules=rules, trusted_hosts=trusted)
        for _ in range(2):
            response = client.get("/x", headers={"Host": host})
        assert status_of(response).startswith("isr; hit") is has_pages
        assert bool(list(client.isr.pages())) is has_pages
        if not has_pages:
            assert (response.text, site.renders()) == (host, 0)
            assert status_of(response) == "isr; fwd=uri-miss; detail=host"

    @pytest.mark.parametrize("url", ["ftp://a", "www.example.com", "https://", "https://a/b?c", ""])
    def test_a_base_url_has_a_scheme_and_a_host(self, site: t.Any, url: str) -> None:
        with pytest.raises(ValueError, match="base_url"):
            ISRMiddleware(site, "memory://", base_url=url)

    @pytest.mark.parametrize(("trusted", "error"), [("example.com", TypeError), ([], ValueError)])
    def test_trusted_hosts_are_a_list(self, site: t.Any, trusted: t.Any, error: t.Any) -> None:
        with pytest.raises(error, match="trusted_hosts"):
            ISRMiddleware(site, "memory://", trusted_hosts=trusted)


class TestQueries:
    @pytest.mark.parametrize(
        ("query", "canonical"),
        [
            ("b=2&a=1", "a=1&b=2"),
            ("a=2&a=1", "a=2&a=1"),
            ("b=1&a=2&b=0", "a=2&b=1&b=0"),
            ("a=1&utm_source=x", "a=1"),
            ("A=1", ""),
            ("%61=%41", "a=A"),
            ("a=b%20c", "a=b+c"),
            ("a=b+c", "a=b+c"),
            ("a", "a="),
            ("a=1;b=2", "a=1%3Bb%3D2"),
            ("a=%26b=1", "a=%26b%3D1"),
            ("a=%FF", "a=%FF"),
            ("&&a=1&", "a=1"),
            ("a[]=1", ""),
        ],
    )
    def test_have_one_spelling(self, query: str, canonical: str) -> None:
        assert key_of("/", canonical_query(query, ["a", "b"])).query_string == canonical

    @given(pairs, st.randoms(use_true_random=False))
    @settings(max_examples=100)
    def test_keep_declared_values_whatever_the_order_of_names(
        self, sent: list[tuple[str, str]], random: t.Any
    ) -> None:
        declared = ["a", latin("ü"), "a[]"]
        once = canonical_query(urlencode(sent), declared)
        assert canonical_query(key_of("/", once).query_string, declared) == once
        for name in declared:
            kept = [value for found, value in once if found == name]
            assert kept == [latin(value) for found, value in sent if latin(found) == name]
        grouped = [[pair for pair in sent if pair[0] == name] for name in ("a", "b", "ü", "a[]")]
        random.shuffle(grouped)
        shuffled = urlencode([pair for group in grouped for pair in group])
        assert canonical_query(shuffled, declared) == once

    def test_declared_for_all_urls(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ["QUERY_STRING"])
        client = browse(query=["page", "größe"])
        for query in ("page=2&utm=1", "utm=2&page=2"):
            assert client.get(f"/x?{query}").text == "page=2"
        assert client.get("/x?page=3").text == "page=3"
        assert site.renders() == 2
        # Not ASCII, and the same when it is read again.
        for query in ("gr%C3%B6%C3%9Fe=%C3%BC", "gr%c3%b6%c3%9fe=%c3%bc", "größe=ü"):
            assert client.get(f"/x?{query}").text == "gr%C3%B6%C3%9Fe=%C3%BC"
        assert site.renders() == 3


AMBIGUOUS = ["//", "//evil.example/x", "/a//b", "/a/../b", "/a/./b", "/..", "/a\\b", "/a\x00b"]
AMBIGUOUS += ["/a\r\nb", "/a\x7f", latin("/a\x85b"), "/\xc0\xaf", "/\xff", "/" + "x" * 10_000]


class TestAmbiguousPaths:
    @pytest.mark.parametrize(
        "path", ["/", "/a/", "/.well-known/x", "/a..b", "/...", "/a;b", "/a b", latin("/ü\xa0")]
    )
    def test_are_not_confused_with_clear_ones(self, path: str) -> None:
        assert not is_ambiguous(path)

    @pytest.mark.parametrize("path", AMBIGUOUS, ids=lambda path: ascii(path)[:20])
    @pytest.mark.parametrize("rules", [None, {"/**": 60}], ids=["undeclared", "declared"])
    def test_go_to_the_app_and_are_never_stored(
        self, site: t.Any, make: t.Any, path: str, rules: t.Any
    ) -> None:
        site.page(path, lambda environ: environ.get("HTTP_COOKIE", "no cookie"))
        isr = make(rules=rules)
        for cookie in ("one=1", "two=2"):
            sent = run(isr, PATH_INFO=path, HTTP_COOKIE=cookie)
            assert sent[::2] == ("200 OK", cookie.encode())
            assert ("Cache-Control", "private, no-store") in sent.headers
            assert ("Cache-Status", "isr; fwd=uri-miss; detail=path") in sent.headers
        assert site.renders() == 0
        assert list(isr.pages()) == []

    @pytest.mark.parametrize("rules", [{"/x/**": 60}, {"/x/**": None}, None])
    @pytest.mark.parametrize(
        ("sent", "detail"), [({"PATH_INFO": "/x//y"}, "path"), ({"HTTP_HOST": "evil"}, "host")]
    )
    def test_of_declared_urls_they_are_their_visitors_alone_as_those_of_other_hosts(
        self, site: t.Any, make: t.Any, rules: t.Any, sent: t.Any, detail: str
    ) -> None:
        site.answers["/x/y"] = site.answers["/x//y"] = answer()
        isr = make(rules=rules, trusted_hosts=["localhost"])
        headers = run(isr, "/x/y", **sent).headers
        declared = rules is not None and None not in rules.values()
        marks = [
            ("Cache-Control", "private, no-store"),
            ("Cache-Status", f"isr; fwd=uri-miss; detail={detail}"),
        ]
        assert headers == [PLAIN, *(marks if declared else ())]

    def test_a_dot_segment_across_the_mount_point_is_one(self, site: t.Any, make: t.Any) -> None:
        site.page("/x")
        site.page("")
        isr = make()
        run(isr, SCRIPT_NAME="/a/..")
        run(isr, SCRIPT_NAME="/a/..", PATH_INFO="")
        assert list(isr.pages()) == []

    def test_a_key_beyond_all_measure_is_not_stored(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", "a page")
        client = browse(query=["q"])
        assert client.get("/x?q=" + "x" * 100_000).text == "a page"
        assert list(client.isr.pages()) == []


class TestNames:
    @pytest.mark.parametrize(
        ("one", "two"),
        [
            (key_of("/a", [("b", "")]), key_of("/a")),
            (key_of("/a?b="), key_of("/a", [("b", "")])),
            (key_of("/b", host="example.com/a"), key_of("/a/b")),
            (key_of(query=[("a", "1"), ("a", "2")]), key_of(query=[("a", "2"), ("a", "1")])),
            (key_of(query=[("a", "1&b=2")]), key_of(query=[("a", "1"), ("b", "2")])),
            (key_of("/a"), key_of("/a/")),
            (key_of("/a"), key_of("/A")),
            (key_of(), PageKey("https", "example.com", "", "/")),
            (PageKey("http", "h", "/a", "/b"), PageKey("http", "h", "", "/a/b")),
            (key_of(build="1"), key_of(build="2")),
            (key_of(vary=(("a", "b"),)), key_of(query=[("a", "b")])),
            (key_of(vary=(("a", None),)), key_of(vary=(("a", ""),))),
            (key_of(vary=(("a", "x"), ("b", "yz"))), key_of(vary=(("a", "xy"), ("b", "z")))),
        ],
        ids=lambda key: key.url,
    )
    def test_two_pages_never_share_one(self, one: PageKey, two: PageKey) -> None:
        assert one.name != two.name

    @given(st.tuples(paths, pairs, pairs), st.tuples(paths, pairs, pairs))
    @settings(max_examples=100)
    def test_any_two_keys_that_differ_have_two_plain_names(self, one: t.Any, two: t.Any) -> None:
        first, second = (
            key_of(latin(path), query, vary=tuple(vary)) for path, query, vary in (one, two)
        )
        assert (first.name == second.name) == (first == second)
        assert re.fullmatch(r"[0-9a-f.]{1,100}", first.name)


class TestUrls:
    @pytest.mark.parametrize(
        ("path", "url"),
        [
            ("/größe", "http://example.com/gr%C3%B6%C3%9Fe"),
            ("/a b", "http://example.com/a%20b"),
            ("/a?b#c", "http://example.com/a%3Fb%23c"),
            ("/100%", "http://example.com/100%25"),
        ],
    )
    def test_are_spelled_as_in_an_address_bar(self, path: str, url: str) -> None:
        assert key_of(latin(path)).url == url

    @given(paths, pairs)
    @settings(max_examples=100)
    def test_lead_back_to_the_page(self, path: str, sent: list[tuple[str, str]]) -> None:
        key = key_of(latin(path), canonical_query(urlencode(sent), ["a", latin("ü")]))
        parts = urlsplit(key.url)
        assert (parts.scheme, parts.netloc, unquote(parts.path)) == ("http", "example.com", path)
        assert canonical_query(parts.query, ["a", latin("ü")]) == key.query

    @given(paths)
    @settings(max_examples=50, deadline=None)
    def test_of_a_stored_page_revalidate_that_page(self, path: str) -> None:
        assume(not is_ambiguous(latin(path)))

        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [("ISR-Revalidate", "60")])
            return [environ["PATH_INFO"].encode("latin-1")]

        isr = ISRMiddleware(app, "memory://")
        assert run(isr, quote(path)).body.decode() == path
        (page,) = isr.pages()
        (result,) = isr.revalidate(page.url)
        assert (result.url, result.error) == (page.url, None)
        assert len(list(isr.pages())) == 1


class TestCanonicalRequest:
    def test_is_an_allow_list(self) -> None:
        vary = (("x-none", None), ("x-theme", "dark"))
        key = PageKey("https", "example.com:8443", "/site", "/x", (("a", "1"),), vary)
        middleware = object()
        environ = key.to_environ("miss", middleware)
        body = environ.pop("wsgi.input")
        assert isinstance(body, io.BytesIO)
        assert body.read() == b""
        assert environ.pop("wsgi.errors").writable()
        assert environ == {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "/site",
            "PATH_INFO": "/x",
            "QUERY_STRING": "a=1",
            "SERVER_NAME": "example.com",
            "SERVER_PORT": "8443",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "example.com:8443",
            "HTTP_X_THEME": "dark",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https",
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi_isr.middleware": middleware,
            "wsgi_isr.reason": "miss",
        }

    @pytest.mark.parametrize(
        ("scheme", "host", "name", "port"),
        [
            ("http", "example.com", "example.com", "80"),
            ("https", "example.com", "example.com", "443"),
            ("http", "[::1]:8000", "[::1]", "8000"),
            ("http", "[::1]", "[::1]", "80"),
        ],
    )
    def test_has_a_server_that_follows_from_the_host(
        self, scheme: str, host: str, name: str, port: str
    ) -> None:
        environ = PageKey(scheme, host, "", "/").to_environ("miss", None)
        assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (name, port)
