"""What a visitor gets for a page that is not there yet: he waits, a 404, or a shell at once."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from conftest import Browser
from conftest import Clock
from conftest import Site
from conftest import status_of
from flasks import COLD
from steps import Steps

from wsgi_isr import Rule
from wsgi_isr.fallback import is_crawler

Browse = Callable[..., Browser]

GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


def shell(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else b"a moment, please"]


@pytest.fixture
def steps(site: Site) -> Steps:
    """The page ``/blog/a``; its renders are held until a test releases them."""
    steps = Steps()
    site.page("/blog/a", steps)
    return steps


@pytest.fixture
def client(browse: Browse) -> Browser:
    """A visitor of a site whose posts have a shell."""
    return browse(rules={"/blog/*": Rule(revalidate=60, fallback=shell)})


class TestBlocking:
    def test_is_the_default_and_the_first_visitor_waits(self, site: Site, browse: Browse) -> None:
        site.page("/blog/a")
        client = browse(rules={"/blog/*": 60})
        answer = client.get("/blog/a")
        assert (answer.text, status_of(answer)) == ("a page", COLD)


class TestAShell:
    def test_comes_at_once_and_is_nobody_elses(self, client: Browser, steps: Steps) -> None:
        answer = client.get("/blog/a", headers={"User-Agent": FIREFOX})
        assert (answer.status_code, answer.text) == (200, "a moment, please")
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert status_of(answer) == ""
        steps.release()

    def test_starts_the_render_itself(self, client: Browser, steps: Steps) -> None:
        client.get("/blog/a")
        # Nobody asks again, and the page is rendered all the same.
        steps.wait(1)
        steps.release()
        client.isr.close()
        answer = client.get("/blog/a")
        assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=60")

    def test_has_browsers_ask_again_after_a_second(self, client: Browser, steps: Steps) -> None:
        assert client.get("/blog/a").headers["Refresh"] == "1"
        steps.release()

    def test_may_have_a_way_of_its_own_to_come_back(self, browse: Browse, steps: Steps) -> None:
        def own(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            start_response("200 OK", [("Content-Type", "text/html"), ("Refresh", "5; url=/x")])
            return [b"shell"]

        client = browse(rules={"/blog/*": Rule(revalidate=60, fallback=own)})
        assert client.get("/blog/a").headers.getlist("Refresh") == ["5; url=/x"]
        steps.release()

    def test_is_never_stored_and_no_shared_cache_may(self, browse: Browse, steps: Steps) -> None:
        def eager(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            headers = [("Cache-Control", "public, max-age=600"), ("ISR-Revalidate", "60")]
            start_response("200 OK", [("Content-Type", "text/html"), *headers])
            return [b"shell"]

        client = browse(rules={"/blog/*": Rule(revalidate=60, fallback=eager)})
        answer = client.get("/blog/a")
        assert answer.headers.getlist("Cache-Control") == ["private, no-store"]
        assert "ISR-Revalidate" not in answer.headers
        assert list(client.isr.pages()) == []
        steps.release()

    def test_of_a_page_being_rendered_starts_no_second_render(
        self, client: Browser, steps: Steps
    ) -> None:
        client.get("/blog/a")
        steps.wait(1)
        for _ in range(3):
            assert client.get("/blog/a").text == "a moment, please"
        # Nor does another thread wait for it.
        assert client.isr._here().pool._pending == 1
        steps.release()
        client.isr.close()
        assert steps.begun == 1

    def test_is_for_cold_pages_only(self, client: Browser, site: Site, clock: Clock) -> None:
        site.page("/blog/a", "the page")
        client.get("/blog/a")
        client.isr.close()
        clock.advance(61)
        answer = client.get("/blog/a")
        assert (answer.text, status_of(answer)) == ("the page", "isr; hit; ttl=-1")

    def test_answers_a_head_request_and_starts_the_render(
        self, client: Browser, steps: Steps
    ) -> None:
        answer = client.head("/blog/a")
        assert (answer.data, answer.headers["Refresh"]) == (b"", "1")
        steps.wait(1)
        steps.release()

    def test_does_not_answer_other_methods(self, client: Browser, site: Site) -> None:
        site.page("/blog/a", "posted")
        assert client.post("/blog/a").text == "posted"

    def test_is_closed_by_the_server_where_threads_do_not_run(
        self, browse: Browse, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed: list[str] = []

        class Body:
            def __iter__(self) -> Iterator[bytes]:
                return iter([b"shell"])

            def close(self) -> None:
                closed.append("closed")

        def own(environ: dict[str, t.Any], start_response: t.Any) -> t.Any:
            start_response("200 OK", [("Content-Type", "text/html")])
            return Body()

        def refuse(thread: t.Any) -> t.NoReturn:
            raise RuntimeError("can't start new thread")

        site.page("/blog/a", "the page")
        client = browse(rules={"/blog/*": Rule(revalidate=60, fallback=own)})
        with monkeypatch.context() as patch:
            patch.setattr("threading.Thread.start", refuse)
            assert client.get("/blog/a").text == "shell"
        # The page was rendered by the thread of its visitor, when he had his answer.
        assert closed == ["closed"]
        assert client.get("/blog/a").text == "the page"


class TestCrawlers:
    def test_wait_for_the_whole_page(self, client: Browser, site: Site) -> None:
        site.page("/blog/a", "the page")
        answer = client.get("/blog/a", headers={"User-Agent": GOOGLEBOT})
        assert (answer.text, status_of(answer)) == ("the page", COLD)

    def test_share_the_render_that_a_shell_started(
        self, client: Browser, site: Site, steps: Steps
    ) -> None:
        client.get("/blog/a")
        steps.wait(1)
        steps.release()
        answer = client.get("/blog/a", headers={"User-Agent": GOOGLEBOT})
        assert answer.text == "render 1"
        assert steps.begun == 1

    @pytest.mark.parametrize(
        "agent",
        [
            GOOGLEBOT,
            "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
            "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
            "DuckDuckBot/1.1; (+http://duckduckgo.com/duckduckbot.html)",
            "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
            "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
            "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
            "Twitterbot/1.0",
            "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
            "ia_archiver (+http://www.alexa.com/site/help/webmasters; crawler@alexa.com)",
            "WhatsApp/2.19.81 A",
            "Mozilla/5.0 (compatible; Google-InspectionTool/1.0;)",
            "AdsBot-Google (+http://www.google.com/adsbot.html)",
        ],
    )
    def test_are_known_by_their_user_agent(self, agent: str) -> None:
        assert is_crawler({"HTTP_USER_AGENT": agent})
        assert is_crawler({"HTTP_USER_AGENT": agent.upper()})

    @pytest.mark.parametrize("agent", [FIREFOX, "curl/8.5.0", "Googlebot-Image/1.0", "GPTBot/1.2"])
    def test_are_not_confused_with_others(self, agent: str) -> None:
        assert not is_crawler({"HTTP_USER_AGENT": agent})
        assert not is_crawler({})


class TestARenderBehindAShell:
    """One that comes to nothing: whoever looks at the shell would never learn why."""

    def test_that_fails_has_the_next_visitor_wait_and_get_the_error(
        self, client: Browser, site: Site
    ) -> None:
        site.fail("/blog/a")
        assert client.get("/blog/a").text == "a moment, please"
        client.isr.close()
        with pytest.raises(ZeroDivisionError):
            client.get("/blog/a")
        assert list(client.isr.pages()) == []

    def test_that_fails_is_tried_again_behind_the_shell_of_the_one_after(
        self, client: Browser, site: Site
    ) -> None:
        site.page("/blog/a", status="503 Service Unavailable")
        client.get("/blog/a")
        client.isr.close()
        assert client.get("/blog/a").status_code == 503
        site.page("/blog/a", "the page")
        assert client.get("/blog/a").text == "a moment, please"
        client.isr.close()
        assert client.get("/blog/a").text == "the page"

    def test_that_is_refused_gives_the_next_visitor_the_apps_own_answer(
        self, client: Browser, site: Site
    ) -> None:
        site.page("/blog/a", "with a cookie", headers=[("Set-Cookie", "a=b")])
        client.get("/blog/a")
        client.isr.close()
        answer = client.get("/blog/a")
        assert answer.text == "with a cookie"
        assert status_of(answer) == "isr; fwd=uri-miss; detail=set-cookie"
        assert client.get("/blog/a").text == "with a cookie"

    def test_that_is_a_404_is_a_page(self, client: Browser, site: Site) -> None:
        site.page("/blog/a", "no such post", status="404 Not Found")
        client.get("/blog/a")
        client.isr.close()
        answer = client.get("/blog/a")
        assert (answer.status_code, status_of(answer)) == (404, "isr; hit; ttl=60")
