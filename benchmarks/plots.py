"""Plots, as SVG and PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "wsgi-isr"
matplotlib.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot  # noqa: E402

from .results import Results, figure  # noqa: E402

OURS, OTHERS, FLOOR = "#1b6e8c", "#b9b4a8", "#7c7668"
#: Part, column and title.
PLOTS = (
    ("hits", "ns", "Nanoseconds of a hit in process (logarithmic)"),
    ("http", "x", "Requests for the same processor time; granian with a constant response = 1"),
    ("load", "slowest ms", "Milliseconds of the slowest visitor (logarithmic)"),
)


def colour(part: str, name: str) -> str:
    """Ours, others', and what nobody can be better than."""
    if any(word in name for word in ("constant", "by hand", "app alone", "class in the way")):
        return FLOOR
    if part == "load":
        return FLOOR if "not a page" in name else OURS
    return OURS if "wsgi-isr" in name or "://" in name or name == "not a page" else OTHERS


def draw(results: Results, folder: Path) -> None:
    """One bar a row, in the order of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, column, title in PLOTS:
        table = results.parts[part]["table"] if part in results.parts else {}
        bars = {name: row[column] for name, row in table.items() if row.get(column, 0) > 0}
        if not bars:
            continue
        chart, axes = pyplot.subplots(figsize=(8, 0.9 + 0.26 * len(bars)), layout="constrained")
        names = list(bars)
        drawn = axes.barh(
            names, list(bars.values()), color=[colour(part, name) for name in names], height=0.7
        )
        axes.bar_label(drawn, [figure(value) for value in bars.values()], padding=3, fontsize=8)
        axes.invert_yaxis()
        if column != "x":
            axes.set_xscale("log")
            axes.set_xlim(left=min(bars.values()) / 4)
        axes.margins(x=0.12, y=0.02)
        # The figures stand beside the bars.
        axes.xaxis.set_visible(False)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_title(title, fontsize=10, loc="left")
        for ending in ("svg", "png"):
            # Without a date, so that the same results make the same file.
            metadata = {"Date": None} if ending == "svg" else {}
            chart.savefig(folder / f"{part}.{ending}", dpi=150, metadata=metadata)
        pyplot.close(chart)
