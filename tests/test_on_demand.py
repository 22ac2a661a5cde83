"""``revalidate()``: paths rendered now, and what becomes of all that is stored of them."""

from __future__ import annotations

import subprocess
import sys
import time
import typing as t
from collections.abc import Callable

import pytest
from conftest import Browser, Make, Site, status_of
from failures import answers
from steps import HOLD, PATIENCE, Steps, result, start, visit

from wsgi_isr import ISRMiddleware, Result, RevalidationError, Rule

Browse = Callable[..., Browser]

HOME = "http://localhost/"
WWW = "https://www.example.com"


@pytest.fixture
def browser(site: Site, browse: Browse, cache: t.Any) -> Browser:
    """``/`` is a page that changes on demand only, and has just changed."""
    site.page("/", "old", revalidate=False)
    browser = browse(cache)
    browser.get("/")
    site.page("/", "new", revalidate=False)
    return browser


class TestAPath:
    def test_is_rendered_now_and_the_next_visitor_gets_the_new_page(
        self, site: Site, browser: Browser
    ) -> None:
        assert browser.get("/").text == "old"
        assert browser.isr.revalidate(HOME) == [Result(HOME, 200, None, "rendered")]
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("new", "isr; hit")
        assert site.renders("/") == 2
        assert site.environs[-1]["wsgi_isr.reason"] == "revalidate"

    def test_that_has_no_page_gets_one_or_is_skipped(self, site: Site, browser: Browser) -> None:
        site.page("/never", "body")
        never = HOME + "never"
        assert browser.isr.revalidate(never, HOME, only_generated=True) == [Result(HOME, 200)]
        assert (site.renders("/never"), browser.get("/").text) == (0, "new")
        assert browser.isr.revalidate(never) == [Result(never, 200)]
        assert status_of(browser.get("/never")) == "isr; hit; ttl=60"

    def test_is_percent_encoded(self, site: Site, browse: Browse) -> None:
        path = "/grüße".encode().decode("latin-1")
        site.page(path, "old", revalidate=False)
        browser = browse()
        browser.get("/gr%C3%BC%C3%9Fe")
        site.page(path, "new", revalidate=False)
        url = HOME + "gr%C3%BC%C3%9Fe"
        assert browser.isr.revalidate(url) == [Result(url, 200)]
        assert browser.get("/gr%C3%BC%C3%9Fe").text == "new"

    def test_may_be_written_without_encoding(self, site: Site, browse: Browse) -> None:
        path = "/größe".encode().decode("latin-1")
        site.page(path, lambda environ: environ["QUERY_STRING"])
        browser = browse(query=["größe"])
        query = "gr%C3%B6%C3%9Fe=%E2%82%AC"
        (result,) = browser.isr.revalidate(HOME + "größe?größe=€")
        assert result.url == f"{HOME}gr%C3%B6%C3%9Fe?{query}"
        assert status_of(browser.get(f"/gr%C3%B6%C3%9Fe?{query}")) == "isr; hit; ttl=60"

    def test_while_the_library_is_off_is_not_rendered_but_becomes_stale(
        self, site: Site, make: Make, files: str
    ) -> None:
        site.page("/", "body", revalidate=False)
        on, off = make(files), make(files, enabled=False)
        visit(on)
        assert off.revalidate(HOME) == []
        assert site.renders("/") == 1
        assert status_of(visit(on)) == "isr; hit; ttl=0"

    def test_that_is_no_page_any_more_goes_to_the_app_from_now_on(
        self, site: Site, browser: Browser
    ) -> None:
        site.answers["/"] = answers("200 OK", body=b"for you alone")
        assert browser.isr.revalidate(HOME) == [Result(HOME, 200, None, "withdrawn")]
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("for you alone", "")


class TestSeveralPaths:
    def test_give_their_results_in_their_order_and_some_run_at_a_time(
        self, site: Site, make: Make
    ) -> None:
        steps = Steps()
        paths = [f"/{number}" for number in range(8)]
        for path in paths:
            site.page(path, steps)
        isr = make(base_url="http://localhost")
        call = start(isr.revalidate, *paths[::-1], workers=3)
        steps.wait(3)
        assert steps.begun == 3
        steps.release()
        urls = [found.url for found in result(call)]
        assert urls == [f"http://localhost{path}" for path in paths[::-1]]

    def test_do_not_cost_a_walk_over_all_pages(self, site: Site, make: Make, files: str) -> None:
        site.page("/one", "body")
        isr = make(files, base_url="http://localhost")

        def calls() -> float:
            began = time.process_time()
            for _ in range(20):
                isr.revalidate("/one")
            return time.process_time() - began

        few = min(calls() for _ in range(3))
        for number in range(300):
            site.page(f"/{number}", "body")
        for _ in isr.prerender([f"/{number}" for number in range(300)]):
            pass
        assert min(calls() for _ in range(3)) < 3 * few + 0.05


class TestWhatElseIsStoredOfThePath:
    def test_the_page_of_every_host_is_rendered(
        self, site: Site, browse: Browse, cache: t.Any
    ) -> None:
        hosts = ("http://a.example/", "http://b.example/")
        site.page("/", "old", revalidate=False)
        browser = browse(cache)
        for host in hosts:
            browser.get("/", base_url=host)
        site.page("/", lambda environ: f"new at {environ['HTTP_HOST']}", revalidate=False)
        assert browser.isr.revalidate("/") == [Result(host, 200) for host in hosts]
        assert [browser.get("/", base_url=host).text[-9:] for host in hosts] == [
            "a.example",
            "b.example",
        ]

    def test_a_whole_url_names_one_host(self, site: Site, browse: Browse, cache: t.Any) -> None:
        site.page("/", "old", revalidate=False)
        browser = browse(cache)
        for host in ("http://a.example", "http://b.example"):
            browser.get("/", base_url=host)
        site.page("/", "new", revalidate=False)
        assert browser.isr.revalidate("http://a.example/") == [Result("http://a.example/", 200)]
        assert browser.get("/", base_url="http://a.example").text == "new"
        answer = browser.get("/", base_url="http://b.example")
        assert (answer.text, status_of(answer)) == ("old", "isr; hit")

    def test_every_declared_variant_is_rendered_visited_or_not(
        self, site: Site, browse: Browse, cache: t.Any
    ) -> None:
        site.page("/", "old", revalidate=False)
        languages = ["en", "de", None]
        browser = browse(cache, rules={"/": Rule(vary={"Accept-Language": languages})})
        browser.get("/", headers={"Accept-Language": "de"})
        site.page("/", lambda environ: str(environ.get("HTTP_ACCEPT_LANGUAGE")), revalidate=False)
        assert browser.isr.revalidate(HOME) == [Result(HOME, 200)] * 3
        for language in languages:
            headers = {} if language is None else {"Accept-Language": language}
            answer = browser.get("/", headers=headers)
            assert (answer.text, status_of(answer)) == (str(language), "isr; hit")

    def test_variants_beyond_the_bound_and_those_not_declared_any_more_expire(
        self, site: Site, make: Make, files: str
    ) -> None:
        site.page("/", lambda environ: environ["HTTP_ACCEPT_LANGUAGE"], revalidate=False)
        many = [f"x{number}" for number in range(70)]

        def isr(languages: list[str]) -> ISRMiddleware:
            rule = Rule(vary={"Accept-Language": languages})
            return make(files, rules={"/": rule}, build_id="one")

        made = isr(many)
        for language in many:
            visit(made, headers={"Accept-Language": language})
        assert len(made.revalidate(HOME)) == 64
        said = [status_of(visit(made, headers={"Accept-Language": x})) for x in many]
        assert sorted(said) == ["isr; fwd=stale; stored"] * 6 + ["isr; hit"] * 64

    @pytest.mark.parametrize(("asked", "other"), [("", "?page=2"), ("?page=2", "")])
    def test_a_path_means_the_page_of_its_query_and_others_expire(
        self, site: Site, browse: Browse, cache: t.Any, asked: str, other: str
    ) -> None:
        site.page("/", "old", revalidate=False)
        browser = browse(cache, query=["page"])
        browser.get("/")
        browser.get("/?page=2")
        site.page("/", lambda environ: f"new {environ['QUERY_STRING']}", revalidate=False)
        assert browser.isr.revalidate(HOME + asked) == [Result(HOME + asked, 200)]
        answer = browser.get("/" + asked)
        assert (answer.text, status_of(answer)) == (f"new {asked[1:]}", "isr; hit")
        answer = browser.get("/" + other)
        assert (answer.text, status_of(answer)) == (f"new {other[1:]}", "isr; fwd=stale; stored")

    def test_pages_of_other_builds_expire(self, site: Site, make: Make, shared: str) -> None:
        site.page("/", "old", revalidate=False)
        workers, command = (make(shared, build_id=build) for build in ("one", "two"))
        visit(workers)
        site.page("/", "new", revalidate=False)
        assert [r.outcome for r in command.revalidate(HOME)] == ["rendered"]
        answer = visit(make(shared, build_id="one"))
        assert (answer.text, status_of(answer)) == ("new", "isr; fwd=stale; stored")

    @pytest.mark.parametrize("withdrawn", [answers("200 OK"), answers("403 Forbidden")])
    def test_a_page_that_only_an_earlier_build_has_may_be_withdrawn(
        self, site: Site, make: Make, shared: str, withdrawn: t.Any
    ) -> None:
        site.page("/", "old", revalidate=False)
        visit(make(shared, build_id="one"))
        site.answers["/"] = withdrawn
        deployed = make(shared, build_id="two", previous_builds=1)
        assert [r.outcome for r in deployed.revalidate(HOME)] == ["withdrawn"]
        assert visit(deployed).text != "old"
        # By now nobody has it.
        with pytest.raises(RevalidationError):
            deployed.revalidate(HOME)


class TestOutOfARequest:
    """It means the same in a request, a job and a fresh process."""

    OPTIONS: t.ClassVar = {"rules": {"/**": False}}

    def test_http_and_https_are_one_host(self, site: Site, make: Make, shared: str) -> None:
        site.page("/a", "old", revalidate=False)
        isr = make(shared)
        visit(isr, "/a", base_url=WWW)
        site.page("/a", "new", revalidate=False)
        results = make(shared).revalidate("http://www.example.com/a")
        assert all(found.error is None for found in results)
        wait = time.monotonic() + PATIENCE
        while visit(isr, "/a", base_url=WWW).text != "new" and not shared.startswith("file:"):
            assert time.monotonic() < wait
        assert visit(isr, "/a", base_url=WWW).text == "new"

    def test_a_whole_url_may_have_another_scheme_than_base_url(
        self, site: Site, make: Make
    ) -> None:
        site.page("/a")
        isr = make(base_url=WWW)
        assert isr.revalidate("HTTP://www.example.com/a") == [Result(f"{WWW}/a", 200)]

    @pytest.mark.parametrize("visited", [True, False], ids=["with a visitor", "without"])
    def test_a_mount_point_is_found_in_the_store(
        self, site: Site, make: Make, shared: str, visited: bool
    ) -> None:
        site.page("/blog/a", "old", revalidate=False)
        mounted = {"base_url": f"{WWW}/app"}
        web, job = (make(shared, base_url=WWW, **self.OPTIONS) for _ in range(2))
        visit(web, "/blog/a", **mounted)
        if visited:
            visit(job, "/blog/a", **mounted)
        site.page("/blog/a", "new", revalidate=False)
        url = f"{WWW}/app/blog/a"
        assert result(start(job.revalidate, "/app/blog/a")) == [Result(url, 200)]
        assert [r.outcome for r in job.prerender(["/app/blog/a"])] == ["skipped"]
        assert visit(job, "/blog/a", **mounted).text == "new"

    @pytest.mark.processes
    def test_in_a_fresh_process(self, site: Site, make: Make, files: str) -> None:
        site.page("/a", "old", revalidate=False)
        isr = make(files)
        isr._clock = time.time
        for base_url in ("http://localhost", f"{WWW}/app"):
            visit(isr, "/a", base_url=base_url)
        code = (
            "import sys, wsgi_isr\n"
            "def app(environ, start_response):\n"
            "    kind = ('Content-Type', 'text/plain')\n"
            "    start_response('200 OK', [kind, *wsgi_isr.page_headers(False)])\n"
            "    return [b'rendered there']\n"
            "isr = wsgi_isr.ISRMiddleware(app, sys.argv[1])\n"
            "print([r.url for r in isr.revalidate('/a', '/app/a')])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, files], capture_output=True, text=True, timeout=HOLD
        )
        assert done.stdout == f"['http://localhost/a', '{WWW}/app/a']\n", done.stderr
        assert visit(isr, "/a").text == visit(isr, "/a", base_url=f"{WWW}/app").text
        assert visit(isr, "/a").text == "rendered there"


class TestAMistake:
    """A ``ValueError`` before anything is rendered."""

    @pytest.mark.parametrize(
        "path",
        [
            *("", "blog", "//evil", "//evil.example/x", "/a//b", "/a/../b", "/..", "/./a"),
            *("/a/%2e%2e/b", "/a\\b", "/a%5Cb", "/a\nb", "/a%0Ab", "/a%00", "/a b", "/a#b"),
            *("/%E0%A4%A", "/%ff", "?page=2", "ftp://localhost/", "http:///a", "http://a b/"),
            *("http://user@localhost/", "http://localhost:port/", "javascript:alert(1)"),
            *(None, b"/", 7),
        ],
    )
    def test_what_is_no_path(self, site: Site, make: Make, path: t.Any) -> None:
        site.page("/", "body")
        isr = make()
        with pytest.raises(ValueError):
            isr.revalidate(HOME, path)
        assert site.environs == []

    @pytest.mark.parametrize(
        "options", [{"base_url": "http://localhost"}, {"trusted_hosts": ["localhost"]}]
    )
    def test_a_host_that_has_no_pages(
        self, site: Site, make: Make, options: dict[str, t.Any]
    ) -> None:
        isr = make(**options)
        with pytest.raises(ValueError, match="on a host that has no pages"):
            isr.revalidate(HOME, "http://evil.example/")
        assert site.environs == []

    def test_a_query_that_is_never_stored(self, site: Site, make: Make) -> None:
        isr = make(query=["page"])
        with pytest.raises(ValueError, match="too long"):
            isr.revalidate(f"{HOME}?page={'1' * 3000}")
        assert site.environs == []

    def test_a_path_that_no_host_is_known_for(self, site: Site, make: Make) -> None:
        with pytest.raises(ValueError, match="in a request, give a whole URL, or set base_url"):
            make().revalidate("/")


class TestARenderThatFails:
    def test_leaves_the_old_page_beside_another_of_its_path(
        self, site: Site, browse: Browse, cache: t.Any
    ) -> None:
        site.page("/", "old", revalidate=False)
        browser = browse(cache, query=["page"])
        browser.get("/")
        browser.get("/?page=2")
        site.fail("/")
        with pytest.raises(RevalidationError):
            browser.isr.revalidate(HOME, HOME + "?page=2")
        answers = [browser.get(path) for path in ("/", "/?page=2")]
        assert {(a.text, status_of(a)) for a in answers} == {("old", "isr; hit; ttl=0")}

    @pytest.fixture
    def isr(self, site: Site, browse: Browse, cache: t.Any) -> ISRMiddleware:
        """Three pages that change on demand only; ``/b`` fails from now on."""
        browser = browse(cache, base_url="http://localhost")
        for path in ("/a", "/b", "/c"):
            site.page(path, "old", revalidate=False)
            browser.get(path)
            site.page(path, "new", revalidate=False)
        site.fail("/b")
        return browser.isr

    def test_is_raised_after_all_were_tried(self, isr: ISRMiddleware) -> None:
        with pytest.raises(RevalidationError, match="/b: the render failed") as caught:
            isr.revalidate("/b", "/a", "/c")
        assert [type(error) for error in caught.value.failures.values()] == [ZeroDivisionError]
        b, a, c = caught.value.results
        assert (b.url, b.status, b.outcome) == (HOME + "b", None, "failed")
        assert (a, c) == (Result(HOME + "a", 200), Result(HOME + "c", 200))
        assert visit(isr, "/a").text == visit(isr, "/c").text == "new"

    def test_leaves_the_old_page_as_a_stale_one_that_visitors_have_renewed(
        self, site: Site, isr: ISRMiddleware
    ) -> None:
        with pytest.raises(RevalidationError):
            isr.revalidate("/b")
        site.page("/b", "new", revalidate=False)
        answer = visit(isr, "/b")
        assert (answer.text, status_of(answer)) == ("old", "isr; hit; ttl=0")
        isr.close()
        answer = visit(isr, "/b")
        assert (answer.text, status_of(answer)) == ("new", "isr; hit")

    def test_may_be_an_answer_with_a_status(self, site: Site, isr: ISRMiddleware) -> None:
        site.page("/b", "bad", status="429 Too Many Requests", revalidate=False)
        with pytest.raises(RevalidationError) as caught:
            isr.revalidate("/b")
        assert caught.value.results[0].status == 429
        assert visit(isr, "/b").text == "old"

    def test_of_a_page_that_never_was_is_listed_as_failed(self, site: Site, make: Make) -> None:
        isr = make(base_url="http://localhost")
        site.fail("/")
        with pytest.raises(RevalidationError):
            isr.revalidate("/")
        assert [page.state for page in isr.pages()] == ["failed"]

    def test_is_an_answer_without_a_page_where_none_was(self, site: Site, make: Make) -> None:
        isr = make(base_url="http://localhost")
        site.answers["/plain"] = answers("200 OK")
        with pytest.raises(RevalidationError) as caught:
            isr.revalidate("/plain")
        assert (caught.value.results[0].status, caught.value.results[0].outcome) == (200, "failed")
        # Nothing is there, and nothing was there: that is no error.
        assert isr.revalidate("/unknown") == [Result(HOME + "unknown", 404, None, "gone")]
