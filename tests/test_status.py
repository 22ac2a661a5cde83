"""The status page: who may see it, and what they may do."""

from __future__ import annotations

import base64
import hashlib
import re
import time
import typing as t

import pytest
from conftest import Make, Site, client_of, strict
from operators import SECRET, Operator
from operators import operator as operator
from operators import outsider as outsider

from wsgi_isr.ondemand import called_by
from wsgi_isr.status import LIFETIME, Status
from wsgi_isr.store.protocol import StoreError

# Relative ones are fine since RFC 7231, and right behind any proxy.
pytestmark = pytest.mark.filterwarnings("ignore:Absolute URLs required for location header")

PATHS = ("/", "/pages", "/page?url=http://localhost/a", "/invalidations", "/nowhere")
EVIL = "<script>alert(1)</script>"


class TestTheSecret:
    @pytest.mark.parametrize("secret", ["", b""])
    def test_must_be_there(self, make: Make, secret: t.Any) -> None:
        with pytest.raises(ValueError, match="needs a secret"):
            Status(make(), secret=secret)

    @pytest.mark.parametrize("secret", [None, 123, ["a"]])
    def test_is_text_or_bytes(self, make: Make, secret: t.Any) -> None:
        with pytest.raises(TypeError, match="string or bytes"):
            Status(make(), secret=secret)

    def test_that_can_be_guessed_is_a_warning(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        Status(make(), secret="sixteen letters.")
        assert caplog.text == ""
        Status(make(), secret="fifteen letters")
        assert "fewer than 16 characters" in caplog.text


class TestWithoutALogin:
    @pytest.mark.parametrize("path", [*PATHS, "/login", "/logout", "/regenerate"])
    def test_there_is_a_form_and_nothing_else(self, outsider: Operator, path: str) -> None:
        answer = outsider.get(path)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert 'type="password"' in answer.text
        assert "posts" not in answer.text and "csrf_token" not in answer.text

    @pytest.mark.parametrize("path", ["/regenerate", "/expire", "/logout", "/", "/pages"])
    def test_nothing_is_done(self, outsider: Operator, path: str) -> None:
        assert outsider.post(path, data={"url": "http://localhost/a"}).status_code == 401
        assert [page.state for page in outsider.isr.pages()] == ["fresh"]

    @pytest.mark.parametrize("secret", ["", "wrong", SECRET + "x", "ü", "\0"])
    def test_another_secret_is_refused(self, outsider: Operator, secret: str) -> None:
        answer = outsider.log_in(secret)
        assert answer.status_code == 401
        assert "Set-Cookie" not in answer.headers
        assert "That is not the secret." in answer.text

    def test_the_mount_point_leads_to_the_page(self, outsider: Operator) -> None:
        environ = {"SCRIPT_NAME": "/_isr", "PATH_INFO": ""}
        answer = outsider.get("/", environ_overrides=environ)
        assert (answer.status_code, answer.headers["Location"]) == (308, "/_isr/")


class TestALogin:
    def test_is_a_cookie_that_scripts_and_other_sites_do_not_get(self, outsider: Operator) -> None:
        answer = outsider.log_in()
        assert answer.headers["Location"] == "/_isr/"
        cookie = answer.headers["Set-Cookie"]
        assert SECRET not in cookie
        for attribute in ("HttpOnly", "SameSite=Strict", "Path=/_isr/", f"Max-Age={LIFETIME}"):
            assert attribute in cookie
        assert "Secure" not in cookie
        secure = outsider.post("/login", data={"secret": SECRET}, base_url="https://localhost/_isr")
        assert "Secure" in secure.headers["Set-Cookie"]

    @pytest.mark.parametrize("path", PATHS[:-1])
    def test_opens_every_page(self, operator: Operator, path: str) -> None:
        answer = operator.get(path)
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "private, no-store"
        head = operator.head(path)
        assert (head.status_code, head.data) == (200, b"")

    @pytest.mark.parametrize(
        ("wanted", "location"),
        [
            ("/pages?q=a&sort=age", "/_isr/pages?q=a&sort=age"),
            ("/page?url=http://localhost/a", "/_isr/page?url=http://localhost/a"),
            ("//evil.example", "/_isr/"),
            ("https://evil.example", "/_isr/"),
            ("/\\evil.example", "/_isr/"),
            ("/pages?a\r\nX: y", "/_isr/"),
            ("/logout", "/_isr/"),
        ],
    )
    def test_leads_to_what_was_asked_for(
        self, outsider: Operator, wanted: str, location: str
    ) -> None:
        assert outsider.log_in(next=wanted).headers["Location"] == location

    def test_ends(self, operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
        later = time.time() + LIFETIME
        monkeypatch.setattr("wsgi_isr.status.time.time", lambda: later)
        assert operator.get("/").status_code == 401

    def test_ends_on_demand(self, operator: Operator) -> None:
        assert operator.press("/logout", "").status_code == 303
        assert operator.get("/").status_code == 401

    @pytest.mark.parametrize("cookie", ["", "x", "a.b.c.d", "secret.9999999999.aa.", "\xff\xfe"])
    def test_cannot_be_forged(self, outsider: Operator, cookie: str) -> None:
        nobody = Operator(outsider.application, use_cookies=False)
        headers = {"Cookie": f"isr_status={cookie}"}
        assert nobody.get("/", headers=headers).status_code == 401

    def test_of_another_secret_or_with_another_end_is_none(self, operator: Operator) -> None:
        cookie = operator.get_cookie("isr_status", path="/_isr/")
        assert cookie is not None
        kind, ends, *rest = cookie.value.split(".")
        longer = ".".join((kind, f"{int(ends) + 1}", *rest))
        headers = {"Cookie": f"isr_status={longer}"}
        nobody = Operator(operator.application, use_cookies=False)
        assert nobody.get("/", headers=headers).status_code == 401
        other = Operator(
            Status(operator.isr, secret="another secret, long enough"), use_cookies=False
        )
        headers = {"Cookie": f"isr_status={cookie.value}"}
        assert other.get("/", headers=headers).status_code == 401
        same = Operator(Status(operator.isr, secret=SECRET.encode()), use_cookies=False)
        assert same.get("/", headers=headers).status_code == 200

    def test_is_not_needed_by_those_who_are_admitted(self, outsider: Operator) -> None:
        admitted = [True]
        status = Status(outsider.isr, secret=SECRET, admit=lambda environ: admitted[0])
        staff = Operator(strict(status))
        assert staff.get("/").status_code == 200
        assert staff.press("/expire", "http://localhost/a").status_code == 303
        # Their cookie is there for the forms, and is no login.
        admitted[0] = False
        assert staff.get("/").status_code == 401


class TestAttempts:
    def test_are_counted_over_all_processes(self, outsider: Operator) -> None:
        other = Operator(strict(Status(outsider.isr, secret=SECRET)))
        for client in (outsider, other, outsider, other, outsider):
            assert client.log_in("wrong").status_code == 401
        for client in (outsider, other):
            answer = client.log_in()
            assert answer.status_code == 429
            assert answer.headers["Retry-After"] == "60"
        elsewhere = {"REMOTE_ADDR": "192.0.2.1"}
        answer = other.post("/login", data={"secret": SECRET}, environ_overrides=elsewhere)
        assert answer.status_code == 303

    def test_are_counted_without_the_store(
        self, outsider: Operator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: t.Any) -> t.NoReturn:
            raise StoreError("away")

        monkeypatch.setattr(outsider.isr.store, "once", fail)
        assert [outsider.log_in("wrong").status_code for _ in range(6)] == [401] * 5 + [429]

    def test_take_bounded_memory(self, outsider: Operator) -> None:
        status = Status(outsider.isr, secret=SECRET)
        client = Operator(status)
        for number in range(300):
            place = {"REMOTE_ADDR": f"2001:db8::{number}"}
            client.post("/login", data={"secret": "wrong"}, environ_overrides=place)
        assert len(status._attempts) <= 64
        assert all(len(attempts) <= 5 for attempts in status._attempts.values())


class TestForms:
    @pytest.mark.parametrize("path", ["/regenerate", "/expire", "/logout"])
    @pytest.mark.parametrize("token", ["", "wrong", "ü", "0" * 64])
    def test_from_elsewhere_are_refused(self, operator: Operator, path: str, token: str) -> None:
        answer = operator.press(path, "http://localhost/a", token)
        assert answer.status_code == 403
        assert [page.state for page in operator.isr.pages()] == ["fresh"]
        assert operator.get("/").status_code == 200

    def test_of_another_login_are_refused(self, operator: Operator) -> None:
        other = Operator(operator.application)
        other.log_in()
        found = re.search('name="csrf_token" value="([0-9a-f]+)"', other.get("/").text)
        assert found
        assert operator.press("/expire", "http://localhost/a", found[1]).status_code == 403

    def test_are_needed_to_change_anything(self, operator: Operator) -> None:
        for path in ("/regenerate", "/expire", "/logout"):
            assert operator.get(path, query_string={"url": "/a"}).status_code == 405
        assert operator.post("/pages").status_code == 405
        assert [page.state for page in operator.isr.pages()] == ["fresh"]

    def test_are_not_large(self, operator: Operator) -> None:
        assert operator.press("/expire", "x" * 100_000).status_code == 413

    def test_regenerate(self, operator: Operator, site: Site) -> None:
        site.page("/a", "new")
        answer = operator.press("/regenerate", "http://localhost/a")
        assert answer.status_code == 303
        assert "Rendered just now" in operator.get("/" + answer.location.rpartition("/")[2]).text
        assert client_of(operator.isr).get("/a").text == "new"
        assert "on demand" in operator.explained("http://localhost/a")

    @pytest.mark.parametrize(
        ("status", "said"), [("403 Forbidden", "Withdrawn"), ("404 Not Found", "it is gone")]
    )
    def test_say_what_became_of_a_page(
        self, operator: Operator, site: Site, status: str, said: str
    ) -> None:
        site.page("/a", status=status)
        answer = operator.press("/regenerate", "http://localhost/a")
        assert said in operator.get("/" + answer.location.rpartition("/")[2]).text

    def test_regenerate_nothing_while_the_library_is_off(
        self, operator: Operator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(operator.isr, "is_enabled", lambda: False)
        answer = operator.press("/regenerate", "http://localhost/a")
        assert "switched off" in operator.get("/" + answer.location.rpartition("/")[2]).text

    @pytest.mark.parametrize("path", ["/a", "/b%2Ac"])
    def test_expire_one_path(self, operator: Operator, site: Site, path: str) -> None:
        site.page("/b*c", "b")
        site.page("/b-and-c", "b")
        for other in ("/b*c", "/b-and-c"):
            client_of(operator.isr).get(other)
        assert operator.press("/expire", f"http://localhost{path}").status_code == 303
        states = {
            page.url.removeprefix("http://localhost"): page.state for page in operator.isr.pages()
        }
        assert {url for url, state in states.items() if state == "expired"} == {path}
        assert "The next visitor waits" in operator.explained(f"http://localhost{path}")

    def test_say_what_failed(self, operator: Operator, site: Site) -> None:
        def fail(environ: t.Any, start_response: t.Any) -> t.NoReturn:
            raise ZeroDivisionError(f"no {EVIL} \ud800")

        site.answers["/a"] = fail
        answer = operator.press("/regenerate", "http://localhost/a")
        assert answer.status_code == 200
        assert 'role="alert"' in answer.text and "no &lt;script&gt;" in answer.text
        assert EVIL not in answer.text
        assert client_of(operator.isr).get("/a").text == "a page"

    @pytest.mark.parametrize("path", ["/regenerate", "/expire"])
    @pytest.mark.parametrize(
        "url", ["", "a", "//evil", "http://localhost/a/../b", "http://[", EVIL]
    )
    def test_take_only_urls_of_pages(self, operator: Operator, path: str, url: str) -> None:
        answer = operator.press(path, url)
        assert answer.status_code == 200
        assert 'role="alert"' in answer.text and EVIL not in answer.text


class TestAnAnswer:
    def test_runs_nothing_but_its_own(self, operator: Operator) -> None:
        for path in PATHS:
            answer = operator.get(path)
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; ")
            assert "unsafe" not in policy
        html = operator.get("/").text
        for tag in ("style", "script"):
            (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
        assert not re.search(r'\s(style|on\w+)="|src="|href="http', html)

    def test_shows_what_others_wrote_as_text(self, operator: Operator, site: Site) -> None:
        site.page("/x", tags=[EVIL])
        client_of(operator.isr).get("/x")
        with called_by(EVIL):
            operator.isr.revalidate_tag(EVIL)
        for path in ("/pages", "/page?url=http://localhost/x", "/invalidations"):
            text = operator.get(path).text
            assert "&lt;script&gt;" in text and EVIL not in text
        for path in ("/pages", "/page", "/login"):
            query = dict.fromkeys(("q", "tag", "state", "sort", "url", "after"), f'"{EVIL}')
            for client in (operator, Operator(operator.application)):
                assert EVIL not in client.get(path, query_string=query).text

    @pytest.mark.parametrize("path", ["/", "/pages", "/page", "/invalidations"])
    def test_takes_any_query(self, operator: Operator, path: str) -> None:
        names = ("q", "tag", "state", "sort", "url", "after", "start", "done")
        for value in (
            "%ff%00",
            "%F0%9F%98%80",
            "-1",
            "9" * 5000,
            "*",
            "%2A",
            "http%3A%2F%2F[",
            "?",
        ):
            query = "&".join(f"{name}={value}" for name in names)
            assert operator.get(f"{path}?{query}").status_code == 200

    @pytest.mark.parametrize("path", ["/nowhere", "/\xff", "//", "/pages/"])
    def test_there_may_be_none(self, operator: Operator, path: str) -> None:
        assert operator.get("/", environ_overrides={"PATH_INFO": path}).status_code == 404

    def test_says_so_when_the_store_does_not_answer(
        self, operator: Operator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: t.Any, **kwargs: t.Any) -> t.NoReturn:
            raise StoreError("away")

        for name in ("totals", "processes", "sizes", "minutes", "journal", "failures", "records"):
            monkeypatch.setattr(operator.isr.store, name, fail)
        assert "is away" in operator.get("/").text
        for path, status in (("/pages", 503), ("/invalidations", 200), (PATHS[2], 200)):
            assert operator.get(path).status_code == status
