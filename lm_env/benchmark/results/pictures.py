"""The figures of a benchmark as one PNG: a row for each task, and what holds over all tasks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lm_env.benchmark.results.aggregate import Aggregate
from lm_env.benchmark.results.curves import frontier_points, learning_band, spots
from lm_env.benchmark.results.summary import Summary
from lm_env.benchmark.results.tables import TaskTable
from lm_env.errors import CheckpointWriteError

__all__ = ["plot_benchmark"]

COLORS = ("#0067a3", "#b34700", "#00735a", "#9b3676", "#7a5c00", "#5b3fa0", "#a3182f", "#3d6b00")
STYLES = ("-", "--", ":", "-.")
GRAY = "0.35"


def plot_benchmark(summary: Summary, path: Path) -> None:
    """Attained share over tokens and over seconds, score over KL below the frontier; performance profiles at the end.

    Raises:
        CheckpointWriteError: it cannot be written.
    """
    from matplotlib.figure import Figure

    looks = {
        agent: {"color": COLORS[i % len(COLORS)], "linestyle": STYLES[i % len(STYLES)]}
        for i, agent in enumerate(summary.agents)
    }
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
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; choose another folder") from error


def _learning(table: TaskTable, axis: Any, over: Any, looks: dict[str, dict[str, str]]) -> None:
    for row in table.rows:
        band = learning_band(table, row, over) if row.trained else None
        if band is None:
            continue
        axis.plot(band.x, band.y, label=row.agent, **looks[row.agent])
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
        title=f"{table.task}: over {over}",
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
            spot.label, (spot.kl, spot.score), color=color, fontsize=8, xytext=(5, -9), textcoords="offset points"
        )
    axis.set(xlabel="KL to the reference, nats per response", ylabel="mean score", title=f"{table.task}: score over KL")


def _aggregate(found: Aggregate, axes: Any, looks: dict[str, dict[str, str]]) -> None:
    order = sorted(found.iqm, key=lambda agent: found.iqm[agent].value)
    for place, agent in enumerate(order):
        interval = found.iqm[agent]
        axes[0].plot([interval.low, interval.high], [place, place], color=looks[agent]["color"], linewidth=4, alpha=0.4)
        axes[0].plot([interval.value], [place], "o", color=looks[agent]["color"])
    axes[0].set_yticks(range(len(order)), order)
    axes[0].set(xlabel="attained share", title="All tasks: interquartile mean, 95% interval")
    for agent, points in found.profiles.items():
        axes[1].plot(found.thresholds, [point.value for point in points], label=agent, **looks[agent])
        low, high = [point.low for point in points], [point.high for point in points]
        axes[1].fill_between(found.thresholds, low, high, color=looks[agent]["color"], alpha=0.15, linewidth=0)
    axes[1].set(xlabel="attained share", ylabel="share of runs above it", title="All tasks: performance profile")
    axes[2].set_axis_off()
