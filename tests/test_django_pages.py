"""`isr_page` in Django: on functions and classes, sync and async, and what it refuses."""

from __future__ import annotations

import typing as t

import djangos
import pytest
from conftest import status_of
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client, RequestFactory
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.http import require_safe
from djangos.models import Named, Post

from wsgi_isr import RevalidationError
from wsgi_isr.django import isr_page, tag
from wsgi_isr.ondemand import describe

COLD = "isr; fwd=uri-miss; stored"
HIT = "isr; hit; ttl=60"


def text(request: HttpRequest, **values: t.Any) -> HttpResponse:
    cookies = len(request.COOKIES)
    return HttpResponse(f"{values} {dict(request.GET)} {cookies} {request.META.get('HTTP_ACCEPT')}")


def tags_of(browser: t.Any) -> list[tuple[str, ...]]:
    return [page.tags for page in browser.isr.pages()]


class TestFunctions:
    def test_are_pages_of_canonical_requests(self) -> None:
        page = isr_page(revalidate=60, query=["page"])(text)
        with djangos.project(path("<slug>", page)) as browser:
            browser.set_cookie("seen", "1")
            first = browser.get("/a?page=2&x=1", headers={"Accept": "text/html"})
            second = browser.get("/a?x=2&page=2")
        assert first.text == second.text == "{'slug': 'a'} {'page': ['2']} 0 None"
        assert (status_of(first), status_of(second)) == (COLD, HIT)

    def test_have_tags_by_what_they_take(self) -> None:
        page = isr_page(revalidate=60, tags=lambda request, slug: [f"post:{slug}", request.path])
        with djangos.project(path("<slug>", page(text))) as browser:
            browser.get("/a")
            assert tags_of(browser) == [("/a", "post:a")]

    def test_with_tags_that_are_a_text_fail_with_their_name(self) -> None:
        page = isr_page(revalidate=60, tags=lambda request: "posts")(text)
        with pytest.raises(TypeError, match="tags of text takes a list"):
            page(RequestFactory().get("/"))

    def test_vary_by_what_is_declared(self) -> None:
        page = isr_page(revalidate=60, vary={"Accept": ["text/html", "text/plain"]})(text)
        with djangos.project(path("", page)) as browser:
            for accept in ("text/plain", "text/html"):
                assert browser.get("/", headers={"Accept": accept}).text.endswith(accept)

    def test_change_their_metadata_while_they_run(self) -> None:
        @isr_page
        def page(request: HttpRequest) -> HttpResponse:
            isr_page.current.revalidate = 60
            isr_page.current.tags.add(str(isr_page.current.reason))
            return HttpResponse("")

        with djangos.project(path("", page)) as browser:
            assert [status_of(browser.get("/")) for _ in "12"] == [COLD, HIT]
            assert tags_of(browser) == [("miss",)]
        with pytest.raises(RuntimeError, match="only while a view"):
            _ = isr_page.current

    def test_in_included_urls_and_namespaces_are_declared(self) -> None:
        inner = ([path("<slug>", isr_page(revalidate=60)(text), name="post")], "blog")
        with djangos.project(path("blog/", include(inner))) as browser:
            browser.set_cookie("seen", "1")
            assert browser.get("/blog/a").text == "{'slug': 'a'} {} 0 None"

    def test_that_take_posts_get_them_untouched(self) -> None:
        page = isr_page(revalidate=60)(lambda request: HttpResponse(request.method))
        with djangos.project(path("", page), MIDDLEWARE=[]) as browser:
            answer = browser.post("/")
            assert (answer.text, status_of(answer)) == ("POST", "")

    def test_are_seen_with_their_headers_by_the_test_client(self) -> None:
        page = isr_page(revalidate=60, tags=["a"])(text)
        with djangos.project(path("", page)):
            assert Client().get("/").headers["ISR-Revalidate"] == "60"

    def test_outside_of_the_middleware_say_so_once(self, caplog: pytest.LogCaptureFixture) -> None:
        page = isr_page(revalidate=60)(text)
        for _ in "12":
            page(RequestFactory(SERVER_NAME="example.com").get("/"))
        assert [r.message[:26] for r in caplog.records] == ["@isr_page has no effect: i"]


class TestClasses:
    def test_are_pages_by_method_decorator(self) -> None:
        calls: list[t.Any] = []
        page = isr_page(revalidate=60, tags=lambda request, slug: [slug])

        class Plain(View):
            def get(self, request: HttpRequest, slug: str) -> HttpResponse:
                calls.append(request.META.get("wsgi_isr.reason"))
                return text(request, slug=slug)

        @method_decorator(page, "dispatch")
        class Whole(Plain): ...

        @method_decorator([page, require_safe], "dispatch")
        class Listed(Plain): ...

        class Method(Plain):
            get = method_decorator(page)(Plain.get)

        classes = (Whole, Listed, Method)
        for view in (*(each.as_view() for each in classes), page(Plain.as_view())):
            calls.clear()
            with djangos.project(path("<slug>", view)) as browser:
                assert [status_of(browser.get("/a")) for _ in "12"] == [COLD, HIT]
                assert tags_of(browser) == [("a",)]
            # Declared: the app sees no other request.
            assert calls == ["miss"]

    def test_without_method_decorator_are_an_error_with_the_remedy(self) -> None:
        with pytest.raises(TypeError, match="method_decorator"):
            isr_page(View)

        class Wrong(View):
            with pytest.raises(TypeError, match="method_decorator"):

                @isr_page
                def get(self, request: HttpRequest) -> None: ...

    def test_twice_are_an_error(self) -> None:
        with pytest.raises(TypeError, match="twice on text"):
            isr_page(isr_page(text))

    def test_with_templates_get_tags_from_them(self) -> None:
        post = Post(pk=5)
        template = engines["django"].from_string(
            "{% load isr %}{% isr_tag post 'menu' none %}{% isr_tag posts unsaved %}{{ post.pk }}"
        )
        context = {"post": post, "posts": Named.objects.all(), "unsaved": Post(), "none": None}

        def lazy(request: HttpRequest) -> HttpResponse:
            return TemplateResponse(request, template, context)

        def eager(request: HttpRequest) -> HttpResponse:
            return HttpResponse(template.render(context, request))

        class Whole(View):
            get = staticmethod(lazy)

        async def later(request: HttpRequest) -> HttpResponse:
            return lazy(request)

        for view in (lazy, eager, Whole.as_view(), later):
            with djangos.project(path("", isr_page(revalidate=60)(view))) as browser:
                assert browser.get("/").text == "5"
                assert tags_of(browser) == [("djangos.named", "djangos.post:5", "menu")]
            with djangos.project(path("", view)) as browser:
                # A template of views that are no pages, too.
                assert (browser.get("/").text, tags_of(browser)) == ("5", [])

    def test_of_async_views_are_pages(self) -> None:
        @isr_page(revalidate=60, tags=lambda request: ["a"])
        async def function(request: HttpRequest) -> HttpResponse:
            isr_page.current.tags.add("b")
            return text(request)

        @method_decorator(isr_page(revalidate=60, tags=["a", "b"]), name="dispatch")
        class Whole(View):
            async def get(self, request: HttpRequest) -> HttpResponse:
                return text(request)

        for view in (function, Whole.as_view()):
            with djangos.project(path("", view)) as browser:
                assert [status_of(browser.get("/")) for _ in "12"] == [COLD, HIT]
                assert tags_of(browser) == [("a", "b")]


class TestAnswers:
    def test_of_404_are_stored_with_window_and_tags(self) -> None:
        def page(request: HttpRequest) -> t.Any:
            isr_page.current.tags.add("gone")
            raise Http404("no such post")

        async def later(request: HttpRequest) -> t.Any:
            page(request)

        for view in (page, later):
            with djangos.project(path("", isr_page(revalidate=60)(view))) as browser:
                assert [status_of(browser.get("/")) for _ in "12"] == [COLD, HIT]
                assert [(p.status, p.tags) for p in browser.isr.pages()] == [(404, ("gone",))]

    def test_of_500_name_what_was_raised(self, caplog: pytest.LogCaptureFixture) -> None:
        def page(request: HttpRequest) -> HttpResponse:
            raise ZeroDivisionError("no database")

        with djangos.project(path("", isr_page(revalidate=60)(page))) as browser:
            assert browser.get("/").status_code == 500
            (found,) = browser.isr.pages()
            assert "ZeroDivisionError" in str(found.last_error)

    @pytest.mark.parametrize(
        ("act", "remedy"),
        [
            (lambda r: engines["django"].from_string("{% csrf_token %}").render({}, r), "fetch it"),
            (lambda r: messages.info(r, "saved"), "in the view that takes the form"),
            (lambda r: r.session.update({"a": 1}), "request.session is written"),
        ],
        ids=["token", "message", "session"],
    )
    def test_that_are_for_one_visitor_are_refused_with_djangos_words(
        self, act: t.Any, remedy: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def page(request: HttpRequest) -> HttpResponse:
            return HttpResponse(act(request) or "")

        with djangos.project(path("", isr_page(revalidate=60)(page))) as browser:
            assert "detail=set-cookie" in status_of(browser.get("/"))
            assert list(browser.isr.pages()) == []
            assert remedy in str(browser.isr.explain("http://localhost/").remedy)
            with pytest.raises(RevalidationError) as failed:
                browser.isr.revalidate("http://localhost/")
            (error,) = failed.value.failures.values()
            assert remedy in describe(error)
        (line,) = [r.getMessage() for r in caplog.records if "is not stored" in r.getMessage()]
        assert remedy in line

    def test_with_a_bad_value_are_delivered_and_not_stored(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def page(request: HttpRequest) -> HttpResponse:
            isr_page.current.revalidate = 0
            return HttpResponse("hello")

        with djangos.project(path("", isr_page(page))) as browser:
            assert browser.get("/").text == "hello"
        assert "/ is not stored (metadata: isr-revalidate: 'revalidate takes" in caplog.text

    def test_of_no_response_are_djangos_own_error(self) -> None:
        with djangos.project(path("", isr_page(lambda request: None))) as browser:
            assert browser.get("/").status_code == 500


class TestFallbacks:
    def test_false_answers_404_for_what_nobody_lists(self) -> None:
        paths = [{"slug": "a"}, "/b", ("post", {"slug": "c"})]
        page = isr_page(revalidate=60, paths=lambda: paths, fallback=False)(text)
        urls = path("<slug>", page, name="post")
        with djangos.project(urls, isr={"PATHS": ["/d"]}) as browser:
            assert [browser.get(f"/{slug}").status_code for slug in "abcde"] == [200] * 4 + [404]

    def test_a_shell_answers_browsers_at_once(self) -> None:
        def shell(request: HttpRequest, slug: str) -> HttpResponse:
            return HttpResponse(f"wait for {slug}")

        async def later(request: HttpRequest, slug: str) -> HttpResponse:
            return shell(request, slug)

        for view, fallback in ((text, shell), (text, later), (later, shell)):
            page = isr_page(revalidate=60, fallback=fallback)(view)
            with djangos.project(path("<slug>", page)) as browser:
                answer = browser.get("/a")
                assert (answer.text, answer.headers["Refresh"]) == ("wait for a", "1")
                assert "detail=fallback" in status_of(answer)
                browser.isr._here().background.wait(10)
                assert status_of(browser.get("/a")) == HIT


def test_tags_are_of_use_in_a_view() -> None:
    page = isr_page(revalidate=60, tags=lambda request: [tag(Post)])(text)
    with djangos.project(path("", page)) as browser:
        browser.get("/")
        assert tags_of(browser) == [("djangos.post",)]
