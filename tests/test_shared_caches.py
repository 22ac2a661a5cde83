"""Caches behind us act on what we say: it has to be true, and to be for all (RFC 9111)."""

from __future__ import annotations

import re
import typing as t

import pytest
from answers import BOTH, PLAIN
from cdn import CDN
from conftest import Browser, Clock
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsgi_isr import ISRMiddleware, Rule, page_headers, signals


def behind_a_cdn(app: t.Any, clock: Clock, **options: t.Any) -> tuple[CDN, ISRMiddleware]:
    isr = ISRMiddleware(app, "memory://", **options)
    isr._clock = clock
    return CDN(Browser(isr), clock, isr.close), isr


@pytest.fixture
def network(site: t.Any, clock: Clock) -> t.Any:
    return lambda **options: behind_a_cdn(site, clock, **options)


# Halves and tenths, because real ages are no whole seconds.
pauses = st.integers(1, 50).map(lambda tenths: tenths / 10)
events = st.lists(
    st.one_of(pauses, st.sampled_from(["directly", "invalidate", "expire", "fail", "heal"])),
    min_size=1,
    max_size=25,
)


@given(st.integers(1, 5), st.none() | st.integers(0, 5), events)
@example(3, 0, ["directly", 0.5, 2.7])
@example(3, 2, ["directly", 0.5, 4.7])
@settings(max_examples=100, deadline=None)
def test_no_page_is_older_at_a_cdn_than_the_app_allows(
    window: int, stale: int | None, events: list[t.Any]
) -> None:
    expire = None if stale is None else window + stale
    clock = Clock()
    broken = False

    def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        if broken:
            start_response("500 Internal Server Error", [PLAIN])
            return [b"error"]
        start_response("200 OK", [PLAIN, *page_headers(window, expire)])
        return [repr(clock.now).encode()]

    cdn, isr = behind_a_cdn(app, clock, rules={"/x": Rule()})
    for event in events:
        if event == "invalidate" or event == "expire":
            isr.invalidate("/x", expire=event == "expire")
        elif event == "directly":
            Browser(isr).get("/x")
            isr.close()
        elif event in ("fail", "heal"):
            broken = event == "fail"
        else:
            clock.advance(event)
            body, how = cdn.get("/x")
            if body == "error":
                assert how == "miss"
                continue
            age = clock.now - float(body)
            # ``s-maxage`` has whole seconds, rounded up as ``ttl`` is.
            if expire is not None:
                assert age < expire + 1
            if how == "fresh":
                assert age < window + 1


class TestFreshness:
    def test_is_not_granted_again_by_a_stale_answer(
        self, site: t.Any, network: t.Any, clock: Clock
    ) -> None:
        site.page("/x", "old", revalidate=60)
        cdn, isr = network()
        assert cdn.get("/x") == ("old", "miss")
        clock.advance(59)
        assert cdn.get("/x") == ("old", "fresh")
        site.fail("/x")
        for _ in range(5):
            clock.advance(60)
            assert cdn.get("/x") == ("old", "stale")
        site.page("/x", "new")
        clock.advance(60)
        # The network hears of it by its first visit, and has it by the second.
        assert [cdn.get("/x").body for _ in range(3)] == ["old", "old", "new"]

    @pytest.mark.parametrize("purged", [False, True])
    def test_of_a_page_on_demand_ends_with_a_purge(
        self, site: t.Any, clock: Clock, purged: bool
    ) -> None:
        """Only a site that purges its CDN lets it keep such a page, and hears when."""
        site.page("/x", "old", revalidate=False)
        cdn, isr = behind_a_cdn(site, clock, cdn_purged=purged, base_url="http://localhost")
        purged_paths = []

        def purge(sender: object, paths: t.Iterable[str], **extra: object) -> None:
            purged_paths.extend(paths)
            if purged:
                cdn.purge(*paths)

        with signals.invalidated.connected_to(purge, isr):
            cdn.get("/x")
            clock.advance(10)
            assert cdn.get("/x") == ("old", "fresh" if purged else "miss")
            site.page("/x", "new", revalidate=False)
            isr.revalidate("/x")
            assert purged_paths == ["/x"]
            assert cdn.get("/x") == ("new", "miss")


class TestVariants:
    def test_are_told_apart(self, site: t.Any, network: t.Any) -> None:
        site.page("/x", lambda environ: environ["HTTP_ACCEPT_LANGUAGE"])
        cdn, _ = network(rules={"/x": Rule(vary={"Accept-Language": ["en", "de"]})})
        for _ in range(2):
            for language in ("en", "de"):
                assert cdn.get("/x", Accept_Language=language).body == language
        assert cdn.fetches == 2


#: What networks obey, some of it before ``Cache-Control``.
CONTROLS = [
    ("CDN-Cache-Control", "max-age=600"),
    ("Cloudflare-CDN-Cache-Control", "max-age=600"),
    ("Surrogate-Control", "max-age=600"),
    ("Edge-Control", "max-age=600"),
    ("X-Accel-Expires", "600"),
    ("X-LiteSpeed-Cache-Control", "public,max-age=600"),
    ("cache-control", "public, max-age=600"),
]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control[0])
@BOTH
class TestWhatWasRefused:
    """An answer that is one visitor's alone is so everywhere."""

    def test_is_kept_by_no_cdn(
        self, site: t.Any, network: t.Any, rules: t.Any, control: tuple[str, str]
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            who = environ.get("HTTP_AUTHORIZATION", "nobody")
            start_response("200 OK", [PLAIN, *page_headers(60), control, ("Set-Cookie", who)])
            return [who.encode()]

        site.answers["/x"] = app
        cdn, isr = network(rules=rules)
        assert cdn.get("/x", Authorization="ada").body == "ada"
        assert cdn.get("/x").body == "nobody"
        headers = Browser(isr).get("/x").headers
        assert headers.getlist("Cache-Control") == ["private, no-store"]
        assert control[0] == "cache-control" or control[0] not in headers


def test_an_error_is_kept_by_no_cdn_either(site: t.Any, browse: t.Any) -> None:
    site.page("/x", status="500 Internal Server Error", headers=CONTROLS[:2])
    headers = browse(rules={"/x": Rule()}).get("/x").headers
    assert headers["Cache-Control"] == "private, no-store"
    assert not any("cdn" in name.lower() for name in headers.keys())


class TestTags:
    """Names of pages are nobody's business, but for a CDN that is to purge by them."""

    TAGS = ("post:1", "blog")

    @pytest.mark.parametrize("enabled", [True, False])
    def test_never_leave_by_themselves(self, site: t.Any, browse: t.Any, enabled: bool) -> None:
        site.page("/x", tags=self.TAGS)
        client = browse(enabled=enabled)
        for _ in range(2):
            response = client.get("/x")
            assert "post:1" not in str(response.headers)
        tag = response.headers.get("ETag", "*")
        assert "post:1" not in str(client.get("/x", headers={"If-None-Match": tag}).headers)

    @pytest.mark.parametrize(
        ("header", "value"),
        [
            ("Cache-Tag", "post:1,blog"),
            ("Edge-Cache-Tag", "post:1,blog"),
            ("Surrogate-Key", "post:1 blog"),
            ("xkey", "post:1 blog"),
        ],
    )
    def test_are_renamed_for_a_cdn(
        self, site: t.Any, browse: t.Any, clock: Clock, header: str, value: str
    ) -> None:
        site.page("/x", tags=self.TAGS)
        client = browse(tags_header=header)
        for age in (0, 10, 60):
            clock.advance(age)
            response = client.get("/x")
            assert response.headers.getlist(header) == [value]
            assert "ISR-Tags" not in response.headers

    def test_of_a_rule_are_renamed_as_well(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x")
        client = browse(rules={"/x": Rule(tags=["a"])}, tags_header="Cache-Tag")
        assert client.get("/x").headers["Cache-Tag"] == "a"

    @pytest.mark.parametrize(
        ("tag", "sent"),
        [("two words", "two%20words"), ("größe", "gr%C3%B6%C3%9Fe"), ("a%b", "a%b")],
    )
    def test_have_a_form_that_networks_take(
        self, site: t.Any, browse: t.Any, tag: str, sent: str
    ) -> None:
        site.page("/x", tags=[tag, "z"])
        assert browse(tags_header="Surrogate-Key").get("/x").headers["Surrogate-Key"] == f"{sent} z"

    @pytest.mark.parametrize("header", ["Cache-Tag", "Surrogate-Key"])
    def test_are_few_enough_for_a_header_and_a_page_with_more_is_not_kept_for_a_purge(
        self, site: t.Any, browse: t.Any, header: str
    ) -> None:
        tags = [f"{number:03}".ljust(99, "x") for number in range(50)]
        site.page("/x", tags=tags)
        site.page("/all", revalidate=False, tags=tags[:40])
        site.page("/more", revalidate=False, tags=tags)
        client = browse(tags_header=header, cdn_purged=True)
        answers = [client.get(path) for path in ("/x", "/all", "/more")]
        assert {len(re.split("[ ,]", it.headers[header])) for it in answers} == {40}
        assert all(len(it.headers[header]) <= 4096 for it in answers)
        kept = [int(it.headers["Cache-Control"].rpartition("=")[2]) for it in answers]
        assert kept == [60, 31536000, 0]

    @pytest.mark.parametrize("name", ["", "a b", "Tags:", "ISR-Tags", "Set-Cookie", "ETag", 5])
    def test_need_a_header_of_their_own(self, site: t.Any, name: t.Any) -> None:
        with pytest.raises(ValueError, match="tags_header"):
            ISRMiddleware(site, "memory://", tags_header=name)
