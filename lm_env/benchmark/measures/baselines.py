"""The rows of a benchmark without training: the ceiling, the reference itself, random tokens, and best-of-n.

Shapes: P prompts, n texts per prompt, B = P n texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from lm_env.benchmark.measures.measuring import Measures, SampledTexts, measure_texts, plain
from lm_env.data.episodes import Episodes, text_episodes
from lm_env.data.prompts import Prompt
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import episode_scores
from lm_env.objective.task import Task
from lm_env.tasks import TextTask
from lm_env.theory.ceilings import (
    Ceiling,
    best_of_n,
    ceiling,
    enough_reference_scores,
    frontier,
    sample_reference_scores,
)

__all__ = [
    "BASELINE_NAMES",
    "BEST_OF",
    "BETA_FACTORS",
    "CEILING_SEED",
    "CEILING_TEXTS",
    "ceiling_of",
    "exact_optimum",
    "random_texts",
    "without_training",
]

BEST_OF = (4, 16)
BASELINE_NAMES = ("random", "reference", *(f"best-of-{n}" for n in BEST_OF))
"""The rows that every task has; no agent or model can have one of these names."""
POOL_SIZES = (1, 2, 4, 8, 16)
"""The n of the best-of-n that stands in the record of a ceiling, estimated from all its samples."""
CEILING_TEXTS = 4096
"""The ceiling is estimated from at least so many samples of the reference, over all prompts together."""
CEILING_SEED = 1_000_003
BETA_FACTORS = tuple(2.0**power for power in np.arange(4, -2.5, -0.5))
"""The frontier is drawn at these multiples of the task's beta."""

Record = dict[str, Any]


def ceiling_of(
    task: Task,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    most: int | None = None,
    seed: int,
    highest: float | None,
    optimum: Callable[[], Ceiling] | None = None,
    progress: str | None = None,
) -> Record:
    """The optimum at the task's beta on these prompts, the frontier of score over KL, and best-of-n.

    Args:
        samples, most: how many samples of the reference to begin with for each prompt, and at most; see
            `enough_reference_scores`.
        highest: the largest score that a text can have, if it is known; see `lm_env.theory.ceilings.ceiling`.
        optimum: computes the optimum exactly, on the same prompts; None: it is estimated from the samples, as the
            frontier and best-of-n always are.
        progress: the label of a progress bar; None shows none.

    Returns:
        a record with `beta`; `exact`; `samples` of the reference per prompt; `J`, `J_ref`, `score` and `KL` of the
        optimum and the reference as {mean, se}; `J_by_prompt` and `J_ref_by_prompt`; `doubts`, sentences that say why J
        is only a lower bound; `frontier`; and `best_of_n`, estimated without bias.
    """
    beta = task.kl.beta
    if optimum is None:
        scores = enough_reference_scores(
            task, prompts, beta, samples=samples, most=most, seed=seed, highest=highest, progress=progress
        )
        found = ceiling(scores, beta, highest)
    else:
        scores = sample_reference_scores(task, prompts, samples, seed=seed, progress=progress)
        found = optimum()
    points = frontier(scores, [beta * factor for factor in BETA_FACTORS])
    record = {
        "beta": beta,
        "exact": optimum is not None,
        "samples": scores.shape[1],
        **{name: asdict(getattr(found, name)) for name in ("J", "J_ref", "score", "KL")},
        "J_by_prompt": found.J_by_prompt.tolist(),
        "J_ref_by_prompt": found.J_ref_by_prompt.tolist(),
        "doubts": found.doubts(),
        "frontier": [asdict(point) for point in points],
        "best_of_n": [
            {"n": best.n, "score": asdict(best.score), "KL": best.KL, "J": best.J(beta)}
            for best in (best_of_n(scores, n) for n in POOL_SIZES if n <= scores.shape[1])
        ],
    }
    return dict(plain(record))


def exact_optimum(text_task: TextTask, limit: int, **options: Any) -> Callable[[], Ceiling] | None:
    """A function that computes the exact ceiling on the first test prompts; None where it can only be estimated.

    Args:
        limit: the largest number of prompts.
        options: of the task, which replace its own.
    """
    exact = text_task.optimum
    if exact is None:
        return None
    return lambda: exact(text_task.task("test", **options, prompts=list(text_task.prompts("test"))[:limit]))


def without_training(
    task: Task, prompts: Sequence[Prompt], n: int, *, seed: int, measures: Measures | None = None
) -> dict[str, Record]:
    """The reference, best-of-4, best-of-16 and random tokens, measured as the trained agents are.

    The reference is sampled 16 times for each text.  "reference" is the first sample, and best-of-4 is the best of the
    first four, so these rows share their texts.

    Returns:
        name -> what `measure_texts` gives, with `inference_tokens`, the generated tokens that one response costs.
    """
    drawn = [prompt for prompt in prompts for _ in range(n * max(BEST_OF))]
    sampling = Sampling(torch.Generator().manual_seed(seed))
    with task.as_reference():
        episodes = LocalBackend(task, 64, model=task.reference).generate(drawn, sampling).episodes
        surprise = _surprise(task, episodes)
    scores, ended = episode_scores(task, episodes)
    everything = SampledTexts(episodes, scores, np.zeros(len(scores)), np.zeros(len(scores)), surprise, ended)
    found = {}
    for size in (1, *BEST_OF):
        chosen, kl = _best(everything, n, len(prompts), size)
        row = measure_texts(task, _rows(everything, chosen, kl), n, measures)
        tokens = episodes.response_lengths.reshape(-1, max(BEST_OF))[:, :size].sum(1).mean()
        name = "reference" if size == 1 else f"best-of-{size}"
        found[name] = {**row, "inference_tokens": plain(float(tokens))}
    row = measure_texts(task, random_texts(task, prompts, n, seed=seed), n, measures)
    found["random"] = {**row, "inference_tokens": row["metrics"]["length"]["mean"]}
    return found


def random_texts(task: Task, prompts: Sequence[Prompt], n: int, *, seed: int) -> SampledTexts:
    """Texts whose every token is drawn uniformly from the vocabulary; the KL is the k1 estimate of that policy.

    Where the task has an `action_mask`, tokens are drawn from those that it allows.  Tokens to which the reference
    gives no probability make the KL infinite.
    """
    rng = np.random.default_rng(seed)
    rows, given, owners, drawn_at = [], [], [], []
    for prompt in prompts:
        for _ in range(n):
            response, logprob = _random_response(task, prompt, rng)
            rows.append([*prompt.ids.tolist(), *response])
            given.append(len(prompt.ids))
            owners.append(prompt)
            drawn_at.append(logprob)
    episodes = text_episodes(owners, rows, given)
    scores, ended = episode_scores(task, episodes)
    with task.as_reference():
        logprobs = response_logprobs(task.reference, episodes, task.temperature)
        surprise = _surprise(task, episodes)
    mask = episodes.response_mask()
    reference = np.where(mask, logprobs, 0.0).astype(np.float64).sum(1)
    k1 = np.array(drawn_at) - reference
    return SampledTexts(episodes, scores, k1, k1, surprise, ended)


def _random_response(task: Task, prompt: Prompt, rng: np.random.Generator) -> tuple[list[int], float]:
    """(the tokens of a random response, the logprob with which it was drawn)."""
    if task.action_mask is None:
        response = task.until_end(rng.integers(task.vocab_size, size=task.max_new_tokens))
        return response, -math.log(task.vocab_size) * len(response)
    response, logprob = [], 0.0
    while len(response) < task.max_new_tokens:
        allowed = np.flatnonzero(task.allowed_next(prompt.ids, np.array(response, dtype=np.int64)))
        response.append(int(rng.choice(allowed)))
        logprob -= math.log(len(allowed))
        if response[-1] in task.eos_token_ids or (task.stop_strings and task.holds_stop_string(response)):
            break
    return response, logprob


def _best(texts: SampledTexts, n: int, prompts: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the best of the first `size` samples of each group (B,), the KL of best-of-`size` in nats (B,))."""
    groups = texts.scores.reshape(prompts * n, max(BEST_OF))[:, :size]
    chosen = np.arange(prompts * n) * max(BEST_OF) + groups.argmax(1)
    if size == 1:
        return chosen, np.zeros(prompts * n)
    pools = texts.scores.reshape(prompts, -1)
    return chosen, np.repeat([best_of_n(pool[None], size).KL for pool in pools], n)


def _rows(texts: SampledTexts, rows: np.ndarray, kl: np.ndarray) -> SampledTexts:
    """The chosen texts.  Best-of-n has no logprob of a text to compute k1 from, so the analytic KL stands in for it."""
    episodes = texts.episodes[rows]
    return SampledTexts(episodes, texts.scores[rows], kl, kl, texts.surprise[rows], texts.ended[rows])


def _surprise(task: Task, episodes: Episodes) -> np.ndarray:
    """-log pi_ref at temperature 1 of each response, (B,) nats."""
    logprobs = response_logprobs(task.reference, episodes, 1.0)
    return -np.where(episodes.response_mask(), logprobs, 0.0).astype(np.float64).sum(1)
