"""What has no effect says so when it is written down, with what to write instead."""

from __future__ import annotations

import logging
import threading
import typing as t
from pathlib import Path

import pytest
from answers import answer, page, run
from cachelib import NullCache
from conftest import Make, Site
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from wsgi_isr import ISRMiddleware, Rule
from wsgi_isr.flask import ISR

ERRORS: dict[str, tuple[dict[str, t.Any], str]] = {
    "a cache that stores nothing": ({"cache": NullCache()}, "NullCache stores nothing: leave"),
    "a folder that is no URL": ({"cache": Path("/var/cache/a b")}, "'file:///var/cache/a%20b'"),
    "hosts of Django": ({"trusted_hosts": ["*"]}, "None trusts any"),
    "hosts with a star": ({"trusted_hosts": ["*.example.com"]}, "'.example.com'"),
    "hosts with spaces": ({"trusted_hosts": [" example.com"]}, "not ' example.com'"),
    "a host that is too long": ({"trusted_hosts": ["ö" * 80]}, "trusted_hosts takes hosts"),
    "a host that is a number": ({"trusted_hosts": [3]}, "not 3"),
    "hosts that are URLs": ({"trusted_hosts": ["https://www.example.com"]}, "not URLs"),
    "hosts that are none": ({"trusted_hosts": 3}, r"trusted_hosts takes a list"),
    "a time of nothing": ({"render_timeout": 0}, "more than 0 seconds, up to 86400, not 0"),
    "a time without end": ({"render_timeout": float("inf")}, "more than 0 seconds"),
    "a time that is none": ({"render_timeout": float("nan")}, "more than 0 seconds"),
    "a prefix with a space": ({"key_prefix": "a b"}, "characters without spaces, not 'a b'"),
    "a key that is a number": ({"signing_key": 5}, "signing_key takes bytes or a string, not int"),
    "a key that is short": ({"signing_key": "short"}, "at least 16 bytes, not 5"),
    "no memory and no store": ({"cache": "memory://", "memory_size": 0}, "stores nothing; leave"),
    "a truth value as text": ({"enabled": "false"}, "enabled takes True or False, not 'false'"),
    "a build_id that is no text": ({"build_id": "v1\udcff"}, "build_id takes what UTF-8 can"),
    "a base_url in bytes": ({"base_url": b"https://a.example"}, "base_url takes a scheme"),
    "a cookie with its value": ({"bypass": ["sessionid=1"]}, "names of cookies.*'sessionid=1'"),
    "no list of cookies": ({"bypass": None}, r"bypass takes a list, as in \['sessionid'\]"),
    "no list of parameters": ({"query": None}, r"query takes a list, as in \['page'\]"),
    "a path with dots": ({"rules": {"/a/../b": 60}}, "can never match"),
    "a variable": ({"rules": {"/blog/<slug>": 60}}, "can never match: write"),
    "a variable of Next.js": ({"rules": {"/blog/[slug]": 60}}, "can never match: write"),
    "a query": ({"rules": {"/?page=*": 60}}, "can never match: a path has no query"),
    "a fragment": ({"rules": {"/a#b": 60}}, "can never match: a path has no fragment"),
    "two slashes": ({"rules": {"/a//b": 60}}, "can never match: no page has"),
    "a path that is no UTF-8": ({"rules": {"/%ff": 60}}, "can never match"),
    "a surrogate": ({"rules": {"/\ud800": 60}}, "printable"),
}


@pytest.mark.parametrize(("options", "words"), ERRORS.values(), ids=ERRORS)
def test_a_setting_that_cannot_work_is_an_error(
    site: Site, options: dict[str, t.Any], words: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        ISRMiddleware(site, **options)


def test_an_app_that_is_none_is_an_error() -> None:
    with pytest.raises(TypeError, match="app is a WSGI application, not 'app'"):
        ISRMiddleware(t.cast(t.Any, "app"), "memory://")


class OfClass:
    async def __call__(self, scope: t.Any, receive: t.Any, send: t.Any) -> None: ...


async def of_function(scope: t.Any, receive: t.Any, send: t.Any) -> None: ...


@pytest.mark.parametrize("app", [OfClass(), of_function])
def test_an_asgi_app_is_an_error(app: t.Any) -> None:
    with pytest.raises(TypeError, match="ASGI"):
        ISRMiddleware(app, "memory://")


WARNINGS: dict[str, tuple[dict[str, t.Any], str]] = {
    "hosts beside a base": (
        {"base_url": "https://a.example", "trusted_hosts": ["a.example"]},
        "trusted_hosts has no effect beside base_url",
    ),
    "builds without a name": ({"previous_builds": 1}, "no effect without build_id"),
    "builds of one process": (
        {"previous_builds": 1, "build_id": "2"},
        "previous_builds has no effect, because pages of this store end with their process",
    ),
    "a rule with the mount point": (
        {"base_url": "https://a.example/shop", "rules": {"/shop/**": 60}},
        "rules['/shop/**'] is for paths below /shop: leave that out",
    ),
}


@pytest.mark.parametrize(("options", "words"), WARNINGS.values(), ids=WARNINGS)
def test_a_setting_without_effect_is_a_warning(
    make: Make, options: dict[str, t.Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    make(**options)
    (record,) = caplog.records
    assert words in record.getMessage()


def flask_with_isr() -> Flask:
    app = Flask("site")
    ISR(app)
    return app


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (ProxyFix, "ProxyFix is inside of"),
        (lambda app: ISRMiddleware(app, "memory://"), "is inside of another one"),
        (lambda app: flask_with_isr(), "is inside of another one"),
        (lambda app: flask_with_isr().wsgi_app, "is inside of another one"),
    ],
)
def test_so_is_an_order_of_middlewares_that_cannot_be_right(
    site: Site, wrap: t.Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Under another middleware, as it mostly is.
    app = type("Other", (), {"__call__": site.__call__, "app": wrap(site)})()
    ISRMiddleware(app, "memory://")
    assert [words in text for text in caplog.messages] == [True]


class TestShadows:
    @pytest.mark.parametrize(
        ("rules", "first", "later"),
        [
            ({"/**": 60, "/blog/*": 5}, "/**", "/blog/*"),
            ({"/blog/**": None, "/x": 1, "/blog": 5}, "/blog/**", "/blog"),
            ({"/blog/*": 60, "/blog/post-*": 5}, "/blog/*", "/blog/post-*"),
            ({"/**/edit": 60, "/a/**/edit": 5}, "/**/edit", "/a/**/edit"),
            ({"/café": 60, "/caf%C3%A9": 5}, "/café", "/caf%C3%A9"),
        ],
    )
    def test_a_rule_behind_one_for_all_of_its_paths_is_a_warning(
        self, make: Make, rules: t.Any, first: str, later: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        make(rules=rules)
        (text,) = caplog.messages
        assert f"rules[{later!r}] has no effect, because {first!r} stands before it" in text

    @pytest.mark.parametrize(
        "rules",
        [
            {"/blog/*": 5, "/**": 60},
            {"/blog/*": 5, "/blog/**": 60},
            {"/*/edit": 5, "/**/edit": 60},
            {"/blog/post-*": 5, "/blog/*": 60},
            {"/**/*": 5, "/**": 60},
            {"/*": 5, "/": 60},
            {"/a%2Ab": 5, "/a*b": 60},
        ],
    )
    def test_a_rule_with_paths_of_its_own_is_none(
        self, make: Make, rules: t.Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        make(rules=rules)
        assert not caplog.messages


class TestStars:
    """``%2A`` is a character, and ``*`` is none."""

    def test_in_rules(self, make: Make, site: Site) -> None:
        site.page("/a*b")
        site.page("/axb")
        isr = make(rules={"/a%2Ab": 60})
        for path in ("/a*b", "/axb"):
            run(isr, path)
        assert [page.tags for page in isr.pages()] == [(), ()]
        reasons = {e["PATH_INFO"]: e.get("wsgi_isr.reason") for e in site.environs[:1]}
        assert reasons == {"/a*b": "miss"}
        # The other one is no declared page: its first visitor's own request came first.
        assert "wsgi_isr.reason" not in site.environs[1]

    def test_in_invalidations(self, make: Make, site: Site) -> None:
        site.page("/a*b/c")
        site.page("/axb/c")
        isr = make()
        for pattern in ("/a%2Ab/c", "/a%2Ab/*", "/a%2Ab/**"):
            for path in ("/a*b/c", "/axb/c"):
                run(isr, path)
            isr.invalidate(pattern, expire=True)
            states = {page.url.partition("/a")[2]: page.state for page in isr.pages()}
            assert states == {"%2Ab/c": "expired", "xb/c": "fresh"}


class TestHosts:
    def test_that_nobody_uses_are_a_warning(
        self, make: Make, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        isr = make(trusted_hosts=["www.example.com"])
        for host in ("other.example", "third.example"):
            run(isr, HTTP_HOST=host)
        assert caplog.messages == [
            "'other.example' is not among trusted_hosts: requests for it get no pages"
        ]

    def test_that_somebody_uses_are_none(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        isr = make(trusted_hosts=["www.example.com"])
        for host in ("www.example.com", "scanner.example"):
            run(isr, HTTP_HOST=host)
        assert not caplog.messages

    @pytest.mark.parametrize("trusted", ["a.example:443", ".example:443", "A.Example.:443"])
    def test_may_have_the_default_port(self, make: Make, site: Site, trusted: str) -> None:
        site.page("/x")
        isr = make(trusted_hosts=[trusted])
        environ = {"HTTP_HOST": "a.example", "wsgi.url_scheme": "https"}
        run(isr, **environ)
        run(isr, **{**environ, "wsgi.url_scheme": "http"})
        assert [page.url for page in isr.pages()] == ["https://a.example/x"]


class TestCalls:
    @pytest.mark.parametrize("workers", [0, -1, True, "3", 1.5])
    def test_with_no_workers_are_errors(self, make: Make, workers: t.Any) -> None:
        isr = make(base_url="http://localhost")
        calls: list[t.Callable[[], object]] = [
            lambda: isr.revalidate("/", workers=workers),
            lambda: list(isr.prerender(["/"], workers=workers)),
            lambda: isr.regenerate(threading.Event(), workers=workers),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="workers is at least 1"):
                call()

    def test_a_text_is_no_list_of_paths(self, make: Make) -> None:
        with pytest.raises(TypeError, match=r"paths takes a list, as in \['/blog'\]"):
            make(base_url="http://localhost").prerender("/blog")

    @pytest.mark.parametrize("path", ["/blog/*", "/blog/<slug>", "/blog/[slug]?page=*"])
    def test_a_pattern_is_no_path(self, make: Make, site: Site, path: str) -> None:
        isr = make(base_url="http://localhost")
        with pytest.raises(ValueError, match="is a pattern, which invalidate"):
            isr.revalidate(path)
        (result,) = isr.prerender([path])
        assert result.outcome == "failed" and not site.environs

    def test_take_the_urls_that_pages_have(self, make: Make, site: Site) -> None:
        site.page("/a*[b]<c>")
        isr = make()
        run(isr, "/a*[b]<c>")
        (page,) = isr.pages()
        assert [(r.url, r.outcome) for r in isr.revalidate(page.url)] == [(page.url, "rendered")]

    @pytest.mark.parametrize("call", ["revalidate", "invalidate", "revalidate_tag"])
    def test_that_name_nothing_are_logged(
        self, make: Make, call: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        getattr(make(), call)()
        assert "on demand: no" in caplog.messages[-1]

    def test_to_keep_no_build_is_an_error(self, make: Make) -> None:
        with pytest.raises(ValueError, match="keep_builds is at least 1"):
            make().prune(keep_builds=0)

    @pytest.mark.parametrize("call", ["revalidate", "invalidate", "revalidate_tag"])
    def test_that_name_what_no_page_has_are_errors(self, make: Make, call: str) -> None:
        with pytest.raises(ValueError, match="a\\\\ud800"):
            getattr(make(base_url="http://localhost"), call)("/a\ud800")


def test_a_header_that_is_misspelt_is_a_warning(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    isr = make(app=answer(("ISR-Revalidation", "60")))
    for _ in range(3):
        run(isr)
    assert caplog.messages == [
        "ISR-Revalidation means nothing: the headers of pages are ISR-Revalidate, ISR-Expire, "
        "ISR-Tags"
    ]


class TestLogins:
    """A page that is for those who are logged in: the warning says so."""

    REMEDY = "the page depends on who is logged in: set bypass="

    @pytest.mark.parametrize(
        ("status", "location"),
        [
            ("302 Found", "http://localhost/login"),
            ("302 Found", "https://sso.example/?from=here"),
            ("303 See Other", "http://localhost/?next=%2Fx"),
            ("401 Unauthorized", ""),
            ("403 Forbidden", ""),
        ],
    )
    @pytest.mark.parametrize(
        ("rules", "app"),
        [({"/x": 60}, answer), ({"/x": Rule()}, answer), (None, page)],
        ids=["by its rule", "declared", "by its answer"],
    )
    def test_are_named_with_the_remedy(
        self,
        make: Make,
        status: str,
        location: str,
        rules: t.Any,
        app: t.Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        headers = [("Location", location)] if location else []
        if app is page and status[:3] == "302":
            headers.append(("Vary", "Cookie"))
        isr = make(app=app(*headers, status=status), rules=rules)
        sent = run(isr)
        assert sent.status == status
        assert self.REMEDY in caplog.text
        assert location in caplog.text
        assert not list(isr.pages())

    def test_other_redirects_are_not(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        run(make(app=answer(("Location", "http://a/b"), status="302 Found"), rules={"/x": 60}))
        assert "302 to http://a/b" in caplog.text and "logged in" not in caplog.text
