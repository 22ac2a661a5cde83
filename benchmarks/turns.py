"""Measuring by turns: a machine that changes its speed changes it for all subjects alike.

Each round gives every subject one turn of about the same length. Medians are taken over the
rounds, by the processor time of the measuring thread, which other programs shake least; the cost
of an empty call is subtracted.
"""

from __future__ import annotations

import statistics
import time
import typing as t
from collections.abc import Callable, Mapping

#: Does something the given number of times.
Turn = Callable[[int], object]

#: Seconds of a turn.
LENGTH = 0.002


def repeat(call: Callable[..., object], *args: object) -> Turn:
    """Call something with the same arguments each time."""

    def turn(times: int) -> None:
        for _ in range(times):
            call(*args)

    return turn


def nothing(environ: object, start_response: object) -> None:
    """The empty call."""


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """Median, and the median deviation from it in per cent."""
    middle = statistics.median(values)
    return middle, 100 * statistics.median(abs(v - middle) for v in values) / (middle or 1)


def by_turns(
    subjects: Mapping[str, Turn],
    rounds: int,
    clock: Callable[[], int] = time.thread_time_ns,
    length: float = LENGTH,
) -> dict[str, dict[str, float]]:
    """Nanoseconds a time of each subject, and how far rounds differ from the median.

    :param clock: nanoseconds; `time.perf_counter_ns` where waiting counts.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    counts = {name: _times_in(turn, length) for name, turn in subjects.items()}
    for _ in range(rounds):
        for name, turn in subjects.items():
            count = counts[name]
            begun = clock()
            turn(count)
            times[name].append((clock() - begun) / count)
    measured = {name: median_and_spread(values) for name, values in times.items()}
    return {name: {"ns": ns, "spread %": spread} for name, (ns, spread) in measured.items()}


def without(table: dict[str, dict[str, float]], empty: str) -> dict[str, dict[str, float]]:
    """A table less the cost of its empty call."""
    cost = table[empty]["ns"]
    return {name: {**row, "ns": row["ns"] - cost} for name, row in table.items() if name != empty}


def add_ratios(table: dict[str, dict[str, float]], base: str) -> dict[str, dict[str, float]]:
    for row in table.values():
        row["ratio"] = row["ns"] / table[base]["ns"]
    return table


def _times_in(turn: Turn, length: float) -> int:
    """How often something fits into a turn."""
    times = 1
    while True:
        begun = time.perf_counter()
        turn(times)
        taken = time.perf_counter() - begun
        if taken >= length / 4:
            return max(1, round(times * length / taken))
        times *= 4


def cycle(call: Callable[[t.Any], object], items: list[t.Any]) -> Turn:
    """Call something with one item after the other, on from where the last turn ended."""
    position = 0

    def turn(times: int) -> None:
        nonlocal position
        end = position + times
        while position < end:
            chunk = items[position % len(items) :][: end - position]
            for item in chunk:
                call(item)
            position += len(chunk)

    return turn
