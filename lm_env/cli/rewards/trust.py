"""`lm-env rm evaluate`: measure a reward model, print the evidence, and write it as a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.models.loading import load_causal_lm
from lm_env.objective.task import Task
from lm_env.runs.console import console, say
from lm_env.runs.judges import default_prompts, make_judge
from lm_env.storage import is_saved_folder, read_folder
from reward_models.loading import load_reward
from reward_models.preferences.encoding import score_records
from reward_models.preferences.reading import read_preferences
from reward_models.preferences.recipe import Recipe, Trained, held_out_records
from reward_models.preferences.records.preference import Preference
from reward_models.preferences.splitting import pair_ratings, split_records
from reward_models.trust import (
    Baselines,
    Trust,
    evaluate_reward,
    fit_baselines,
    learning_curve,
    over_optimization,
    wilson,
    write_page,
)
from reward_models.trust.baselines import load_baselines
from reward_models.trust.page import or_dash

__all__ = ["TrustOptions", "fitted_baselines", "held_out_sentence", "run_evaluation"]

GOLD_PROMPTS = 64


@dataclass(frozen=True)
class TrustOptions:
    """What `lm-env rm evaluate --help` explains."""

    model: str
    data: str | None = None
    out: Path | None = None
    training: str | None = None
    gold: str | None = None
    policy: str = "reviews-3m"
    prompts: str | None = None
    samples: int = 64
    pair_ratings: float | None = None
    format: str | None = None
    skip_bad: bool = False
    as_json: bool = False
    seed: int = 0
    device: str | None = None
    download: bool = False


def run_evaluation(options: TrustOptions) -> Trust:
    """Measure, print, write the page.

    Raises:
        ConfigurationError: there are no preferences to measure on, or an option cannot work.
    """
    reward: Any = load_reward(options.model, device=options.device, download=options.download)
    records, digests, facts, baselines = _material(options)
    kept = facts.get("recipe", {})
    difference = options.pair_ratings or kept.get("pair_ratings")
    records = _compared(records, difference, options.seed)
    trust = evaluate_reward(reward, records, baselines=baselines, training_digests=digests)
    if options.training is not None:
        trust = dataclasses.replace(trust, curve=_curve(options, kept, records, difference))
    if options.gold is not None:
        trust = dataclasses.replace(trust, gold=_gold(options, reward))
    rows = [
        ("reward model", options.model),
        ("made of", f"{kept.get('model')}, trained: {kept.get('trunk')}" if kept else "not known"),
        ("trained on", f"{facts['training_records']:,} records" if facts else "not known"),
        ("measured on", options.data or "the records that the training held out"),
    ]
    name = Path(options.model).name
    page = write_page(
        trust, options.out or Path(f"{options.model.rstrip('/')}-trust.html"), title=f"Reward model {name}", facts=rows
    )
    if options.as_json:
        print(json.dumps(trust.as_dict()))
    else:
        _show(trust)
        say("", f"the page: {page}")
    return trust


def _material(options: TrustOptions) -> tuple[list[Preference], set[str], dict[str, Any], Baselines | None]:
    """(records to measure on, digests of those trained on, facts of the training, baselines fitted to it)."""
    kept: list[Preference] = []
    digests: set[str] = set()
    facts: dict[str, Any] = {}
    baselines = None
    if is_saved_folder(options.model):
        kept, digests, facts = held_out_records(options.model)
        baselines = read_folder(options.model, load_baselines)
    if options.data is None:
        if not kept:
            raise ConfigurationError(f"{options.model} holds no held-out records: name a file of preferences")
        return kept, digests, facts, baselines
    read = read_preferences(options.data, format=options.format, skip_bad=options.skip_bad, download=options.download)
    return list(read), digests, facts, baselines


def _compared(records: Sequence[Preference], difference: float | None, seed: int) -> list[Preference]:
    """The records, single rated responses among them paired."""
    if any(record.outcomes() for record in records):
        return list(records)
    if difference is None:
        ratings = [record.ratings[0] for record in records if record.ratings]
        difference = float(np.std(ratings)) if ratings else 1.0
        if difference == 0:
            raise ConfigurationError(
                f"there is nothing to compare, for the ratings ({len(ratings):,}) are all equal: give more, or others"
            )
        say("", f"ratings are compared that differ by at least their standard deviation, {difference:.3g}")
    return pair_ratings(records, min_difference=difference, seed=seed)


def _curve(
    options: TrustOptions, kept: dict[str, Any], held_out: Sequence[Preference], difference: float | None
) -> list[Any]:
    if not kept:
        raise ConfigurationError(
            f"{options.model} does not say how it was trained, which a learning curve needs: leave out --training"
        )
    assert options.training is not None
    recipe = dataclasses.replace(Recipe(**kept), device=options.device, pair_ratings=difference)
    read = read_preferences(
        options.training, format=options.format, skip_bad=options.skip_bad, download=options.download
    )
    training, _ = split_records(list(read), recipe.held_out_fraction, np.random.default_rng(recipe.seed))
    console.print("[bold]learning curve[/bold]")
    return learning_curve(training, held_out, recipe, say=lambda text: say("", text))


def _gold(options: TrustOptions, reward: Any) -> Any:
    assert options.gold is not None
    device = options.device or "cpu"
    judge = make_judge(options.gold, device=device, download=options.download)
    model, tokenizer = load_causal_lm(options.policy, device, options.download)
    task = Task(
        model=model,
        tokenizer=tokenizer,
        prompts=default_prompts(options.prompts, "test"),
        reward=judge,
        beta=0.0,
        max_new_tokens=32,
        temperature=0.7,
        download=options.download,
    )
    return over_optimization(task, reward, judge, prompts=GOLD_PROMPTS, samples=options.samples, seed=options.seed)


def held_out_sentence(trained: Trained, baselines: Baselines | None) -> str | None:
    """How a reward model that was just trained does on what was held out, beside the baselines; None without any.

    If nothing of it can be compared, the sentence says why.
    """
    if not trained.held_out:
        return None
    try:
        records = _compared(trained.held_out, trained.recipe.pair_ratings, trained.recipe.seed)
    except ConfigurationError as error:  # few ratings; the model is trained, and this is no reason to lose it
        return f"not known, {error}"
    found: dict[str, Any] = {}
    scores = {"the reward model": score_records(trained.reward, records, trained.reward.tokenizer)}
    if baselines is not None:
        scores["words alone"] = [baselines.words(record.responses) for record in records]
        scores["length alone"] = [baselines.lengths(record.responses) for record in records]
    for name, own in scores.items():
        margins = [
            s[o.better] - s[o.worse] for r, s in zip(records, own, strict=True) for o in r.outcomes() if not o.tied
        ]
        found[name] = wilson([float(m > 0) + 0.5 * (m == 0) for m in margins])
    trained.facts["held_out"] = {name: share and dataclasses.asdict(share) for name, share in found.items()}
    return "; ".join(f"{name} {share}" for name, share in found.items() if share is not None)


def fitted_baselines(trained: Trained) -> Baselines | None:
    """The baselines on what the reward model was trained on."""
    return fit_baselines(trained.compared)


def _show(trust: Trust) -> None:
    from rich.table import Table

    table = Table("", "", "", show_header=False)

    def row(name: str, value: Any, remark: str = "") -> None:
        if value is not None:
            table.add_row(name, str(value), f"[dim]{remark}[/dim]")

    row("comparisons", f"{trust.comparisons:,}", f"of {trust.prompts:,} prompts; {trust.ties:,} ties apart")
    row("[bold]accuracy[/bold]", trust.accuracy, "95% interval")
    row("words alone", trust.word_baseline, "baseline fitted to the training data")
    row("length alone", trust.length_baseline, "baseline fitted to the training data")
    row("best of K found", trust.best_of, f"chance {trust.best_of_chance or 0:.3f}")
    if trust.ece is not None and trust.scale is not None:
        row("calibration error", f"{trust.ece:.3f}", f"{trust.ece_scaled:.3f} if multiplied by {trust.scale:.2f}")
    if trust.length_correlation is not None:
        row("score and length", f"{trust.length_correlation:+.3f}", "rank correlation")
    if trust.rating_correlation is not None:
        pearson, rank = trust.rating_correlation
        row("score and rating", f"{or_dash(pearson)}, {or_dash(rank)}", "Pearson's and rank correlation")
    for b in trust.by_length:
        row("... by length", b.accuracy, f"where the better one is {b.low} to {b.high} characters longer")
    for kind in trust.degenerate:
        row(kind.name, f"{kind.beats:.0%}", f"above the real text; percentile {kind.percentile:.0%}")
    if trust.gold is not None:
        ends = f"{trust.gold.gold[0]:.3f} to {trust.gold.gold[-1]:.3f}"
        row(f"gold score of best of 1 to {trust.gold.n[-1]}", ends, f"highest at n {_peak(trust.gold)}")
    row("records of training prompts", trust.leaked)
    console.print(table)
    for doubt in trust.doubts():
        console.print("[red]doubt[/red] ", end="")
        console.print(doubt, markup=False, highlight=False)
    if not trust.doubts():
        console.print("[green]nothing that was measured speaks against it[/green]")


def _peak(gold: Any) -> int:
    return gold.n[int(np.argmax(gold.gold))]
