"""What a visitor gets for a page that is not there yet: they wait, a 404, or a shell at once."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterator

import pytest
from conftest import Browser, Clock, Make, Site, status_of
from flasks import COLD
from steps import Steps, visit, wait_until

from wsgi_isr import Rule
from wsgi_isr.passing import is_crawler

Browse = Callable[..., Browser]

GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
WWW = "http://www.example.com"


def shell(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else b"a moment, please"]


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """The page ``/blog/a``; its renders wait for the test."""
    steps = Steps()
    site.page("/blog/a", steps)
    yield steps
    steps.release()


@pytest.fixture
def client(browse: Browse) -> Browser:
    """A visitor of a site whose posts have a shell."""
    return browse(rules={"/blog/*": Rule(revalidate=60, fallback=shell)})


class TestAShell:
    def test_comes_at_once_and_is_nobody_elses_and_the_page_is_rendered_once(
        self, client: Browser, steps: Steps
    ) -> None:
        for _ in range(4):
            answer = client.get("/blog/a", headers={"User-Agent": FIREFOX})
            assert (answer.status_code, answer.text) == (200, "a moment, please")
            assert answer.headers["Cache-Control"] == "private, no-store"
            assert answer.headers["Refresh"] == "1"
            assert "detail=fallback" in status_of(answer) or status_of(answer) == ""
        head = client.head("/blog/a")
        assert (head.data, head.headers["Refresh"]) == (b"", "1")
        assert list(client.isr.pages()) == []
        steps.wait(1)
        steps.release()
        client.isr.close()
        answer = client.get("/blog/a")
        assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=60")
        assert steps.begun == 1

    def test_keeps_its_own_way_to_come_back_and_no_shared_cache_may_keep_it(
        self, browse: Browse, steps: Steps
    ) -> None:
        def eager(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            own = [("Cache-Control", "public, max-age=600"), ("ISR-Revalidate", "60")]
            headers = [("Content-Type", "text/html"), ("Refresh", "5; url=/x"), *own]
            start_response("200 OK", headers)
            return [b"shell"]

        client = browse(rules={"/blog/*": Rule(revalidate=60, fallback=eager)})
        answer = client.get("/blog/a")
        assert answer.headers.getlist("Refresh") == ["5; url=/x"]
        assert answer.headers.getlist("Cache-Control") == ["private, no-store"]
        assert "ISR-Revalidate" not in answer.headers

    def test_is_for_cold_pages_and_for_get_and_head(
        self, client: Browser, site: Site, clock: Clock
    ) -> None:
        site.page("/blog/a", "the page")
        assert client.post("/blog/a").text == "the page"
        client.get("/blog/a")
        client.isr.close()
        clock.advance(61)
        answer = client.get("/blog/a")
        assert (answer.text, status_of(answer)) == ("the page", "isr; hit; ttl=-1")


class TestCrawlers:
    def test_wait_for_the_whole_page_and_share_its_render(
        self, client: Browser, site: Site, steps: Steps
    ) -> None:
        client.get("/blog/a")
        steps.wait(1)
        steps.release()
        assert client.get("/blog/a", headers={"User-Agent": GOOGLEBOT}).text == "render 1"
        site.page("/blog/b", "the page")
        answer = client.get("/blog/b", headers={"User-Agent": GOOGLEBOT})
        assert (answer.text, status_of(answer)) == ("the page", COLD)
        assert steps.begun == 1

    @pytest.mark.parametrize(
        "agent",
        [
            GOOGLEBOT,
            "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
            "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
            "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
            "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
            "ia_archiver (+http://www.alexa.com/site/help/webmasters; crawler@alexa.com)",
            "Mozilla/5.0 (compatible; Google-InspectionTool/1.0;)",
        ],
    )
    def test_are_found_by_their_user_agent(self, agent: str) -> None:
        assert is_crawler({"HTTP_USER_AGENT": agent})
        assert is_crawler({"HTTP_USER_AGENT": agent.upper()})

    @pytest.mark.parametrize("agent", [FIREFOX, "curl/8.5.0", "Googlebot-Image/1.0", "GPTBot/1.2"])
    def test_are_not_confused_with_others(self, agent: str) -> None:
        assert not is_crawler({"HTTP_USER_AGENT": agent})
        assert not is_crawler({"HTTP_USER_AGENT": agent.ljust(2000) + GOOGLEBOT})
        assert not is_crawler({})


class TestARenderAfterAShell:
    """One that comes to nothing: a visitor with a shell would never learn why."""

    def test_that_fails_has_the_next_visitor_in_any_worker_get_the_error(
        self, site: Site, make: Make, shared: str
    ) -> None:
        rules = {"/blog/*": Rule(revalidate=60, fallback=shell)}
        one, other = make(shared, rules=rules), make(shared, rules=rules)
        site.page("/blog/a", status="503 Service Unavailable")
        assert visit(one, "/blog/a").text == "a moment, please"
        one.close()
        assert visit(other, "/blog/a").status_code == visit(one, "/blog/a").status_code == 503
        site.page("/blog/a", "the page")
        assert visit(other, "/blog/a").text == "the page"

    def test_that_is_refused_gives_the_next_visitor_the_apps_own_answer(
        self, client: Browser, site: Site
    ) -> None:
        site.page("/blog/a", "with a cookie", headers=[("Set-Cookie", "a=b")])
        assert client.get("/blog/a").text == "a moment, please"
        wait_until(lambda: client.get("/blog/a").text == "with a cookie")
        for _ in range(2):
            answer = client.get("/blog/a")
            assert answer.text == "with a cookie"
            assert status_of(answer) == "isr; fwd=uri-miss; detail=set-cookie"


class TestNoFallback:
    """``fallback=False``: only paths that were rendered ahead or on demand exist."""

    RULES: t.ClassVar = {"/blog/*": Rule(revalidate=60, fallback=False)}

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_other_paths_are_404_without_asking_the_app(
        self, site: Site, browse: Browse, listable: str, method: str
    ) -> None:
        site.page("/blog/1")
        site.page("/blog/2")
        client = browse(listable, rules=self.RULES, base_url="http://localhost")
        list(client.isr.prerender(["/blog/2"]))
        site.environs.clear()
        response = client.open("/blog/1", method=method)
        assert response.status_code == 404
        assert response.headers["Cache-Control"] == "private, no-store"
        assert site.environs == []
        assert client.post("/blog/1").text == "a page"

    @pytest.mark.parametrize("how", ["prerender", "revalidate"])
    def test_paths_that_were_rendered_are_served_and_regenerated(
        self, site: Site, browse: Browse, cache: t.Any, clock: Clock, how: str
    ) -> None:
        site.page("/blog/1", "old")
        client = browse(cache, rules=self.RULES, base_url="http://localhost")
        if how == "prerender":
            list(client.isr.prerender(["/blog/1"]))
        else:
            client.isr.revalidate("/blog/1")
        assert status_of(client.get("/blog/1")) == "isr; hit; ttl=60"
        site.page("/blog/1", "new")
        clock.advance(61)
        assert client.get("/blog/1").text == "old"
        client.isr.close()
        assert client.get("/blog/1").text == "new"

    def test_they_exist_when_their_page_was_evicted(
        self, site: Site, make: Make, shared: str
    ) -> None:
        site.page("/blog/1")
        isr = make(shared, rules=self.RULES, base_url="http://localhost")
        list(isr.prerender(["/blog/1"]))
        assert isr.prune(everything=True) == 1
        for worker in (isr, make(shared, rules=self.RULES, base_url="http://localhost")):
            assert visit(worker, "/blog/1").text == "a page"
            assert visit(worker, "/blog/2").status_code == 404

    def test_they_exist_in_all_variants_queries_and_hosts(
        self, site: Site, make: Make, shared: str
    ) -> None:
        site.page("/blog/1")
        rule = Rule(60, fallback=False, query=("q",), vary={"Accept-Language": ["en", "de"]})
        isr = make(shared, rules={"/blog/*": rule})
        list(isr.prerender([f"{WWW}/blog/1"]))
        assert visit(isr, "/blog/1?q=2", base_url=WWW).status_code == 200
        assert visit(isr, "/blog/1", headers={"Accept-Language": "de"}).status_code == 200
        assert visit(isr, "/blog/2", base_url=WWW).status_code == 404

    def test_where_nobody_can_say_what_exists_the_app_is_asked(
        self, site: Site, make: Make, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: t.Any) -> t.Any:
            raise OSError("the disk is gone")

        site.page("/blog/1")
        list(make(files, rules=self.RULES, base_url="http://localhost").prerender(["/blog/1"]))
        isr = make(files, rules=self.RULES, base_url="http://localhost")
        for name in ("get", "has_path", "probe"):
            monkeypatch.setattr(isr.store, name, refuse)
        assert visit(isr, "/blog/1").text == "a page"
        # Once more, when the store is not asked any more.
        assert visit(isr, "/blog/2").text == "no such page"
