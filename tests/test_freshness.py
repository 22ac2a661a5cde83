"""Pure decisions: how long a page is fresh."""

from __future__ import annotations

import math
import typing as t

import pytest
from conftest import Clock, Make, Site, status_of
from entries import make_page
from hypothesis import given
from hypothesis import strategies as st
from steps import visit

from wsgi_isr.page import CLOCK_TOLERANCE, Invalidated, State, state_of, window_of

FRESH, STALE, EXPIRED = State.FRESH, State.STALE, State.EXPIRED
BEGAN = 1000.0


def page(revalidate: int | None = 60, expire: int | None = None, **more: t.Any) -> t.Any:
    return make_page("/blog/1", revalidate=revalidate, expire=expire, generated_at=BEGAN, **more)


class TestState:
    @pytest.mark.parametrize(
        ("revalidate", "expire", "states"),
        [
            (60, None, {0: FRESH, 59.9: FRESH, 60: STALE, 10**9: STALE}),
            (60, 90, {0: FRESH, 59.9: FRESH, 60: STALE, 89.9: STALE, 90: EXPIRED}),
            (60, 60, {59.9: FRESH, 60: EXPIRED}),
            (None, None, {0: FRESH, 10**9: FRESH}),
        ],
        ids=["a window", "with an expiry", "an expiry that equals the window", "for ever"],
    )
    def test_follows_from_the_age(
        self, revalidate: int | None, expire: int | None, states: dict[float, State]
    ) -> None:
        aged = page(revalidate, expire)
        assert {age: state_of(aged, Invalidated.NO, BEGAN + age) for age in states} == states

    @pytest.mark.parametrize("revalidate", [60, None])
    def test_follows_from_invalidations(self, revalidate: int | None) -> None:
        assert state_of(page(revalidate), Invalidated.STALE, BEGAN) is STALE
        assert state_of(page(revalidate), Invalidated.EXPIRED, BEGAN) is EXPIRED
        # A soft one does not lengthen a life.
        assert state_of(page(60, 90), Invalidated.STALE, BEGAN + 90) is EXPIRED

    @pytest.mark.parametrize("revalidate", [60, None])
    def test_of_a_page_from_the_future_is_stale(self, revalidate: int | None) -> None:
        """The clock was set back: nobody knows how old it is, and it must not stay for years."""
        before = BEGAN - CLOCK_TOLERANCE
        assert state_of(page(revalidate), Invalidated.NO, before - 1) is STALE
        assert state_of(page(revalidate), Invalidated.NO, before + 1) is FRESH
        assert state_of(page(revalidate), Invalidated.EXPIRED, before - 1) is EXPIRED


class TestWindow:
    """What an answer says of its page, and how long it may go on saying so."""

    #: Times that floats represent exactly, so that none falls beside a second's end.
    EXACT = st.integers(-20 * 64, 200 * 64).map(lambda parts: parts / 64)
    MOMENT = 1 / 64

    @pytest.mark.parametrize(
        ("age", "left"), [(0, 60), (0.1, 60), (59.1, 1), (60, 0), (60.5, 0), (61, -1), (-3, 60)]
    )
    def test_seconds_are_rounded_up(self, age: float, left: int) -> None:
        found = window_of(page(), Invalidated.NO, BEGAN + age)
        assert found is not None and found[1] == left

    @given(
        window=st.integers(1, 90) | st.none(),
        longer=st.integers(0, 60) | st.none(),
        invalidated=st.sampled_from(Invalidated),
        age=EXACT,
    )
    def test_is_that_of_the_page_until_it_changes(
        self, window: int | None, longer: int | None, invalidated: Invalidated, age: float
    ) -> None:
        expire = None if window is None or longer is None else window + longer
        made, now = page(window, expire), BEGAN + age
        found = window_of(made, invalidated, now)
        if found is None:
            return
        fresh, left, stale, change = found
        assert left is None or (left > 0) == fresh
        assert (stale is None) == (expire is None)
        if expire is not None and window is not None:
            wanted = expire - window if fresh else math.floor(expire - max(age, 0))
            assert stale == wanted
        if window is None:
            assert change == math.inf
            return
        assert now < change <= max(now, BEGAN) + 1
        # A page by a clock that was set back may become fresh meanwhile; that can wait a second.
        if age >= -CLOCK_TOLERANCE:
            before = window_of(made, invalidated, change - self.MOMENT)
            assert before is not None and before[:2] == (fresh, left)


class TestAClockThatIsSetBack:
    def test_makes_a_page_stale_and_its_next_render_fresh(
        self, site: Site, make: Make, files: str, clock: Clock
    ) -> None:
        site.page("/", lambda environ: f"render {site.renders('/')}", revalidate=False)
        isr = make(files)
        visit(isr)
        clock.advance(-3600)
        assert status_of(visit(isr)) == "isr; hit; ttl=0"
        isr.close()
        answer = visit(isr)
        assert (answer.text, status_of(answer)) == ("render 2", "isr; hit")

    def test_does_not_stretch_the_pause_of_a_page_that_failed(
        self, site: Site, make: Make, clock: Clock
    ) -> None:
        site.page("/", "old", revalidate=10)
        isr = make()
        visit(isr)
        clock.advance(10)
        site.fail("/")
        for _ in range(4):
            visit(isr)
            isr.close()
        site.page("/", "new", revalidate=10)
        clock.advance(-3600)
        visit(isr)
        isr.close()
        assert visit(isr).text == "new"
