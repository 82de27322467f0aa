"""`lm-env ceiling`: how much of E[score] - beta KL can be had on a task, before anyone trains."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lm_env.objective.task import Task
from lm_env.storage import check_file_destination
from lm_env.tasks import make_named
from lm_env.theory.ceilings.best_of_n import best_of_n
from lm_env.theory.ceilings.task_ceiling import GROWTH, enough_reference_scores
from lm_env.theory.ceilings.tilting import Ceiling, ceiling, frontier

__all__ = ["CeilingReport", "measure_ceiling", "plot_ceiling", "run_ceiling", "show_ceiling"]

BETA_FACTORS = tuple(2.0**power for power in np.arange(4, -2.5, -0.5))
"""The frontier is drawn at these multiples of the task's beta."""

JSON_FILE = "ceiling.json"

CeilingReport = dict[str, Any]
"""JSON: `ceiling`, `frontier`, `best_of_n`, `doubts`, `seconds`, and the settings."""


def run_ceiling(
    env_id: str,
    options: dict[str, Any],
    *,
    samples: int,
    most: int | None,
    prompts: int,
    seed: int,
    highest: float | None,
    out: Path | None,
) -> CeilingReport:
    """Make a registered environment, measure its ceiling, print it, and write it to a folder where one is given.

    Raises:
        ConfigurationError: there is no such environment, or it does not take one of the options.
        CheckpointWriteError: the folder cannot be written; found before the sampling.
    """
    task = make_named(env_id, **options).unwrapped.task  # type: ignore[attr-defined]
    if out is not None:
        check_file_destination(out / JSON_FILE, "choose another --out")
    report = measure_ceiling(
        task,
        task.kl.beta,
        samples=samples,
        most=most,
        prompts=prompts,
        seed=seed,
        highest=highest,
        progress=sys.stderr.isatty(),
    )
    report["env"] = env_id
    show_ceiling(report)
    if out is not None:
        plot_ceiling(report, out / "ceiling.png")
        (out / JSON_FILE).write_text(json.dumps(report, indent=2) + "\n")
    return report


def measure_ceiling(
    task: Task,
    beta: float,
    *,
    samples: int,
    most: int | None = None,
    prompts: int,
    seed: int,
    highest: float | None,
    progress: bool,
) -> CeilingReport:
    """Sample the reference on the task's first prompts, and estimate what can be had at beta.

    Args:
        samples, most: of each prompt, see `enough_reference_scores`.
    """
    started = time.perf_counter()
    chosen = task.prompts.head(prompts)
    if progress:
        few, many = (n * len(chosen) for n in (samples, most or GROWTH * samples))
        print(f"{few:,} texts of the reference, and up to {many:,} where fewer cannot be trusted (--most, --prompts)")
    label = "sampling the reference" if progress else None
    scores = enough_reference_scores(
        task, chosen, beta, samples=samples, most=most, seed=seed, highest=highest, progress=label
    )
    samples = scores.shape[1]
    found = ceiling(scores, beta, highest)
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= max(1, samples // 4)]
    best = [best_of_n(scores, n) for n in sizes]
    return {
        "beta": beta,
        "prompts": len(chosen),
        "samples": samples,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "ceiling": _as_json(found),
        "trusted": found.trusted,
        "doubts": found.doubts(),
        "frontier": [asdict(point) for point in frontier(scores, [beta * factor for factor in BETA_FACTORS])],
        "best_of_n": [
            {
                "n": b.n,
                "score": asdict(b.score),
                "KL": b.KL,
                "J": b.J(beta),
                "attained": _attained(found, b.J(beta)),
            }
            for b in best
        ],
    }


def show_ceiling(report: CeilingReport) -> None:
    """Print the estimates as a table, and what speaks against believing them."""
    console = Console()
    found = report["ceiling"]
    table = Table("", "score", "KL, nats", "J = score - beta KL", "attained", header_style="bold")
    table.add_row("reference", _plus_minus(found["J_ref"]), "0", _plus_minus(found["J_ref"]), "0%")
    for row in report["best_of_n"][1:]:
        attained = "" if row["attained"] is None else f"{row['attained']:.0%}"
        table.add_row(f"best of {row['n']}", _plus_minus(row["score"]), f"{row['KL']:.2f}", f"{row['J']:.3f}", attained)
    name = "optimum" if report["trusted"] else "optimum, at least"
    table.add_row(
        f"[bold]{name}[/bold]",
        _plus_minus(found["score"]),
        _plus_minus(found["KL"]),
        f"[bold]{_plus_minus(found['J'])}[/bold]",
        "100%",
    )
    console.print(
        f"beta {report['beta']:g}, {report['prompts']} prompts x {report['samples']} samples of the reference,"
        f" {report['seconds']:g} s; effective samples per prompt: median {found['ess_median']:.1f},"
        f" least {found['ess_least']:.1f}"
    )
    console.print(table)
    for doubt in report["doubts"]:
        console.print(f"[yellow]a lower bound only:[/yellow] {doubt}", highlight=False)


def plot_ceiling(report: CeilingReport, path: Path) -> None:
    """The largest score at each KL, the optimum at beta on it, and best-of-n beneath it, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    points = sorted(report["frontier"], key=lambda point: point["KL"])
    reference = report["ceiling"]["J_ref"]["mean"]
    axis.plot([0.0, *(p["KL"] for p in points)], [reference, *(p["score"] for p in points)], color="#0b6e99", lw=2)
    middle = points[len(points) // 2]
    axis.annotate(
        "the most that can be had",
        (middle["KL"], middle["score"]),
        color="#0b6e99",
        xytext=(-6, 8),
        textcoords="offset points",
        ha="right",
    )
    best = report["best_of_n"][1:]
    axis.plot([b["KL"] for b in best], [b["score"]["mean"] for b in best], "o", color="#b3541e", ms=5)
    for b in best:
        axis.annotate(
            f"best of {b['n']}",
            (b["KL"], b["score"]["mean"]),
            color="#b3541e",
            fontsize=8,
            xytext=(6, -9),
            textcoords="offset points",
        )
    found = report["ceiling"]
    axis.plot([found["KL"]["mean"]], [found["score"]["mean"]], "*", color="#0b6e99", ms=13)
    axis.annotate(
        f"optimum at beta {report['beta']:g}",
        (found["KL"]["mean"], found["score"]["mean"]),
        color="#0b6e99",
        xytext=(8, -12),
        textcoords="offset points",
    )
    axis.set(
        xlabel="KL to the reference, nats per response",
        ylabel="E[score]",
        title="How much score a given KL can buy",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    figure.savefig(path, dpi=140)


def _as_json(found: Ceiling) -> dict[str, Any]:
    plain = {name: asdict(getattr(found, name)) for name in ("J_ref", "J", "score", "KL")}
    return {
        **plain,
        "J_plain": found.J_plain,
        "unseen": found.unseen,
        "ess_median": float(np.median(found.ess)),
        "ess_least": float(found.ess.min()),
    }


def _attained(found: Ceiling, J: float) -> float | None:
    return found.attained(J).mean if found.J.mean > found.J_ref.mean else None


def _plus_minus(estimate: dict[str, float]) -> str:
    parts: Sequence[float] = (estimate["mean"], estimate["se"])
    return f"{parts[0]:.3f}" if np.isnan(parts[1]) else f"{parts[0]:.3f} ± {parts[1]:.3f}"
