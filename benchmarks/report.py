"""Results into docs/benchmarks.md, between two marks, and into plots."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from . import targets
from .results import Results, markdown

BEGIN, END = "<!-- results: written by python -m benchmarks -->", "<!-- /results -->"

#: What the figures of a part mean.
CAPTIONS = {
    "hits": """### In process

Nanoseconds a call, less those of an empty one. *by hand, again* is a second cache of the same kind:
what differs from *by hand* is noise. *by hand* looks at method, path, query and time; one that
looks at *path alone* would also answer a POST from its pages. *stale* is a page whose renders fail.

What a request costs that is no page is shown step by step, by hand: a class that only calls the
app; one that looks up by all that a page depends on whether it is one, and the time; one that
watches the answer, too, and lets the app ask where it is.""",
    "memory": """### Many pages

Nanoseconds a hit, by turns of a second; ready-made answers hold for a second, so where every page
is asked for less often than that, time goes into making them anew. *by hand* shows what the
processor's caches take when there is more than they hold.""",
    "files": """### Files

Nanoseconds; the memory level is off, and cachelib's cache in files is given the very bytes that
are stored for the page.""",
    "import": """### Import

Milliseconds of processor time in a fresh interpreter.""",
    "http": """### Over HTTP

16 connections; *constant* is an app that always gives the very answer that a hit gets, *by hand* a
dictionary cache that has it. *CPU µs* is
what all processes of the server take for a request, *x* how many requests the same processor time
buys, beside granian with a constant response. *constant again* is a second server of the same kind:
noise. *p99* is queueing: wrk always asks again at once.""",
    "load": """### Visitors at once, and pages that turn stale

Four workers of gunicorn with 16 threads each, medians of all bursts but for renders: the most that
there ever were. *not a page* is what server and client take themselves: noise. *due* are the
renders of a page whose time begins when its render begins: one in each second.""",
}


#: What plots show.
PLOTTED = {
    "hits": "Nanoseconds of a hit in process",
    "http": "Requests for the same processor time",
    "load": "Slowest visitors",
}


def section(results: Results) -> str:
    """The results as Markdown."""
    blocks = ["## Targets", targets.table(results), "## What was measured"]
    blocks.append("\n".join(_measured_on(results)))
    for name, caption in CAPTIONS.items():
        part = results.parts.get(name)
        if part is None:
            continue
        blocks += [caption, markdown(part["table"])]
        if name in PLOTTED:
            blocks.append(f"![{PLOTTED[name]}](plots/{name}.svg)")
        if part["notes"]:
            blocks.append(" ".join(f"{said[0].upper()}{said[1:]}." for said in part["notes"]))
    return "\n\n".join(blocks)


def _measured_on(results: Results) -> list[str]:
    """Parts of a run may be of different days and machines."""
    lines: dict[str, list[str]] = {}
    for name in CAPTIONS:
        part = results.parts.get(name)
        if part is not None:
            line = f"{part['machine']}; {part['versions']}"
            if part["quick"]:
                line += ". **A quick run: too short to be quoted**"
            lines.setdefault(line, []).append(name)
    return [f"- {', '.join(names)}: {line}." for line, names in lines.items()]


def write(results: Results, folder: Path) -> None:
    """Put the results into ``benchmarks.md`` of a folder, and draw plots there."""
    path = folder / "benchmarks.md"
    text = path.read_text("utf-8") if path.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{section(results)}\n\n{END}{after}", "utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("No plots: matplotlib is not installed")
        return
    from . import plots

    plots.draw(results, folder / "plots")
