"""Pure decisions: how long a page is fresh, what marks it, and which of two renders counts."""

from __future__ import annotations

import math
import typing as t

import pytest
from conftest import Clock
from conftest import Make
from conftest import Site
from conftest import status_of
from entries import make_page
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from steps import visit

from wsgi_isr.state import CLOCK_TOLERANCE
from wsgi_isr.state import Epochs
from wsgi_isr.state import hold
from wsgi_isr.state import Mark
from wsgi_isr.state import replaces
from wsgi_isr.state import seconds_left
from wsgi_isr.state import State
from wsgi_isr.state import state_of

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
        assert {age: state_of(aged, Mark.NONE, BEGAN + age) for age in states} == states

    @pytest.mark.parametrize("revalidate", [60, None])
    def test_is_stale_with_a_soft_mark_and_expired_with_a_hard_one(
        self, revalidate: int | None
    ) -> None:
        assert state_of(page(revalidate), Mark.SOFT, BEGAN) is STALE
        assert state_of(page(revalidate), Mark.HARD, BEGAN) is EXPIRED

    def test_a_soft_mark_does_not_lengthen_a_life(self) -> None:
        assert state_of(page(60, 90), Mark.SOFT, BEGAN + 90) is EXPIRED

    @pytest.mark.parametrize("revalidate", [60, None])
    def test_of_a_page_from_the_future_is_stale(self, revalidate: int | None) -> None:
        """The clock was set back: nobody knows how old it is, and it must not stay for years."""
        assert state_of(page(revalidate), Mark.NONE, BEGAN - CLOCK_TOLERANCE - 1) is STALE
        assert seconds_left(page(revalidate), Mark.NONE, BEGAN - CLOCK_TOLERANCE - 1) == 0

    @pytest.mark.parametrize("revalidate", [60, None])
    def test_of_a_page_by_another_machines_clock_is_fresh(self, revalidate: int | None) -> None:
        assert state_of(page(revalidate), Mark.NONE, BEGAN - CLOCK_TOLERANCE + 1) is FRESH

    def test_of_a_page_from_the_future_is_expired_with_a_hard_mark(self) -> None:
        assert state_of(page(), Mark.HARD, BEGAN - 3600) is EXPIRED


class TestHold:
    """What an answer says of its page, and how long it may go on saying so."""

    #: Times that floats hold exactly, so that none falls beside a second's end.
    EXACT = st.integers(-20 * 64, 200 * 64).map(lambda parts: parts / 64)
    MOMENT = 1 / 64

    @given(
        window=st.integers(1, 90) | st.none(),
        longer=st.integers(0, 60) | st.none(),
        mark=st.sampled_from(Mark),
        age=EXACT,
    )
    def test_is_what_is_known_of_a_page_until_it_changes(
        self, window: int | None, longer: int | None, mark: Mark, age: float
    ) -> None:
        expire = None if window is None or longer is None else window + longer
        held, now = page(window, expire), BEGAN + age
        found = hold(held, mark, now)
        state = state_of(held, mark, now)
        if found is None:
            assert state is EXPIRED
            return
        fresh, left, stale, change = found
        assert (state is FRESH) == fresh and state is not EXPIRED
        assert left == seconds_left(held, mark, now)
        assert (stale is None) == (expire is None)
        if expire is not None and window is not None:
            wanted = expire - window if fresh else math.floor(expire - max(age, 0))
            assert stale == wanted
        if window is None:
            assert change == math.inf
            return
        assert now < change <= max(now, BEGAN) + 1
        just_before = change - self.MOMENT
        # A page by a clock that was set back may become fresh meanwhile; that can wait a second.
        if age >= -CLOCK_TOLERANCE:
            assert state_of(held, mark, just_before) is state
            assert seconds_left(held, mark, just_before) == left
        left_before = seconds_left(held, Mark.NONE, just_before)
        assert left_before is not None
        assert seconds_left(held, Mark.NONE, change) == left_before - 1


class TestSecondsLeft:
    @pytest.mark.parametrize(
        ("age", "left"), [(0, 60), (0.1, 60), (59.1, 1), (60, 0), (60.5, 0), (61, -1), (-3, 60)]
    )
    def test_are_rounded_up(self, age: float, left: int) -> None:
        assert seconds_left(page(), Mark.NONE, BEGAN + age) == left

    def test_are_none_for_ever_unless_it_is_marked(self) -> None:
        assert seconds_left(page(None), Mark.NONE, BEGAN) is None
        assert seconds_left(page(None), Mark.SOFT, BEGAN) == 0

    @given(
        st.integers(1, 10**6) | st.none(),
        st.integers(0, 10**6) | st.none(),
        st.sampled_from(Mark),
        st.floats(-(10**7), 10**7),
    )
    @settings(max_examples=200, deadline=None)
    def test_are_positive_exactly_while_a_page_is_fresh(
        self, revalidate: int | None, longer: int | None, mark: Mark, age: float
    ) -> None:
        expire = None if revalidate is None or longer is None else revalidate + longer
        aged = page(revalidate, expire)
        left = seconds_left(aged, mark, BEGAN + age)
        assert (left is None or left > 0) == (state_of(aged, mark, BEGAN + age) is FRESH)


class TestReplaces:
    @pytest.mark.parametrize(("sequence", "wins"), [(4, False), (5, True), (6, True)])
    def test_a_render_that_began_earlier_never_wins(self, sequence: int, wins: bool) -> None:
        assert replaces(page(sequence=sequence), page(sequence=5)) is wins

    def test_however_late_the_clocks_say_it_was(self) -> None:
        late = make_page("/blog/1", sequence=4, generated_at=BEGAN + 10**6)
        assert not replaces(late, page(sequence=5))

    def test_any_render_wins_where_nothing_is_stored(self) -> None:
        assert replaces(page(lineage=""), None)

    def test_a_render_of_another_lineage_wins_over_one_that_is_not_the_stores(self) -> None:
        new = page(lineage="new", sequence=1)
        assert replaces(new, page(lineage="old", sequence=9), "new")

    def test_and_not_over_one_that_is(self) -> None:
        late = page(lineage="old", sequence=9)
        assert not replaces(late, page(lineage="new", sequence=1), "new")

    def test_a_render_of_which_nobody_knows_when_it_was_never_wins(self) -> None:
        assert not replaces(page(lineage="", sequence=9), page(lineage="old", sequence=1))


class TestMarks:
    @pytest.fixture
    def epochs(self) -> Epochs:
        return Epochs("a lineage")

    @pytest.mark.parametrize(
        "label",
        [
            "path:/blog/1",
            "host:localhost/blog/1",
            "tag:news",
            "pattern:/blog/*",
            "pattern:/**",
            f"page:{page().name}",
        ],
    )
    def test_are_made_by_each_label_of_a_page(self, epochs: Epochs, label: str) -> None:
        tagged = page(tags=("news",))
        assert epochs.mark(tagged) is Mark.NONE
        epochs.apply(6, label, False)
        assert epochs.mark(tagged) is Mark.SOFT
        epochs.apply(7, label, True)
        assert epochs.mark(tagged) is Mark.HARD

    @pytest.mark.parametrize(
        "label", ["path:/blog/2", "host:other/blog/1", "tag:old", "pattern:/*", "page:0"]
    )
    def test_are_made_by_no_other(self, epochs: Epochs, label: str) -> None:
        epochs.apply(6, label, True)
        assert epochs.mark(page(tags=("news",))) is Mark.NONE

    def test_do_not_touch_what_was_rendered_since(self, epochs: Epochs) -> None:
        epochs.apply(5, "path:/blog/1", True)
        assert epochs.mark(page(sequence=6)) is Mark.NONE
        assert epochs.mark(page(sequence=4)) is Mark.HARD

    def test_that_are_hard_stay_so_when_a_soft_one_follows(self, epochs: Epochs) -> None:
        epochs.apply(6, "tag:news", True)
        epochs.apply(7, "tag:news", False)
        assert epochs.mark(page(tags=("news",))) is Mark.HARD
        assert epochs.mark(page(tags=("news",), sequence=6)) is Mark.SOFT

    def test_are_the_worst_of_all_labels(self, epochs: Epochs) -> None:
        epochs.apply(9, "path:/blog/1", False)
        epochs.apply(6, "tag:news", True)
        assert epochs.mark(page(tags=("news",))) is Mark.HARD

    def test_are_soft_for_a_page_of_another_lineage(self, epochs: Epochs) -> None:
        assert epochs.mark(page(lineage="lost", sequence=10**9)) is Mark.SOFT

    def test_are_hard_for_one_that_was_invalidated_since(self, epochs: Epochs) -> None:
        epochs.apply(1, "path:/blog/1", True)
        assert epochs.mark(page(lineage="lost", sequence=10**9)) is Mark.HARD

    @pytest.mark.parametrize(("hard", "mark"), [(False, Mark.SOFT), (True, Mark.HARD)])
    def test_outlive_being_forgotten(self, epochs: Epochs, hard: bool, mark: Mark) -> None:
        epochs.apply(6, "path:/blog/1", hard)
        for number in range(10):
            epochs.apply(7 + number, f"path:/{number}", False)
            epochs.apply(7 + number, f"pattern:/{number}", False)
        epochs.forget_oldest(3)
        assert len(epochs) == 3
        assert epochs.mark(page()) is mark

    @given(
        st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=30),
        st.integers(0, 30),
        st.integers(0, 6),
    )
    @settings(max_examples=200, deadline=None)
    def test_never_become_weaker_by_forgetting(
        self, invalidations: list[tuple[str, bool]], sequence: int, keep: int
    ) -> None:
        known, forgetful = Epochs("a lineage"), Epochs("a lineage")
        for number, (tag, hard) in enumerate(invalidations, 1):
            known.apply(number, f"tag:{tag}", hard)
            forgetful.apply(number, f"tag:{tag}", hard)
            forgetful.forget_oldest(keep)
        for tag in "abcdef":
            tagged = page(tags=(tag,), sequence=sequence)
            assert forgetful.mark(tagged) >= known.mark(tagged)


class TestAClockThatIsSetBack:
    """By an hour, as by daylight saving time on a machine that is wrongly set up."""

    def test_makes_a_page_stale_and_its_next_render_fresh(
        self, site: Site, make: Make, clock: Clock, cache: t.Any
    ) -> None:
        isr = make(cache)
        site.page("/", "old", revalidate=60)
        visit(isr)
        site.page("/", "new", revalidate=60)
        clock.advance(-3600)
        answer = visit(isr)
        assert (answer.text, status_of(answer)) == ("old", "isr; hit; ttl=0")
        isr.close()
        answer = visit(isr)
        assert (answer.text, status_of(answer)) == ("new", "isr; hit; ttl=60")

    def test_does_not_let_an_older_render_win(
        self, site: Site, make: Make, clock: Clock, cache: t.Any
    ) -> None:
        isr = make(cache, base_url="http://localhost")
        site.page("/", "old", revalidate=False)
        visit(isr)
        clock.advance(-3600)
        site.page("/", "new", revalidate=False)
        isr.revalidate("/")
        assert visit(isr).text == "new"
        clock.advance(3600)
        assert visit(isr).text == "new"

    def test_does_not_stretch_the_pause_of_a_page_that_failed(
        self, site: Site, make: Make, clock: Clock, cache: t.Any
    ) -> None:
        isr = make(cache)
        site.page("/", "old", revalidate=10)
        visit(isr)
        site.fail("/")
        for _ in range(4):
            clock.advance(31)
            visit(isr)
            isr.close()
        clock.advance(-3600)
        site.page("/", "new", revalidate=10)
        visit(isr)
        isr.close()
        assert visit(isr).text == "new"
