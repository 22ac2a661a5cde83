"""What can be prerendered in Django, and ``manage.py isr``."""

from __future__ import annotations

import typing as t

import djangos
import pytest
from conftest import Browser, status_of
from django.conf.urls.i18n import i18n_patterns
from django.contrib.sitemaps import Sitemap
from django.contrib.sitemaps.views import sitemap
from django.core.management import CommandError, call_command
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import include, path
from django.utils import translation

from wsgi_isr.django import isr_page
from wsgi_isr.django.checks import check
from wsgi_isr.django.paths import prerender_paths

LOCALE = ["django.middleware.locale.LocaleMiddleware"]


@isr_page(revalidate=60)
def page(request: HttpRequest, **values: t.Any) -> HttpResponse:
    if values.get("slug") == "none":
        raise Http404
    return HttpResponse(f"{values} {translation.get_language()}")


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("")


class Posts(Sitemap):
    def items(self) -> list[str]:
        return ["a", "é"]

    def location(self, item: str) -> str:
        return f"/posts/{item}"


def more() -> list[t.Any]:
    return ["/posts/more", ("post", {"slug": "named"})]


class TestPaths:
    def test_are_those_of_views_sitemaps_and_settings(self) -> None:
        listed = isr_page(paths=lambda: [{"slug": "x"}, "/listed/y"])(lambda request, slug: None)
        inner = ([path("", page, name="home")], "inner")
        urls = [
            path("unnamed", isr_page(lambda request: None)),
            path("inner/", include(inner)),
            path("plain", plain, name="plain"),
            path("posts/<slug>", page, name="post"),
            path("listed/<slug>", listed),
            path("sitemap.xml", sitemap, {"sitemaps": {"posts": Posts}}),
        ]
        with djangos.project(*urls, isr={"PATHS": "test_django_paths.more"}):
            assert prerender_paths() == [
                "/unnamed",
                "/inner/",
                "/listed/x",
                "/listed/y",
                "/posts/more",
                "/posts/named",
                "/posts/a",
                "/posts/%C3%A9",
            ]
            assert prerender_paths("/mount")[0] == "/mount/unnamed"

    def test_are_paths_or_values_of_urls(self) -> None:
        with djangos.project(isr={"PATHS": [5]}), pytest.raises(TypeError, match="not 5"):
            prerender_paths()

    def test_of_languages_are_those_of_all(self) -> None:
        urls = i18n_patterns(path("a", page, name="a"), path("<slug>", page, name="post"))
        with djangos.project(*urls, MIDDLEWARE=LOCALE, isr={"PATHS": more}) as browser:
            assert prerender_paths() == [
                "/en/a",
                "/de/a",
                "/posts/more",
                "/en/named",
                "/de/named",
            ]
            browser.set_cookie("django_language", "en")
            answer = browser.get("/de/a", headers={"Accept-Language": "en"})
            assert answer.text == "{} de"
            assert Browser(browser.isr).get("/a").location == "/en/a"
            assert [p.url for p in browser.isr.pages()] == ["http://localhost/de/a"]


def test_a_default_language_without_a_prefix_is_no_variant() -> None:
    urls = i18n_patterns(path("a", page), prefix_default_language=False)
    with djangos.project(
        *urls, path("b", page), MIDDLEWARE=LOCALE, LANGUAGE_CODE="en", isr={"BYPASS": ["s"]}
    ) as browser:
        for url, text in (("/a", "{} en"), ("/de/a", "{} de"), ("/b", "{} en")):
            answers = [browser.get(url, headers={"Accept-Language": c}) for c in ("de", "en")]
            assert [answer.text for answer in answers] == [text] * 2
            assert "hit" in status_of(answers[1])
        assert not [found for found in check(None) if found.id == "isr.W007"]


def test_a_language_by_header_is_a_variant() -> None:
    varied = isr_page(revalidate=60, vary={"Accept-Language": ["en", "de"]})(
        lambda request: HttpResponse(translation.get_language())
    )
    with djangos.project(path("", varied), MIDDLEWARE=LOCALE) as browser:
        for _ in "12":
            for code in ("de", "en"):
                answer = browser.get("/", headers={"Accept-Language": f"{code}-AT, fr;q=0.5"})
                assert answer.text == code
        assert len(list(browser.isr.pages())) == 2


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path: t.Any, capsys: pytest.CaptureFixture[str]) -> t.Iterator[t.Any]:
        isr = {"BASE_URL": "http://localhost", "CACHE": f"file://{tmp_path}"}
        urls = path("", page, name="home"), path("<slug>", page, name="post")

        def run(*args: str) -> str:
            capsys.readouterr()
            call_command("isr", *args)
            return capsys.readouterr().out

        with djangos.project(*urls, isr={**isr, "PATHS": ["/a"]}):
            yield run

    def test_has_the_commands_of_the_command_line(self, run: t.Any) -> None:
        assert "2 rendered" in run("prerender")
        assert "2 skipped" in run("prerender", "--workers", "1", "--settings=of.django")
        assert "rendered 200 http://localhost/a" in run("revalidate", "/a")
        assert "Stale: /*" in run("invalidate", "/*")
        assert "http://localhost/a" in run("list", "--match", "/a")
        assert "view 'post' has an @isr_page" in run("explain", "/a")
        assert "view 'admin:index' has no @isr_page" in run("explain", "/admin/")
        assert "no view matches" in run("explain", "/a/b")

    def test_skips_what_only_a_sitemap_takes_for_a_page(
        self, tmp_path: t.Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Sites(Sitemap):
            def items(self) -> list[str]:
                return ["/a", "/plain", "/none"]

            def location(self, item: str) -> str:
                return item

        isr = {"BASE_URL": "http://localhost", "CACHE": f"file://{tmp_path}"}
        urls = [
            path("plain", plain),
            path("sitemap.xml", sitemap, {"sitemaps": {"all": Sites}}),
            path("<slug>", page, name="post"),
        ]
        with djangos.project(*urls, isr={**isr, "RULES": {"/none": None}}):
            call_command("isr", "prerender")
            out = capsys.readouterr().out
            assert "2 skipped, 1 rendered" in out and "skipped 200 http://localhost/plain: " in out
            with pytest.raises(SystemExit) as ended:
                call_command("isr", "prerender", "/plain")
            assert ended.value.code == 1
        with djangos.project(*urls, isr={**isr, "PATHS": ["/plain"]}):
            with pytest.raises(SystemExit):
                call_command("isr", "prerender")

    def test_says_what_fails(self, run: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(CommandError, match="No such command"):
            run("nonsense")
        with pytest.raises(SystemExit) as ended:
            run("prerender", "//evil")
        assert ended.value.code == 1
        with djangos.project(isr={"CACHE": "memory://"}):
            with pytest.raises(CommandError, match="in memory only"):
                run("list")

    def test_names_a_setting_that_cannot_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wsgi_isr.django.handler._middleware", None)
        from django.test import override_settings

        with override_settings(ISR={"BYPASSE": []}), pytest.raises(CommandError, match="Did you"):
            call_command("isr", "list")
