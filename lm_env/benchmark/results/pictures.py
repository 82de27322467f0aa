"""The figures of a benchmark as PNG: learning curves and what holds over all tasks; and every run's attained share."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from lm_env.benchmark.results.aggregate import Aggregate
from lm_env.benchmark.results.curves import frontier_points, learning_band, spots
from lm_env.benchmark.results.summary import Summary
from lm_env.benchmark.results.tables import TaskTable, attained_share
from lm_env.errors import CheckpointWriteError
from lm_env.report.texts import visible

__all__ = ["attained_figure", "plot_attained", "plot_benchmark"]

COLORS = ("#0067a3", "#b34700", "#00735a", "#9b3676", "#7a5c00", "#5b3fa0", "#a3182f", "#3d6b00")
STYLES = ("-", "--", ":", "-.")
GRAY = "0.35"
LEAST_SHARE = -0.6
"""Runs below this attained share are drawn at the edge of the figure, with their value: one collapse hides no other."""
LEVELS = {"best-of-4": ("best of 4", ":"), "best-of-16": ("best of 16", "--")}


def plot_benchmark(summary: Summary, path: Path) -> None:
    """Attained share over tokens and over seconds, score over KL below the frontier; performance profiles at the end.

    Raises:
        CheckpointWriteError: it cannot be written.
    """
    from matplotlib.figure import Figure

    looks = _looks(summary)
    rows = len(summary.tables) + (summary.aggregate is not None)
    figure = Figure(figsize=(13.5, 3.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for table, row in zip(summary.tables, axes, strict=False):
        _learning(table, row[0], "tokens", looks)
        _learning(table, row[1], "seconds", looks)
        _frontier(table, row[2], looks)
    if summary.aggregate is not None:
        _aggregate(summary.aggregate, axes[-1], looks)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    _save(figure, path, dpi=120)


def plot_attained(summary: Summary, path: Path) -> None:
    """Write `attained_figure` as PNG.

    Raises:
        CheckpointWriteError: it cannot be written.
    """
    _save(attained_figure(summary), path, dpi=160)


def attained_figure(summary: Summary) -> Any:
    """The attained share of every run, a panel for each task: dots are seeds, a bar is the 95% interval of the mean.

    Lines are the ceiling, the reference, and the best of 4 and of 16 samples of it.

    Returns:
        a figure of matplotlib, 8 inches wide.
    """
    from matplotlib.figure import Figure

    looks = _looks(summary)
    across = min(2, len(summary.tables))
    down = math.ceil(len(summary.tables) / across)
    height = down * (1.15 + 0.27 * max(1, len(looks)))
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for table, axis in zip(summary.tables, axes.flat, strict=False):
        _shares(table, axis, looks)
    for axis in list(axes.flat)[len(summary.tables) :]:
        axis.set_axis_off()
    return figure


def _shares(table: TaskTable, axis: Any, looks: dict[str, dict[str, str]]) -> None:
    """The panel of a task."""
    for place, agent in enumerate(looks):
        row = table.row(agent)
        if row is None or row.attained is None:
            continue
        color = looks[agent]["color"]
        found = [attained_share(table.ceiling, record["by_prompt"]["J"]) for record in row.records]
        shares = [share.mean for share in found if share is not None]
        inside = [share for share in shares if share >= LEAST_SHARE]
        axis.plot(inside, [place] * len(inside), "o", color=color, markersize=4, alpha=0.55, markeredgewidth=0)
        if outside := [share for share in shares if share < LEAST_SHARE]:
            axis.plot([LEAST_SHARE], [place], "<", color=color, markersize=6, clip_on=False)
            words = ", ".join(f"{share:.1f}".replace("-", "\u2212") for share in sorted(outside))
            axis.annotate(
                words, (LEAST_SHARE, place), xytext=(7, -3), textcoords="offset points", fontsize=8, color=color
            )
        low, high = max(row.attained.low, LEAST_SHARE), row.attained.high
        if row.seeds > 1 and math.isfinite(low) and high > low:
            axis.plot([low, high], [place, place], color=color, linewidth=3, alpha=0.4, solid_capstyle="butt")
        if row.attained.value >= LEAST_SHARE:
            axis.plot([row.attained.value], [place], "|", color=color, markersize=12, markeredgewidth=2)
    top = axis.get_xaxis_transform()
    marks = [("ceiling", 1.0, "-"), ("reference", 0.0, "-")]
    rows = {name: table.row(name) for name in LEVELS}
    marks += [(*LEVELS[n][:1], row.attained.value, LEVELS[n][1]) for n, row in rows.items() if row and row.attained]
    for height, (words, share, style) in enumerate(sorted(marks, key=lambda mark: mark[1])):
        if share < LEAST_SHARE:
            continue
        axis.axvline(share, color=GRAY, linewidth=1, linestyle=style, zorder=0)
        axis.text(share, 1.02 + 0.09 * (height % 3), words, transform=top, fontsize=8, color=GRAY, ha="center")
    axis.set_yticks(range(len(looks)), [_as_label(agent) for agent in looks])
    for label, look in zip(axis.get_yticklabels(), looks.values(), strict=True):
        label.set_color(look["color"])
    axis.set_ylim(max(len(looks), 1) - 0.5, -0.5)
    axis.set_xlim(LEAST_SHARE if axis.get_xlim()[0] < LEAST_SHARE / 2 else -0.1, max(1.1, axis.get_xlim()[1]))
    axis.set_title(_as_label(table.task), fontsize=10, pad=34, loc="left")
    axis.set_xlabel("attained share of the ceiling", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)


def _looks(summary: Summary) -> dict[str, dict[str, str]]:
    """A color and a style of line for each agent, the same in all figures."""
    return {
        agent: {"color": COLORS[i % len(COLORS)], "linestyle": STYLES[i % len(STYLES)]}
        for i, agent in enumerate(summary.agents)
    }


def _as_label(name: str) -> str:
    """A name as matplotlib shows it letter by letter: no formula between dollars, and no name that a legend hides."""
    shown = visible(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _save(figure: Any, path: Path, *, dpi: int) -> None:
    try:
        with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box; the tables have it
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(path, dpi=dpi)
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; choose another folder") from error


def _learning(table: TaskTable, axis: Any, over: Any, looks: dict[str, dict[str, str]]) -> None:
    for row in table.rows:
        band = learning_band(table, row, over) if row.trained else None
        if band is None:
            continue
        axis.plot(band.x, band.y, label=_as_label(row.agent), **looks[row.agent])
        if math.isfinite(band.se[0]):
            low = [y - 1.96 * se for y, se in zip(band.y, band.se, strict=True)]
            high = [y + 1.96 * se for y, se in zip(band.y, band.se, strict=True)]
            axis.fill_between(band.x, low, high, color=looks[row.agent]["color"], alpha=0.15, linewidth=0)
    axis.axhline(1, color=GRAY, linewidth=1.2)
    best = table.row("best-of-16")
    if best is not None and best.attained is not None:
        axis.axhline(best.attained.value, color=GRAY, linewidth=1, linestyle=":")
        axis.annotate(
            "best of 16", (0.01, best.attained.value), xycoords=("axes fraction", "data"), fontsize=8, color=GRAY
        )
    axis.set(
        xlabel="generated tokens" if over == "tokens" else "seconds of training",
        ylabel="attained share of the ceiling",
        title=f"{_as_label(table.task)}: over {over}",
    )
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, framealpha=0.8, edgecolor="none")


def _frontier(table: TaskTable, axis: Any, looks: dict[str, dict[str, str]]) -> None:
    points, found = frontier_points(table), spots(table)
    far = 2 * max((spot.kl for spot in found), default=1.0)
    shown = [point for point in points if point[0] <= far]
    axis.plot([p[0] for p in shown], [p[1] for p in shown], color=GRAY, linewidth=1.6)
    if table.ceiling is not None and table.ceiling["KL"]["mean"] is not None:
        axis.plot([table.ceiling["KL"]["mean"]], [table.ceiling["score"]["mean"]], "*", color=GRAY, markersize=11)
    for spot in found:
        color = looks[spot.label]["color"] if spot.trained else GRAY
        axis.plot([spot.kl], [spot.score], "o" if spot.trained else "^", color=color, markersize=5)
        axis.annotate(
            _as_label(spot.label),
            (spot.kl, spot.score),
            color=color,
            fontsize=8,
            xytext=(5, -9),
            textcoords="offset points",
        )
    axis.set(
        xlabel="KL to the reference, nats per response",
        ylabel="mean score",
        title=f"{_as_label(table.task)}: score over KL",
    )


def _aggregate(found: Aggregate, axes: Any, looks: dict[str, dict[str, str]]) -> None:
    order = sorted(found.iqm, key=lambda agent: found.iqm[agent].value)
    for place, agent in enumerate(order):
        interval = found.iqm[agent]
        axes[0].plot([interval.low, interval.high], [place, place], color=looks[agent]["color"], linewidth=4, alpha=0.4)
        axes[0].plot([interval.value], [place], "o", color=looks[agent]["color"])
    axes[0].set_yticks(range(len(order)), [_as_label(agent) for agent in order])
    axes[0].set(xlabel="attained share", title="All tasks: interquartile mean, 95% interval")
    for agent, points in found.profiles.items():
        axes[1].plot(found.thresholds, [point.value for point in points], label=_as_label(agent), **looks[agent])
        low, high = [point.low for point in points], [point.high for point in points]
        axes[1].fill_between(found.thresholds, low, high, color=looks[agent]["color"], alpha=0.15, linewidth=0)
    axes[1].set(xlabel="attained share", ylabel="share of runs above it", title="All tasks: performance profile")
    axes[2].set_axis_off()
