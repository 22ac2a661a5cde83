"""Part ``load``: who waits, and how often is rendered, when many come at once or keep coming.

gunicorn with four workers of 16 threads, a render of 200 ms, files. Visitors come whether others
were answered or not, each on a connection of his own that is open by then. Requests that are no
pages tell what server and client take.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

from .processes import Program, running
from .rendering import RENDER, WINDOW
from .results import Table, note
from .subjects import BODY

VISITORS = 64
RATE = 50
GUNICORN = [
    sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "4",
    "--worker-class", "gthread", "--threads", "16", "--no-control-socket",
    "benchmarks.rendering:application",
]  # fmt: skip
#: As the README has it: visitors go first.
REGENERATE = [
    "nice", sys.executable, "-m", "wsgi_isr", "benchmarks.rendering:application", "regenerate",
]  # fmt: skip


class Visitor(asyncio.Protocol):
    """One request on a connection of its own, opened beforehand: streams would cost more."""

    def __init__(self) -> None:
        self._answer = bytearray()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begun = self._ended = 0.0

    @property
    def waited(self) -> float:
        """Seconds from when he asked until the last bytes came.

        Not from when he was due: server and visitors share the processor, and a visitor who is
        held up before he asks does not wait for anybody.
        """
        return self._ended - self._begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = t.cast(asyncio.Transport, transport)

    def ask(self, path: str) -> None:
        self._begun = time.perf_counter()
        lines = (f"GET {path} HTTP/1.1", "Host: site", "Connection: close", "", "")
        self._transport.write("\r\n".join(lines).encode())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        self._ended = time.perf_counter()

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer.startswith(b"HTTP/1.1 200 ") and self._answer.endswith(BODY):
            self.closed.set_result(None)
        else:
            self.closed.set_exception(error or RuntimeError(f"answer: {self._answer[:200]!r}"))


class Site:
    """The served site.

    :param folder: of its pages, and of the record of its renders.
    """

    def __init__(self, program: Program, folder: Path) -> None:
        self._port = program.port
        self._record = folder / "renders"

    def renders(self, path: str) -> int:
        return self._record.read_text().splitlines().count(path)

    async def _visitor(self) -> Visitor:
        loop = asyncio.get_running_loop()
        _, visitor = await loop.create_connection(Visitor, "127.0.0.1", self._port)
        return visitor

    async def visit(self, path: str) -> None:
        visitor = await self._visitor()
        visitor.ask(path)
        await visitor.closed

    async def at_once(self, path: str) -> list[float]:
        """Seconds that each of all visitors waits."""
        visitors = [await self._visitor() for _ in range(VISITORS)]
        # Workers have taken them all.
        await asyncio.sleep(0.1)
        for visitor in visitors:
            visitor.ask(path)
        await asyncio.gather(*(visitor.closed for visitor in visitors))
        return [visitor.waited for visitor in visitors]

    async def stream(self, path: str, seconds: float) -> list[float]:
        """The same, of visitors who come one after the other."""
        begun = time.perf_counter() + 0.1

        async def one(due: float) -> float:
            await asyncio.sleep(due - 0.1 - time.perf_counter())
            visitor = await self._visitor()
            await asyncio.sleep(due - time.perf_counter())
            visitor.ask(path)
            await visitor.closed
            return visitor.waited

        count = int(RATE * seconds)
        return await asyncio.gather(*(one(begun + number / RATE) for number in range(count)))


@contextlib.contextmanager
def served(**environ: str) -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "renders").touch()
        environ |= {"BENCHMARK_FOLDER": name, "BENCHMARK_RENDERS": str(folder / "renders")}
        program = stack.enter_context(running(GUNICORN, folder, environ=environ))
        if "BENCHMARK_DEDICATED" in environ:
            stack.enter_context(running(REGENERATE, folder, listens=False, environ=environ))
        site = Site(program, folder)
        # All four workers are up, and know that it is no page.
        for _ in range(4):
            asyncio.run(site.at_once("/ready"))
        yield site


def row(waited: list[float], renders: float) -> dict[str, float]:
    milliseconds = sorted(1000 * seconds for seconds in waited)
    return {
        "renders": renders,
        "p50 ms": statistics.median(milliseconds),
        "p99 ms": milliseconds[int(0.99 * (len(milliseconds) - 1))],
        "slowest ms": milliseconds[-1],
        "render ms": 1000 * RENDER,
    }


def middle(rows: list[dict[str, float]]) -> dict[str, float]:
    """Medians, but the most renders that there ever were."""
    table = {column: statistics.median(one[column] for one in rows) for column in rows[0]}
    return table | {"renders": max(one["renders"] for one in rows)}


def bursts(site: Site, times: int) -> Table:
    async def measure() -> Table:
        rows: dict[str, list[dict[str, float]]] = {"not a page": [], "cold": [], "stale": []}
        for number in range(times):
            rows["not a page"].append(row(await site.at_once("/ready"), 0))
            path = f"/cold/{number}"
            waited = await site.at_once(path)
            rows["cold"].append(row(waited, site.renders(path)))
            path = f"/sleeps/{number}"
            await site.visit(path)
            await asyncio.sleep(1.5)
            before = site.renders(path)
            waited = await site.at_once(path)
            # The render that the first of them caused, and any that should not be there.
            await asyncio.sleep(3 * RENDER)
            rows["stale"].append(row(waited, site.renders(path) - before))
        return {f"{VISITORS} at once, {name}": middle(found) for name, found in rows.items()}

    return asyncio.run(measure())


def stream(site: Site, path: str, seconds: float) -> dict[str, float]:
    async def measure() -> dict[str, float]:
        # Rendered, and known to all workers.
        await site.stream(path, 1.5)
        before = site.renders(path)
        waited = await site.stream(path, seconds)
        made = row(waited, site.renders(path) - before)
        # A page's time begins when its render begins, so one is due in each window.
        return made | {"due": seconds / WINDOW if path != "/ready" else 0}

    gc.collect()
    gc.disable()
    try:
        return asyncio.run(measure())
    finally:
        gc.enable()


def can_regenerate() -> bool:
    """Whether there are processes that do nothing but render."""
    asked = [sys.executable, "-m", "wsgi_isr", "--help"]
    text = subprocess.run(asked, capture_output=True, check=False, text=True).stdout
    return any(line.split()[:1] == ["regenerate"] for line in text.splitlines())


def measure(quick: bool) -> Table:
    seconds = 4 if quick else 20
    numbers = itertools.count()

    def page(kind: str) -> str:
        return f"/{kind}/page-{next(numbers)}"

    with served() as site:
        table = bursts(site, 2 if quick else 7)
        table[f"{RATE}/s, not a page"] = stream(site, "/ready", seconds)
        table[f"{RATE}/s, render sleeps"] = stream(site, page("sleeps"), seconds)
        table[f"{RATE}/s, render computes, threads"] = stream(site, page("computes"), seconds)
    if can_regenerate():
        with served(BENCHMARK_DEDICATED="1") as site:
            path = page("computes")
            table[f"{RATE}/s, render computes, processes"] = stream(site, path, seconds)
    else:
        note("processes that do nothing but render are not there yet")
    return table
