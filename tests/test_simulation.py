"""The simulation of a large site counts what the library's own decisions make of visits."""

from __future__ import annotations

import functools
import typing as t

import pytest
from benchmarks.simulation import MEBIBYTE, Play, Setting, Size, row

pytestmark = pytest.mark.slow

SMALL = Size(urls=20_000, machines=10, warm=10_000, counted=40_000)
TINY = Size(urls=1_000, machines=2, warm=500, counted=2_000)
SETTING = Setting(100, 60, memory=MEBIBYTE)


@functools.cache
def play(setting: Setting = SETTING) -> tuple[Play, t.Any]:
    played = Play(setting, SMALL, 1)
    return played, played.run()


def tiny(seed: int) -> dict[str, str]:
    played = Play(SETTING, TINY, seed)
    return row(played, played.run())


class TestTheSimulation:
    def test_is_the_same_for_the_same_seed(self) -> None:
        assert tiny(1) == tiny(1) != tiny(2)

    def test_counts_each_visit_once(self) -> None:
        played, figures = play()
        assert figures.visits == SMALL.counted == figures.from_memory + figures.from_store
        assert figures.seconds == pytest.approx(SMALL.counted / SETTING.visits, rel=0.05)

    def test_renders_as_often_as_visits_and_windows_want(self) -> None:
        """By the law of renewal: a window, then the time to the next visit."""
        played, figures = play()
        assert figures.renders / figures.seconds == pytest.approx(played.wanted, rel=0.05)

    def test_renders_no_more_than_its_threads_can(self) -> None:
        setting = Setting(1_000, 1, memory=MEBIBYTE, workers=1)
        played, figures = play(setting)
        assert played.wanted > 100
        assert figures.renders / figures.seconds == pytest.approx(10 * 1 / 0.1, rel=0.05)
        assert figures.refused > 0

    def test_keeps_memory_within_its_bound(self) -> None:
        played, figures = play()
        sizes = [machine.memory.size for machine in played.machines]
        assert 0.9 * MEBIBYTE < min(sizes) and max(sizes) <= MEBIBYTE
        more = play(SETTING._replace(memory=4 * MEBIBYTE))[1]
        assert more.from_memory > figures.from_memory
        assert more.read < figures.read

    def test_serves_purged_pages_stale_and_renders_them(self) -> None:
        calm, purged = SETTING._replace(window=3600), SETTING._replace(window=3600, purge=50)
        quiet, busy = play(calm)[1], play(purged)[1]
        assert len(busy.late) > 1.2 * len(quiet.late)
        before = sum(busy.renders_at[second] for second in range(40, 50))
        after = sum(busy.renders_at[second] for second in range(50, 60))
        assert after > before
