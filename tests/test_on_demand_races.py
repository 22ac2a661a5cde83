"""Promise 5: what is rendered on demand is never overwritten by a render that began earlier."""

from __future__ import annotations

import gc
import threading
import time
import typing as t
import weakref
from collections.abc import Iterator

import pytest
from conftest import Clock, Make, Site, status_of
from steps import PATIENCE, Steps, later, number, result, start, visit, visitors, wait_until

from wsgi_isr import ISRMiddleware, RevalidationError, Rule
from wsgi_isr.store.protocol import ReadOnly

HOME = "http://localhost/"
Pair = tuple[ISRMiddleware, ISRMiddleware]


@pytest.fixture
def steps(site: Site, make: Make) -> Iterator[Steps]:
    """``/`` is a page whose renders wait for the test."""
    steps = Steps()
    site.page("/", steps, revalidate=10)
    yield steps
    steps.release()


@pytest.fixture(params=["memory", "files", "two on the same files"])
def pair(request: pytest.FixtureRequest, make: Make, files: str) -> Pair:
    """The middleware that visitors come to, and the one that revalidates."""
    options: dict[str, t.Any] = {"rules": {"/": Rule()}}
    if request.param == "memory":
        return (make("memory://", **options),) * 2
    if request.param == "files":
        return (make(files, **options),) * 2
    return make(files, **options), make(files, **options)


class TestARenderThatBeganBefore:
    def test_in_the_background_does_not_overwrite(
        self, steps: Steps, pair: Pair, clock: Clock
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

    def test_on_a_cold_page_does_not_overwrite(self, steps: Steps, pair: Pair) -> None:
        isr, editor = pair
        waiting = visitors(isr, 4)
        steps.wait(1)
        steps.release(2)
        editor.revalidate(HOME)
        assert visit(isr).text == visit(editor).text == "render 2"
        steps.release(1)
        # They came before the call: either is good.
        assert {result(visitor).text for visitor in waiting} <= {"render 1", "render 2"}
        assert visit(isr).text == visit(editor).text == "render 2"

    @pytest.mark.parametrize("demanded", [False, True], ids=["by age", "on demand"])
    def test_and_outlived_render_timeout_does_not_overwrite(
        self, steps: Steps, make: Make, cache: t.Any, clock: Clock, demanded: bool
    ) -> None:
        isr = make(cache, render_timeout=0.1)
        hung = 1 if demanded else 2
        steps.hang(hung)
        if demanded:
            late = start(isr.revalidate, HOME)
        else:
            visit(isr)
            clock.advance(10)
            late = start(visit, isr)
        steps.wait(hung)
        if not demanded:
            wait_until(lambda: number(later(isr, clock)) > hung)
        isr.revalidate(HOME)
        newest = number(visit(isr))
        # The lease of the hung render may end a moment before its own time does.
        time.sleep(0.1)
        steps.release()
        # For the call it took too long.
        assert isinstance(late.exception(PATIENCE), RevalidationError) == demanded
        isr.close()
        assert number(visit(isr)) >= newest > hung

    def test_and_ends_before_the_demanded_one_is_not_kept(self, steps: Steps, pair: Pair) -> None:
        isr, editor = pair
        waiting = start(visit, isr)
        steps.wait(1)
        demanded = start(editor.revalidate, HOME)
        steps.wait(2)
        steps.release(1)
        # They came before the call, and get what they have waited for.
        assert result(waiting).text == "render 1"
        steps.release(2)
        result(demanded)
        isr.close()
        assert visit(isr).text == "render 2"
        assert steps.begun == 2

    def test_and_ends_after_the_demanded_one_failed_is_not_fresh(
        self, steps: Steps, site: Site, make: Make, cache: t.Any
    ) -> None:
        isr = make(cache, rules={"/": Rule()})
        waiting = start(visit, isr)
        steps.wait(1)
        site.fail("/")
        with pytest.raises(RevalidationError):
            isr.revalidate(HOME)
        steps.release(1)
        result(waiting)
        site.page("/", "new")
        answer = visit(isr)
        assert status_of(answer) in ("isr; hit; ttl=0", "isr; fwd=uri-miss; stored")

    @pytest.mark.parametrize("expired", [False, True], ids=["cold", "expired"])
    @pytest.mark.parametrize("two", [False, True], ids=["one", "two"])
    def test_on_another_query_of_the_path_is_for_those_who_wait(
        self, site: Site, make: Make, shared: str, two: bool, expired: bool
    ) -> None:
        isr = make(shared, rules={"/": Rule(query=["page"])})
        editor = make(shared, rules={"/": Rule(query=["page"])}) if two else isr
        if expired:
            site.page("/", "expired", revalidate=False)
            visit(isr, "/?page=2")
            isr.invalidate("/", expire=True)
        steps = Steps()
        site.page("/", steps, revalidate=False)
        waiting = start(visit, isr, "/?page=2")
        steps.wait(1)
        steps.release(2, 3)
        editor.revalidate(HOME)
        steps.release(1)
        assert result(waiting).text == "render 1"
        assert visit(isr, "/?page=2").text == "render 3"

    @pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
    def test_an_invalidation_by_tag_is_not_fresh_when_it_ends(
        self, site: Site, make: Make, cache: t.Any, hard: bool
    ) -> None:
        steps = Steps()
        site.page("/", steps, revalidate=False, tags=["posts"])
        isr = make(cache, rules={"/": Rule()})
        first = start(visit, isr)
        steps.wait(1)
        isr.revalidate_tag("posts", expire=hard)
        since = visitors(isr, 4) if hard else []
        steps.release()
        assert result(first).text == "render 1"
        # Not for those who came since.
        assert {result(visitor).text for visitor in since} <= {"render 2"}
        answer = visit(isr)
        if hard:
            assert (answer.text, status_of(answer)) == ("render 2", "isr; hit")
        else:
            assert (answer.text, status_of(answer)) == ("render 1", "isr; hit; ttl=0")


class TestACallDuringARender:
    def test_starts_its_own(self, steps: Steps, pair: Pair, clock: Clock) -> None:
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

    def test_does_not_hold_up_visitors_of_the_old_page(self, steps: Steps, pair: Pair) -> None:
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

    def test_is_shared_by_visitors_of_a_cold_page(self, steps: Steps, pair: Pair) -> None:
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

    def test_cost_two_renders_and_the_last_content_wins(self, steps: Steps, pair: Pair) -> None:
        one, other = pair
        calls = [start(one.revalidate, HOME)]
        steps.wait(1)
        before = one.store.signal[0]
        barrier = threading.Barrier(self.CALLS)

        def call(isr: ISRMiddleware) -> None:
            barrier.wait(PATIENCE)
            isr.revalidate(HOME)

        calls += [start(call, pair[index % 2]) for index in range(self.CALLS)]
        # All of them have asked for it, and the first one is still being rendered.
        wait_until(lambda: one.store.signal[0] - before >= self.CALLS)
        steps.release()
        for done in calls:
            result(done)
        assert steps.begun == 2
        answer = visit(one)
        assert (answer.text, status_of(answer)) == ("render 2", "isr; hit; ttl=10")
        assert visit(other).text == "render 2"

    def test_that_never_end_hold_no_more_than_the_last_renders(
        self, steps: Steps, make: Make
    ) -> None:
        isr = make(rules={"/": Rule()})
        flights, calls = [], []
        for render in range(1, 7):
            # The one before is under way, and outdated by this call.
            calls.append(start(isr.revalidate, HOME))
            steps.release(render - 1)
            steps.wait(render)
            (flight,) = isr._here().renders._flights.values()
            flights.append(weakref.ref(flight))
            del flight
        gc.collect()
        assert [reference() is None for reference in flights[:4]] == [True] * 4
        steps.release()
        for call in calls:
            result(call)

    def test_lead_to_two_renders_at_a_time_where_nobody_gets_a_lease(
        self, steps: Steps, make: Make, files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: object) -> None:
            raise ReadOnly("the disk is full")

        isr, editor = (make(files, rules={"/": Rule()}) for _ in range(2))
        for step in ("lease", "number", "put"):
            monkeypatch.setattr(isr.store, step, refuse)
        visits = []
        for render in (1, 2):
            visits.append(start(visit, isr))
            steps.wait(render)
            editor.invalidate("/")
        for count in (2, 5, 8):
            visits += [start(visit, isr) for _ in range(3)]
            # One of them renders when the second render has ended, and the others wait for it.
            wait_until(lambda count=count: len(isr._here().renders.waiting) >= count)  # type: ignore[misc]
            editor.invalidate("/")
        steps.release()
        for each in visits:
            result(each)
        assert steps.begun == 3

    def test_of_different_pages_do_not_wait_for_each_other(
        self, steps: Steps, site: Site, make: Make
    ) -> None:
        site.page("/other", "other")
        isr = make()
        demanded = start(isr.revalidate, HOME)
        steps.wait(1)
        isr.revalidate(HOME + "other")
        assert not demanded.done()
        steps.release()
        result(demanded)

    def test_that_fail_raise_for_all_who_called(self, site: Site, make: Make, cache: t.Any) -> None:
        site.fail("/")
        isr = make(cache)
        calls = [start(isr.revalidate, HOME) for _ in range(5)]
        assert all(isinstance(call.exception(PATIENCE), RevalidationError) for call in calls)
