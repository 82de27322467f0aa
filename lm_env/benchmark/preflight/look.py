"""A look at a task from about a thousand samples of the reference: its reward, its beta, and the time of a training.

Shapes: P prompts, n samples per prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm_env.benchmark.preflight.betas import beta_points, suggested_beta
from lm_env.benchmark.preflight.concerns import GROUP, concerns
from lm_env.benchmark.preflight.findings import DegenerateText, Preflight
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import LMEnvError
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.degenerate import BESIDE_A_RESPONSE
from lm_env.objective.scoring import episode_scores, raw_scores
from lm_env.objective.task import Task
from lm_env.theory.ceilings import best_of_n
from lm_env.validation import check_integer
from reward_models.trust import spearman

__all__ = ["preflight"]

PER_PROMPT = 32
"""Samples of a prompt, where there are prompts enough."""
SIZES = (1, 2, 4, 8, 16)
"""The values of n for which best-of-n is shown."""
BINS = 12
"""Bars of the histogram."""
SLOTS = 64
"""Texts that are written at a time."""
FORWARD_TEXTS = 128
"""Texts whose logprobs are computed to see how long a forward takes."""


def preflight(task: Task, *, samples: int = 1024, budget: int = 100_000, seed: int = 0) -> Preflight:
    """Sample the reference on some of the task's prompts, drawn at random, and look at what its scores allow.

    Args:
        samples: texts in all, at least 64; 32 to a prompt where there are prompts enough.
        budget: tokens that a training is to generate, for the estimate of the time.

    Raises:
        ConfigurationError: `samples` is too small.
        RewardError, RewardValueError: the reward function failed.
    """
    check_integer("samples", samples, low=64)
    check_integer("seed", seed, low=0)
    order = np.random.default_rng(seed).permutation(len(task.prompts))
    prompts = [task.prompts[int(i)] for i in order[: max(1, samples // PER_PROMPT)]]
    n = samples // len(prompts)
    episodes, speed = _sampled(task, [prompt for prompt in prompts for _ in range(n)], seed)
    episode_scores(task, episodes[np.arange(1)])  # what the reward function loads at its first call is not its speed
    started = time.perf_counter()
    scores, ended = episode_scores(task, episodes)
    judging = time.perf_counter() - started
    by_prompt = scores.reshape(len(prompts), n)
    groups = by_prompt[:, : n // GROUP * GROUP].reshape(-1, GROUP)
    lengths = episodes.response_lengths.astype(np.float64)
    values, counts = np.unique(scores, return_counts=True)
    suggested = suggested_beta(by_prompt)
    judged = ended if task.missing_eos_score is not None else np.ones(len(scores), dtype=bool)
    found = Preflight(
        prompts=len(prompts),
        samples=n,
        score=float(scores.mean()),
        std=float(scores.std()),
        lowest=float(scores.min()),
        highest=float(scores.max()),
        commonest=(float(values[counts.argmax()]), float(counts.max() / len(scores))),
        histogram=_histogram(scores),
        without_variance=float((by_prompt.max(1) == by_prompt.min(1)).mean()),
        equal_groups=float((groups.max(1) == groups.min(1)).mean()),
        length=float(lengths.mean()),
        length_correlation=spearman(scores[judged], lengths[judged]),
        ended=float(ended.mean()),
        truncated=float(1 - ended.mean()),
        degenerate=_degenerate(task, prompts, episodes, scores, n),
        best_of_n=[(best.n, best.score.mean, best.KL) for best in (best_of_n(by_prompt, k) for k in SIZES if k <= n)],
        beta=task.kl.beta,
        suggested_beta=suggested,
        betas=beta_points(by_prompt, task.kl.beta, suggested),
        tokens_per_second=1 / speed.writing,
        reward_seconds=1000 * judging / len(scores),
        training_seconds=speed.training(budget, judging / lengths.sum()),
        budget=budget,
    )
    found.warnings.extend(concerns(found, task))
    return found


@dataclass(frozen=True)
class Speed:
    """Seconds per response token."""

    writing: float
    forward: float

    def training(self, budget: int, judging: float) -> tuple[float, float]:
        """The seconds of a training with one pass over each rollout, and with four.

        An update costs three forwards of each token; scoring a rollout one of the policy and one of the reference.
        """
        one, four = (budget * (self.writing + judging + (2 + 3 * passes) * self.forward) for passes in (1, 4))
        return float(one), float(four)


def _sampled(task: Task, prompts: Sequence[Prompt], seed: int) -> tuple[Episodes, Speed]:
    """A response of the reference to each prompt, and how fast that was."""
    sampling = Sampling(torch.Generator().manual_seed(seed))
    with task.as_reference():
        started = time.perf_counter()
        episodes = LocalBackend(task, SLOTS, model=task.reference).generate(prompts, sampling).episodes
        written = time.perf_counter()
        part = episodes[np.arange(min(len(episodes), FORWARD_TEXTS))]
        response_logprobs(task.reference, part, task.temperature)
        forward = time.perf_counter() - written
    return episodes, Speed(
        (written - started) / int(episodes.response_lengths.sum()), forward / int(part.response_lengths.sum())
    )


def _histogram(scores: np.ndarray) -> list[tuple[float, float, int]]:
    """(from, to, texts) of bars of equal width, or of each score if there are few different ones."""
    values, counts = np.unique(scores, return_counts=True)
    if len(values) <= BINS:
        return [(float(value), float(value), int(count)) for value, count in zip(values, counts, strict=True)]
    edges = np.histogram_bin_edges(scores, bins=BINS)
    inside = np.histogram(scores, bins=edges)[0]
    return [(float(a), float(b), int(count)) for a, b, count in zip(edges, edges[1:], inside, strict=False)]


def _degenerate(
    task: Task, prompts: Sequence[Prompt], episodes: Episodes, scores: np.ndarray, n: int
) -> list[DegenerateText]:
    """The scores of degenerate texts, each made from the first sample of a prompt, beside the score of that sample."""
    if task.tokenizer is None or not callable(task.tokenizer):
        return []
    rows = np.arange(len(prompts)) * n
    responses = episodes.responses()
    texts = [task.text_of(responses[row]) for row in rows]
    found = []
    for name, make in BESIDE_A_RESPONSE.items():
        made = [_made(make, prompt.text, text) for prompt, text in zip(prompts, texts, strict=True)]
        kept = [i for i, text in enumerate(made) if text is not None]
        ids = {i: _encoded(task, str(made[i])) for i in kept}
        kept = [i for i in kept if ids[i]]
        if not kept:
            continue
        theirs = raw_scores(task.reward, task, [prompts[i] for i in kept], [ids[i] for i in kept])
        beats = float((theirs > scores[rows[kept]]).mean())
        found.append(DegenerateText(name, float(theirs.mean()), beats, str(made[kept[0]])))
    return found


def _made(make: Callable[[str, str], str | None], prompt: str, text: str) -> str | None:
    made = make(prompt, text)
    return None if made is None or made == text else made


def _encoded(task: Task, text: str) -> list[int]:
    """The ids of a text as a response, cut at the cap; an empty text is the end-of-text token alone.

    [] for a text that the tokenizer cannot write.
    """
    try:
        encoded = task.tokenizer(text, add_special_tokens=False)
    except LMEnvError:  # an enumerable task has a vocabulary of its own
        return []
    ids = list(encoded["input_ids"])[: task.max_new_tokens]
    return ids or sorted(task.eos_token_ids)[:1]
