"""What a site says of URLs before the app is asked: `Rule` and path patterns."""

from __future__ import annotations

import dataclasses
import logging
import typing as t

import pytest
from answers import PLAIN, answer, page, run
from conftest import status_of

from wsgi_isr import ISRMiddleware, Rule, page_headers
from wsgi_isr.rules import compile_pattern


def plain(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    """An app that has never heard of the library; it tells the reason of a render."""
    start_response("200 OK", [PLAIN])
    return [environ.get("wsgi_isr.reason", "visitor").encode()]


class TestRule:
    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"revalidate": 0}, ValueError),
            ({"revalidate": 10**400}, ValueError),
            ({"revalidate": 60, "expire": 10**15}, ValueError),
            ({"revalidate": 60, "expire": 59}, ValueError),
            ({"revalidate": False, "expire": 60}, ValueError),
            ({"tags": ["x" * 257]}, ValueError),
            ({"tags": "news"}, TypeError),
            ({"tags": None}, TypeError),
            ({"query": "page"}, TypeError),
            ({"query": [""]}, ValueError),
            ({"vary": ["Accept-Language"]}, TypeError),
            ({"vary": {"Accept-Language": []}}, ValueError),
            ({"vary": {"Accept-Language": "en"}}, ValueError),
            ({"vary": {"Bad Header": ["a"]}}, ValueError),
            ({"vary": {"X-A": ["line\nbreak"]}}, ValueError),
            ({"vary": {"Accept-Language": {"en", "de"}}}, ValueError),
            ({"vary": {"Accept-Language": iter(["en", "de"])}}, ValueError),
            ({"vary": {"Accept-Language": 5}}, ValueError),
            ({"vary": {"X-A": ["a"], "x-a": ["b"]}}, ValueError),
            ({"vary": {"Cookie": ["a"]}}, ValueError),
            ({"vary": {"If-None-Match": ["a"]}}, ValueError),
            ({"vary": {"ISR-Tags": ["a"]}}, ValueError),
            ({"fallback": 0}, ValueError),
            ({"fallback": True}, ValueError),
            ({"fallback": "never"}, ValueError),
            ({"ignore": "Set-Cookie"}, TypeError),
            ({"ignore": 3}, TypeError),
            ({"ignore": ["ETag"]}, ValueError),
            ({"undeclared": "drop"}, ValueError),
        ],
    )
    def test_refuses_at_once_what_cannot_work(
        self, options: dict[str, t.Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            Rule(**options)

    def test_names_the_same_build_in_every_process(self) -> None:
        """Sets have another order in each."""
        names, fields = ("a", "b", "c"), ("Vary", "Set-Cookie")
        builds = {
            ISRMiddleware(
                answer(),
                "memory://",
                rules={"/": Rule(60, None, kind(names), kind(names), ignore=it)},
            ).build_id
            for kind in (list, set)
            for it in (kind(fields), iter(fields))
        }
        assert len(builds) == 1

    def test_keeps_what_can_be_read_but_once(self) -> None:
        rule = Rule(tags=iter(["a"]), query=iter(["b"]), ignore=iter(["Vary"]))  # type: ignore[arg-type]
        for it in (rule, dataclasses.replace(rule, revalidate=60)):
            assert (it.tags, it.parameters, it.ignore) == (("a",), ("b",), {"vary"})

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            Rule().revalidate = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/", "/", True),
        ("/", "/a", False),
        ("/about", "/about/", False),
        ("/about", "/About", False),
        ("/a.b", "/axb", False),
        ("/blog/*", "/blog/1", True),
        ("/blog/*", "/blog/1/2", False),
        ("/blog/*", "/blog/", False),
        ("/*/edit", "/edit", False),
        ("/post-*.html", "/post-1.html", True),
        ("/post-*.html", "/post-1/x.html", False),
        ("/blog/**", "/blog", True),
        ("/blog/**", "/blog/1/2/3", True),
        ("/blog/**", "/blogs", False),
        ("/**", "/", True),
        ("/**/edit", "/edit", True),
        ("/**/edit", "/a/b/edit", True),
        ("/**/edit", "/a/editor", False),
        ("/a/**/b/*", "/a/x/y/b/c", True),
        ("/größe/*", "/größe/ü", True),
        ("/gr%C3%B6%C3%9Fe", "/größe", True),
    ],
)
def test_a_star_is_one_segment_and_two_are_any_number(
    pattern: str, path: str, matches: bool
) -> None:
    spelled = path.encode().decode("latin-1")
    assert bool(compile_pattern(pattern).fullmatch(spelled)) is matches


@pytest.mark.parametrize(
    ("rules", "error", "said"),
    [
        *(({bad: 60}, ValueError, "pattern") for bad in ("", "blog/*", "//evil", "/a\nb", 5)),
        ({"/blog/*": 0}, ValueError, "/blog"),
        (60, TypeError, "mapping"),
        (["/blog"], TypeError, "mapping"),
    ],
)
def test_what_are_no_rules_is_an_error_at_once(
    rules: t.Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        ISRMiddleware(plain, "memory://", rules=rules)


class TestPagesByRule:
    @pytest.mark.parametrize(
        ("rule", "expected"),
        [(60, "isr; hit; ttl=60"), (Rule(60), "isr; hit; ttl=60"), (False, "isr; hit")],
    )
    def test_an_app_without_isr_headers_has_pages(
        self, browse: t.Any, rule: t.Any, expected: str
    ) -> None:
        client = browse(app=plain, rules={"/blog/*": rule})
        for url in ("http://localhost", "http://example.com/site"):
            first = client.get("/blog/1", base_url=url)
            assert (first.text, status_of(first)) == ("miss", "isr; fwd=uri-miss; stored")
            assert status_of(client.get("/blog/1", base_url=url)) == expected
        assert (client.get("/other").text, status_of(client.get("/other"))) == ("visitor", "")

    def test_the_first_rule_that_matches_counts_alone(self, browse: t.Any) -> None:
        rules = {"/blog/new": 5, "/blog/*": 60, "/**": Rule(revalidate=600, query=["page"])}
        client = browse(app=plain, rules=rules)
        ttls = []
        for path in ("/blog/new", "/blog/old", "/"):
            client.get(f"{path}?page=1")
            ttls.append(status_of(client.get(f"{path}?page=2")))
        assert ttls == ["isr; hit; ttl=5", "isr; hit; ttl=60", "isr; fwd=uri-miss; stored"]

    def test_tags_and_expiry_are_those_of_the_page(self, browse: t.Any, clock: t.Any) -> None:
        rule = Rule(revalidate=60, expire=90, tags=["blog"])
        client = browse(app=plain, rules={"/blog/*": rule})
        client.get("/blog/1")
        assert next(client.isr.pages()).tags == ("blog",)
        clock.advance(90)
        assert status_of(client.get("/blog/1")) == "isr; fwd=stale; stored"

    def test_a_rule_alone_does_not_make_a_page_of_an_error(
        self, site: t.Any, browse: t.Any
    ) -> None:
        site.answers["/x"] = answer(status="403 Forbidden")
        client = browse(rules={"/**": 60})
        assert client.get("/x").status_code == 403
        assert list(client.isr.pages()) == []

    @pytest.mark.parametrize(
        ("headers", "expected", "tags"),
        [
            (page_headers(5), "isr; hit; ttl=5", ("rule",)),
            (page_headers(False), "isr; hit", ("rule",)),
            ([("ISR-Tags", "own")], "isr; hit; ttl=60", ("own",)),
        ],
        ids=["window", "false", "tags only"],
    )
    def test_the_response_wins_over_its_rule(
        self, site: t.Any, browse: t.Any, headers: t.Any, expected: str, tags: t.Any
    ) -> None:
        site.answers["/x"] = answer(*headers)
        client = browse(rules={"/**": Rule(revalidate=60, expire=600, tags=["rule"])})
        client.get("/x")
        assert status_of(client.get("/x")) == expected
        assert next(client.isr.pages()).tags == tags


class TestExcluded:
    """``None`` in a mapping: the URL is no page, and passes untouched."""

    def test_has_no_page_on_demand_either(self) -> None:
        isr = ISRMiddleware(plain, "memory://", base_url="http://a", rules={"/x": None, "/**": 60})
        with pytest.raises(ValueError, match="a rule of None excludes it"):
            isr.revalidate("/x")
        (result,) = isr.prerender(["/x"])
        assert isinstance(result.error, ValueError) and result.outcome == "failed"
        isr.close()

    @pytest.mark.parametrize("more", [{}, {"enabled": False}, {"bypass": ["member"]}])
    def test_urls_pass_untouched(self, site: t.Any, browse: t.Any, more: t.Any) -> None:
        site.answers["/admin/x"] = site.answers["/x"] = page(("Set-Cookie", "a=1"))
        client = browse(rules={"/admin/**": None, "/**": 60}, **more)
        for _ in range(2):
            sent = run(client.isr, "/admin/x", HTTP_COOKIE="member=1")
            assert sent.headers == [PLAIN, ("Set-Cookie", "a=1")]
            assert "wsgi_isr.reason" not in site.environs[-1]
            assert status_of(client.get("/x")) != ""


class TestUndeclared:
    """``Rule(undeclared="pass")``: a request with parameters of nobody's goes to the app."""

    @pytest.mark.parametrize(
        ("query", "passes"),
        [
            ("", False),
            ("page=2", False),
            ("utm_source=a&fbclid=b&page=2", False),
            ("q=x", True),
            ("page=2&q=x", True),
            ("utm_source=a&q=x", True),
            ("q", True),
            ("UTM_source=a", True),
        ],
    )
    def test_goes_to_the_app_but_for_trackers(
        self, site: t.Any, browse: t.Any, query: str, passes: bool
    ) -> None:
        site.page("/x", lambda environ: environ.get("wsgi_isr.reason", environ["QUERY_STRING"]))
        client = browse(rules={"/x": Rule(query=["page"], undeclared="pass")})
        for expected in ("fwd=uri-miss; stored", "hit; ttl=60"):
            response = client.get(f"/x?{query}")
            if passes:
                assert (response.text, client.get("/x").text) == (query, "miss")
                assert status_of(response) == "isr; fwd=uri-miss; detail=query"
                assert response.headers["Cache-Control"] == "private, no-store"
            else:
                assert (response.text, status_of(response)) == ("miss", f"isr; {expected}")

    def test_is_ignored_by_default(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ["QUERY_STRING"])
        client = browse(rules={"/x": Rule(query=["page"])})
        assert client.get("/x?page=2&q=x").text == "page=2"


def of_visitors(environ: dict[str, t.Any]) -> Rule | None:
    return None if "HTTP_X_MEMBER" in environ else Rule(revalidate=60, expire=120)


class TestCallableRules:
    def test_are_asked_with_the_environ(self, browse: t.Any) -> None:
        def rules(environ: dict[str, t.Any]) -> Rule | None:
            return Rule(revalidate=7) if environ["PATH_INFO"].endswith(".html") else None

        client = browse(app=plain, rules=rules)
        client.get("/a.html")
        assert status_of(client.get("/a.html")) == "isr; hit; ttl=7"
        assert status_of(client.get("/a.txt")) == ""

    def test_of_one_visitor_are_not_remembered_for_others(self, make: t.Any) -> None:
        isr = make(app=plain, rules=of_visitors)
        for _ in range(2):
            assert run(isr, HTTP_X_MEMBER="1").body == b"visitor"
        for _ in range(2):
            assert run(isr).body == b"miss"

    def test_what_is_refused_without_the_rule_of_others_is_theirs(
        self, site: t.Any, browse: t.Any
    ) -> None:
        site.page("/x", headers=[("Vary", "X-Member")])
        rule = Rule(ignore=["Vary"])
        client = browse(rules=lambda environ: None if "HTTP_X_MEMBER" in environ else rule)
        answer = client.get("/x", headers={"X-Member": "1"})
        assert status_of(answer) == "isr; fwd=uri-miss; detail=vary"
        assert status_of(client.get("/x")) == "isr; fwd=uri-miss; stored"

    @pytest.mark.parametrize("age", [61, 121])
    def test_a_visitor_without_a_rule_withdraws_no_page(
        self, site: t.Any, browse: t.Any, clock: t.Any, age: int
    ) -> None:
        site.answers["/x"] = answer()
        client = browse(rules=of_visitors)
        client.get("/x")
        clock.advance(age)
        client.get("/x", headers={"X-Member": "1"})
        client.isr.close()
        assert status_of(client.get("/x")) == "isr; hit; ttl=60"

    def test_a_visitor_with_a_rule_makes_no_page(self, site: t.Any, browse: t.Any) -> None:
        site.answers["/x"] = answer()
        client = browse(rules=lambda environ: Rule(60) if "HTTP_X_MEMBER" in environ else None)
        for _ in range(2):
            response = client.get("/x", headers={"X-Member": "1"})
            assert status_of(response) == "isr; fwd=uri-miss; detail=no-metadata"
            assert list(client.get("/x").headers) == [PLAIN]

    @pytest.mark.parametrize("wrong", [60, {}, ZeroDivisionError()], ids=repr)
    def test_that_go_wrong_are_logged_and_the_request_goes_on(
        self, browse: t.Any, caplog: pytest.LogCaptureFixture, wrong: t.Any
    ) -> None:
        def rules(environ: dict[str, t.Any]) -> t.Any:
            if isinstance(wrong, Exception):
                raise wrong
            return wrong

        assert browse(app=plain, rules=rules).get("/x").text == "visitor"
        assert caplog.records[0].levelno >= logging.WARNING


class TestVary:
    """A request header that is part of the key, reduced to one of the listed values."""

    @pytest.mark.parametrize(
        ("name", "values", "sent", "seen"),
        [
            ("Accept-Language", ["en", "de"], None, "en"),
            ("Accept-Language", ["en", "de"], "de-AT", "de"),
            ("Accept-Language", ["en", "de"], "fr, de;q=0.5", "de"),
            ("Accept-Language", ["en", "de"], "en;q=0.3, de;q=0.7", "de"),
            ("Accept-Language", ["en", "de"], "fr", "en"),
            ("Accept-Language", ["en", "de"], "<script>", "en"),
            ("Accept-Language", ["en", "de"], "de," * 1000, "en"),
            # What is no media type is no reason for an error.
            ("Accept", ["html", "json"], "application/json", "html"),
            ("Accept", ["text/html", "application/json"], "application/json", "application/json"),
            ("X-Theme", ["light", "dark"], "DARK", "dark"),
            ("X-Theme", ["light", "dark"], "x", "light"),
            # htmx: present or not is what makes the difference.
            ("HX-Request", [None, "true"], None, None),
            ("HX-Request", [None, "true"], "True", "true"),
            ("HX-Request", [None, "true"], "other", None),
            ("HX-Request", ["true", None], None, None),
            ("Accept-Language", [None, "de"], "fr", None),
            ("Accept-Language", ["en", None, "de"], "de", "de"),
            ("Accept-Language", ["en", None, "de"], "fr", None),
        ],
    )
    def test_the_app_sees_one_of_the_listed_values(
        self, site: t.Any, browse: t.Any, name: str, values: t.Any, sent: t.Any, seen: t.Any
    ) -> None:
        key = "HTTP_" + name.upper().replace("-", "_")
        site.page("/x", lambda environ: str(environ.get(key)))
        client = browse(rules={"/x": Rule(vary={name: values})})
        headers = {} if sent is None else {name: sent}
        for _ in range(2):
            response = client.get("/x", headers=headers)
            assert response.text == str(seen)
            assert response.headers["Vary"].lower() == name.lower()

    def test_each_value_has_its_page(self, site: t.Any, browse: t.Any) -> None:
        site.page("/x", lambda environ: environ.get("HTTP_HX_REQUEST", "whole"))
        client = browse(rules={"/x": Rule(vary={"HX-Request": [None, "true"], "X-B": ["a"]})})
        for _ in range(2):
            assert client.get("/x").text == "whole"
            assert client.get("/x", headers={"HX-Request": "true"}).text == "true"
        assert site.renders("/x") == 2
        assert client.get("/x").headers["Vary"].lower() == "hx-request, x-b"
