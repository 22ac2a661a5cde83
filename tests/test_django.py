"""The set-up in Django: settings, hosts, schemes, checks, builds."""

from __future__ import annotations

import typing as t
from pathlib import Path

import djangos
import pytest
from conftest import Browser, status_of
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.views import View

from wsgi_isr import ISRMiddleware, Rule
from wsgi_isr.django import get_wsgi_application, isr_page
from wsgi_isr.django.checks import check
from wsgi_isr.django.config import build_digest

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


def test_the_middleware_is_that_of_the_settings() -> None:
    with djangos.project(path("", page)) as browser:
        assert isinstance(browser.isr, ISRMiddleware)
