"""Promise 5: what is rendered on demand is never overwritten by a render that began earlier."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator

import pytest
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from steps import later
from steps import number
from steps import PATIENCE
from steps import result
from steps import start
from steps import Steps
from steps import visit
from steps import visitors
from steps import wait_until

from wsgi_isr import ISRMiddleware
from wsgi_isr import RevalidationError
from wsgi_isr import Rule

HOME = "http://localhost/"


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """``/`` is a page whose renders the test holds and lets go."""
    steps = Steps()
    site.page("/", steps, revalidate=10)
    yield steps
    steps.release()


@pytest.fixture(params=["memory", "files", "two on the same files"])
def pair(
    request: pytest.FixtureRequest, make: Make, files: str
) -> tuple[ISRMiddleware, ISRMiddleware]:
    """The middleware that visitors come to, and the one that is told to revalidate."""
    options: dict[str, t.Any] = {"rules": {"/": Rule()}}
    if request.param == "memory":
        return (make("memory://", **options),) * 2
    if request.param == "files":
        return (make(files, **options),) * 2
    return make(files, **options), make(files, **options)


class TestARenderThatBeganBefore:
    def test_in_the_background_does_not_overwrite(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware], clock: Clock
    ) -> None:
        isr, editor = pair
        steps.release(1, 3)
        visit(isr)
        clock.advance(10)
        visit(isr)
        steps.wait(2)
        editor.revalidate(HOME)
        assert visit(isr).text == visit(editor).text == "render 3"
        steps.release(2)
        isr.close()
        assert visit(isr).text == visit(editor).text == "render 3"

    def test_on_a_cold_page_does_not_overwrite(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware]
    ) -> None:
        isr, editor = pair
        waiting = start(visit, isr)
        steps.wait(1)
        steps.release(2)
        editor.revalidate(HOME)
        assert visit(isr).text == visit(editor).text == "render 2"
        steps.release(1)
        result(waiting)
        assert visit(isr).text == visit(editor).text == "render 2"

    def test_and_still_runs_gives_those_who_wait_for_it_the_newer_page(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware]
    ) -> None:
        isr, editor = pair
        waiting = visitors(isr, 4)
        steps.wait(1)
        steps.release(2)
        editor.revalidate(HOME)
        steps.release(1)
        assert {result(visitor).text for visitor in waiting} == {"render 2"}

    def test_and_outlived_render_timeout_does_not_overwrite(
        self, steps: Steps, make: Make, cache: str, clock: Clock
    ) -> None:
        isr = make(cache, render_timeout=0.1)
        steps.hang(2)
        visit(isr)
        clock.advance(10)
        visit(isr)
        steps.wait(2)
        wait_until(lambda: number(later(isr, clock)) > 2)
        isr.revalidate(HOME)
        demanded = number(visit(isr))
        steps.release()
        isr.close()
        assert number(visit(isr)) >= demanded > 2

    def test_on_demand_and_outlived_render_timeout_does_not_overwrite(
        self, steps: Steps, make: Make, cache: str
    ) -> None:
        isr = make(cache, render_timeout=0.1)
        steps.hang(1)
        hung = start(isr.revalidate, HOME)
        steps.wait(1)
        isr.revalidate(HOME)
        assert visit(isr).text == "render 2"
        steps.release()
        result(hung)
        assert visit(isr).text == "render 2"

    def test_and_ends_before_the_demanded_one_is_stale_at_once(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware], clock: Clock
    ) -> None:
        isr, editor = pair
        waiting = start(visit, isr)
        steps.wait(1)
        demanded = start(editor.revalidate, HOME)
        steps.wait(2)
        steps.release(1)
        result(waiting)
        # The demanded render is under way: nobody waits for it, and nobody starts a third one.
        answer = visit(isr)
        assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=0")
        steps.release(2)
        result(demanded)
        isr.close()
        assert visit(isr).text == "render 2"

    def test_and_is_stored_while_the_demanded_one_fails_stays_stale(
        self, steps: Steps, site: Site, make: Make, cache: str
    ) -> None:
        isr = make(cache, rules={"/": Rule()})
        waiting = start(visit, isr)
        steps.wait(1)
        site.fail("/")
        with pytest.raises(RevalidationError):
            isr.revalidate(HOME)
        steps.release(1)
        result(waiting)
        answer = visit(isr)
        assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=0")

    @pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
    def test_an_invalidation_by_tag_is_not_fresh_when_it_ends(
        self, site: Site, make: Make, cache: str, hard: bool
    ) -> None:
        steps = Steps()
        site.page("/", steps, revalidate=False, tags=["posts"])
        isr = make(cache, rules={"/": Rule()})
        waiting = start(visit, isr)
        steps.wait(1)
        isr.revalidate_tag("posts", expire=hard)
        steps.release()
        result(waiting)
        answer = visit(isr)
        if hard:
            assert (answer.text, status_of(answer)) == ("render 2", "isr; fwd=stale; stored")
        else:
            assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=0")

    def test_and_is_expired_by_now_is_not_for_those_who_came_since(
        self, site: Site, make: Make, cache: str
    ) -> None:
        steps = Steps()
        site.page("/", steps, revalidate=False, tags=["posts"])
        isr = make(cache, rules={"/": Rule()})
        first = start(visit, isr)
        steps.wait(1)
        isr.revalidate_tag("posts", expire=True)
        waiting = visitors(isr, 4)
        steps.release()
        assert result(first).text == "render 1"
        assert {result(visitor).text for visitor in waiting} == {"render 2"}


class TestACallDuringARender:
    def test_starts_its_own(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware], clock: Clock
    ) -> None:
        isr, editor = pair
        steps.release(1)
        visit(isr)
        clock.advance(10)
        visit(isr)
        steps.wait(2)
        demanded = start(editor.revalidate, HOME)
        steps.wait(3)
        steps.release()
        result(demanded)
        assert visit(isr).text == visit(editor).text == "render 3"

    def test_that_was_demanded_too_starts_its_own_after_it(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware]
    ) -> None:
        one, other = pair
        first = start(one.revalidate, HOME)
        steps.wait(1)
        second = start(other.revalidate, HOME)
        steps.release()
        result(first)
        result(second)
        assert visit(one).text == visit(other).text == "render 2"
        assert steps.begun == 2

    def test_does_not_hold_up_visitors_of_the_old_page(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware]
    ) -> None:
        isr, editor = pair
        steps.release(1)
        visit(isr)
        demanded = start(editor.revalidate, HOME)
        steps.wait(2)
        for _ in range(5):
            answer = visit(isr)
            assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=0")
        steps.release()
        result(demanded)
        isr.close()
        # None of those visitors had it rendered once more.
        assert steps.begun == 2

    def test_is_shared_by_visitors_of_a_cold_page(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware]
    ) -> None:
        isr, editor = pair
        demanded = start(editor.revalidate, HOME)
        steps.wait(1)
        waiting = visitors(isr, 4)
        steps.release()
        result(demanded)
        assert {result(visitor).text for visitor in waiting} == {"render 1"}
        assert steps.begun == 1


class TestManyCallsAtOnce:
    CALLS = 100

    def test_cost_two_renders_and_the_last_content_wins(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware]
    ) -> None:
        one, other = pair
        coordination = one._here().store.coordination
        calls = [start(one.revalidate, HOME)]
        steps.wait(1)
        before = coordination.signal[0]
        barrier = threading.Barrier(self.CALLS)

        def call(isr: ISRMiddleware) -> None:
            barrier.wait(PATIENCE)
            isr.revalidate(HOME)

        calls += [start(call, pair[index % 2]) for index in range(self.CALLS)]
        # All of them have asked for it, and the first one is still being rendered.
        wait_until(lambda: coordination.signal[0] - before == self.CALLS)
        steps.release()
        for done in calls:
            result(done)
        assert steps.begun == 2
        answer = visit(one)
        assert (answer.text, status_of(answer)) == ("render 2", "isr; hit; ttl=10")
        assert visit(other).text == "render 2"

    def test_one_after_the_other_cost_a_render_each(
        self, steps: Steps, pair: tuple[ISRMiddleware, ISRMiddleware]
    ) -> None:
        steps.release()
        for call in range(1, 11):
            pair[call % 2].revalidate(HOME)
            assert visit(pair[0]).text == visit(pair[1]).text == f"render {call}"

    def test_of_different_pages_do_not_wait_for_each_other(
        self, steps: Steps, site: Site, make: Make, cache: str
    ) -> None:
        site.page("/other", "other")
        isr = make(cache)
        demanded = start(isr.revalidate, HOME)
        steps.wait(1)
        isr.revalidate(HOME + "other")
        assert not demanded.done()
        steps.release()
        result(demanded)

    def test_that_fail_tell_all_who_called(self, site: Site, make: Make, cache: str) -> None:
        steps = Steps()

        def fail(environ: t.Any, start_response: t.Any) -> t.Any:
            raise ZeroDivisionError(steps(environ))

        site.answers["/"] = fail
        isr = make(cache)
        calls = [start(isr.revalidate, HOME) for _ in range(5)]
        steps.release()
        assert all(isinstance(call.exception(PATIENCE), RevalidationError) for call in calls)
