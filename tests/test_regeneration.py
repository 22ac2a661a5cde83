"""One render of all who want a page, in this process and on one store; and renders that hang."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Clock, Make, Site, status_of
from steps import PATIENCE, Steps, later, number, result, start, visit, visitors, wait_until

from wsgi_isr import ISRMiddleware, Rule, page_headers

RULES = {"/**": Rule()}
VISITORS = 32


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """``/`` is a page whose renders wait for the test.

    It depends on ``make``, so that all renders end before the middlewares are closed.
    """
    steps = Steps()
    site.page("/", steps, revalidate=10)
    yield steps
    steps.release()


def regenerated(isr: ISRMiddleware) -> t.Any:
    """What a visitor gets when all that was started is done."""
    isr.close()
    return visit(isr)


class TestOneRender:
    def test_of_all_who_want_a_cold_page(self, steps: Steps, make: Make, cache: str) -> None:
        isr = make(cache, rules=RULES)
        waiting = visitors(isr, VISITORS)
        steps.release()
        answers = [result(visitor) for visitor in waiting]
        assert steps.begun == 1
        assert {answer.text for answer in answers} == {"render 1"}
        assert sorted(map(status_of, answers)) == [
            "isr; fwd=uri-miss; stored",
            *["isr; fwd=uri-miss; stored; collapsed"] * (VISITORS - 1),
        ]

    def test_of_all_who_want_an_expired_page(
        self, steps: Steps, make: Make, cache: str, clock: Clock
    ) -> None:
        isr = make(cache, rules={"/**": Rule(expire=10)})
        steps.release(1)
        visit(isr)
        clock.advance(10)
        waiting = visitors(isr, VISITORS)
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
        barrier = threading.Barrier(VISITORS)

        def come() -> t.Any:
            barrier.wait(PATIENCE)
            return visit(isr)

        crowd = [start(come) for _ in range(VISITORS)]
        # The render waits, and yet all of them have their answer.
        assert {result(visitor).text for visitor in crowd} == {"render 1"}
        steps.release(2)
        isr.close()
        assert steps.begun == 2

    def test_of_an_undeclared_page_although_each_visitor_asks_the_app(
        self, steps: Steps, site: Site, make: Make
    ) -> None:
        isr = make()
        steps.release()
        barrier = threading.Barrier(8)

        def page(environ: t.Any) -> str:
            # The visitors' own requests meet here; the canonical one has nobody to meet.
            if "wsgi_isr.reason" not in environ:
                barrier.wait(PATIENCE)
            return steps(environ)

        site.page("/", page, revalidate=10)
        crowd = [start(visit, isr) for _ in range(8)]
        assert len({result(visitor).text for visitor in crowd}) == 1
        assert site.renders("/") == 1

    @pytest.mark.parametrize("separate", [False, True], ids=["one worker", "two workers"])
    def test_that_takes_longer_than_its_page_lasts_is_for_all_who_wait(
        self, steps: Steps, make: Make, files: str, clock: Clock, separate: bool
    ) -> None:
        rules = {"/**": Rule(revalidate=10, expire=10)}
        isr = make(files, rules=rules)
        other = make(files, rules=rules) if separate else isr
        first = start(visit, isr)
        steps.wait(1)
        waiting = visitors(other, 8)
        wait_until(lambda: other.stats()["waiting"] == 8)
        clock.advance(20)
        steps.release()
        assert {result(visitor).text for visitor in [first, *waiting]} == {"render 1"}
        assert steps.begun == 1
        # Whoever comes now has not waited.
        assert visit(other).text == "render 2"


class TestTwoMiddlewaresOnOneStore:
    """As two workers would be, but for the processes."""

    def test_render_a_cold_page_once(self, steps: Steps, make: Make, shared: str) -> None:
        one, other = make(shared, rules=RULES), make(shared, rules=RULES)
        first = start(visit, one)
        steps.wait(1)
        waiting = visitors(other, 4)
        steps.release()
        assert {result(visitor).text for visitor in [first, *waiting]} == {"render 1"}
        assert steps.begun == 1

    def test_render_a_stale_page_once_and_nobody_waits(
        self, steps: Steps, make: Make, shared: str, clock: Clock
    ) -> None:
        one, other = make(shared), make(shared)
        steps.release(1)
        assert visit(one).text == visit(other).text == "render 1"
        clock.advance(10)
        visit(one)
        steps.wait(2)
        assert visit(other).text == "render 1"
        other.close()
        steps.release()
        one.close()
        assert visit(one).text == "render 2"
        wait_until(lambda: visit(other).text == "render 2")
        assert steps.begun == 2

    def test_do_not_render_what_the_other_has_stored_meanwhile(
        self, steps: Steps, make: Make, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, other = make(files, rules=RULES), make(files, rules=RULES)
        steps.release()
        lease = other.store.lease

        def late(*args: t.Any) -> t.Any:
            # The other has read the store by now, and not found the page.
            assert visit(one).text == "render 1"
            return lease(*args)

        monkeypatch.setattr(other.store, "lease", late)
        answer = visit(other)
        assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=10")
        assert steps.begun == 1


class TestRenderTimeout:
    TIMEOUT = 0.5

    def test_a_hung_cold_render_does_not_block_another_attempt(
        self, steps: Steps, make: Make, cache: str
    ) -> None:
        isr = make(cache, rules=RULES, render_timeout=self.TIMEOUT)
        steps.hang(1)
        hung = start(visit, isr)
        steps.wait(1)
        waiting = visitors(isr, 8)
        # Those who waited too long share one new attempt.
        assert {result(visitor).text for visitor in waiting} == {"render 2"}
        assert steps.begun == 2 and not hung.done()

    def test_a_hung_regeneration_blocks_neither_its_page_nor_others(
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
        wait_until(lambda: number(later(isr, clock)) > 2)

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


class TestARenderThatIsTooSlow:
    """It is stopped between two blocks."""

    @pytest.fixture
    def go_on(self) -> Iterator[threading.Event]:
        event = threading.Event()
        yield event
        event.set()

    def slow(self, site: Site, clock: Clock, *blocks: bytes, first: bytes = b"one ") -> list[str]:
        """``/`` sends its first block, and others when the time is over."""
        seen: list[str] = []

        def answer(environ: t.Any, start_response: t.Any) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain"), *page_headers(10)])
            try:
                yield first
                threading.Event().wait(0.1)
                yield from blocks
                seen.append("the end")
            finally:
                seen.append("closed")

        site.answers["/"] = answer
        return seen

    def test_gives_the_visitor_what_was_collected_and_the_rest(
        self, site: Site, make: Make, clock: Clock
    ) -> None:
        seen = self.slow(site, clock, b"two ", b"three")
        isr = make(rules=RULES, render_timeout=0.05)
        answer = visit(isr)
        assert (answer.status_code, answer.text) == (200, "one two three")
        assert status_of(answer) == "isr; fwd=uri-miss; detail=too-slow"
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert seen == ["the end", "closed"]
        (page,) = isr.pages()
        assert (page.state, page.last_error) == (
            "failed",
            "the app still sent blocks after render_timeout",
        )

    def test_is_an_error_where_nothing_came(self, site: Site, make: Make, clock: Clock) -> None:
        seen = self.slow(site, clock, *[b""] * 3, first=b"")
        isr = make(rules=RULES, render_timeout=0.05)
        with pytest.raises(Exception, match="sent nothing within render_timeout"):
            visit(isr)
        assert seen == ["closed"]

    def test_leaves_the_old_page_and_is_closed(self, site: Site, make: Make, clock: Clock) -> None:
        site.page("/", "old", revalidate=10)
        isr = make(rules=RULES, render_timeout=0.05)
        visit(isr)
        seen = self.slow(site, clock, b"two ", b"three")
        clock.advance(10)
        assert visit(isr).text == "old"
        isr.close()
        assert seen == ["closed"]
        assert visit(isr).text == "old"
