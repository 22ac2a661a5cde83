"""The set-up in Django: settings, hosts, schemes, checks, builds, operators, the admin."""

from __future__ import annotations

import json
import re
import typing as t
from collections.abc import Iterator
from pathlib import Path

import django
import djangos
import pytest
from conftest import Browser, status_of
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path
from django.views import View
from djangos.models import Post

from wsgi_isr import ISRMiddleware, Rule
from wsgi_isr.django import get_wsgi_application, isr_page, track
from wsgi_isr.django.checks import check
from wsgi_isr.django.config import build_digest
from wsgi_isr.django.tracking import tracked

COLD = "isr; fwd=uri-miss; stored"
HIT = "isr; hit; ttl=60"
SECRET = "correct horse battery staple"


@isr_page(revalidate=60)
def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.build_absolute_uri())


class TestSettings:
    def test_may_be_absent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with djangos.project(path("", page)) as browser:
            for isr in (None, {}):
                with override_settings(ISR=isr, BASE_DIR=tmp_path / "site"):
                    app = get_wsgi_application()
                    Browser(app).get("/")
                    app.close()
            assert status_of(browser.get("/")) == COLD
        # Beside the project, whatever the working directory.
        assert [path.name for path in tmp_path.iterdir()] == ["site"]
        assert list((tmp_path / "site" / ".isr-cache").rglob("*.sqlite*"))

    def test_are_arguments_of_the_middleware(self) -> None:
        rules = {"/admin/**": None, "/rules": Rule(60, query=["q"]), "/": None}
        plain = path("rules", lambda request: HttpResponse(str(dict(request.GET))))
        isr = {"RULES": rules, "BYPASS": ["sessionid"], "BUILD_ID": "7", "WORKERS": 1}
        with djangos.project(path("", page), plain, isr=isr) as browser:
            assert browser.get("/rules?q=1&x=2").text == "{'q': ['1']}"
            assert status_of(browser.get("/")) == ""
            browser.set_cookie("sessionid", "1")
            assert "detail=bypass" in status_of(browser.get("/rules"))
            assert (browser.isr.build_id, browser.isr.workers) == ("7", 1)

    @pytest.mark.parametrize(
        ("isr", "says"),
        [
            ({"BASE_ULR": "http://a.example"}, "Did you mean 'BASE_URL'"),
            ({"base_url": "http://a.example"}, "Did you mean 'BASE_URL'"),
            ({"ENABLED": "yes"}, "It takes True or False"),
            ({"URL_PREFIX": "isr"}, "It takes a path"),
            ({"SECRET": 5}, "It takes a string or bytes"),
            ("memory://", "no dictionary"),
        ],
    )
    def test_that_do_not_exist_are_errors(self, isr: t.Any, says: str) -> None:
        with override_settings(ISR=isr):
            (found,) = check(None)
            assert found.id == "isr.E001" and says in f"{found.msg} {found.hint}"
            with pytest.raises(ImproperlyConfigured, match="ISR"):
                get_wsgi_application()

    def test_that_cannot_be_written_to_leave_memory(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        with djangos.project(path("", page)), override_settings(ISR={}, BASE_DIR=tmp_path / "file"):
            app = get_wsgi_application()
            assert [status_of(Browser(app).get("/")) for _ in "12"] == [COLD, HIT]
            app.close()
        assert ["cannot be written" in r.getMessage() for r in caplog.records] == [True]

    def test_without_the_app_are_an_error(self) -> None:
        installed = [name for name in djangos.SETTINGS["INSTALLED_APPS"] if "isr" not in name]
        with override_settings(INSTALLED_APPS=installed):
            with pytest.raises(ImproperlyConfigured, match="add 'wsgi_isr.django'"):
                get_wsgi_application()

    @pytest.mark.parametrize(
        ("isr", "says"),
        [
            ({"RULES": 5}, "rules takes a mapping"),
            ({"PATHS": 5}, "paths takes a list, as in ['/'], not 5"),
            ({"PATHS": "/a"}, "paths takes a list, as in ['/a'], not '/a'"),
            ({"PATHS": "test_django.nothing"}, 'does not define a "nothing"'),
            ({"PATHS": ["/a", 5]}, "not 5"),
            ({"PATHS": [("nothing", {})]}, "Reverse for 'nothing' not found"),
        ],
    )
    def test_that_cannot_work_are_an_error(self, isr: t.Any, says: str) -> None:
        with djangos.project(path("", page)), override_settings(ISR=isr):
            (found,) = check(None)
            assert found.id == "isr.E002" and says in found.msg

    def test_do_not_stand_in_the_list_of_middleware(self) -> None:
        with override_settings(MIDDLEWARE=["wsgi_isr.ISRMiddleware"]):
            (found,) = check(None)
            assert found.id == "isr.E001" and "in wsgi.py" in str(found.hint)
            with pytest.raises(ImproperlyConfigured, match="around all of Django"):
                get_wsgi_application()

    def test_of_debug_switch_it_off(self) -> None:
        with djangos.project(path("", page), DEBUG=True) as browser:
            answer = browser.get("/")
            assert status_of(answer) == "isr; fwd=bypass; detail=disabled"
            assert "ISR-Revalidate" not in answer.headers
        with djangos.project(path("", page), DEBUG=True, isr={"ENABLED": True}) as browser:
            assert status_of(browser.get("/")) == COLD


class TestHosts:
    @pytest.mark.parametrize(
        ("allowed", "host", "trusted"),
        [
            (["*"], "any.example", True),
            (["www.example.com"], "www.example.com:8000", True),
            (["www.example.com"], "example.com", False),
            ([".example.com"], "blog.example.com", True),
            ([".example.com"], "example.com:81", True),
            ([".example.com"], "example.org", False),
            (["[::1]"], "[::1]:8000", True),
        ],
    )
    def test_are_those_of_the_settings(self, allowed: t.Any, host: str, trusted: bool) -> None:
        urls = path("", isr_page(revalidate=60)(lambda request: HttpResponse("")))
        with djangos.project(urls, ALLOWED_HOSTS=allowed, MIDDLEWARE=[]) as browser:
            answer = browser.get("/", headers={"Host": host})
            assert ("stored" if trusted else "detail=host") in status_of(answer)

    def test_of_the_machine_have_pages_in_debug_mode(self) -> None:
        settings = {"ALLOWED_HOSTS": [], "DEBUG": True, "isr": {"ENABLED": True}}
        with djangos.project(path("", page), **settings) as browser:
            assert status_of(browser.get("/", headers={"Host": "127.0.0.1:8000"})) == COLD


class TestPlainText:
    SETTINGS: t.Any = {
        "SECURE_SSL_REDIRECT": True,
        "MIDDLEWARE": ["django.middleware.security.SecurityMiddleware"],
        "isr": {"BASE_URL": "https://localhost"},
    }

    def test_visitors_are_redirected(self) -> None:
        with djangos.project(path("", page), **self.SETTINGS) as browser:
            for _ in "12":
                answer = browser.get("/", base_url="https://localhost")
                assert answer.text == "https://localhost/"
                answer = browser.get("/", base_url="http://localhost")
                assert (answer.status_code, answer.location) == (301, "https://localhost/")
            assert status_of(browser.get("/", base_url="https://localhost")) == HIT

    def test_before_a_proxy_is_not_plain(self) -> None:
        settings = {**self.SETTINGS, "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https")}
        with djangos.project(path("", page), **settings) as browser:
            for proto, code in (("https", 200), ("https, http", 200), ("http", 301)):
                answer = browser.get("/", headers={"X-Forwarded-Proto": proto})
                assert answer.status_code == code


class TestBuilds:
    def test_are_a_digest_of_code_templates_and_translations(self, tmp_path: Path) -> None:
        def write(name: str, text: str = "x") -> str:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            return build_digest()

        with override_settings(
            BASE_DIR=tmp_path, MEDIA_ROOT=str(tmp_path / "media"), ROOT_URLCONF="djangos.urls"
        ):
            builds = [
                build_digest(),
                write("blog/views.py"),
                write("blog/views.py", "y"),
                write("blog/templates/a.html"),
                write("locale/de/LC_MESSAGES/django.mo"),
            ]
            assert len(set(builds)) == 5
            for name in ("media/a.py", "notes.txt", ".isr-cache/a.py", "venv/pyvenv.cfg"):
                assert write(name) == builds[-1]
            assert write("venv/lib/a.py") == builds[-1]

    def test_change_with_rules_and_template_folders(self, tmp_path: Path) -> None:
        engine = {**djangos.SETTINGS["TEMPLATES"][0], "DIRS": [tmp_path]}
        with djangos.project(path("", page)) as browser:
            with djangos.project(path("", page), isr={"RULES": {"/": 60}}) as other:
                assert browser.isr.build_id != other.isr.build_id
            (tmp_path / "a.html").write_text("x")
            with djangos.project(path("", page), TEMPLATES=[engine]) as other:
                assert browser.isr.build_id != other.isr.build_id


def ids(**settings: t.Any) -> list[str]:
    isr = settings.pop("isr", {})
    urls = settings.pop("urls", [path("", page)])
    with djangos.project(*urls, isr={"BYPASS": ["sessionid"], **isr}, **settings):
        return [found.id for found in check(None) if found.hint]


class TestChecks:
    def test_find_nothing_in_a_site_that_works(self) -> None:
        assert ids() == []

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"ALLOWED_HOSTS": ["a.example"], "isr": {"BASE_URL": "http://b.example"}}, "E003"),
            ({"SECURE_SSL_REDIRECT": True, "isr": {"BASE_URL": "http://b.example"}}, "E004"),
            ({"USE_X_FORWARDED_HOST": True}, "W001"),
            ({"SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https")}, "W001"),
            ({"DEBUG": True}, "I001"),
            ({"isr": {"BYPASS": []}}, "W004"),
            ({"MIDDLEWARE": ["django.middleware.cache.FetchFromCacheMiddleware"]}, "W005"),
            ({"WSGI_APPLICATION": "django.core.wsgi.get_wsgi_application"}, "W008"),
            ({"isr": {"SECRET": "guess"}}, "W009"),
        ],
    )
    def test_find_what_is_wrong(
        self, settings: t.Any, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if expected == "W008":
            monkeypatch.setattr("wsgi_isr.django.handler.is_served", False)
            with djangos.project(path("", page), **settings):
                monkeypatch.setattr("wsgi_isr.django.handler.is_served", False)
                assert expected in str([found.id for found in check(None)])
        else:
            assert ids(**settings) == [f"isr.{expected}"]

    def test_run_although_wsgi_py_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "failing_wsgi.py").write_text("import os\nos.environ['NOT_SET']")
        monkeypatch.syspath_prepend(tmp_path)
        assert ids(WSGI_APPLICATION="failing_wsgi.application") == []

    def test_name_pages_that_need_vary(self) -> None:
        varied = isr_page(vary={"Accept-Language": ["en", "de"]})(lambda request: HttpResponse(""))
        shown = type("Shown", (View,), {"get": page}).as_view()
        urls = [path("", page, name="home"), path("v", varied), path("p", isr_page(shown))]
        rules = {"/de/a": 60, "/a": 60, "/b": Rule(60, vary={"Accept-Language": ["en"]})}
        middleware = ["django.middleware.locale.LocaleMiddleware"]
        with djangos.project(*urls, MIDDLEWARE=middleware, isr={"RULES": rules, "BYPASS": ["s"]}):
            (found,) = check(None)
        assert (
            found.id == "isr.W007" and "language: home, Shown, " in found.msg and "/a." in found.msg
        )
        assert "['en', 'de']" in found.hint


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


def test_the_middleware_is_that_of_the_settings() -> None:
    with djangos.project(path("", page)) as browser:
        assert isinstance(browser.isr, ISRMiddleware)
