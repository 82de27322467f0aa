"""What the demo shows at its end: a table and samples before and after, a plot, a summary.

The page of any run, with more in it, is `lm_env.report`'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lm_env.runs.console import console
from lm_env.runs.folder import RunFolder

__all__ = ["SAMPLES", "SUMMARY", "BeforeAfter", "Curves", "curves_of", "plot_curves", "write_summary"]

SUMMARY = "summary.json"
SAMPLES = "samples.md"

LABELS = {
    "rm_score": ("reward model score", "what PPO maximized; 0 and std 1 for the supervised model"),
    "gold": ("judge's score", "which PPO never saw"),
    "kl": ("KL to the reference", "nats per response"),
    "perplexity": ("perplexity", "of the samples, under the reference"),
    "distinct2": ("distinct-2", "share of distinct word pairs"),
}

# Colors that differ for everyone, after Okabe and Ito; and a name beside the last point of its line.
BLUE, VERMILION = "#0072b2", "#d55e00"
BESIDE: dict[str, Any] = {
    "xytext": (5, 0),
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 9,
    "annotation_clip": False,
}

SampleRow = tuple[str, str, float]


@dataclass(frozen=True)
class BeforeAfter:
    """The same prompts before and after training."""

    before: dict[str, float]
    after: dict[str, float]
    samples_before: list[SampleRow]
    samples_after: list[SampleRow]

    def summary(self) -> dict[str, float]:
        """Flat, for summary.json: NAME_before and NAME_after, and `kl` (which is 0 before)."""
        flat = {
            f"{k}_{when}": v
            for k in self.before
            if k != "kl"
            for when, v in (("before", self.before[k]), ("after", self.after[k]))
        }
        return {**flat, "kl": self.after["kl"]}

    def show(self, samples: int = 4) -> None:
        """Print the table and a few samples."""
        table = Table("", "before", "after", "", header_style="bold")
        for key, (name, note) in LABELS.items():
            table.add_row(name, f"{self.before[key]:.3f}", f"[bold]{self.after[key]:.3f}[/bold]", f"[dim]{note}[/dim]")
        console.print(table)
        texts = Table("prompt", "before", "after", header_style="bold", show_lines=True)
        for (prompt, old, old_gold), (_, new, new_gold) in list(
            zip(self.samples_before, self.samples_after, strict=True)
        )[:samples]:
            texts.add_row(f"[dim]{escape(prompt)}[/dim]", _marked(old, old_gold), _marked(new, new_gold))
        console.print(texts)

    def markdown(self) -> str:
        """Table and all samples, for reading later."""
        lines = ["| | before | after |", "|---|---|---|"]
        lines += [
            f"| {name} ({note}) | {self.before[k]:.3f} | {self.after[k]:.3f} |" for k, (name, note) in LABELS.items()
        ]
        lines += ["", "| prompt | before | judge | after | judge |", "|---|---|---|---|---|"]
        for (prompt, old, old_gold), (_, new, new_gold) in zip(self.samples_before, self.samples_after, strict=True):
            cells = (prompt, old, f"{old_gold:+.2f}", new, f"{new_gold:+.2f}")
            lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
        return "\n".join(lines) + "\n"


def _marked(text: str, gold: float) -> str:
    color = "green" if gold > 0.05 else "red" if gold < -0.05 else "yellow"
    return f"{escape(text.strip())}\n[{color}]{gold:+.2f}[/{color}]"


@dataclass
class Curves:
    """One point per rollout."""

    timesteps: list[float] = field(default_factory=list)
    rm_score: list[float] = field(default_factory=list)
    gold: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)

    def add(self, timesteps: float, rm_score: float, gold: float, kl: float) -> None:
        """Append a rollout's means."""
        for column, value in ((self.timesteps, timesteps), (self.rm_score, rm_score), (self.gold, gold), (self.kl, kl)):
            column.append(float(value))


def curves_of(folder: RunFolder) -> Curves:
    """One point per rollout, at the tokens before it; from the log, which an earlier process may have begun."""
    curves = Curves()
    before = 0.0
    for row in folder.log_rows():
        if row.get("rollout/gold"):
            curves.add(before, *(float(row[f"rollout/{name}"]) for name in ("score", "gold", "kl")))
            before = float(row["time/total_timesteps"])
    return curves


def plot_curves(curves: Curves, path: Path) -> None:
    """Reward-model score, the judge's score, and KL over generated tokens, as PNG; names at the lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for values, name, color, style in (
        (curves.rm_score, "reward model\n(optimized)", BLUE, "-"),
        (curves.gold, "judge\n(never seen)", VERMILION, "--"),
    ):
        left.plot(curves.timesteps, values, color=color, linestyle=style)
        if values:
            left.annotate(name, (curves.timesteps[-1], values[-1]), color=color, **BESIDE)
    right.plot(curves.timesteps, curves.kl, color=BLUE)
    right.axhline(0, color="0.5", linewidth=1, linestyle=":")
    left.set(xlabel="generated tokens", ylabel="mean score of a rollout", title="Mean score of a rollout")
    right.set(xlabel="generated tokens", ylabel="KL, nats per response", title="KL to the reference")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    figure.savefig(path, dpi=140)


def write_summary(out: Path, summary: dict[str, Any], report: BeforeAfter) -> None:
    """summary.json and samples.md."""
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    (out / SAMPLES).write_text(report.markdown())
