"""Pages in time: fresh, stale and rendered behind the visitor, once for all who want them."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from conftest import Browser
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from steps import later
from steps import number
from steps import result
from steps import start
from steps import Steps
from steps import visit
from steps import visitors
from steps import wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import Rule

Browse = Callable[..., Browser]

RULES = {"/**": Rule()}


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """``/`` is a page whose renders the test holds and lets go.

    It depends on ``make``, so that all renders are let go before the middlewares are closed.
    """
    steps = Steps()
    site.page("/", steps, revalidate=10)
    yield steps
    steps.release()


def regenerated(isr: ISRMiddleware, path: str = "/") -> t.Any:
    """What a visitor gets when all that goes on behind is done."""
    isr.close()
    return visit(isr, path)


class TestStaleWhileRevalidate:
    def test_the_first_visitor_waits_and_the_next_one_gets_a_hit(
        self, site: Site, browse: Browse, cache: str
    ) -> None:
        site.page("/", "body", revalidate=10)
        browser = browse(cache)
        first, second = browser.get("/"), browser.get("/")
        assert (status_of(first), status_of(second)) == (
            "isr; fwd=uri-miss; stored",
            "isr; hit; ttl=10",
        )
        assert first.data == second.data == b"body"
        assert site.renders("/") == 1

    def test_within_its_window_a_page_is_not_rendered_again(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        site.page("/", "body", revalidate=10)
        browser = browse(cache)
        browser.get("/")
        clock.advance(9.9)
        assert status_of(browser.get("/")) == "isr; hit; ttl=1"
        browser.isr.close()
        assert site.renders("/") == 1

    def test_after_its_window_the_old_page_comes_at_once_and_then_the_new_one(
        self, steps: Steps, browse: Browse, cache: str, clock: Clock
    ) -> None:
        browser = browse(cache)
        steps.release(1)
        browser.get("/")
        clock.advance(10)
        # The second render is held: whoever waited for it would wait for ever.
        old = browser.get("/")
        assert (old.text, status_of(old)) == ("render 1", "isr; hit; ttl=0")
        steps.release(2)
        new = regenerated(browser.isr)
        assert (new.text, status_of(new)) == ("render 2", "isr; hit; ttl=10")

    def test_nobody_waits_while_a_stale_page_is_rendered(
        self, steps: Steps, browse: Browse, cache: str, clock: Clock
    ) -> None:
        browser = browse(cache)
        steps.release(1)
        browser.get("/")
        clock.advance(12)
        for _ in range(20):
            answer = browser.get("/")
            assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=-2")
        steps.release(2)
        browser.isr.close()
        assert steps.begun == 2

    def test_a_page_with_false_never_becomes_stale_by_itself(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        site.page("/", "body", revalidate=False)
        browser = browse(cache)
        browser.get("/")
        clock.advance(50 * 365 * 24 * 3600)
        assert status_of(browser.get("/")) == "isr; hit"
        assert site.renders("/") == 1

    def test_past_its_expiry_the_next_visitor_waits_for_a_new_page(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        site.page("/", "old", revalidate=10, expire=30)
        browser = browse(cache)
        browser.get("/")
        site.page("/", "new", revalidate=10, expire=30)
        clock.advance(30)
        answer = browser.get("/")
        assert (answer.text, status_of(answer)) == ("new", "isr; fwd=stale; stored")

    def test_a_page_that_nobody_visits_is_not_rendered(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        site.page("/", "body", revalidate=10)
        browser = browse(cache)
        browser.get("/")
        clock.advance(1000)
        browser.isr.close()
        assert site.renders("/") == 1

    def test_the_time_of_a_page_begins_when_its_render_begins(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        def slow(environ: t.Any) -> str:
            clock.advance(4)
            return "body"

        site.page("/", slow, revalidate=10)
        browser = browse(cache)
        browser.get("/")
        assert status_of(browser.get("/")) == "isr; hit; ttl=6"

    def test_the_app_learns_why_it_renders(
        self, site: Site, browse: Browse, cache: str, clock: Clock
    ) -> None:
        reasons = []

        def page(environ: t.Any) -> str:
            reasons.append(environ["wsgi_isr.reason"])
            return "body"

        site.page("/", page, revalidate=10)
        browser = browse(cache, rules=RULES)
        browser.get("/")
        clock.advance(10)
        browser.get("/")
        browser.isr.close()
        assert reasons == ["miss", "stale"]


class TestOneRender:
    VISITORS = 32

    def test_of_all_who_want_a_cold_page(self, steps: Steps, make: Make, cache: str) -> None:
        isr = make(cache, rules=RULES)
        waiting = visitors(isr, self.VISITORS)
        steps.release()
        answers = [result(visitor) for visitor in waiting]
        assert steps.begun == 1
        assert {answer.text for answer in answers} == {"render 1"}

    def test_those_who_waited_on_it_are_told_so(self, steps: Steps, make: Make, cache: str) -> None:
        isr = make(cache, rules=RULES)
        waiting = visitors(isr, self.VISITORS)
        steps.release()
        told = sorted(status_of(result(visitor)) for visitor in waiting)
        assert told == [
            "isr; fwd=uri-miss; stored",
            *["isr; fwd=uri-miss; stored; collapsed"] * (self.VISITORS - 1),
        ]

    def test_of_all_who_want_an_expired_page(
        self, steps: Steps, make: Make, cache: str, clock: Clock
    ) -> None:
        isr = make(cache, rules={"/**": Rule(expire=10)})
        steps.release(1)
        visit(isr)
        clock.advance(10)
        waiting = visitors(isr, self.VISITORS)
        steps.release(2)
        assert {result(visitor).text for visitor in waiting} == {"render 2"}
        assert steps.begun == 2

    def test_of_all_who_visit_a_stale_page_at_once(
        self, steps: Steps, make: Make, cache: str, clock: Clock
    ) -> None:
        isr = make(cache)
        steps.release(1)
        visit(isr)
        clock.advance(10)
        barrier = threading.Barrier(self.VISITORS)

        def come() -> t.Any:
            barrier.wait(10)
            return visit(isr)

        crowd = [start(come) for _ in range(self.VISITORS)]
        # The render is held, and yet all of them have their answer.
        assert {result(visitor).text for visitor in crowd} == {"render 1"}
        steps.release(2)
        isr.close()
        assert steps.begun == 2

    def test_of_an_undeclared_page_although_each_visitor_asks_the_app(
        self, steps: Steps, site: Site, make: Make, cache: str
    ) -> None:
        isr = make(cache)
        steps.release()
        barrier = threading.Barrier(8)

        def page(environ: t.Any) -> str:
            # The visitors' own requests meet here; the canonical one has nobody to meet.
            if "wsgi_isr.reason" not in environ:
                barrier.wait(10)
            return steps(environ)

        site.page("/", page, revalidate=10)
        crowd = [start(visit, isr) for _ in range(8)]
        assert len({result(visitor).text for visitor in crowd}) == 1
        assert site.renders("/") == 1

    def test_another_page_is_not_held_up(
        self, steps: Steps, site: Site, make: Make, cache: str
    ) -> None:
        site.page("/other", "other")
        isr = make(cache, rules=RULES)
        waiting = start(visit, isr)
        steps.wait(1)
        assert visit(isr, "/other").text == "other"
        steps.release()
        assert result(waiting).text == "render 1"

    def test_a_visitor_who_goes_away_does_not_take_the_page_along(
        self, site: Site, make: Make, cache: str
    ) -> None:
        site.page("/", "body")
        isr = make(cache, rules=RULES)
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.url_scheme": "http"}
        answer = isr({**environ, "HTTP_HOST": "localhost"}, lambda *args: lambda data: None)
        # The server notices that the client is gone, and does not read the answer.
        getattr(answer, "close", lambda: None)()
        assert status_of(visit(isr)) == "isr; hit; ttl=60"


class TestTwoMiddlewaresOnTheSameFiles:
    """As two workers would be, but for the processes: they share nothing but the folder."""

    def test_a_cold_page_is_rendered_once(self, steps: Steps, make: Make, files: str) -> None:
        one, other = make(files, rules=RULES), make(files, rules=RULES)
        first = start(visit, one)
        steps.wait(1)
        waiting = visitors(other, 4)
        steps.release()
        assert {result(visitor).text for visitor in [first, *waiting]} == {"render 1"}
        assert steps.begun == 1

    def test_a_stale_page_is_rendered_once_and_nobody_waits(
        self, steps: Steps, make: Make, files: str, clock: Clock
    ) -> None:
        one, other = make(files), make(files)
        steps.release(1)
        assert visit(one).text == visit(other).text == "render 1"
        clock.advance(10)
        visit(one)
        steps.wait(2)
        assert visit(other).text == "render 1"
        other.close()
        steps.release()
        one.close()
        assert visit(one).text == visit(other).text == "render 2"
        assert steps.begun == 2

    def test_what_one_has_regenerated_the_other_does_not_render(
        self, steps: Steps, make: Make, files: str, clock: Clock
    ) -> None:
        one, other = make(files), make(files)
        steps.release()
        visit(one)
        visit(other)
        clock.advance(10)
        visit(one)
        one.close()
        assert regenerated(other).text == "render 2"
        assert steps.begun == 2

    def test_what_one_has_stored_while_the_other_made_ready_is_not_rendered_again(
        self, steps: Steps, make: Make, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, other = make(files, rules=RULES), make(files, rules=RULES)
        steps.release()
        store = other._here().store
        acquire = store.acquire

        def late(*args: t.Any) -> t.Any:
            # It has looked for the page already, and not found it.
            assert visit(one).text == "render 1"
            return acquire(*args)

        monkeypatch.setattr(store, "acquire", late)
        answer = visit(other)
        assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=10")
        assert steps.begun == 1


class TestRenderTimeout:
    TIMEOUT = 0.2

    def test_a_hung_cold_render_does_not_block_another_attempt(
        self, steps: Steps, make: Make, cache: str
    ) -> None:
        isr = make(cache, rules=RULES, render_timeout=self.TIMEOUT)
        steps.hang(1)
        hung = start(visit, isr)
        steps.wait(1)
        assert visit(isr).text == "render 2"
        assert not hung.done()

    def test_a_hung_regeneration_does_not_block_another_attempt(
        self, steps: Steps, make: Make, cache: str, clock: Clock
    ) -> None:
        isr = make(cache, render_timeout=self.TIMEOUT, workers=1)
        steps.hang(2)
        visit(isr)
        clock.advance(10)
        visit(isr)
        steps.wait(2)
        wait_until(lambda: number(later(isr, clock)) > 2)

    def test_a_hung_regeneration_does_not_block_other_pages(
        self, steps: Steps, site: Site, make: Make, cache: str, clock: Clock
    ) -> None:
        site.page("/other", lambda environ: environ["wsgi_isr.reason"], revalidate=10)
        isr = make(cache, rules=RULES, render_timeout=self.TIMEOUT, workers=1)
        steps.hang(2)
        visit(isr)
        visit(isr, "/other")
        clock.advance(10)
        visit(isr)
        steps.wait(2)
        wait_until(lambda: visit(isr, "/other").text == "stale")

    @pytest.mark.parametrize("stale", [False, True], ids=["cold", "stale"])
    def test_a_render_that_outlived_it_never_overwrites_a_newer_page(
        self, steps: Steps, make: Make, cache: str, clock: Clock, stale: bool
    ) -> None:
        isr = make(cache, rules=RULES, render_timeout=self.TIMEOUT)
        hung = 2 if stale else 1
        steps.hang(hung)
        if stale:
            visit(isr)
            clock.advance(10)
        late = start(visit, isr)
        steps.wait(hung)
        wait_until(lambda: number(later(isr, clock)) > hung)
        steps.release()
        result(late)
        assert number(regenerated(isr)) > hung
        # Nor in the store, which another process reads.
        assert cache == "memory://" or number(visit(make(cache, rules=RULES))) > hung

    def test_those_who_waited_too_long_share_one_new_attempt(
        self, steps: Steps, make: Make, cache: str
    ) -> None:
        isr = make(cache, rules=RULES, render_timeout=5 * self.TIMEOUT)
        steps.hang(1)
        hung = start(visit, isr)
        steps.wait(1)
        waiting = visitors(isr, 8)
        assert {result(visitor).text for visitor in waiting} == {"render 2"}
        assert steps.begun == 2
        steps.release()
        assert result(hung).text == "render 2"
