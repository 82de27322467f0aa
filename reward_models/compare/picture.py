"""A ranking as one picture: Elo with intervals, and the win rate of each pair, as it is and at equal length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reward_models.compare.ranking import Ranking
from reward_models.trust.statistics import Share

__all__ = ["MOST_PAIRS", "plot_ranking", "short_name"]

MOST_PAIRS = 12
"""Pairs that are drawn; more could not be read."""

BLUE, BROWN = "#0b6e99", "#b3541e"


def plot_ranking(ranking: Ranking, path: str | Path, *, judge: str) -> Path:
    """Write a PNG."""
    from matplotlib.figure import Figure

    pairs = ranking.pairs[:MOST_PAIRS]
    height = 1.6 + 0.5 * max(len(ranking.strengths), len(pairs), 2)
    figure = Figure(figsize=(10.5, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
    _draw_strengths(left, ranking)
    _draw_pairs(right, pairs)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", frameon=False, fontsize=8, ncols=2)
    figure.suptitle(f"{ranking.prompts:,} prompts, judged by {short_name(judge, 60)}", fontsize=10)
    figure.savefig(path, dpi=140)
    return Path(path)


def _draw_strengths(axis: Any, ranking: Ranking) -> None:
    for y, strength in enumerate(ranking.strengths):
        elo, low, high = strength.elo
        axis.plot([low, high], [y, y], color=BLUE, lw=2, solid_capstyle="butt")
        axis.plot([elo], [y], "o", color=BLUE, ms=6)
        axis.annotate(f"{elo:.0f}", (elo, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    axis.set_yticks(range(len(ranking.strengths)), [short_name(s.name) for s in ranking.strengths])
    axis.set(xlabel="Elo (Bradley-Terry), 95% interval over prompts", title="Strength")
    _finish(axis, len(ranking.strengths))


def _draw_pairs(axis: Any, pairs: list[Any]) -> None:
    axis.axvline(0.5, color="#999999", lw=1, ls="--")
    for y, pair in enumerate(pairs):
        _draw_share(axis, y - 0.14, pair.win_rate, BLUE, "as it is" if y == 0 else None)
        if pair.length_controlled is not None:
            _draw_share(axis, y + 0.14, pair.length_controlled, BROWN, "at equal length" if y == 0 else None)
    axis.set_yticks(range(len(pairs)), [f"{short_name(p.first, 20)}\nover {short_name(p.second, 20)}" for p in pairs])
    axis.set(xlim=(-0.02, 1.02), xlabel="win rate of the first, 95% interval", title="Pairs")
    _finish(axis, len(pairs))


def _draw_share(axis: Any, y: float, share: Share, color: str, label: str | None) -> None:
    axis.plot([share.low, share.high], [y, y], color=color, lw=2, solid_capstyle="butt")
    axis.plot([share.mean], [y], "o", color=color, ms=5, label=label)


def _finish(axis: Any, rows: int) -> None:
    axis.set_ylim(rows - 0.4, -0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, axis="x")
    axis.tick_params(labelsize=8)


def short_name(name: str, limit: int = 28) -> str:
    """The end of a long name, where paths differ."""
    return name if len(name) <= limit else "..." + name[-(limit - 3) :]
