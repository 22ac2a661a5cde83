"""The plot of the simulation, as SVG and PNG."""

from __future__ import annotations

import typing as t
from pathlib import Path

from matplotlib import pyplot

from .plots import FLOOR, OTHERS, OURS
from .simulation import RENDER, Figures, Setting, Size

#: Shades from few visits to many.
SHADES = ("#9cc9d9", "#4d93ad", "#0f4a60")


def draw(played: list[tuple[Setting, Figures]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chart, axes = pyplot.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    _renders(axes[0, 0], played)
    _late(axes[0, 1], played)
    _store(axes[1, 0], played)
    _purge(axes[1, 1], played)
    for one in axes.flat:
        one.tick_params(labelsize=8)
        one.spines[["top", "right"]].set_visible(False)
    for ending in ("svg", "png"):
        metadata = {"Date": None} if ending == "svg" else {}
        chart.savefig(folder / f"simulation.{ending}", dpi=130, metadata=metadata)
    pyplot.close(chart)


def _bars(axes: t.Any, played: list[tuple[Setting, Figures]], values: list[float]) -> None:
    names = [setting.name for setting, _ in played]
    drawn = axes.barh(names, values, color=OURS, height=0.65)
    axes.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.02)


def _renders(axes: t.Any, played: list[tuple[Setting, Figures]]) -> None:
    _bars(axes, played, [figures.renders / figures.seconds for _, figures in played])
    machines = Size().machines
    limits = [machines * setting.workers / RENDER for setting, _ in played]
    most = 1.1 * max(figures.renders / figures.seconds for _, figures in played)
    for place, limit in enumerate(limits):
        if limit < most:
            axes.plot([limit, limit], [place - 0.4, place + 0.4], color="#c1502e")
    axes.set_title("Renders per second; red: what the threads can do", fontsize=10, loc="left")


def _late(axes: t.Any, played: list[tuple[Setting, Figures]]) -> None:
    for setting, figures in played[:6]:
        late = sorted(figures.late, reverse=True)
        step = max(1, len(late) // 1000)
        shares = [(place + 1) / figures.visits for place in range(0, len(late), step)]
        axes.plot(
            [max(0.1, seconds) for seconds in late[::step]],
            shares,
            color=SHADES[(1_000, 10_000, 50_000).index(setting.visits)],
            linestyle="-" if setting.window == 60 else "--",
            label=setting.name.rpartition(",")[0],
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1)
    axes.legend(fontsize=8, frameon=False)
    axes.set_xlabel("seconds past its window", fontsize=8)
    axes.set_title("Share of visits that got a page as late as that", fontsize=10, loc="left")


def _store(axes: t.Any, played: list[tuple[Setting, Figures]]) -> None:
    _bars(axes, played, [figures.read / figures.seconds / 1e6 for _, figures in played])
    axes.set_title("Megabytes per second read from the store", fontsize=10, loc="left")


def _purge(axes: t.Any, played: list[tuple[Setting, Figures]]) -> None:
    for setting, figures in played:
        if setting.purge:
            seconds = range(int(figures.seconds))
            axes.plot(
                seconds, [figures.stale_at[second] for second in seconds],
                color=OTHERS, label="stale visits per second",
            )  # fmt: skip
            axes.plot(
                seconds, [figures.renders_at[second] for second in seconds],
                color=OURS, label="renders per second",
            )  # fmt: skip
            axes.axvline(setting.purge, color=FLOOR, linestyle=":")
    axes.legend(fontsize=8, frameon=False)
    axes.set_xlabel("seconds; at the dotted line a tag of 50,000 pages is revalidated", fontsize=8)
    axes.set_title("A purge, at 10,000 visits per second", fontsize=10, loc="left")
