"""What a loop shows at its end: a table of its rounds, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lm_env.runs.console import console

__all__ = ["plot_rounds", "show_rounds"]

COLUMNS = {
    "all_comparisons": "comparisons so far",
    "accuracy": "accuracy held out",
    "rm_score": "reward model score",
    "gold": "judge's score",
    "kl": "KL, nats",
    "perplexity": "perplexity",
    "distinct2": "distinct-2",
}
BLUE, VERMILION = "#0072b2", "#d55e00"


def show_rounds(start: dict[str, Any], rounds: Sequence[dict[str, Any]]) -> None:
    """Print a row for the supervised model and one for each round; what was not measured is empty."""
    rows = [start, *rounds]
    names = {key: name for key, name in COLUMNS.items() if any(key in row for row in rows)}
    table = Table("", *names.values(), header_style="bold")
    for number, row in enumerate(rows):
        cells = (_shown(row.get(key)) for key in names)
        table.add_row("supervised" if number == 0 else f"round {number}", *cells)
    console.print(table)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def plot_rounds(start: dict[str, Any], rounds: Sequence[dict[str, Any]], path: Path) -> None:
    """The scores after each round, and the KL, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = list(range(1, len(rounds) + 1))
    if "gold" in start:
        gold = [start["gold"], *(row["gold"] for row in rounds)]
        left.plot([0, *numbers], gold, marker="o", color=VERMILION, label="judge")
    scores = [row["rm_score"] for row in rounds]
    left.plot(numbers, scores, marker="s", linestyle="--", color=BLUE, label="reward model of the round")
    left.legend(frameon=False)
    left.set(title="Mean score after each round", ylabel="score")
    right.plot([0, *numbers], [0.0, *(row["kl"] for row in rounds)], marker="o", color=BLUE)
    right.set(title="KL to the supervised model", ylabel="nats per response")
    for axis in (left, right):
        axis.set_xticks([0, *numbers], ["supervised", *map(str, numbers)])
        axis.set_xlabel("round")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=140)
