"""Part ``memory``: what a page takes in memory, and what more pages make of the cost of a hit.

It is measured in a process of its own, which gives the memory back.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import typing as t

from wsgi_isr import ISRMiddleware

from .results import Table
from .subjects import BODY, HTML, ROOT, App, DictCache, Environ, request, start_response
from .turns import Turn, by_turns, cycle, nothing, without

FEW = 1_000
MANY = 100_000
#: Ready-made answers hold for a second, and have to be made anew in what is measured.
LENGTH = 1.0


def app(environ: Environ, start_response: t.Any) -> t.Any:
    """A body of its own for each page."""
    start_response("200 OK", [HTML])
    return [environ["PATH_INFO"].encode() + BODY]


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def paths(count: int) -> list[str]:
    return [f"/page/{number}" for number in range(count)]


def visit(subject: App, visited: list[str]) -> Turn:
    """All of these pages, in an order that no processor foresees."""
    environ = request()
    shuffled = random.Random(1).sample(visited, len(visited))

    def one(path: str) -> None:
        environ["PATH_INFO"] = path
        subject(environ, start_response)

    return cycle(one, shuffled)


def filled(subject: App, count: int) -> App:
    # Rendered, and found.
    for _ in range(2):
        for path in paths(count):
            subject(request(path), start_response)
    return subject


def library(count: int) -> ISRMiddleware:
    return ISRMiddleware(app, "memory://", rules={"/page/*": 3600}, memory_size=count * 50_000)


def measure_here(many: int, rounds: int) -> Table:
    few_pages, many_pages = library(FEW), library(many)
    filled(few_pages, FEW)
    before = resident()
    filled(many_pages, many)
    taken = resident() - before
    of_pages = sum(page.size for page in many_pages.pages())
    few_by_hand = filled(DictCache(app), FEW)
    many_by_hand = filled(DictCache(app), many)
    subjects = {
        "": visit(nothing, paths(FEW)),
        f"hit, {FEW:,} pages": visit(few_pages, paths(FEW)),
        f"hit, {FEW:,} of {many:,} pages": visit(many_pages, paths(many)[:: many // FEW]),
        f"hit, {many:,} pages": visit(many_pages, paths(many)),
        f"by hand, {FEW:,} pages": visit(few_by_hand, paths(FEW)),
        f"by hand, {FEW:,} of {many:,} pages": visit(many_by_hand, paths(many)[:: many // FEW]),
        f"by hand, {many:,} pages": visit(many_by_hand, paths(many)),
    }
    table = without(by_turns(subjects, rounds, length=LENGTH), "")
    few = table[f"hit, {FEW:,} pages"]["ns"]
    for name, row in table.items():
        base = few if name.startswith("hit") else table[f"by hand, {FEW:,} pages"]["ns"]
        row["growth"] = row["ns"] / base
    beyond = (taken - of_pages) / many
    table["a page in memory"] = {"bytes": of_pages / many, "bytes beyond": beyond}
    return table


def measure(quick: bool) -> Table:
    arguments = [str(MANY // 10 if quick else MANY), "2" if quick else "5"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", *arguments],
        cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return t.cast(Table, json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(measure_here(*map(int, sys.argv[1:]))))
