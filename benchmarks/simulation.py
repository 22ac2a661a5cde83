"""A large site in simulated time: a million URLs, Zipf's visits, fifty machines on one store.

``python -m benchmarks.simulation`` plays it in a few minutes, prints a table, and draws a plot
with ``--out FOLDER``. The same seed gives the same figures.

What decides is the library's own code: `state_of`, `replaces`, `Epochs`, the memory level with its
bound and eviction, and the bounds of the queue of renders. Simulated are visitors, time, the
store, and renders, which take a tenth of a second each. A machine is one process. The site has run
for long: each page was rendered before, when its visits and its window made it likely.
"""

from __future__ import annotations

import argparse
import collections
import heapq
import itertools
import random
import time
import typing as t
from pathlib import Path

from wsgi_isr.key import PageKey
from wsgi_isr.metadata import Metadata
from wsgi_isr.page import Codec, Invalidated, Page, State, state_of
from wsgi_isr.process import POLL
from wsgi_isr.renders import ELSEWHERE
from wsgi_isr.store.epochs import Epochs, replaces
from wsgi_isr.store.memory import Entry, MemoryLevel
from wsgi_isr.store.protocol import Changes, Invalidation, Number
from wsgi_isr.store.redis import LOOK
from wsgi_isr.threads import MAX_QUEUE

MEBIBYTE = 2**20
#: Bytes of a page, as it is and compressed.
BODIES = {"identity": bytes(24 * 1024), "gzip": bytes(6 * 1024)}
HEADERS = (("Content-Type", "text/html; charset=utf-8"),)
LINEAGE = "lineage"
#: Pages have one tag of so many.
TAGS = 20
#: Seconds that a render takes.
RENDER = 0.1
#: Requests to the store that a render behind a visitor makes: failure, lease, page, number, what
#: is there, storing, failure, giving the lease back. Three of them carry the page.
CALLS, READS = 8, 2
BEGIN = 1_700_000_000.0


class Setting(t.NamedTuple):
    """
    :param visits: per second, on all machines.
    :param window: seconds for which a page is fresh.
    :param memory: bytes of pages in memory, per machine.
    :param purge: seconds after the beginning at which a tag is revalidated; 0 for never.
    """

    visits: int
    window: int
    memory: int = 50 * MEBIBYTE
    purge: float = 0.0
    workers: int = 2

    @property
    def name(self) -> str:
        window = f"{self.window} s" if self.window < 3600 else f"{self.window // 3600} h"
        memory = f"{self.memory // MEBIBYTE} MiB"
        workers = f", {self.workers} workers" if self.workers != 2 else ""
        return f"{self.visits:,}/s, {window}, {memory}{workers}{', purge' if self.purge else ''}"


SETTINGS = [
    *(Setting(visits, window) for window in (60, 3600) for visits in (1_000, 10_000, 50_000)),
    Setting(50_000, 3600, memory=250 * MEBIBYTE),
    Setting(50_000, 60, workers=16),
    Setting(10_000, 3600, purge=20.0),
]


class Size(t.NamedTuple):
    """
    :param warm: visits before anything is counted.
    :param counted: visits that are.
    """

    urls: int = 1_000_000
    machines: int = 50
    warm: int = 200_000
    counted: int = 600_000


class Figures:
    """What was counted while it ran."""

    def __init__(self) -> None:
        self.visits = self.from_memory = self.from_store = 0
        self.renders = self.finished = self.refused = self.calls = 0
        self.read = self.written = 0
        #: Seconds by which stale pages were past their window when they were served.
        self.late: list[float] = []
        self.seconds = 0.0
        #: Renders and stale visits of each second.
        self.renders_at: collections.Counter[int] = collections.Counter()
        self.stale_at: collections.Counter[int] = collections.Counter()

    def late_at(self, share: float) -> float:
        """How late that share of all stale visits was at the most."""
        ordered = sorted(self.late)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Machine:
    """One process: its memory, and the queue for its threads."""

    def __init__(self, memory: int, workers: int) -> None:
        self.memory = MemoryLevel(memory)
        self.memory.apply(Changes(Number(LINEAGE, 0), True, ()))
        self.queue: collections.deque[int] = collections.deque()
        self.queued: set[int] = set()
        self.idle = workers


class Play:
    """A setting, played once."""

    def __init__(self, setting: Setting, size: Size, seed: int) -> None:
        self.setting, self.size = setting, size
        self.chance = random.Random(f"{seed} {setting}")
        self.figures = Figures()
        self.metadata = [Metadata(setting.window, None, (f"t{tag}",)) for tag in range(TAGS)]
        self.cumulated = list(itertools.accumulate(1 / rank for rank in range(1, size.urls + 1)))
        self.epochs = Epochs(LINEAGE)
        self.sequence = 0
        self.pages: dict[int, Page] = {}
        #: Pages that were stored.
        self.stores = 1
        self.rendering: set[int] = set()
        #: When a render ends: time, number, machine, URL, when it began.
        self.ends: list[tuple[float, int, int, int, float]] = []
        self.machines = [Machine(setting.memory, setting.workers) for _ in range(size.machines)]
        self.wire = sum(map(len, Codec().encode(self.page(0))))
        #: When the counting began.
        self.begin = BEGIN

    def rate(self, url: int) -> float:
        """Visits per second."""
        return self.setting.visits / (url + 1) / self.cumulated[-1]

    @property
    def wanted(self) -> float:
        """Renders per second that keep all pages as fresh as their visits allow."""
        window = self.setting.window
        return sum(1 / (window + 1 / self.rate(url)) for url in range(self.size.urls))

    # The store.

    def page(self, url: int) -> Page:
        page = self.pages.get(url)
        if page is None:
            # Rendered by a visit after its window; fresh as long as that says, then stale until
            # the next one.
            window, pause = self.setting.window, 1 / self.rate(url)
            age = self.chance.uniform(0, window)
            if self.chance.random() * (window + pause) > window:
                age = window + self.chance.expovariate(1 / pause)
            page = self.pages[url] = self.make(url, BEGIN - age, 0)
        return page

    def make(self, url: int, began: float, number: int) -> Page:
        key = PageKey("https", "www.example.com", "", f"/{url}")
        tag = url % TAGS
        return Page(
            key, "200 OK", HEADERS, BODIES, self.metadata[tag], began, number, LINEAGE,
            name=str(url), digest="digest",
        )  # fmt: skip

    def load(self, machine: Machine, url: int) -> Entry:
        figures = self.figures
        figures.calls += 1
        figures.read += self.wire
        entry = self.keep(machine, self.page(url))
        entry.newest_at = self.stores
        return entry

    def keep(self, machine: Machine, page: Page) -> Entry:
        return machine.memory.put(Entry(page, self.validity(page)))

    def validity(self, page: Page) -> Invalidated:
        number = Number(page.lineage, page.sequence)
        return self.epochs.validity(page.labels, page.key.full_path, number)

    # Visitors.

    def visit(self, now: float, url: int, at: int, key: PageKey) -> None:
        figures, machine = self.figures, self.machines[at]
        entry = machine.memory.get(key)
        figures.visits += 1
        if entry is None:
            entry = self.load(machine, url)
            figures.from_store += 1
            state = state_of(entry.page, entry.invalidated, now)
        else:
            machine.memory.confirm(entry)
            state = state_of(entry.page, entry.invalidated, now)
            if state is not State.FRESH and entry.newest_at != self.stores:
                # Another machine may have rendered it.
                entry = self.load(machine, url)
                figures.from_store += 1
                state = state_of(entry.page, entry.invalidated, now)
            else:
                figures.from_memory += 1
        entry.referenced = True
        if state is not State.FRESH:
            figures.late.append(max(0.0, now - entry.page.generated_at - self.setting.window))
            figures.stale_at[int(now - self.begin)] += 1
            if entry.retry_at <= now:
                self.behind(now, machine, at, url)

    # Renders.

    def behind(self, now: float, machine: Machine, at: int, url: int) -> None:
        if url in machine.queued:
            return
        if len(machine.queue) >= MAX_QUEUE:
            self.figures.refused += 1
            return
        machine.queued.add(url)
        machine.queue.append(url)
        self.work(now, machine, at)

    def work(self, now: float, machine: Machine, at: int) -> None:
        figures = self.figures
        while machine.idle and machine.queue:
            url = machine.queue.popleft()
            machine.queued.discard(url)
            figures.calls += 2
            if url in self.rendering:
                entry = machine.memory.get(self.page(url).key)
                if entry is not None:
                    entry.retry_at = now + ELSEWHERE
                continue
            entry = self.load(machine, url)
            if state_of(entry.page, entry.invalidated, now) is State.FRESH:
                figures.calls += 1
                continue
            machine.idle -= 1
            # So that no second visitor asks for what is being rendered here.
            machine.queued.add(url)
            self.rendering.add(url)
            self.sequence += 1
            figures.renders += 1
            figures.renders_at[int(now - self.begin)] += 1
            heapq.heappush(self.ends, (now + RENDER, self.sequence, at, url, now))

    def end(self, now: float, number: int, at: int, url: int, began: float) -> None:
        figures, machine = self.figures, self.machines[at]
        page = self.make(url, began, number)
        figures.finished += 1
        figures.calls += CALLS - 3
        figures.read += (READS - 1) * self.wire
        mine, other = (Number(LINEAGE, each.sequence) for each in (page, self.pages[url]))
        if replaces(mine, other, LINEAGE):
            self.pages[url] = page
            self.stores += 1
            figures.written += self.wire
        self.keep(machine, page)
        self.rendering.discard(url)
        machine.queued.discard(url)
        machine.idle += 1
        self.work(now, machine, at)

    def purge(self) -> None:
        self.sequence += 1
        invalidation = Invalidation("tag:t0", self.sequence, False)
        self.epochs.apply(invalidation)
        for machine in self.machines:
            machine.memory.apply(Changes(Number(LINEAGE, self.sequence), True, (invalidation,)))
            machine.memory.generation = self.sequence

    # Time.

    def fill(self) -> None:
        """Begin with what is visited most in memory, as it would be."""
        room = self.setting.memory // Entry(self.page(0), Invalidated.NO).size
        for url in reversed(range(min(room, self.size.urls))):
            page = self.page(url)
            for machine in self.machines:
                self.keep(machine, page)

    def run(self) -> Figures:
        self.fill()
        now = self.play(BEGIN, self.size.warm, 0.0)
        self.figures = Figures()
        self.begin = now
        end = self.play(now, self.size.counted, self.setting.purge)
        self.figures.seconds = end - now
        # Each machine looks what is new, and follows.
        looks = 1 / LOOK + 1 / POLL
        self.figures.calls += int(self.figures.seconds * looks * self.size.machines)
        return self.figures

    def play(self, now: float, visits: int, purge: float) -> float:
        chance, ends = self.chance, self.ends
        purge_at = now + purge if purge else float("inf")
        for first in range(0, visits, 100_000):
            count = min(100_000, visits - first)
            urls = chance.choices(range(self.size.urls), cum_weights=self.cumulated, k=count)
            for url in urls:
                now += chance.expovariate(self.setting.visits)
                while ends and ends[0][0] <= now:
                    self.end(*heapq.heappop(ends))
                if now >= purge_at:
                    purge_at = float("inf")
                    self.purge()
                at = int(chance.random() * self.size.machines)
                self.visit(now, url, at, self.page(url).key)
        return now


def row(play: Play, figures: Figures) -> dict[str, str]:
    """The figures of a setting, for a table."""
    seconds, visits = figures.seconds, figures.visits
    capacity = len(play.machines) * play.setting.workers / RENDER
    return {
        "visits, window, memory": play.setting.name,
        "from memory": f"{figures.from_memory / visits:.0%}",
        "stale": f"{len(figures.late) / visits:.1%}",
        "late: half of them, 99 %": f"{span(figures.late_at(0.5))}, {span(figures.late_at(0.99))}",
        "renders/s": f"{figures.renders / seconds:,.0f}",
        "wanted": f"{play.wanted:,.0f}",
        "possible": f"{capacity:,.0f}",
        "store: calls/s": f"{figures.calls / seconds:,.0f}",
        "MB/s read": f"{figures.read / seconds / 1e6:,.0f}",
        "MB/s written": f"{figures.written / seconds / 1e6:,.1f}",
    }


def span(seconds: float) -> str:
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (float("inf"), 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.2g} {unit}" if seconds else "0 s"
    raise AssertionError


def table(rows: list[dict[str, str]]) -> str:
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for simulation.svg and simulation.png")
    arguments = parser.parse_args()
    played, rows = [], []
    for setting in SETTINGS:
        begun = time.monotonic()
        play = Play(setting, Size(), arguments.seed)
        figures = play.run()
        rows.append(row(play, figures))
        played.append((setting, figures))
        print(f"{setting.name}: {time.monotonic() - begun:.0f} s", flush=True)
    print(table(rows))
    if arguments.out is not None:
        from . import simulation_plot

        simulation_plot.draw(played, arguments.out)


if __name__ == "__main__":
    main()
