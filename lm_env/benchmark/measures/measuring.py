"""What is measured of the texts of a policy: the same numbers for agents, baselines and models trained elsewhere.

Shapes: P prompts, n texts per prompt, B = P n texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents.run.evaluation import over_prompts, summarize
from lm_env.benchmark.measures.independent import IndependentModel
from lm_env.benchmark.measures.text_metrics import distinct, likeness, repetition
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import MissingDependencyError
from lm_env.generation.backend import GenerationBackend, Sampling
from lm_env.objective.scoring import episode_scores, measure_episodes, raw_scores
from lm_env.objective.task import Task
from lm_env.validation import check_integer
from reward_models.trust import wilson

__all__ = ["Measures", "SampledTexts", "evaluation_prompts", "measure", "measure_texts", "plain", "sample_texts"]

SHOWN = 8
"""Texts that a record keeps."""
REFERENCE_COLUMNS = ("reference", "target")
"""Columns of the prompts in which a good answer may stand."""


@dataclass(frozen=True)
class Measures:
    """What is asked of the texts besides the task's own score."""

    gold: Callable[..., Any] | None = None
    """Another reward function, which no training saw."""
    success: float | None = None
    """A text whose score is at least this counts as a success; None: 1 where all scores are 0 or 1, else nothing."""
    independent: IndependentModel | None = None
    """A language model that took no part in the training, for a perplexity of its own."""
    more: Callable[[Sequence[Prompt], Sequence[str]], Mapping[str, np.ndarray]] | None = None
    """Further numbers, such as `TextTask.measure`: (prompts, responses) -> name -> (B,)."""


@dataclass(frozen=True)
class SampledTexts:
    """B texts, and numbers about each: float arrays (B,), in nats unless another unit is named."""

    episodes: Episodes
    """The texts to one prompt are in consecutive rows."""
    scores: np.ndarray
    """What the task pays for each text, in the unit of the reward."""
    kl: np.ndarray
    """The KL to the reference, summed over the tokens of the text and exactly over the vocabulary at each.  For
    best-of-n the analytic KL, for random tokens the k1 estimate: they have no model to compute it with."""
    k1: np.ndarray
    """log pi - log pi_ref of the text that was sampled."""
    surprise: np.ndarray
    """-log pi_ref at temperature 1."""
    ended: np.ndarray
    """bool: an EOS or a stop string ended the text."""


def evaluation_prompts(task: Task, rows: Sequence[Any], limit: int, texts: int) -> tuple[list[Prompt], int]:
    """The prompts that an evaluation uses, and how many texts it samples for each.

    Args:
        rows: the prompts of a split, as a task gives them; at most the first `limit` are used.
        texts: the least number of texts in all.

    Returns:
        (prompts, texts per prompt), whose product is at least `texts`.
    """
    prompts = list(task.load_prompts(list(rows)[:limit], any_length=True))
    return prompts, math.ceil(texts / len(prompts))


def sample_texts(
    task: Task, backend: GenerationBackend, prompts: Sequence[Prompt], n: int, *, seed: int
) -> SampledTexts:
    """Sample n responses to each prompt, with uniform random numbers that depend only on the seed, and score them.

    Raises:
        RewardError, RewardValueError: the task's reward function failed.
    """
    drawn = [prompt for prompt in prompts for _ in range(check_integer("n", n))]
    sampling = Sampling.fixed(len(drawn), task.max_new_tokens, check_integer("seed", seed, low=0))
    episodes = backend.generate(drawn, sampling).episodes
    scores, ended = episode_scores(task, episodes)
    found = measure_episodes(task, episodes)
    return SampledTexts(episodes, scores, found["full"], found["k1"], found["surprise"], ended)


def measure(
    task: Task,
    backend: GenerationBackend,
    prompts: Sequence[Prompt],
    n: int,
    *,
    seed: int = 0,
    measures: Measures | None = None,
) -> dict[str, Any]:
    """Sample n responses to each prompt and measure them: `sample_texts`, then `measure_texts`."""
    return measure_texts(task, sample_texts(task, backend, prompts, n, seed=seed), n, measures)


def measure_texts(task: Task, texts: SampledTexts, n: int, measures: Measures | None = None) -> dict[str, Any]:
    """All numbers about sampled texts, as JSON.

    Args:
        texts: P n texts.
        n: texts per prompt.

    Returns:
        `beta`, `prompts`, `texts`; `metrics`: name -> {mean, se}, the standard error over prompts where there is one;
        `success` {mean, low, high, count} with Wilson's 95% interval, where a success is defined; `by_prompt`:
        `score` and `J` (P,); `samples`: the first text of each of the first 8 prompts, or the first 8 texts of a single
        prompt.

    Raises:
        RewardError, RewardValueError: the gold reward or another measure failed.
    """
    asked = Measures() if measures is None else measures
    found = summarize(
        task,
        texts.episodes,
        scores=texts.scores,
        kl=texts.kl,
        surprise=texts.surprise,
        ended=texts.ended,
        n=n,
        ceiling=None,
    )
    responses = [sample["response"] for sample in found.samples]
    estimates = {
        "score": found.score,
        "kl": found.kl,
        "kl_k1": over_prompts(texts.k1, n),
        "kl_per_token": found.kl_per_token,
        "J": found.J,
        "perplexity": found.perplexity,
        "length": found.length,
        "truncated": over_prompts(1.0 - texts.ended, n),
    }
    if asked.gold is not None:
        gold = raw_scores(asked.gold, task, texts.episodes.prompts, texts.episodes.responses())
        estimates["gold"] = over_prompts(gold, n)
    if asked.more is not None:
        for name, values in asked.more(texts.episodes.prompts, responses).items():
            estimates[name] = over_prompts(values, n)
    metrics: dict[str, Any] = {name: asdict(estimate) for name, estimate in estimates.items()}
    single = {f"distinct_{size}": distinct(responses, size) for size in (1, 2, 3)}
    single["repetition"] = repetition(responses)
    single |= _likeness(texts.episodes.prompts, responses)
    if asked.independent is not None:
        single |= asked.independent.measure([sample["prompt"] for sample in found.samples], responses)
    metrics |= {name: {"mean": value} for name, value in single.items()}
    record = {
        "beta": found.beta,
        "prompts": found.prompts,
        "texts": found.texts,
        "metrics": metrics,
        "by_prompt": {"score": texts.scores.reshape(-1, n).mean(1).tolist(), "J": found.J_by_prompt.tolist()},
        "samples": found.samples[::n][:SHOWN] if found.prompts > 1 else found.samples[:SHOWN],
    }
    if (successes := _successes(texts.scores, asked.success)) is not None:
        share = wilson(successes)
        assert share is not None
        record["success"] = asdict(share)
    return plain(record)


def plain(value: Any) -> Any:
    """A value as types of JSON; a number that is not finite becomes None, a float is rounded to 7 digits."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def _successes(scores: np.ndarray, least: float | None) -> np.ndarray | None:
    if least is not None:
        return scores >= least
    return scores == 1 if np.isin(scores, (0.0, 1.0)).all() else None


def _likeness(prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, float]:
    """BLEU, chrF and ROUGE, if every prompt has a good answer in its columns and the packages are installed."""
    for column in REFERENCE_COLUMNS:
        references = [prompt.columns.get(column) for prompt in prompts]
        if all(isinstance(reference, str) for reference in references):
            try:
                return likeness(responses, [str(reference) for reference in references])
            except MissingDependencyError:
                return {}
    return {}
