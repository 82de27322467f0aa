"""`lm-env preflight`: what can be known of a task before anyone trains on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm_env.cli.options import Device, Download, Env, EnvOption, Seed, named_task

if TYPE_CHECKING:
    from lm_env.benchmark.preflight import BetaPoint, Preflight

__all__ = ["preflight_command"]

WIDTH = 40
"""Characters of the longest bar."""
EXAMPLE = 22
"""Characters of an example, with which the table fits into 80 columns."""
TRUSTED = 10
"""The effective sample size below which the J of an optimum is a lower bound only."""


def preflight_command(
    task: Annotated[
        str | None,
        typer.Argument(help="A registered task, or your own 'file.py:function'; or give --prompts and --reward."),
    ] = None,
    env: Env = None,
    model: Annotated[str | None, typer.Option(help="The model to be trained.  [default: the task's]")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts of your own, as in lm-env train.  [default: the task's]")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="A reward of your own, as in lm-env train.  [default: the task's]")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of the KL penalty.  [default: the task's]")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length cap of a response.  [default: the task's]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the logits.  [default: the task's]")] = None,
    env_option: EnvOption = None,
    samples: Annotated[int, typer.Option(help="Texts of the reference in all.", min=64)] = 1024,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of the training, for the time.  [default: the task's budget, as in lm-env train]", min=1
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file, too.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    download: Download = False,
) -> None:
    """Look at a task before training: about 1,000 samples of the model, measured, with warnings in words.

    Shows how scores are distributed and how often the samples of a prompt all score alike, whether the reward follows
    length or pays degenerate texts, what best-of-n and the optimum over beta would give, a suggested beta, and how long
    a training will take.
    """
    from agents.base import task_of
    from lm_env.benchmark.preflight import preflight
    from lm_env.benchmark.records import write_json
    from lm_env.models.loading import EMBEDDED_MODEL
    from lm_env.runs.console import say
    from lm_env.runs.settings import TrainSettings
    from lm_env.runs.task import make_env
    from lm_env.storage import check_file_destination

    task = named_task(task, env)
    if out is not None:
        check_file_destination(out, "choose another --out")
    given = {
        "env": task,
        "model": model,
        "prompts": prompts,
        "reward": reward,
        "beta": beta,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "env_option": env_option or None,
        "timesteps": tokens,
    }
    known = {name: value for name, value in given.items() if value is not None}
    settings = TrainSettings.of(**known, device=device, download=download)
    resolved = task_of(make_env(settings.task, settings.lora))
    named = task or f"{prompts}, {reward}"
    own = settings.task.registered
    called = model or (EMBEDDED_MODEL if own is None else own.model_name)
    say("preflight", f"{named} with {called}: about {samples} samples of the model before training, the reference")
    found = preflight(resolved, samples=samples, budget=settings.timesteps, seed=seed)
    if out is not None:
        write_json(out, {"task": named, "model": called, **found.as_json()})
    _show(found, resolved.max_new_tokens)


def _show(found: Preflight, cap: int) -> None:
    """Print the findings; `cap` is the task's length cap, in tokens."""
    from lm_env.runs.console import console, say

    for line in _scores(found):
        say("", line)
    console.print()
    for line in _groups_and_lengths(found, cap):
        say("", line)
    _show_degenerate(found)
    _show_best_of_n(found)
    _show_betas(found)
    console.print()
    say(
        "",
        f"{found.tokens_per_second:,.0f} tokens/s of sampling; the reward takes {found.reward_seconds:.2g} s per 1,000"
        " texts",
    )
    fast, slow = map(_duration, found.training_seconds)
    say(
        "",
        f"{found.budget:,} tokens of training take about {fast} with one pass over each rollout (ppo, rloo, grpo,"
        f" a2c), {slow} with four (ppo-penalty)",
    )
    for warning in found.warnings:
        say("warning", warning)
    if not found.warnings:
        say("", "nothing speaks against training on it")


def _show_degenerate(found: Preflight) -> None:
    """What degenerate texts score; nothing where none could be made."""
    from rich.markup import escape
    from rich.table import Table

    from lm_env.runs.console import console, say

    if not found.degenerate:
        return
    score = _score_format(found)
    table = Table("degenerate text", "example", "mean score", "beats a sample", header_style="bold")
    table.add_row("[dim]the samples[/dim]", "", score(found.score), "")
    for text in found.degenerate:
        table.add_row(text.name, escape(_in_short(text.example)), score(text.mean), f"{text.beats:.0%}")
    console.print()
    say("", "texts that nobody wants, and how often each beats the sample that it is made from:")
    console.print(table)


def _show_best_of_n(found: Preflight) -> None:
    from rich.table import Table

    from lm_env.runs.console import console, say

    score = _score_format(found)
    table = Table("without training", "score", "KL, nats", header_style="bold")
    for n, mean, kl in found.best_of_n:
        table.add_row("reference" if n == 1 else f"best of {n}", score(mean), f"{kl:.2f}")
    console.print()
    say("", "what the best of n samples gives, and its KL to the reference:")
    console.print(table)


def _scores(found: Preflight) -> Iterator[str]:
    """Mean and range of the scores, and their histogram."""
    value, share = found.commonest
    score, edge = _score_format(found), _edge_format(found)
    commonest = f"; {share:.0%} of them are {edge(value)}" if share >= 0.1 else ""
    yield (
        f"scores of {found.prompts} prompts x {found.samples} samples: mean {score(found.score)}, standard deviation"
        f" {score(found.std)}, from {edge(found.lowest)} to {edge(found.highest)}{commonest}"
    )
    most = max(count for _, _, count in found.histogram)
    for low, high, count in found.histogram:
        span = f"{edge(low):>21}" if low == high else f"{edge(low):>9} to {edge(high):>8}"
        bar = "#" * round(WIDTH * count / most) or ("." if count else "")
        yield f"{span}  {bar:<{WIDTH}} {count}"


def _groups_and_lengths(found: Preflight, cap: int) -> Iterator[str]:
    """Where nothing can be compared; how texts end; whether length pays."""
    yield (
        f"{found.without_variance:.0%} of the prompts have samples that all score alike; so do {found.equal_groups:.0%}"
        " of the groups of 8 samples, from which rloo and grpo learn nothing"
    )
    yield (
        f"{found.length:.1f} tokens per text: {found.ended:.0%} end by themselves, {found.truncated:.0%} are cut off at"
        f" the cap of {cap}"
    )
    if found.length_correlation is None:
        yield "no correlation of score and length: one of them is always the same"
    else:
        yield f"rank correlation of score and length: {found.length_correlation:+.2f}"


def _show_betas(found: Preflight) -> None:
    """The optimum over beta: for the task's beta, the suggested one, and all of which the samples show anything."""
    from rich.table import Table

    from lm_env.runs.console import console, say

    named = {found.suggested_beta: "suggested"} | {found.beta: "the task's"}
    if found.beta == found.suggested_beta:
        named = {found.beta: "the task's, and suggested"}
    score = _score_format(found)
    table = Table("beta", "score of the optimum", "KL, nats", "score - beta KL", header_style="bold")
    shown = [point for point in found.betas if point.ess >= 2 or point.beta in named]
    for point in shown:
        name = f" ({named[point.beta]})" if point.beta in named else ""
        J = score(point.J) if point.ess >= TRUSTED else f"at least {score(point.J)}"
        table.add_row(f"{point.beta:.3g}{name}", score(point.score), f"{point.KL:.2f}", J)
    if shown:
        console.print()
        say("", 'what a training can attain, the optimum for each beta ("at least": too few samples to tell):')
        console.print(table)
    suggested = None if found.suggested_beta is None else found.at(found.suggested_beta)
    if suggested is not None:
        say("", f"suggested beta: {suggested.beta:g}, {_reason(suggested)}")


def _reason(suggested: BetaPoint) -> str:
    from lm_env.benchmark.preflight import TARGET_KL

    if suggested.KL > 0.9 * TARGET_KL:
        return f"whose optimum has the KL of best of 16, {TARGET_KL:.1f} nats"
    return f"below which there is little to gain: at {suggested.KL:.2g} nats nearly the largest score is reached"


def _score_format(found: Preflight) -> Callable[[float], str]:
    """How scores are written: with three decimals, or, where they differ by much more or much less, others."""
    if found.std == 0 or 0.1 <= found.std < 1000:
        decimals = 3
    elif found.std < 1e-6:
        return lambda score: f"{score:.4g}"
    else:
        decimals = max(0, 2 - math.floor(math.log10(found.std)))
    return lambda score: f"{score:,.{decimals}f}"


def _edge_format(found: Preflight) -> Callable[[float], str]:
    """How single scores and the edges of bars are written: with as many digits as tell two bars apart, at least 3."""
    largest, bar = max(abs(found.lowest), abs(found.highest)), (found.highest - found.lowest) / len(found.histogram)
    digits = 3 if bar == 0 else max(3, 1 + math.ceil(math.log10(largest / bar)))
    return lambda score: f"{score:.{digits}g}"


def _in_short(text: str) -> str:
    shown = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return shown if len(shown) <= EXAMPLE else f"{shown[: EXAMPLE - 3]}..."


def _duration(seconds: float) -> str:
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
