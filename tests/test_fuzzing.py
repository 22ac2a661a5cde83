"""What clients, apps and stores say may be anything: it is understood, or it is refused."""

from __future__ import annotations

import posixpath
import re
import typing as t
import unicodedata

import http_sf
import pytest
from conftest import Clock
from hypothesis import assume
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from werkzeug.test import create_environ

from wsgi_isr import ISRMiddleware
from wsgi_isr import page_headers
from wsgi_isr import Rule
from wsgi_isr.attempt import Outcome
from wsgi_isr.key import canonical_query
from wsgi_isr.key import is_ambiguous
from wsgi_isr.key import normalize_host
from wsgi_isr.metadata import end_to_end
from wsgi_isr.metadata import InvalidMetadata
from wsgi_isr.metadata import is_sound
from wsgi_isr.metadata import Metadata
from wsgi_isr.metadata import read_metadata
from wsgi_isr.metadata import refusal
from wsgi_isr.rules import compile_pattern

#: Seconds for all of it are few: each of these takes about one.
fuzz = settings(max_examples=200, deadline=None)

anything = st.text(st.characters(max_codepoint=255), max_size=60)
#: What parsers of header fields stumble over.
fields = st.one_of(
    anything,
    st.lists(
        st.sampled_from(
            [*'",;=*/\\ \t()<>:', "q", "0.5", "gzip", "*", "en", "W/", "max-age", "%", "é", "\x00"]
        ),
        max_size=25,
    ).map("".join),
)


class TestHeadersOfAnApp:
    names = st.sampled_from(
        [
            "ISR-Revalidate",
            "ISR-Expire",
            "ISR-Tags",
            "Vary",
            "Cache-Control",
            "Connection",
            "Set-Cookie",
            "ETag",
            "isr-revalidate",
        ]
    )
    headers = st.lists(st.tuples(st.one_of(names, anything), fields), max_size=5)

    @given(headers, st.none() | st.just(Rule(revalidate=5, expire=9)))
    @fuzz
    def test_are_metadata_or_none(self, headers: list[tuple[str, str]], rule: Rule | None) -> None:
        try:
            metadata = read_metadata(headers, rule)
        except InvalidMetadata as error:
            assert str(error)
            return
        if metadata is not None:
            assert isinstance(metadata, Metadata)
            assert metadata.revalidate is None or metadata.revalidate >= 1
            assert metadata.expire is None or metadata.expire >= (metadata.revalidate or 0)
            assert len(metadata.tags) <= 128

    @given(st.integers(0, 999), headers)
    @fuzz
    def test_are_stored_or_refused(self, status: int, headers: list[tuple[str, str]]) -> None:
        reason = refusal(status, headers, None)
        assert reason is None or re.fullmatch("[a-z-]+", reason)
        if reason is None:
            kept = end_to_end(headers)
            assert all(is_sound(name, value) for name, value in kept)
            assert not any("\n" in value or "\r" in value for _, value in kept)
            assert not any(name.lower() in ("set-cookie", "connection") for name, _ in kept)


class TestHeadersOfAVisitor:
    @staticmethod
    def site() -> ISRMiddleware:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            headers = [
                ("Content-Type", "text/plain"),
                ("Last-Modified", TestHeadersOfAVisitor.MODIFIED),
            ]
            start_response("200 OK", [*headers, *page_headers(60)])
            return [b"a page " * 100]

        vary = {"Accept-Language": ["en", "de"], "Accept": ["a/b"], "X-Theme": ["dark"]}
        return ISRMiddleware(app, "memory://", rules={"/**": Rule(vary=vary)})

    MODIFIED = "Wed, 01 May 2024 12:00:00 GMT"
    NAMES = (
        "HTTP_ACCEPT",
        "HTTP_ACCEPT_ENCODING",
        "HTTP_ACCEPT_LANGUAGE",
        "HTTP_COOKIE",
        "HTTP_IF_MODIFIED_SINCE",
        "HTTP_IF_NONE_MATCH",
        "HTTP_X_THEME",
    )

    @given(headers=st.dictionaries(st.sampled_from(NAMES), fields))
    @example(headers={"HTTP_IF_MODIFIED_SINCE": "Wed, 01 May 0000 99:99:99 GMT"})
    @example(headers={"HTTP_IF_MODIFIED_SINCE": "Wed, 01 May 9999999 12:00:00 GMT"})
    @example(headers={"HTTP_IF_MODIFIED_SINCE": "Wed, 01 May 2024 12:00:00 -9999"})
    @fuzz
    def test_get_the_page_or_304(self, headers: dict[str, str]) -> None:
        isr = self.site()
        status, answer, body = run(isr, {**create_environ("/x"), **headers})
        assert status in ("200 OK", "304 Not Modified")
        assert (body == b"") is (status == "304 Not Modified")
        # One page for each of the values that make a difference, however they are asked for.
        assert len(list(isr.pages())) <= 2


@given(fields.filter(lambda value: is_sound("ETag", value)), fields, fields)
@example('W\\"a"', "", "gzip")
@fuzz
def test_any_etag_of_an_app_is_sent_or_known(own: str, matched: str, accepted: str) -> None:
    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        headers = [("Content-Type", "text/plain"), ("ETag", own), ("Last-Modified", own)]
        start_response("200 OK", [*headers, *page_headers(60)])
        return [b"a page " * 100]

    isr = ISRMiddleware(app, "memory://")
    for tag in (matched, own, f'W/"{matched}"'):
        sent = {"HTTP_IF_NONE_MATCH": tag, "HTTP_ACCEPT_ENCODING": accepted}
        sent["HTTP_IF_MODIFIED_SINCE"] = matched
        status, _, _ = run(isr, {**create_environ("/x"), **sent})
        assert status in ("200 OK", "304 Not Modified")


class TestTargets:
    @given(fields, st.sampled_from(["http", "https"]))
    @fuzz
    def test_a_host_has_one_normal_form(self, host: str, scheme: str) -> None:
        normal = normalize_host(host, scheme)
        assert normal is None or normalize_host(normal, scheme) == normal

    @given(
        st.one_of(
            anything,
            st.lists(st.sampled_from([*"/./\\a%\x85\xa0é\x7f", "..", "%2f"]), max_size=9)
            .map("".join)
            .map(lambda text: f"/{text}".encode().decode("latin-1")),
        )
    )
    @settings(max_examples=500, deadline=None)
    def test_a_path_that_is_stored_reads_the_same_to_all(self, path: str) -> None:
        if is_ambiguous(path):
            return
        assert path.startswith("/")
        text = path.encode("latin-1").decode()
        assert not any(unicodedata.category(char) == "Cc" for char in text)
        assert posixpath.normpath(text).rstrip("/") == text.rstrip("/")
        assert "\\" not in text

    @given(fields, st.lists(st.sampled_from(["a", "q", "en", "%"])))
    @fuzz
    def test_a_query_is_what_is_declared(self, query: str, declared: list[str]) -> None:
        assert {name for name, _ in canonical_query(query, declared)} <= set(declared)


class TestPatterns:
    segments = st.lists(st.sampled_from(["a", "b", "ab", "*", "**", "a*", "*b", "a*b"]), max_size=4)
    paths = st.lists(st.sampled_from(["a", "b", "ab", "aab", "", "x\ny"]), max_size=5)

    @staticmethod
    def reference(pattern: list[str], path: list[str]) -> bool:
        """What ``*`` and ``**`` mean, spelled out."""
        if not pattern:
            return not path
        first, rest = pattern[0], pattern[1:]
        if first == "**":
            return any(TestPatterns.reference(rest, path[n:]) for n in range(len(path) + 1))
        if not path or first == "*" and not path[0]:
            return False
        parts = [re.escape(part) for part in first.split("*")]
        found = re.fullmatch("[^/]*".join(parts), path[0], re.DOTALL)
        return found is not None and TestPatterns.reference(rest, path[1:])

    @given(segments, paths)
    @settings(max_examples=500, deadline=None)
    def test_match_what_they_say(self, pattern: list[str], path: list[str]) -> None:
        compiled = compile_pattern("/" + "/".join(pattern))
        assume(pattern and path)
        matches = compiled.fullmatch("/" + "/".join(path)) is not None
        assert matches is self.reference(pattern, path)

    @given(st.text(max_size=40))
    @fuzz
    def test_are_compiled_or_refused(self, pattern: str) -> None:
        try:
            compile_pattern(pattern).fullmatch("/" + pattern)
        except ValueError:
            pass

    @pytest.mark.parametrize(
        ("pattern", "path"),
        [
            ("/" + "a*" * 8, "/" + "a" * 2000 + "b"),
            ("/**/a" * 4 + "/b", "/a" * 1000),
            ("/" + "*" * 1000, "/" + "a" * 2000),
            ("/**" * 300 + "/b", "/a" * 1000),
        ],
    )
    def test_take_bounded_time(self, pattern: str, path: str) -> None:
        # Patterns are the site's own; that paths are not is why they must not hang on one.
        compile_pattern(pattern[:1024]).fullmatch(path)


class TestRecords:
    """What those who wait in other processes read of an outcome."""

    @given(st.binary(max_size=80))
    @example(b"[" * 100_000)
    @example(b'{"kind": "failed", "detail": "", "status": "500 \\r\\nX: y", "headers": []}')
    @example(b'{"kind": "failed", "detail": "", "status": "500 x", "headers": [["A", "b\\nc"]]}')
    @example(b'{"kind": "failed", "detail": "x\\r\\ny"}')
    @example(b'{"kind": "stored", "detail": ["x"]}')
    @fuzz
    def test_that_are_none_are_no_outcome(self, data: bytes) -> None:
        assert Outcome.from_record(data) is None

    def test_that_are_ones_are_read(self) -> None:
        head = b'{"kind": "failed", "detail": "status", "status": "500 x", "headers": [["A", "b"]]}'
        outcome = Outcome.from_record(head + b"\nbody")
        assert outcome is not None and outcome.response is not None
        assert (outcome.response.status, outcome.response.body) == ("500 x", b"body")


def run(app: t.Any, environ: dict[str, t.Any]) -> tuple[str, dict[str, str], bytes]:
    started: list[t.Any] = []
    body = app(environ, lambda *args: started.extend(args))
    try:
        text = b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    return started[0], dict(started[1]), text


own_statuses = st.sampled_from(["", "inner; hit", 'inner; key="a, b", "o\\"x"; fwd=miss; ttl=-1'])
answers = st.tuples(
    st.sampled_from(
        ["200 OK", "404 Not Found", "302 Found", "500 Oops", "204 No Content", "600 X"]
    ),
    st.lists(
        st.sampled_from(
            [
                ("ISR-Revalidate", "5"),
                ("ISR-Revalidate", "false"),
                ("ISR-Revalidate", "x"),
                ("ISR-Expire", "9"),
                ("Set-Cookie", "a=b"),
                ("Vary", "X"),
                ("Cache-Control", "private"),
                ("Location", "/x"),
            ]
        ),
        max_size=3,
    ),
    st.sampled_from([0, 10, 2000]),
    own_statuses,
)


@given(st.lists(st.tuples(answers, st.integers(0, 12)), min_size=1, max_size=6), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_cache_status_always_parses(events: list[t.Any], declared: bool) -> None:
    """As a list of items with the parameters of RFC 9211."""
    clock = Clock()
    answer: t.Any = None

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        status, headers, size, own = answer
        more = [("Cache-Status", own)] if own else []
        start_response(status, [("Content-Type", "text/plain"), *headers, *more])
        return [b"x" * size]

    rules = {"/x": Rule()} if declared else None
    isr = ISRMiddleware(app, "memory://", rules=rules, max_body_size=1000)
    isr._clock = clock
    for event in events:
        answer, pause = event
        clock.advance(pause)
        _, headers, _ = run(isr, create_environ("/x"))
        isr.close()
        value = headers.get("Cache-Status")
        if value is None:
            continue
        members = http_sf.parse(value.encode("latin-1"), tltype="list")
        name, parameters = members[-1]
        if str(name) != "isr":
            continue
        assert set(parameters) <= {"hit", "fwd", "ttl", "stored", "collapsed", "detail"}
        assert ("hit" in parameters) is not ("fwd" in parameters)
        assert isinstance(parameters.get("ttl", 0), int)
        assert str(parameters.get("fwd", "miss")) in ("miss", "uri-miss", "stale", "bypass")


required = {"REQUEST_METHOD", "wsgi.url_scheme", "SERVER_NAME", "SERVER_PORT"}
environs = st.dictionaries(
    st.one_of(
        st.sampled_from(
            [
                "PATH_INFO",
                "QUERY_STRING",
                "SCRIPT_NAME",
                "HTTP_HOST",
                "HTTP_ACCEPT_ENCODING",
                "HTTP_ACCEPT_LANGUAGE",
                "HTTP_IF_NONE_MATCH",
                "HTTP_IF_MODIFIED_SINCE",
                "HTTP_COOKIE",
                "REQUEST_METHOD",
                "SERVER_NAME",
                "SERVER_PORT",
                "wsgi.url_scheme",
            ]
        ),
        st.from_regex(r"HTTP_[A-Z_]{1,9}", fullmatch=True),
    ),
    st.one_of(fields, anything, st.sampled_from(["/", "/x", "GET", "HEAD", "h", "80", "https"])),
    max_size=8,
)


@given(
    environs,
    # PEP 3333 and HTTP/1.0 let these be absent.
    st.sets(st.sampled_from(["PATH_INFO", "QUERY_STRING", "SCRIPT_NAME", "HTTP_HOST"])),
    st.sampled_from(
        [
            {},
            {"rules": {"/**": Rule(query=["a", "q"], vary={"Accept-Language": ["en", "de"]})}},
            {"base_url": "https://h.example"},
            {"trusted_hosts": ["h"]},
            {"query": ["a"]},
            {"enabled": False},
        ]
    ),
)
@settings(max_examples=500, deadline=None)
def test_no_request_gets_an_error_that_the_app_did_not_cause(
    environ: dict[str, str], absent: set[str], options: dict[str, t.Any]
) -> None:
    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(60)])
        return [b"a page"]

    isr = ISRMiddleware(app, "memory://", **options)
    for _ in range(2):
        request = {**create_environ("/x"), **environ}
        for name in absent:
            request.pop(name, None)
        status, _, body = run(isr, request)
        assert (status, body) in (
            ("200 OK", b"a page"),
            ("200 OK", b""),
            ("304 Not Modified", b""),
        )
