"""Django's operators and editors: the routes under URL_PREFIX, and the admin."""

from __future__ import annotations

import json
import re
import typing as t
from collections.abc import Iterator

import django
import djangos
import pytest
from conftest import Browser, status_of
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path
from djangos.models import Post

from wsgi_isr.django import isr_page, track
from wsgi_isr.django.tracking import tracked

COLD = "isr; fwd=uri-miss; stored"
HIT = "isr; hit; ttl=60"
SECRET = "correct horse battery staple"


@isr_page(revalidate=60)
def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.build_absolute_uri())


@pytest.fixture
def staff() -> Iterator[Client]:
    user = User.objects.create_user("staff", password="x", is_staff=True)
    client = Client()
    client.force_login(user)
    client.user = user
    yield client
    User.objects.all().delete()


def logged_in(browser: Browser, client: t.Any) -> Browser:
    browser.set_cookie("sessionid", client.cookies["sessionid"].value)
    return browser


class TestRoutes:
    def call(self, browser: Browser, token: str = SECRET, **what: t.Any) -> t.Any:
        headers = {"Authorization": f"Bearer {token}"}
        return browser.post("/_isr/revalidate", json=what, headers=headers)

    def test_revalidate_with_the_secret(self) -> None:
        with djangos.project(path("", page), isr={"SECRET": SECRET}) as browser:
            browser.get("/")
            assert self.call(browser, paths=["/"]).json["revalidated"] is True
            assert self.call(browser, paths=["no path"]).status_code == 400
            assert self.call(browser, "wrong", paths=["/"]).status_code == 401

    def test_are_not_there_without_one(self) -> None:
        with djangos.project(path("", page)) as browser:
            assert self.call(browser, paths=["/"]).status_code == 404
            assert [browser.get(f"/_isr/{name}").status_code for name in ("", "metrics")] == [
                404
            ] * 2

    @pytest.mark.parametrize("isr", [{}, {"SECRET": SECRET}, {"RULES": {"/**": 60}}])
    def test_show_the_status_to_the_staff(self, isr: t.Any, staff: Client) -> None:
        prefix = {"URL_PREFIX": "/ops/isr/"} if isr else {}
        with djangos.project(path("", page), isr={**isr, **prefix}) as browser:
            browser.get("/")
            logged_in(browser, staff)
            root = "/ops/isr" if isr else "/_isr"
            for _ in "12":
                assert "wsgi_isr_" in browser.get(f"{root}/metrics").text
                assert browser.get(f"{root}/pages").status_code == 200

    def test_link_to_one_another_below_a_mount(self, staff: Client) -> None:
        with djangos.project(path("", page), FORCE_SCRIPT_NAME="/mount") as browser:
            shown = logged_in(browser, staff).get("/_isr/").text
            assert 'href="/mount/_isr/pages"' in shown

    def test_let_others_in_by_the_secret(self) -> None:
        with djangos.project(path("", page), isr={"SECRET": SECRET}) as browser:
            assert browser.get("/_isr/").status_code == 401
            # Lint wants an absolute Location.
            visitor = Browser(browser.isr)
            moved = visitor.get("/_isr")
            assert (moved.status_code, moved.headers["Location"]) == (308, "/_isr/")
            assert visitor.post("/_isr/login", data={"secret": SECRET}).status_code == 303
            assert visitor.get("/_isr/").status_code == 200


class TestAdmin:
    URL = "/admin/wsgi_isr/storedpage/"

    @pytest.fixture
    def allowed(self, staff: Client) -> Client:
        codes = ("view_storedpage", "change_storedpage", "change_post", "view_post")
        staff.user.user_permissions.set(Permission.objects.filter(codename__in=codes))
        return staff

    def act(self, browser: Browser, client: Client, **form: t.Any) -> str:
        text = client.post(self.URL, form, follow=True).content.decode()
        (found,) = re.findall(r'<li class="(?:success|error|warning)">(.*?)</li>', text)
        return str(found)

    def test_lists_and_finds_pages(self, allowed: Client) -> None:
        with djangos.project(path("", page), path("other", page)) as browser:
            browser.get("/")
            browser.get("/other")
            assert "ISR pages" in allowed.get("/admin/").content.decode()
            assert "2 in all" in allowed.get(self.URL).content.decode()
            assert "1 in all" in allowed.get(self.URL, {"q": "other"}).content.decode()
            assert "0 in all" in allowed.get(self.URL, {"state": "stale"}).content.decode()

    def test_regenerates_and_expires(self, allowed: Client) -> None:
        with djangos.project(path("", page)) as browser:
            browser.get("/")
            url = "http://localhost/"
            done = self.act(browser, allowed, action="regenerate", _selected_action=url)
            assert done == "Regenerated: 1 rendered."
            assert (
                self.act(browser, allowed, action="expire", _selected_action=url) == "Expired: 1."
            )
            assert "fwd=stale" in status_of(browser.get("/"))
            assert self.act(browser, allowed, action="expire") == "Select pages first."
            with override_settings(DEBUG=True):
                done = self.act(browser, allowed, action="regenerate", _selected_action=url)
                assert "switched off" in done
            wrong = self.act(browser, allowed, action="regenerate", _selected_action="x")
            assert "path starts with" in wrong

    def test_wants_the_permission(self, staff: Client) -> None:
        with djangos.project(path("", page)):
            assert staff.get(self.URL).status_code == 403
            staff.user.user_permissions.set(Permission.objects.filter(codename="view_storedpage"))
            text = staff.get(self.URL).content.decode()
            assert "ISR pages" in text and "Regenerate selected" not in text
            assert staff.post(self.URL, {"action": "expire"}).status_code == 403

    @pytest.mark.skipif(django.VERSION < (5,), reason="the button needs Django 5.0")
    def test_has_a_button_on_the_form_of_a_tracked_object(self, allowed: Client) -> None:
        post = Post.objects.create(title="a")
        track(Post)
        posts = path("posts/<pk>", isr_page(revalidate=60)(lambda request, pk: HttpResponse(pk)))
        with djangos.project(posts) as browser:
            browser.get(f"/posts/{post.pk}")
            form = f"/admin/djangos/post/{post.pk}/change/"
            text = allowed.get(form).content.decode()
            assert "Regenerate page" in text and 'name="title"' in text
            fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(.*?)">', text))
            assert fields["next"] == form
            answer = allowed.post(self.URL, {k: v for k, v in fields.items() if k[0] != "c"})
            assert answer.headers["Location"] == form
            elsewhere = {**fields, "next": "https://evil.example/"}
            assert allowed.post(self.URL, elsewhere).headers["Location"] == self.URL
            assert "Regenerate page" not in allowed.get("/admin/djangos/post/add/").content.decode()
        tracked.clear()
        post.delete()

    def test_leaves_no_table_to_dump(self, capsys: pytest.CaptureFixture[str]) -> None:
        for everything in (False, True):
            call_command("dumpdata", "wsgi_isr", use_base_manager=everything)
            assert json.loads(capsys.readouterr().out) == []
