"""Preflight: what about a thousand samples of the reference tell about a task's reward and beta before any training.

Shapes: P prompts, n samples per prompt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from lm_env.benchmark.measures.measuring import plain
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import LMEnvError
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.degenerate import BESIDE_A_RESPONSE
from lm_env.objective.scoring import episode_scores, raw_scores
from lm_env.objective.task import Task
from lm_env.theory.ceilings import best_of_n, ceiling
from lm_env.validation import check_integer
from reward_models.trust import spearman

__all__ = ["BetaPoint", "DegenerateText", "Preflight", "preflight", "suggested_beta"]

PER_PROMPT = 32
"""Samples of a prompt, where there are prompts enough."""
GROUP = 8
"""The group size for which the share of groups without variance is counted."""
TARGET_KL = math.log(16) - 15 / 16
"""The KL of best-of-16, nats per response; the suggested beta is the one whose optimum has it."""
SIZES = (1, 2, 4, 8, 16)
"""The values of n for which best-of-n is shown."""
BINS = 12
BETAS = tuple(2.0**power for power in range(5, -6, -1))
"""The betas for which the optimum is shown, as multiples of the task's."""


@dataclass(frozen=True)
class BetaPoint:
    """The optimum at a beta."""

    beta: float
    score: float
    KL: float
    J: float
    ess: float
    """The median effective sample size; below about 10 the point is a lower bound."""


@dataclass(frozen=True)
class DegenerateText:
    """A kind of text that nobody wants, and its scores beside those of the samples."""

    name: str
    mean: float
    beats: float
    """The share of prompts on which it scores above the sample that it was made from."""
    example: str


@dataclass(frozen=True)
class Preflight:
    """The findings before a training; scores in the unit of the reward, KL in nats per response."""

    prompts: int
    samples: int
    """Samples of each prompt."""
    score: float
    std: float
    lowest: float
    highest: float
    histogram: list[tuple[float, float, int]]
    """(from, to, texts)."""
    without_variance: float
    """The share of prompts whose samples all score alike."""
    equal_groups: float
    """The share of groups of 8 samples to a prompt that all score alike: they teach a group agent nothing."""
    length: float
    """Mean response tokens."""
    length_correlation: float | None
    """Spearman's rank correlation of score and length; None where one of them does not vary."""
    ended: float
    truncated: float
    degenerate: list[DegenerateText]
    best_of_n: list[tuple[int, float, float]]
    """(n, score, KL)."""
    beta: float
    """The beta of the task."""
    suggested_beta: float | None
    betas: list[BetaPoint]
    tokens_per_second: float
    """The speed of sampling."""
    training_seconds: tuple[float, float]
    """Estimates for the budget, with one pass over each rollout and with four."""
    budget: int
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The findings as a JSON object."""
        return dict(plain(asdict(self)))


def preflight(task: Task, *, samples: int = 1024, budget: int = 100_000, seed: int = 0) -> Preflight:
    """Sample the reference on the task's first prompts, and examine their scores.

    Args:
        samples: texts in all, at least 64; 32 to a prompt where there are prompts enough.
        budget: tokens that a training is to generate, for the estimate of the time.

    Raises:
        ConfigurationError: `samples` is too small.
        RewardError, RewardValueError: the reward function failed.
    """
    check_integer("samples", samples, low=64)
    prompts = task.prompts.head(max(1, samples // PER_PROMPT))
    n = samples // len(prompts)
    drawn = [prompt for prompt in prompts for _ in range(n)]
    sampling = Sampling(torch.Generator().manual_seed(check_integer("seed", seed, low=0)))
    with task.as_reference():
        started = time.perf_counter()
        episodes = LocalBackend(task, 64, model=task.reference).generate(drawn, sampling).episodes
        written = time.perf_counter()
        part = episodes[np.arange(min(len(episodes), 128))]
        response_logprobs(task.reference, part, task.temperature)
        forward = (time.perf_counter() - written) / max(1, int(part.response_lengths.sum()))
    tokens = int(episodes.response_lengths.sum())
    generating = (written - started) / tokens
    scores, ended = episode_scores(task, episodes)
    by_prompt = scores.reshape(len(prompts), n)
    edges = np.histogram_bin_edges(scores, bins=BINS)
    counts = np.histogram(scores, bins=edges)[0]
    groups = by_prompt[:, : n // GROUP * GROUP].reshape(-1, GROUP)
    lengths = episodes.response_lengths.astype(np.float64)
    # An update costs three forwards of each token; scoring a rollout one of the policy and one of the reference.
    seconds = [budget * (generating + (2 + 3 * passes) * forward) for passes in (1, 4)]
    found = Preflight(
        prompts=len(prompts),
        samples=n,
        score=float(scores.mean()),
        std=float(scores.std()),
        lowest=float(scores.min()),
        highest=float(scores.max()),
        histogram=[(float(a), float(b), int(c)) for a, b, c in zip(edges, edges[1:], counts, strict=False)],
        without_variance=float((by_prompt.max(1) == by_prompt.min(1)).mean()),
        equal_groups=float((groups.max(1) == groups.min(1)).mean()),
        length=float(lengths.mean()),
        length_correlation=spearman(scores, lengths),
        ended=float(ended.mean()),
        truncated=float(1 - ended.mean()),
        degenerate=_degenerate(task, prompts, episodes, scores, n),
        best_of_n=[(best.n, best.score.mean, best.KL) for best in (best_of_n(by_prompt, k) for k in SIZES if k <= n)],
        beta=task.kl.beta,
        suggested_beta=suggested_beta(by_prompt),
        betas=_betas(by_prompt, task.kl.beta),
        tokens_per_second=1 / generating,
        training_seconds=(seconds[0], seconds[1]),
        budget=budget,
    )
    found.warnings.extend(_warnings(found, task))
    return found


def suggested_beta(scores: np.ndarray) -> float | None:
    """The beta whose optimum is as far from the reference as best-of-16, 1.8 nats; None if no prompt's scores vary.

    That optimum is worth a training, a short training can reach it, and the samples still show what it is.  If the best
    texts are so frequent that no optimum is twice as far, it is the beta at half of the largest KL instead.

    Args:
        scores: float (P, n) of samples of the reference.
    """
    spread = float(scores.max() - scores.min())
    if spread == 0 or bool((scores.max(1) == scores.min(1)).all()):
        return None
    low, high = math.log(spread * 1e-3), math.log(spread * 1e3)
    target = min(TARGET_KL, 0.5 * ceiling(scores, math.exp(low)).KL.mean)
    for _ in range(40):  # the optimum's KL falls as beta grows
        middle = (low + high) / 2
        low, high = (middle, high) if ceiling(scores, math.exp(middle)).KL.mean > target else (low, middle)
    return float(f"{math.exp((low + high) / 2):.2g}")


def _betas(scores: np.ndarray, beta: float) -> list[BetaPoint]:
    found = []
    for factor in BETAS:
        if beta > 0:
            at = ceiling(scores, beta * factor)
            found.append(BetaPoint(at.beta, at.score.mean, at.KL.mean, at.J.mean, float(np.median(at.ess))))
    return found


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


def _warnings(found: Preflight, task: Task) -> list[str]:
    """What should be looked at before a training, in sentences."""
    gamed = [
        f"{text.name} scores above the real text on {text.beats:.0%} of the prompts: the reward can be gamed"
        for text in found.degenerate
        if text.beats > 0.5
    ]
    if found.std == 0:
        alike = f"all {found.prompts * found.samples} samples score {found.score:g}: nothing can be learned from them"
        return [alike, *gamed]
    said = []
    if found.equal_groups > 0.5:
        said.append(
            f"{found.equal_groups:.0%} of groups of {GROUP} samples score all alike, so GRPO and RLOO learn from the"
            " rest only: take easier prompts, larger groups, or a finer reward"
        )
    top = found.histogram[-1][2] / (found.prompts * found.samples)
    if top > 0.9:
        said.append(f"{top:.0%} of the samples score near the highest score seen: little is left to be learned")
    if found.length_correlation is not None and abs(found.length_correlation) > 0.5:
        longer = "longer" if found.length_correlation > 0 else "shorter"
        said.append(
            f"the score goes with the length (rank correlation {found.length_correlation:+.2f}): the policy may learn"
            f" to write {longer} texts and nothing else"
        )
    said += gamed
    if found.ended == 0 and task.missing_eos_score is not None:
        said.append("no text ends by itself, so all are paid missing_eos_score: raise max_new_tokens")
    elif found.truncated > 0.95 and task.eos_token_ids:
        said.append(
            f"{found.truncated:.0%} of the texts run to the cap of {task.max_new_tokens} tokens: the reward mostly sees"
            " unfinished texts, unless that is meant"
        )
    if found.suggested_beta is not None and found.beta > 0:
        ratio = found.beta / found.suggested_beta
        own = next(point for point in found.betas if math.isclose(point.beta, found.beta))
        at = f"its optimum is at {own.KL:.2g} nats with the score {own.score:.3g}, from {found.score:.3g}"
        if ratio > 4:
            said.append(
                f"beta {found.beta:g} holds the policy close to the reference ({at}); try {found.suggested_beta:g}"
            )
        if ratio < 1 / 4 and own.KL > TARGET_KL:
            said.append(
                f"beta {found.beta:g} allows texts far from the reference ({at}), where a reward is easily gamed; try"
                f" {found.suggested_beta:g}"
            )
    if found.beta == 0:
        remedy = "" if found.suggested_beta is None else f"; try {found.suggested_beta:g}"
        said.append(f"beta is 0: nothing keeps the texts near the reference{remedy}")
    return said
