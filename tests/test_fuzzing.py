"""What clients, apps and stores say may be anything: it is understood, or it is refused."""

from __future__ import annotations

import itertools
import logging
import posixpath
import random
import re
import time
import typing as t
import unicodedata

import http_sf
import pytest
from answers import PLAIN, Sent, page, run
from conftest import Clock
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from werkzeug.sansio.http import parse_cookie

from wsgi_isr import ISRMiddleware, Rule, page_headers
from wsgi_isr.key import canonical_query, is_ambiguous, normalize_host
from wsgi_isr.metadata import InvalidMetadata, end_to_end, is_sound, read_metadata
from wsgi_isr.outcome import Outcome
from wsgi_isr.refusals import refusal
from wsgi_isr.rules import compile_pattern

fuzz = settings(max_examples=150, deadline=None)

DATE = "Wed, 01 May 2024 12:00:00 GMT"
BODY = b"a page " * 100


def site(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    """An app that never fails, with answers of all kinds."""
    kind = environ.get("PATH_INFO", "").rpartition("/")[2]
    more: dict[str, list[tuple[str, str]]] = {
        "dated": [("Last-Modified", DATE), *page_headers(5, 9)],
        "tagged": [("ETag", 'W/"v1"'), *page_headers(False, tags=["a"])],
        "moved": [("Location", "/there"), *page_headers(60)],
        "refused": [("Set-Cookie", "a=b"), *page_headers(60)],
        "plain": [],
    }
    status = "301 Moved" if kind == "moved" else "200 OK"
    start_response(status, [PLAIN, *more.get(kind, page_headers(60))])
    return [BODY]


def shell(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [PLAIN])
    return [b"a moment, please"]


def draft(environ: dict[str, t.Any]) -> str | None:
    """As an adapter of a framework does it."""
    return "draft" if parse_cookie(environ.get("HTTP_COOKIE")).get("draft") == "1" else None


VARY: dict[str, t.Any] = {
    "Accept-Language": ["en", "de"],
    "Accept": ["json", "text/html"],
    "Accept-Charset": [None, "utf-8"],
    "X-Theme": ["dark", None],
}
RULES: dict[str, t.Any] = {
    "/none/**": None,
    "/shell/**": Rule(60, fallback=shell),
    "/closed/**": Rule(60, fallback=False),
    "/pass/**": Rule(5, query=["a"], undeclared="pass"),
    "/ignore/**": Rule(60, ignore=["Set-Cookie", "Vary"]),
    "/vary/**": Rule(60, query=["a", "größe"], vary=VARY),
    "/**": Rule(query=["q"]),
}
SITES: dict[str, dict[str, t.Any]] = {
    "no rules": {"query": ["a"]},
    "rules": {"rules": RULES, "tags_header": "Cache-Tag"},
    "a callable": {"rules": lambda environ: Rule(5) if "HTTP_COOKIE" in environ else None},
    "a base URL": {"base_url": "https://h.example/m", "rules": RULES, "cdn_purged": True},
    "trusted hosts": {"trusted_hosts": ["h", ".example"], "rules": RULES},
    "names to bypass": {"bypass": ["session", "a b"], "rules": RULES, "max_body_size": 10},
    "switched off": {"enabled": False},
}

#: What parsers stumble over.
TOKENS = [*"\"',;=*/\\ \t()<>:?&%@[].-+~0é\x00\x7f\xff", "q=", "0.5", "1e999", "gzip", "*", "W/"]
TOKENS += ["max-age=", "%C3%BC", "%zz", "//", "..", "\r\n", "\xc3\xbc", "draft=1", "session=", "a"]
TOKENS += [DATE, "-0100", "9999", "0001", "bytes=", "h.example", ":80", "xn--", "en", "utf-8"]
NAMES = """ACCEPT ACCEPT_CHARSET ACCEPT_ENCODING ACCEPT_LANGUAGE AUTHORIZATION CACHE_CONTROL COOKIE
EXPECT FORWARDED HOST IF_MATCH IF_MODIFIED_SINCE IF_NONE_MATCH IF_RANGE IF_UNMODIFIED_SINCE
ISR_REVALIDATE ISR_TAGS ORIGIN PRAGMA RANGE REFERER TE UPGRADE USER_AGENT VIA X_FORWARDED_FOR
X_FORWARDED_HOST X_REQUESTED_WITH X_THEME""".split()
PREFIXES = ["", "/none", "/shell", "/closed", "/pass", "/ignore", "/vary"]
KINDS = ["/x", "/dated", "/dated", "/tagged", "/moved", "/refused", "/plain", "", "/"]
GOOD: dict[str, list[str]] = {
    "HTTP_IF_MODIFIED_SINCE": [DATE, "Fri, 31 Dec 9999 23:59:59 -0100", "Mon, 1 Jan 1 0:00"],
    "HTTP_IF_NONE_MATCH": ["*", 'W/"v1"', '"v1-gzip"'],
    "HTTP_ACCEPT_ENCODING": ["gzip, br", "*;q=0", "identity;q=0"],
    "HTTP_COOKIE": ["draft=1", "session=a", 'draft="\\377\\xff"', "a b=1"],
    "HTTP_HOST": ["h", "h.example", "h:80", "a" * 64 + ".example", "..example"],
}


def junk(chance: random.Random) -> str:
    text = "".join(chance.choices(TOKENS, k=chance.randrange(12)))
    return text * 2000 if chance.random() < 0.01 else text


def request(chance: random.Random) -> dict[str, t.Any]:
    """A request as a server may hand it over: any text, as long as it is latin-1."""
    path = chance.choice(PREFIXES) + chance.choice(KINDS)
    environ: dict[str, t.Any] = {
        "REQUEST_METHOD": chance.choices(["GET", "HEAD", "POST", junk(chance)], [20, 4, 1, 1])[0],
        "PATH_INFO": path if chance.random() < 0.8 else path + junk(chance),
        "QUERY_STRING": chance.choice(["", "a=1&", "q="]) + chance.choice(["", junk(chance)]),
        "SCRIPT_NAME": chance.choices(["", "/m", junk(chance)], [20, 3, 1])[0],
        "wsgi.url_scheme": chance.choices(["http", "https", junk(chance)], [20, 5, 1])[0],
    }
    names = [*GOOD, *(f"HTTP_{name}" for name in NAMES)]
    for key in chance.sample(names, chance.randrange(7)):
        good = GOOD.get(key)
        environ[key] = chance.choice(good) if good and chance.random() < 0.5 else junk(chance)
    if chance.random() < 0.1:
        environ["SERVER_NAME"], environ["SERVER_PORT"] = junk(chance), junk(chance)
    return environ


#: PEP 3333 and HTTP/1.0 let these be absent.
OPTIONAL = ("QUERY_STRING", "SCRIPT_NAME", "PATH_INFO", "HTTP_HOST")


@pytest.mark.parametrize("options", SITES.values(), ids=SITES)
def test_no_client_gets_an_error_that_the_app_did_not_cause(
    options: dict[str, t.Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does our own code raise anything where the guard around it would let the app answer."""
    clock, chance = Clock(), random.Random(7)
    isr = ISRMiddleware(site, "memory://", **options)
    isr._clock = clock
    isr.set_bypass(draft)
    caplog.set_level(logging.ERROR)
    statuses = set()
    for number in range(900):
        environ = request(chance)
        absent = [name for name in OPTIONAL if chance.random() < 0.02]

        def app(made: dict[str, t.Any], start_response: t.Any, absent: t.Any = absent) -> t.Any:
            for name in absent:
                made.pop(name, None)
            return isr(made, start_response)

        try:
            status, headers, body = run(app, **environ)
        except Exception as error:
            raise AssertionError(f"request {number}: {environ}") from error
        assert status[:3] in ("200", "301", "304", "404"), environ
        assert not caplog.records, environ
        assert all(is_sound(name, value) for name, value in headers)
        assert (body == b"") == (status[:3] == "304" or environ["REQUEST_METHOD"] == "HEAD") or (
            "fallback" in str(headers) or environ["REQUEST_METHOD"] == "HEAD"
        ), environ
        statuses.add(dict(headers).get("Cache-Status", "").partition(";")[2][:10])
        clock.advance(chance.choice([0, 0, 0, 0.5, 3]))
    isr.close()
    # It has been at more than one place.
    assert len(statuses) >= 2


@pytest.mark.parametrize("unit", ["-", 'W/"a",', "a=b; ", "q;q=0.1,", "%", "\\", " ", "&", "é"])
def test_nothing_that_a_client_sends_takes_long(unit: str) -> None:
    """Clients choose its length, and some servers take megabytes."""
    isr = ISRMiddleware(site, "memory://", rules=RULES, bypass=["session"])
    isr.set_bypass(draft)
    text = unit * (2**18 // len(unit))
    names = [*(f"HTTP_{name}" for name in NAMES), "QUERY_STRING", "PATH_INFO"]
    # Cold, then as a hit; the first of them asks whether a crawler waits for the page.
    for prefix, name, _ in itertools.product(("/shell", "/vary", "/pass"), names, range(2)):
        began = time.thread_time()
        environ = {name: f"/{text}" if name == "PATH_INFO" else text}
        run(isr, f"{prefix}/{name}/dated", **environ)
        assert time.thread_time() - began < 1, (name, prefix)
    isr.close()


anything = st.text(st.characters(max_codepoint=255), max_size=60)
fields = st.one_of(anything, st.lists(st.sampled_from(TOKENS), max_size=25).map("".join))


class TestHeadersOfAnApp:
    names = st.sampled_from(
        ["ISR-Revalidate", "ISR-Expire", "ISR-Tags", "Vary", "Cache-Control", "Connection", "ETag"]
    )
    headers = st.lists(st.tuples(st.one_of(names, anything), fields), max_size=5)

    @given(st.integers(0, 999), headers, st.sampled_from([Rule(), Rule(revalidate=5, expire=9)]))
    @fuzz
    def test_are_metadata_and_stored_or_refused(
        self, status: int, headers: list[tuple[str, str]], rule: Rule
    ) -> None:
        try:
            metadata = read_metadata(headers, rule.revalidate, rule.expire, rule.tags)
        except InvalidMetadata as error:
            assert str(error)
        else:
            if metadata is not None:
                assert metadata.revalidate is None or metadata.revalidate >= 1
                assert metadata.expire is None or metadata.expire >= (metadata.revalidate or 0)
                assert len(metadata.tags) <= 128
        refused = refusal(status, headers)
        assert refused is None or re.fullmatch("[a-z-]+", refused.detail)
        names = {name.lower() for name, _ in end_to_end(headers)}
        assert not names & {"set-cookie", "connection", "isr-revalidate"}

    @given(fields.filter(lambda value: is_sound("ETag", value)), fields, fields)
    @example('W\\"a"', "", "gzip")
    @fuzz
    def test_any_etag_is_sent_or_understood(self, own: str, matched: str, accepted: str) -> None:
        app = page(("ETag", own), ("Last-Modified", own), body=BODY)
        isr = ISRMiddleware(app, "memory://")
        for tag in (matched, own, f'W/"{matched}"'):
            sent = {"HTTP_IF_NONE_MATCH": tag, "HTTP_ACCEPT_ENCODING": accepted}
            status = run(isr, **sent, HTTP_IF_MODIFIED_SINCE=matched).status
            assert status in ("200 OK", "304 Not Modified")


class TestTargets:
    @given(fields, st.sampled_from(["http", "https"]))
    @fuzz
    def test_a_host_has_one_normal_form(self, host: str, scheme: str) -> None:
        normal = normalize_host(host, scheme)
        assert normal is None or normalize_host(normal, scheme) == normal

    @given(fields.map(lambda text: f"/{text}"))
    @settings(max_examples=300, deadline=None)
    def test_a_path_that_is_stored_reads_the_same_to_all(self, path: str) -> None:
        if is_ambiguous(path):
            return
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

    @given(segments, paths, st.text(max_size=40))
    @settings(max_examples=300, deadline=None)
    def test_match_what_they_say(self, pattern: list[str], path: list[str], text: str) -> None:
        try:
            compile_pattern(text).fullmatch("/" + text)
        except ValueError:
            pass
        compiled = compile_pattern("/" + "/".join(pattern))
        assume(pattern and path)
        matches = compiled.fullmatch("/" + "/".join(path)) is not None
        assert matches is self.reference(pattern, path)

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
    @example(b'["failed", "", "error", "500 \\r\\nX: y", []]')
    @example(b'["failed", "", "error", "500 x", [["A", "b\\nc"]]]')
    @example(b'["failed", "", "error", "100 x", []]')
    @example(b'["failed", "x\\r\\ny", "error"]')
    @example(b'["failed", ["x"], "error"]')
    @example(b'["stored", "", "error"]')
    @example(b'["failed", "", "error", "500 x"]')
    @fuzz
    def test_that_are_none_are_no_outcome(self, data: bytes) -> None:
        assert Outcome.from_record(data) is None

    def test_that_are_ones_are_read(self) -> None:
        head = b'["failed", "status", "error", "500 x", [["A", "b"]]]'
        outcome = Outcome.from_record(head + b"\nbody")
        assert outcome is not None and outcome.response is not None
        assert (outcome.response.status, outcome.response.body) == ("500 x", b"body")


HEADERS = [("ISR-Revalidate", value) for value in ("5", "false", "x")]
HEADERS += [("ISR-Expire", "9"), ("Set-Cookie", "a=b"), ("Vary", "X"), ("Cache-Control", "private")]
HEADERS += [("Location", "/x")]
answers = st.tuples(
    st.sampled_from(["200 OK", "404 Gone", "302 Found", "500 Oops", "204 No Content", "600 X"]),
    st.lists(st.sampled_from(HEADERS), max_size=3),
    st.sampled_from([0, 10, 2000]),
    st.sampled_from(["", "inner; hit", 'inner; key="a, b", "o\\"x"; fwd=miss; ttl=-1']),
)


@given(st.lists(st.tuples(answers, st.integers(0, 12)), min_size=1, max_size=6), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_cache_status_always_parses(events: list[t.Any], declared: bool) -> None:
    """As a list of items with the parameters of RFC 9211."""
    clock = Clock()
    answer: t.Any = None

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        status, headers, size, own = answer
        more = [("Cache-Status", own)] if own else []
        start_response(status, [PLAIN, *headers, *more])
        return [b"x" * size]

    rules = {"/x": Rule()} if declared else None
    isr = ISRMiddleware(app, "memory://", rules=rules, max_body_size=1000)
    isr._clock = clock
    for event in events:
        answer, pause = event
        clock.advance(pause)
        sent: Sent = run(isr)
        isr.close()
        value = dict(sent.headers).get("Cache-Status")
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
