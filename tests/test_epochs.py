"""The last invalidation of each label and pattern, and which of two renders stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_isr.page import Invalidated
from wsgi_isr.rules import compile_pattern
from wsgi_isr.store.epochs import MAX_ALIKE, Epochs, pattern_over, prefix_of, replaces
from wsgi_isr.store.protocol import Invalidation, Number

NO, STALE, EXPIRED = Invalidated.NO, Invalidated.STALE, Invalidated.EXPIRED
#: Parts of paths and of patterns, with what may be mistaken for something else.
WORDS = ["a", "ab", "b", "caf\xc3\xa9", "a%"]
SPELLED = {"caf\xc3\xa9": "caf%C3%A9", "a%": "a%25"}

paths = st.lists(st.sampled_from(WORDS), max_size=4).map(lambda words: "/" + "/".join(words))
patterns = st.lists(
    st.sampled_from([*(SPELLED.get(word, word) for word in WORDS), "*", "**", "a*", "*b"]),
    min_size=1,
    max_size=4,
).map(lambda words: "/" + "/".join(words))


def epochs_of(*invalidations: tuple[str, int, bool]) -> Epochs:
    epochs = Epochs("lineage")
    for invalidation in invalidations:
        epochs.apply(Invalidation(*invalidation))
    return epochs


def validity(epochs: Epochs, sequence: int, path: str = "/a", *labels: str) -> Invalidated:
    return epochs.validity(labels, path, Number("lineage", sequence))


class TestPatterns:
    @given(patterns, paths)
    def test_are_found_by_their_literal_beginning(self, pattern: str, path: str) -> None:
        matches = compile_pattern(pattern).fullmatch(path) is not None
        assert not matches or path.startswith(prefix_of(pattern))
        epochs = epochs_of((f"pattern:{pattern}", 5, False))
        assert validity(epochs, 4, path) is (STALE if matches else NO)

    @given(patterns, paths)
    def test_are_covered_by_the_pattern_that_replaces_them(self, pattern: str, path: str) -> None:
        if compile_pattern(pattern).fullmatch(path):
            assert compile_pattern(pattern_over(pattern)).fullmatch(path)

    @pytest.mark.parametrize(
        ("pattern", "path"), [("/blog/**", "/blog"), ("/**", "/"), ("/*/**/b", "/a/b")]
    )
    def test_match_without_the_segments_that_two_stars_stand_for(
        self, pattern: str, path: str
    ) -> None:
        assert validity(epochs_of((f"pattern:{pattern}", 5, True)), 4, path) is EXPIRED

    def test_that_begin_alike_are_merged_without_losing_one(self) -> None:
        count = 3 * MAX_ALIKE
        epochs = epochs_of(*((f"pattern:/a/*{n}", n + 1, n == 7) for n in range(count)))
        assert len(epochs.labels) <= MAX_ALIKE + 1
        assert validity(epochs, 0, "/a/x7") is EXPIRED
        assert all(validity(epochs, n, f"/a/x{n}") is not NO for n in range(count))
        assert validity(epochs, count, "/a/x1") is NO
        assert validity(epochs, 0, "/b/x1") is NO

    def test_that_begin_alike_are_merged_whatever_stands_behind_the_slash(self) -> None:
        """``/a/*`` and ``/a*`` are found under one beginning, and no pattern is over both."""
        patterns = [f"/a/*{n}" for n in range(MAX_ALIKE // 2)]
        patterns[1:1] = [f"/a*{n}" for n in range(MAX_ALIKE)]
        epochs = epochs_of(*((f"pattern:{pattern}", 5, True) for pattern in patterns))
        assert len(epochs.labels) < len(patterns)
        for n in range(MAX_ALIKE // 2):
            assert validity(epochs, 4, f"/ax{n}") is validity(epochs, 4, f"/a/x{n}") is EXPIRED


class TestValidity:
    def test_depends_on_what_came_after_the_render(self) -> None:
        epochs = epochs_of(("tag:a", 5, True), ("tag:a", 9, False), ("tag:b", 7, False))
        states = [validity(epochs, n, "/", "tag:a") for n in (4, 5, 8, 9)]
        assert states == [EXPIRED, STALE, STALE, NO]
        assert [validity(epochs, n, "/", "tag:b") for n in (6, 7)] == [STALE, NO]
        assert validity(epochs, 0, "/", "tag:c") is NO

    def test_does_not_depend_on_the_order_in_which_one_hears_of_them(self) -> None:
        epochs = epochs_of(("tag:a", 9, False), ("tag:a", 5, True))
        assert epochs.changed == 9
        assert [validity(epochs, n, "/", "tag:a") for n in (4, 5, 9)] == [EXPIRED, STALE, NO]

    def test_of_another_lineage_is_stale_at_least(self) -> None:
        foreign = Number("other", 10**6)
        epochs = epochs_of(("tag:a", 5, True))
        assert epochs.validity(["tag:b"], "/", foreign) is STALE
        assert epochs.validity(["tag:a"], "/", foreign) is EXPIRED

    def test_of_forgotten_labels_is_stale_for_all_earlier_pages(self) -> None:
        epochs = epochs_of(*((f"tag:{n}", n, True) for n in range(1, 11)))
        epochs.apply(Invalidation("pattern:/p/*", 3, False))
        epochs.forget_oldest(4)
        assert set(epochs.labels) == {f"tag:{n}" for n in range(7, 11)}
        assert epochs.floor == 6
        assert [validity(epochs, n, "/p/1", "tag:2") for n in (1, 5, 6)] == [STALE, STALE, NO]
        assert validity(epochs, 6, "/", "tag:8") is EXPIRED


class TestSince:
    def test_gives_the_later_ones_in_their_order(self) -> None:
        epochs = epochs_of(("tag:a", 5, True), ("tag:a", 9, False), ("tag:b", 7, False))
        assert epochs.since(5) == (("tag:b", 7, False), ("tag:a", 9, False))
        assert epochs.since(9) == ()
        again = Epochs(*epochs)
        assert again.labels == epochs.labels and again.changed == 9


class TestReplaces:
    @pytest.mark.parametrize(
        ("new", "old", "expected"),
        [
            (("now", 2), ("now", 1), True), (("now", 1), ("now", 1), True),
            (("now", 1), ("now", 2), False), (("now", 1), ("before", 9), True),
            (("before", 9), ("now", 1), False), (("before", 1), ("before", 2), False),
            (("before", 1), ("long ago", 2), True), (("", 1), ("before", 1), False),
        ],
    )  # fmt: skip
    def test_a_page_of_the_stores_own_lineage_stays(
        self, new: tuple[str, int], old: tuple[str, int], expected: bool
    ) -> None:
        assert replaces(Number(*new), Number(*old), "now") is expected
