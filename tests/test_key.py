"""What names a page: hosts, paths and queries in one spelling, and the request made of them."""

from __future__ import annotations

import re
import typing as t
from urllib.parse import quote
from urllib.parse import unquote
from urllib.parse import urlencode
from urllib.parse import urlsplit

import pytest
from conftest import status_of
from conftest import strict
from hypothesis import assume
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from werkzeug.test import create_environ
from werkzeug.test import run_wsgi_app

from wsgi_isr import ISRMiddleware
from wsgi_isr import Rule
from wsgi_isr.key import _normal_host
from wsgi_isr.key import canonical_query
from wsgi_isr.key import is_ambiguous
from wsgi_isr.key import normalize_host
from wsgi_isr.key import PageKey

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
            ("http", "example.com", "example.com"),
            ("http", "EXAMPLE.com", "example.com"),
            ("http", "example.com.", "example.com"),
            ("http", "example.com:80", "example.com"),
            ("https", "example.com:443", "example.com"),
            ("http", "example.com:443", "example.com:443"),
            ("https", "example.com:80", "example.com:80"),
            ("http", "example.com.:8000", "example.com:8000"),
            ("http", "127.0.0.1:8000", "127.0.0.1:8000"),
            ("http", "[::1]:80", "[::1]"),
            ("http", "[::1]:8000", "[::1]:8000"),
            ("http", "my_host", "my_host"),
        ],
    )
    def test_have_one_spelling(self, scheme: str, host: str, normal: str) -> None:
        assert normalize_host(host, scheme) == normal

    @pytest.mark.parametrize(
        "host",
        [
            "",
            ".",
            "a..",
            "a.:.",
            ":80",
            "shop@evil",
            "h/evil",
            "a, b",
            "a b",
            "a\r\nb",
            "a\x00",
            "a:b",
            "a:80:80",
            "a?b",
            "a#b",
            "a\\b",
            "[::1",
            "<script>",
            "x" * 300,
            "größe",
        ],
    )
    def test_that_are_none(self, host: str) -> None:
        assert normalize_host(host, "http") is None

    def test_that_are_longer_than_any_are_not_remembered(self) -> None:
        """They are the client's choice, of 64 KB on some servers."""
        before = _normal_host.cache_info()
        assert normalize_host("x" * 1000, "http") is None
        assert _normal_host.cache_info() == before

    def test_of_a_request_without_a_host_header(self, site: t.Any, make: t.Any) -> None:
        """HTTP/1.0: the server's own name and port."""
        site.page("/x", lambda environ: environ.get("HTTP_HOST", ""))
        app = strict(make())
        bodies = []
        for name, port in [("a.example", "80"), ("a.example", "8000"), ("b.example", "80")] * 2:
            environ = create_environ("/x", environ_overrides={"SERVER_NAME": name})
            del environ["HTTP_HOST"]
            environ["SERVER_PORT"] = port
            bodies.append(run_wsgi_app(app, environ, buffered=True)[0][0])
        assert bodies == [b"a.example", b"a.example:8000", b"b.example"] * 2

    @pytest.mark.parametrize("host", ["shop@evil", "a, b", "h/evil"])
    def test_that_are_none_have_no_pages(self, site: t.Any, browse: t.Any, host: str) -> None:
        site.page("/x", "a page")
        client = browse()
        for _ in range(2):
            response = client.get("/x", headers={"Host": host})
            assert response.text == "a page"
            assert response.headers["Cache-Control"] == "private, no-store"
        assert site.renders() == 0
        assert list(client.isr.pages()) == []

    @pytest.mark.parametrize(
        "url", ["ftp://a", "www.example.com", "https://a/path", "https://", ""]
    )
    def test_a_base_url_is_a_scheme_and_a_host(self, site: t.Any, url: str) -> None:
        with pytest.raises(ValueError, match="base_url"):
            ISRMiddleware(site, "memory://", base_url=url)

    def test_trusted_hosts_are_a_list(self, site: t.Any) -> None:
        with pytest.raises(TypeError, match="trusted_hosts"):
            ISRMiddleware(site, "memory://", trusted_hosts="example.com")


class TestQueries:
    @pytest.mark.parametrize(
        ("query", "canonical"),
        [
            ("", ""),
            ("b=2&a=1", "a=1&b=2"),
            ("a=2&a=1", "a=2&a=1"),
            ("b=1&a=2&b=0", "a=2&b=1&b=0"),
            ("a=1&utm_source=x", "a=1"),
            ("utm_source=x", ""),
            ("A=1", ""),
            ("%61=1", "a=1"),
            ("a=%41", "a=A"),
            ("a=b%20c", "a=b+c"),
            ("a=b+c", "a=b+c"),
            ("a=", "a="),
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

    @given(pairs)
    @settings(max_examples=100)
    def test_are_the_same_when_read_again(self, sent: list[tuple[str, str]]) -> None:
        declared = [latin("ü"), "a", "a[]"]
        once = canonical_query(urlencode(sent), declared)
        again = canonical_query(key_of("/", once).query_string, declared)
        assert once == again

    @given(pairs, st.randoms(use_true_random=False))
    @settings(max_examples=100)
    def test_do_not_depend_on_the_order_of_names(self, sent: t.Any, random: t.Any) -> None:
        grouped = [[pair for pair in sent if pair[0] == name] for name in ("a", "b", "ü", "a[]")]
        random.shuffle(grouped)
        shuffled = urlencode([pair for group in grouped for pair in group])
        declared = ["a", "b", latin("ü")]
        assert canonical_query(shuffled, declared) == canonical_query(urlencode(sent), declared)

    @given(pairs)
    @settings(max_examples=100)
    def test_keep_every_declared_value(self, sent: list[tuple[str, str]]) -> None:
        kept = canonical_query(urlencode(sent), ["a"])
        assert kept == tuple(("a", latin(value)) for name, value in sent if name == "a")

    def test_declared_for_all_urls(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ["QUERY_STRING"])
        client = browse(query=["page"])
        assert client.get("/x?page=2&utm=1").text == "page=2"
        assert client.get("/x?utm=2&page=2").text == "page=2"
        assert client.get("/x?page=3").text == "page=3"
        assert site.renders() == 2

    def test_declared_by_a_rule_instead(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ["QUERY_STRING"])
        client = browse(query=["page"], rules={"/x": Rule(query=["sort"])})
        assert client.get("/x?page=2&sort=a").text == "sort=a"

    def test_with_parameters_that_are_not_ascii(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ["QUERY_STRING"])
        client = browse(query=["größe"])
        assert client.get("/x?gr%C3%B6%C3%9Fe=%C3%BC").text == "gr%C3%B6%C3%9Fe=%C3%BC"


AMBIGUOUS = [
    "//",
    "//evil.example/x",
    "/a//b",
    "/a/../b",
    "/a/./b",
    "/..",
    "/.",
    "/a/..",
    "/a\\b",
    "/a\x00b",
    "/a\r\nb",
    "/a\x1f",
    "/a\x7f",
    latin("/a\x80"),
    latin("/a\x85b"),
    latin("/\x9f"),
    "/\xc0\xaf",
    "/\xff",
    "/\xc3",
    "/" + "x" * 10_000,
]


class TestAmbiguousPaths:
    @pytest.mark.parametrize("path", AMBIGUOUS, ids=lambda path: ascii(path)[:20])
    def test_are_recognised(self, path: str) -> None:
        assert is_ambiguous(path)

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/a",
            "/a/",
            "/.well-known/x",
            "/a..b",
            "/...",
            "/a;b=c",
            "/a b",
            latin("/ü"),
            latin("/\xa0"),
        ],
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
            environ = create_environ("/", headers={"Cookie": cookie})
            environ["PATH_INFO"] = path
            body, status, headers = run_wsgi_app(strict(isr), environ, buffered=True)
            assert (b"".join(body), status) == (cookie.encode(), "200 OK")
            assert headers["Cache-Control"] == "private, no-store"
        assert site.renders() == 0
        assert list(isr.pages()) == []

    def test_a_dot_segment_across_the_mount_point_is_one(self, site: t.Any, make: t.Any) -> None:
        site.page("/x")
        isr = make()
        environ = create_environ("/x")
        environ["SCRIPT_NAME"] = "/a/.."
        run_wsgi_app(strict(isr), environ, buffered=True)
        assert list(isr.pages()) == []

    def test_a_key_beyond_all_measure_is_not_stored(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", "a page")
        client = browse(query=["q"])
        response = client.get("/x?q=" + "x" * 100_000)
        assert response.text == "a page"
        assert list(client.isr.pages()) == []


class TestNames:
    def test_two_values_are_not_one_longer_value(self) -> None:
        one = key_of(vary=(("a", "x"), ("b", "yz")))
        two = key_of(vary=(("a", "xy"), ("b", "z")))
        assert one.name != two.name

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
        ],
        ids=lambda key: key.url,
    )
    def test_two_pages_never_share_one(self, one: PageKey, two: PageKey) -> None:
        assert one.name != two.name

    @given(st.tuples(paths, pairs, pairs), st.tuples(paths, pairs, pairs))
    @settings(max_examples=100)
    def test_any_two_keys_that_differ_have_two(self, one: t.Any, two: t.Any) -> None:
        first, second = (
            key_of(latin(path), query, vary=tuple(vary)) for path, query, vary in (one, two)
        )
        assert (first.name == second.name) == (first == second)

    @given(paths)
    def test_are_plain_file_names(self, path: str) -> None:
        assert re.fullmatch(r"[0-9a-f.]{1,100}", key_of(latin(path)).name)


class TestUrls:
    @pytest.mark.parametrize(
        ("path", "url"),
        [
            ("/", "http://example.com/"),
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
        body, _, _ = run_wsgi_app(isr, create_environ(quote(path)))
        assert b"".join(body).decode() == path
        (page,) = isr.pages()
        (result,) = isr.revalidate(page.url)
        assert (result.url, result.error) == (page.url, None)
        assert len(list(isr.pages())) == 1


def test_builds_have_pages_of_their_own(site: t.Any, browse: t.Any, files: str) -> None:
    site.page("/x")
    old, new = browse(files, build_id="1"), browse(files, build_id="2")
    old.get("/x")
    assert status_of(new.get("/x")) == "isr; fwd=uri-miss; stored"
    assert status_of(old.get("/x")).startswith("isr; hit")
    assert len(list(new.isr.pages())) == 1
