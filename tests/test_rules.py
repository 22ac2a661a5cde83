"""What is known of URLs before the app is asked: `Rule`, path patterns, callables."""

from __future__ import annotations

import logging
import typing as t

import pytest
from conftest import status_of

from wsgi_isr import ISRMiddleware
from wsgi_isr import page_headers
from wsgi_isr import Rule
from wsgi_isr.rules import compile_pattern


def plain(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    """An app that has never heard of the library; it tells the reason of a render."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ.get("wsgi_isr.reason", "visitor").encode()]


class TestRule:
    def test_says_nothing_by_default(self) -> None:
        rule = Rule()
        assert (rule.revalidate, rule.expire, rule.tags, rule.query) == (None, None, (), ())
        assert rule.fallback == "blocking"

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"revalidate": 0}, ValueError),
            ({"revalidate": -5}, ValueError),
            ({"revalidate": 1.5}, ValueError),
            ({"revalidate": True}, ValueError),
            ({"revalidate": "60"}, ValueError),
            ({"revalidate": 60, "expire": 59}, ValueError),
            ({"revalidate": False, "expire": 60}, ValueError),
            ({"tags": ["x" * 257]}, ValueError),
            ({"tags": "news"}, TypeError),
            ({"query": "page"}, TypeError),
            ({"query": [""]}, ValueError),
            ({"vary": ["Accept-Language"]}, TypeError),
            ({"vary": {"Accept-Language": []}}, ValueError),
            ({"vary": {"Accept-Language": "en"}}, ValueError),
            ({"vary": {"Bad Header": ["a"]}}, ValueError),
            ({"vary": {"X-A": ["line\nbreak"]}}, ValueError),
            ({"vary": {"Cookie": ["a"]}}, ValueError),
            ({"vary": {"authorization": ["a"]}}, ValueError),
            ({"fallback": True}, ValueError),
            ({"fallback": "never"}, ValueError),
            ({"fallback": None}, ValueError),
        ],
    )
    def test_refuses_at_once_what_cannot_work(
        self, options: dict[str, t.Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            Rule(**options)

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            Rule().revalidate = 5  # type: ignore[misc]

    @pytest.mark.parametrize("revalidate", [1, False, None])
    def test_takes_a_window_or_none(self, revalidate: t.Any) -> None:
        assert Rule(revalidate=revalidate).revalidate is revalidate

    def test_an_expiry_may_equal_the_window(self) -> None:
        assert Rule(revalidate=60, expire=60).expire == 60


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/", "/", True),
        ("/", "/a", False),
        ("/about", "/about", True),
        ("/about", "/about/", False),
        ("/about", "/about/us", False),
        ("/about", "/About", False),
        ("/a.b", "/axb", False),
        ("/blog/*", "/blog/1", True),
        ("/blog/*", "/blog/1/2", False),
        ("/blog/*", "/blog/", False),
        ("/blog/*", "/blog", False),
        ("/*/edit", "/blog/edit", True),
        ("/*/edit", "/edit", False),
        ("/post-*.html", "/post-1.html", True),
        ("/post-*.html", "/post-1/x.html", False),
        ("/blog/**", "/blog", True),
        ("/blog/**", "/blog/", True),
        ("/blog/**", "/blog/1/2/3", True),
        ("/blog/**", "/blogs", False),
        ("/**", "/", True),
        ("/**", "/a/b", True),
        ("/**/edit", "/edit", True),
        ("/**/edit", "/a/b/edit", True),
        ("/**/edit", "/a/editor", False),
        ("/a/**/b/*", "/a/x/y/b/c", True),
        ("/größe/*", "/größe/1", True),
        ("/gr%C3%B6%C3%9Fe", "/größe", True),
        ("/größe/*", "/größe/ü", True),
    ],
)
def test_a_star_is_one_segment_and_two_are_any_number(
    pattern: str, path: str, matches: bool
) -> None:
    spelled = path.encode().decode("latin-1")
    assert bool(compile_pattern(pattern).fullmatch(spelled)) is matches


@pytest.mark.parametrize("pattern", ["", "blog/*", "*", "//evil", "/line\nbreak", 5])
def test_what_is_no_pattern_is_an_error_at_once(pattern: t.Any) -> None:
    with pytest.raises(ValueError):
        ISRMiddleware(plain, "memory://", rules={pattern: 60})


def test_a_mapping_with_a_wrong_window_names_the_pattern() -> None:
    with pytest.raises(ValueError, match="/blog"):
        ISRMiddleware(plain, "memory://", rules={"/blog/*": 0})


@pytest.mark.parametrize("rules", [60, ["/blog"], "/blog"])
def test_rules_are_a_mapping_or_a_callable(rules: t.Any) -> None:
    with pytest.raises(TypeError):
        ISRMiddleware(plain, "memory://", rules=rules)


class TestPagesByRule:
    def test_a_rule_makes_pages_of_an_app_without_isr_headers(self, browse: t.Any) -> None:
        client = browse(app=plain, rules={"/blog/*": 60})
        assert status_of(client.get("/blog/1")) == "isr; fwd=uri-miss; stored"
        assert status_of(client.get("/blog/1")) == "isr; hit; ttl=60"

    def test_a_number_is_short_for_a_window(self, browse: t.Any) -> None:
        client = browse(app=plain, rules={"/a": 60, "/b": Rule(revalidate=60)})
        for path in ("/a", "/b"):
            client.get(path)
            assert status_of(client.get(path)) == "isr; hit; ttl=60"

    def test_false_in_a_rule_is_a_page_that_changes_on_demand_only(
        self, browse: t.Any, clock: t.Any
    ) -> None:
        client = browse(app=plain, rules={"/blog/*": False})
        client.get("/blog/1")
        clock.advance(10**8)
        assert status_of(client.get("/blog/1")) == "isr; hit"

    def test_paths_without_a_rule_are_no_pages(self, browse: t.Any) -> None:
        client = browse(app=plain, rules={"/blog/*": 60})
        response = client.get("/other")
        assert (status_of(response), response.text) == ("", "visitor")

    def test_the_first_rule_that_matches_counts(self, browse: t.Any) -> None:
        client = browse(app=plain, rules={"/blog/new": 5, "/blog/*": 60, "/**": 600})
        ttls = []
        for path in ("/blog/new", "/blog/old", "/"):
            client.get(path)
            ttls.append(status_of(client.get(path)))
        assert ttls == ["isr; hit; ttl=5", "isr; hit; ttl=60", "isr; hit; ttl=600"]

    def test_a_later_rule_does_not_fill_in_for_the_first(self, browse: t.Any) -> None:
        rules = {"/blog/*": Rule(revalidate=60), "/**": Rule(revalidate=5, query=["page"])}
        client = browse(app=plain, rules=rules)
        client.get("/blog/1?page=1")
        assert status_of(client.get("/blog/1?page=2")).startswith("isr; hit")

    def test_patterns_match_the_path_below_the_mount_point(self, browse: t.Any) -> None:
        client = browse(app=plain, rules={"/blog/*": 60})
        client.get("/blog/1", base_url="http://example.com/site")
        response = client.get("/blog/1", base_url="http://example.com/site")
        assert status_of(response) == "isr; hit; ttl=60"

    def test_tags_of_a_rule_are_those_of_its_pages(self, browse: t.Any) -> None:
        client = browse(app=plain, rules={"/blog/*": Rule(revalidate=60, tags=["blog"])})
        client.get("/blog/1")
        assert next(client.isr.pages()).tags == ("blog",)

    def test_the_expiry_of_a_rule(self, browse: t.Any, clock: t.Any) -> None:
        client = browse(app=plain, rules={"/blog/*": Rule(revalidate=60, expire=90)})
        client.get("/blog/1")
        clock.advance(90)
        assert status_of(client.get("/blog/1")) == "isr; fwd=stale; stored"

    def test_a_rule_alone_does_not_make_a_page_of_an_error(
        self, site: t.Any, browse: t.Any
    ) -> None:
        def forbidden(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"no"]

        client = browse(app=forbidden, rules={"/**": 60})
        assert client.get("/x").status_code == 403
        assert list(client.isr.pages()) == []


class TestTheResponseWins:
    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            (page_headers(5), "isr; hit; ttl=5"),
            (page_headers(False), "isr; hit"),
            ([("ISR-Tags", "own")], "isr; hit; ttl=60"),
        ],
        ids=["window", "false", "tags only"],
    )
    def test_over_the_window_of_its_rule(
        self, site: t.Any, browse: t.Any, headers: t.Any, expected: str
    ) -> None:
        def app(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain"), *headers])
            return [b""]

        client = browse(app=app, rules={"/**": 60})
        client.get("/x")
        assert status_of(client.get("/x")) == expected

    def test_over_the_tags_of_its_rule(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", tags=["own"])
        client = browse(rules={"/**": Rule(revalidate=60, tags=["rule"])})
        client.get("/x")
        assert next(client.isr.pages()).tags == ("own",)

    def test_over_the_expiry_of_its_rule(self, site: t.Any, browse: t.Any, clock: t.Any) -> None:
        site.page("/x", revalidate=60, expire=70)
        client = browse(rules={"/**": Rule(revalidate=60, expire=600)})
        client.get("/x")
        clock.advance(70)
        assert status_of(client.get("/x")) == "isr; fwd=stale; stored"


class TestCallableRules:
    def test_are_asked_with_the_environ(self, browse: t.Any) -> None:
        def rules(environ: dict[str, t.Any]) -> Rule | None:
            return Rule(revalidate=7) if environ["PATH_INFO"].endswith(".html") else None

        client = browse(app=plain, rules=rules)
        client.get("/a.html")
        assert status_of(client.get("/a.html")) == "isr; hit; ttl=7"
        assert status_of(client.get("/a.txt")) == ""

    @pytest.mark.parametrize("wrong", [60, "blocking", {}], ids=repr)
    def test_that_return_something_else_are_logged_and_the_request_goes_on(
        self, browse: t.Any, caplog: pytest.LogCaptureFixture, wrong: t.Any
    ) -> None:
        client = browse(app=plain, rules=lambda environ: wrong)
        assert client.get("/x").text == "visitor"
        assert caplog.records[0].levelno >= logging.WARNING

    def test_that_raise_are_logged_and_the_request_goes_on(
        self, browse: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        def rules(environ: dict[str, t.Any]) -> Rule | None:
            raise LookupError("no such rule")

        client = browse(app=plain, rules=rules)
        assert client.get("/x").text == "visitor"
        assert "/x" in caplog.text


class TestVary:
    """A request header that is part of the key, reduced to one of the listed values."""

    LANGUAGES: t.ClassVar = {"Accept-Language": ["en", "de"]}

    @pytest.mark.parametrize(
        ("sent", "seen"),
        [
            (None, "en"),
            ("de", "de"),
            ("de-AT", "de"),
            ("fr, de;q=0.5", "de"),
            ("en;q=0.3, de;q=0.7", "de"),
            ("fr", "en"),
            ("", "en"),
            ("<script>", "en"),
        ],
    )
    def test_the_app_sees_one_of_the_listed_values(
        self, site: t.Any, browse: t.Any, sent: str | None, seen: str
    ) -> None:
        site.page("/x", lambda environ: environ["HTTP_ACCEPT_LANGUAGE"])
        client = browse(rules={"/x": Rule(vary=self.LANGUAGES)})
        headers = {} if sent is None else {"Accept-Language": sent}
        assert client.get("/x", headers=headers).text == seen

    def test_each_value_has_its_page(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ["HTTP_ACCEPT_LANGUAGE"])
        client = browse(rules={"/x": Rule(vary=self.LANGUAGES)})
        for _ in range(2):
            for language in ("en", "de", "de-AT", "en-US"):
                response = client.get("/x", headers={"Accept-Language": language})
                assert response.text == language[:2]
        assert site.renders("/x") == 2

    def test_other_headers_are_compared_as_they_are_but_for_case(
        self, site: t.Any, browse: t.Any
    ) -> None:
        site.page("/x", lambda environ: environ["HTTP_X_THEME"])
        client = browse(rules={"/x": Rule(vary={"X-Theme": ["light", "dark"]})})
        answers = [client.get("/x", headers={"X-Theme": value}).text for value in ("DARK", "x", "")]
        assert answers == ["dark", "light", "light"]

    def test_the_answer_tells_caches_of_it(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x")
        client = browse(rules={"/x": Rule(vary={"accept-language": ["en"], "X-Theme": ["a"]})})
        for _ in range(2):
            fields = client.get("/x").headers["Vary"].lower().split(", ")
            assert sorted(fields) == ["accept-language", "x-theme"]
