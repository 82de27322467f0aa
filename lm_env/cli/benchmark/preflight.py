"""`lm-env preflight`: a look at a task before anyone trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm_env.cli.options import Device, Download, Seed

if TYPE_CHECKING:
    from lm_env.benchmark.preflight import Preflight

__all__ = ["preflight_command"]

WIDTH = 40


def preflight_command(
    task: Annotated[str, typer.Argument(help="A registered task, or your own 'file.py:function'.")],
    model: Annotated[str | None, typer.Option(help="The model to be trained.  [default: the task's]")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of the KL penalty.  [default: the task's]")] = None,
    samples: Annotated[int, typer.Option(help="Texts of the reference in all.", min=64)] = 1024,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens of the training, for the time.  [default: the task's budget]", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file, too.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    download: Download = False,
) -> None:
    """Look at a task before training: from about 1,000 samples of the reference, with warnings in words.

    Shows how scores are distributed and whether prompts tell texts apart, whether the reward follows length or pays
    degenerate texts, what best-of-n and the optimum over beta would give, a suggested beta, and how long a training
    will take.
    """
    from lm_env.benchmark.preflight import preflight
    from lm_env.benchmark.records import write_json
    from lm_env.tasks import get_task

    chosen = get_task(task)
    over = {name: value for name, value in (("model", model), ("beta", beta)) if value is not None}
    resolved = chosen.task("train", device=device, download=download, **over)
    found = preflight(resolved, samples=samples, budget=tokens or chosen.budget, seed=seed)
    if out is not None:
        write_json(out, {"task": task, "model": model or chosen.model_name, **found.as_json()})
    _show(found, task, model or chosen.model_name)


def _show(found: Preflight, task: str, model: str) -> None:
    from rich.table import Table

    from lm_env.runs.console import console, say

    say("preflight", f"{task} with {model}: {found.prompts} prompts x {found.samples} samples of the reference")
    say("", f"score {found.score:.3f}, standard deviation {found.std:.3f}, {found.lowest:.3g} to {found.highest:.3g}")
    most = max(count for _, _, count in found.histogram)
    for low, high, count in found.histogram:
        say("", f"{low:>9.3g} to {high:<9.3g} {'#' * round(WIDTH * count / most):<{WIDTH}} {count}")
    say("", f"{found.without_variance:.0%} of the prompts, {found.equal_groups:.0%} of groups of 8, score all alike")
    correlation = "none" if found.length_correlation is None else f"{found.length_correlation:+.2f}"
    say(
        "",
        f"{found.length:.1f} tokens per text, {found.ended:.0%} end by themselves; correlation of score and length"
        f" {correlation}",
    )
    if found.degenerate:
        table = Table("degenerate text", "mean score", "beats the sample", header_style="bold")
        for text in found.degenerate:
            table.add_row(text.name, f"{text.mean:.3f}", f"{text.beats:.0%}")
        console.print(table)
    table = Table("without training", "score", "KL, nats", header_style="bold")
    for n, score, kl in found.best_of_n:
        table.add_row("reference" if n == 1 else f"best of {n}", f"{score:.3f}", f"{kl:.2f}")
    console.print(table)
    table = Table("beta", "optimum's score", "KL, nats", "J", "effective samples", header_style="bold")
    for point in found.betas:
        own = " (the task's)" if point.beta == found.beta else ""
        table.add_row(
            f"{point.beta:.3g}{own}", f"{point.score:.3f}", f"{point.KL:.2f}", f"{point.J:.3f}", f"{point.ess:.0f}"
        )
    console.print(table)
    if found.suggested_beta is not None:
        say(
            "",
            f"suggested beta: {found.suggested_beta:g}, whose optimum is as far from the reference as best of 16, or"
            " half as far as any optimum where that is less",
        )
    fast, slow = (
        f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s" for seconds in found.training_seconds
    )
    say(
        "",
        f"{found.tokens_per_second:,.0f} tokens/s of sampling; {found.budget:,} tokens of training take about {fast}"
        f" (one pass over each rollout) to {slow} (four)",
    )
    for warning in found.warnings:
        say("warning", warning)
    if not found.warnings:
        say("", "nothing speaks against training on it")
