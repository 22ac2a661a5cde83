"""The status page: who may see it, what they may do, and what it says."""

from __future__ import annotations

import base64
import hashlib
import re
import time
import typing as t
from collections.abc import Callable, Iterator

import pytest
from conftest import Browser, Clock, Make, Site, client_of, strict
from werkzeug.test import TestResponse

from wsgi_isr.ondemand import called_by
from wsgi_isr.status import LIFETIME, Status, views
from wsgi_isr.store.protocol import StoreError

# Relative ones are fine since RFC 7231, and right behind any proxy.
pytestmark = pytest.mark.filterwarnings("ignore:Absolute URLs required for location header")

SECRET = "correct horse battery staple"
PATHS = ("/", "/pages", "/page?url=http://localhost/a", "/invalidations", "/nowhere")
EVIL = "<script>alert(1)</script>"


class Operator(Browser):
    """A client of a status page at ``/_isr``; ``operator.isr`` is the site's middleware."""

    def open(self, *args: t.Any, **kwargs: t.Any) -> TestResponse:
        kwargs.setdefault("base_url", "http://localhost/_isr")
        return super().open(*args, **kwargs)

    def log_in(self, secret: str = SECRET, **kwargs: t.Any) -> TestResponse:
        return self.post("/login", data={"secret": secret, **kwargs})

    def press(self, path: str, url: str, token: str | None = None) -> TestResponse:
        found = re.search('name="csrf_token" value="([0-9a-f]+)"', self.get("/").text)
        data = {"csrf_token": token if found is None or token is not None else found[1]}
        return self.post(path, data={**data, "url": url})

    def explained(self, url: str) -> str:
        """What the page says of a page, as plain text."""
        return plain(self.get("/page", query_string={"url": url}).text)


def plain(html: str) -> str:
    main = html.partition('<main id="main">')[2].partition("</main>")[0]
    return " ".join(re.sub("<[^>]*>", " ", main).split())


@pytest.fixture
def outsider(site: Site, make: Make, files: str) -> Operator:
    """Somebody who has not logged in."""
    site.page("/a", "a page", tags=["posts", "post:a"])
    isr = make(files)
    operator = Operator(strict(Status(isr, secret=SECRET)))
    operator.isr = isr
    client_of(isr).get("/a")
    return operator


@pytest.fixture
def operator(outsider: Operator) -> Operator:
    assert outsider.log_in().status_code == 303
    return outsider


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


class TestTheOverview:
    def test_counts_what_all_processes_do(self, operator: Operator, site: Site) -> None:
        visitor = client_of(operator.isr)
        for _ in range(3):
            visitor.get("/a")
        text = plain(operator.get("/").text)
        assert "Hit ratio today 75.0%" in text
        assert "Renders 1" in text
        assert "Pages stored 1" in text
        assert "The store (sqlite) answers" in text
        assert re.search(r"Workers .* \d+ .* ok", text)

    def test_shows_the_last_hour(self, operator: Operator) -> None:
        last = int(time.time() // 60)
        minutes = {
            last - 70: {"hits": 1.0},
            last - 10: {"hits": 10.0, "misses": 1.0},
            last - 9: {"hits": 25.0, "misses": 1.0},
            last - 2: {"hits": 30.0, "misses": 2.0},
        }
        found = views.by_minute(minutes, {"hits": 37, "misses": 2}, 0.0)
        assert len(found) == 60
        hits = {59 - index: minute["hits"] for index, minute in enumerate(found) if minute}
        assert hits == {10: 15.0, 9: 5.0, 2: 7.0}
        # A minute's totals lack what was counted for the first time after it began.
        begun = views.by_minute({last: {"hits": 8.0}}, {"hits": 9, "misses": 1}, last * 60 + 7.5)
        assert (begun[-1]["hits"], begun[-1]["misses"]) == (9, 1)
        (later,) = filter(None, views.by_minute({last: {"hits": 8.0}}, {"hits": 9, "misses": 1}, 0))
        assert (later["hits"], later["misses"]) == (1, 1)
        chart = views.chart("Visits", found, hits="fresh", misses="waited")
        assert "most: 15" in chart and "in the last hour 27 fresh, 1 waited" in chart
        heights = [float(height) for height in re.findall(r'height="([\d.]+)"', chart)]
        assert max(heights) == 100.0


class TestTheList:
    @pytest.fixture
    def many(self, operator: Operator, site: Site) -> Callable[..., list[str]]:
        """Lists paths, as a query finds them among 120 pages."""
        for number in range(120):
            site.page(f"/p/{number:03}", "x" * number, tags=[f"t{number % 3}"])
        list(operator.isr.prerender([f"http://localhost/p/{n:03}" for n in range(120)], workers=1))

        def listed(**query: t.Any) -> list[str]:
            text = operator.get("/pages", query_string=query).text
            return re.findall(
                r'<td class="[^"]*" data-label="URL"><a [^>]*>http://localhost(.*?)</a>', text
            )

        return listed

    def test_is_searched_filtered_and_sorted(
        self, many: Callable[..., list[str]], operator: Operator
    ) -> None:
        assert many() == ["/a", *(f"/p/{n:03}" for n in range(49))]
        assert many(start=100) == [f"/p/{n:03}" for n in range(99, 120)]
        assert many(q="/P/11") == [f"/p/{n}" for n in range(110, 120)]
        assert many(q="http://localhost/p/007") == ["/p/007"]
        assert many(q="http://localhost/p/00", sort="size")[:2] == ["/p/009", "/p/008"]
        assert many(tag="t1", q="p/00") == ["/p/001", "/p/004", "/p/007"]
        assert many(sort="size")[:3] == ["/p/119", "/p/118", "/p/117"]
        assert many(q="nothing") == []
        operator.isr.invalidate("/p/00*")
        assert many(state="stale") == [f"/p/{n:03}" for n in range(10)]
        assert many(state="expired") == []

    def test_goes_through_so_many_pages_and_no_more(
        self,
        many: Callable[..., list[str]],
        operator: Operator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(views, "MAX_READ", 50)
        read, records = [0], operator.isr.store.records

        def counted(**kwargs: t.Any) -> Iterator[t.Any]:
            for record in records(**kwargs):
                read[0] += 1
                yield record

        monkeypatch.setattr(operator.isr.store, "records", counted)
        found: list[str] = []
        path: str | None = "/pages?tag=t0"
        while path is not None:
            read[0] = 0
            text = operator.get(path).text
            assert read[0] <= 50
            found += re.findall(r">http://localhost(/p/\d+)</a>", text)
            link = re.search(r'href="/_isr(/pages[^"]*)">Further pages', text)
            path = link and link[1].replace("&amp;", "&")
        assert sorted(found) == [f"/p/{n:03}" for n in range(0, 120, 3)]

    def test_has_those_that_never_rendered_well(self, operator: Operator, site: Site) -> None:
        def fail(environ: t.Any, start_response: t.Any) -> t.NoReturn:
            raise ZeroDivisionError("no database")

        site.answers["/broken"] = fail
        list(operator.isr.prerender(["http://localhost/broken"]))
        for query in ({}, {"state": "failed"}, {"q": "broken"}):
            text = plain(operator.get("/pages", query_string=query).text)
            assert "http://localhost/broken" in text and "no database" in text
        assert "/broken" not in plain(operator.get("/pages?state=fresh").text)


class TestAPage:
    URL = "http://localhost/a"

    def test_is_new(self, operator: Operator) -> None:
        text = operator.explained(self.URL)
        assert "This page is new. It was rendered 0 s ago, for its first visitor" in text
        assert "It stays fresh for another 60 s" in text
        assert "Half of them took 0 ms at most, 95% 0 ms. When Why Took" in text

    def test_is_old_by_an_invalidation_or_by_its_age(
        self, operator: Operator, clock: Clock
    ) -> None:
        with called_by("the CMS"):
            operator.isr.revalidate_tag("post:a")
        text = operator.explained(self.URL)
        assert "This page is old: it was invalidated (tag:post:a)." in text
        assert "by the CMS" in text and "The next visitor gets it once more" in text
        operator.press("/regenerate", self.URL)
        clock.advance(61)
        assert "This page is old: its time is over." in operator.explained(self.URL)

    def test_may_fail_or_be_refused_or_not_be_there(self, operator: Operator, site: Site) -> None:
        def fail(environ: t.Any, start_response: t.Any) -> t.NoReturn:
            raise ZeroDivisionError("no database")

        site.answers["/a"] = site.answers["/cold"] = fail
        operator.press("/regenerate", self.URL)
        list(operator.isr.prerender(["http://localhost/cold"]))
        assert "The last 1 render failed: no database" in operator.explained(self.URL)
        assert "never rendered well" in operator.explained("http://localhost/cold")
        site.page("/b", headers=[("Set-Cookie", "a=b")])
        client_of(operator.isr).get("/b")
        refused = operator.explained("http://localhost/b")
        assert "refused (set-cookie" in refused and "do not set cookies" in refused
        assert "Nothing is stored for this URL." in operator.explained("http://localhost/c")

    def test_is_in_every_worker_or_not(
        self, operator: Operator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operator.get("/")
        assert "It is the same in all workers (1)." in operator.explained(self.URL)
        (mine,) = operator.isr.store.processes()
        others = [
            {**mine, "pid": 1, "build": "old"},
            {**mine, "pid": 2, "store": "away"},
            {**mine, "pid": 3, "followed": mine["followed"] - 1},
        ]
        monkeypatch.setattr(operator.isr.store, "processes", lambda: [mine, *others])
        text = operator.explained(self.URL)
        assert "the same in all workers" not in text
        assert "Worker 1: of build old" in text and "Worker 2: without the store" in text
        assert "Worker 3" not in text
        kind = operator.isr.store.kind._replace(shared="network")
        monkeypatch.setattr(operator.isr.store, "kind", kind)
        assert "Worker 3: about to follow" in operator.explained(self.URL)
        assert "It does not answer all workers: 2 (away)." in plain(operator.get("/").text)

    def test_says_who_invalidated_what(self, operator: Operator) -> None:
        operator.press("/expire", self.URL)
        operator.press("/regenerate", self.URL)
        text = plain(operator.get("/invalidations").text)
        assert re.search(r"revalidate /a 1 page rendered status page, no address .*expired", text)
