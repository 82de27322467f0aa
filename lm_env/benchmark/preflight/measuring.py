"""What a preflight measures of a task from samples of the reference: its reward, its beta, the time of a training.

Shapes: P prompts, n samples per prompt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm_env.benchmark.preflight.betas import beta_points, suggested_beta
from lm_env.benchmark.preflight.findings import DegenerateText, Preflight
from lm_env.benchmark.preflight.warning_sentences import GROUP, warning_sentences
from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import LMEnvError, RewardValueError
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.degenerate_texts import BESIDE_A_RESPONSE
from lm_env.objective.scoring import episode_scores, raw_scores
from lm_env.objective.task import Task
from lm_env.theory.ceilings import best_of_n
from lm_env.validation import check_integer
from reward_models.trust import spearman

__all__ = ["preflight"]

PER_PROMPT = 32
"""Samples of a prompt, where the task has prompts enough."""
BEST_OF = (1, 2, 4, 8, 16)
"""The values of n for which best-of-n is shown."""
BARS = 12
"""Bars of the histogram, at most."""
SLOTS = 64
"""Texts that are written at a time."""
LARGEST_SCORE = 1e12
"""The largest score, and one over it the smallest difference of scores, that is compared with a KL in nats."""
SMALLEST_SCALED = 1e-300
"""What is smaller has no finite inverse, or hardly one."""
FORWARD_TEXTS = 128
"""Texts whose logprobs are computed to see how long a forward takes."""


def preflight(task: Task, *, samples: int = 1024, budget: int = 100_000, seed: int = 0) -> Preflight:
    """Sample the reference on some of the task's prompts, drawn at random, and measure what its scores allow.

    Nothing is trained, and the task is left as it is.

    Args:
        task: its model need not be the reference: the reference is sampled in any case.
        samples: texts in all, at least 64: 32 to a prompt if the task has `samples` / 32 prompts or more, else as many
            to each prompt as make up about that number.
        budget: tokens that a training is to generate, for the estimate of the time.
        seed: draws the prompts and the samples.

    Raises:
        ConfigurationError: `samples` is less than 64, or `seed` negative.
        RewardError, RewardValueError: the reward function failed.
        RewardValueError: the scores, or their differences, are too large or too small to be compared with a KL.
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
    _check_scale(scores)
    by_prompt = scores.reshape(len(prompts), n)
    groups = by_prompt[:, : n // GROUP * GROUP].reshape(-1, GROUP)
    lengths = episodes.response_lengths.astype(np.float64)
    values, counts = np.unique(scores, return_counts=True)
    bests = [best_of_n(by_prompt, k) for k in BEST_OF if k <= n]
    suggested = suggested_beta(by_prompt)
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
        length_correlation=_length_correlation(task, scores, lengths, ended),
        ended=float(ended.mean()),
        truncated=float(1 - ended.mean()),
        degenerate=_degenerate(task, prompts, episodes, scores, n),
        best_of_n=[(best.n, best.score.mean, best.KL) for best in bests],
        beta=task.kl.beta,
        suggested_beta=suggested,
        betas=beta_points(by_prompt, task.kl.beta, suggested),
        tokens_per_second=1 / speed.writing,
        reward_seconds=1000 * judging / len(scores),
        training_seconds=speed.training(budget, judging / lengths.sum()),
        budget=budget,
    )
    found.warnings.extend(warning_sentences(found, task))
    return found


def _check_scale(scores: np.ndarray) -> None:
    """Refuse scores (B,) of a size at which a penalty of some nats means nothing, or at which arithmetic ends.

    Raises:
        RewardValueError: the message says by how much to scale them.
    """
    half = float(scores.max() / 2 - scores.min() / 2)  # of their largest difference, which may exceed all numbers
    half = half or float(scores.max() - scores.min())  # and the smallest number has no half
    size = half if half > 0 else float(np.abs(scores).max())
    if size <= LARGEST_SCORE and (half == 0 or half >= 1 / LARGEST_SCORE):
        return
    factor = f"{10.0 ** -math.floor(math.log10(size)):.0e}" if size > SMALLEST_SCALED else "a large number"
    raise RewardValueError(
        f"the scores lie between {scores.min():g} and {scores.max():g}, where no penalty of some nats can be compared"
        f" with them: multiply the reward by {factor}, so that scores differ by about 1"
    )


@dataclass(frozen=True)
class Speed:
    """How long the model takes, in seconds per response token."""

    writing: float
    """To sample a text."""
    forward: float
    """To compute the logprobs of a text."""

    def training(self, budget: int, judging: float) -> tuple[float, float]:
        """The estimated seconds of a training: with one pass over each rollout, and with four.

        It is assumed that a pass of an update costs three forwards of each token (one forward, and a backward that
        costs two), and that a rollout costs one forward of the policy and one of the reference besides the sampling.

        Args:
            budget: response tokens that the training generates.
            judging: seconds that the reward function takes per response token.
        """
        one, four = (budget * (self.writing + judging + (2 + 3 * passes) * self.forward) for passes in (1, 4))
        return float(one), float(four)


def _sampled(task: Task, prompts: Sequence[Prompt], seed: int) -> tuple[Episodes, Speed]:
    """(a response of the reference to each prompt, how fast the model wrote them and read some of them again)."""
    sampling = Sampling(torch.Generator().manual_seed(seed))
    with task.as_reference():
        started = time.perf_counter()
        episodes = LocalBackend(task, SLOTS, model=task.reference).generate(prompts, sampling).episodes
        written = time.perf_counter()
        part = episodes[np.arange(min(len(episodes), FORWARD_TEXTS))]
        response_logprobs(task.reference, part, task.temperature)
        read = time.perf_counter()
    speed = Speed(
        writing=(written - started) / int(episodes.response_lengths.sum()),
        forward=(read - written) / int(part.response_lengths.sum()),
    )
    return episodes, speed


def _length_correlation(task: Task, scores: np.ndarray, lengths: np.ndarray, ended: np.ndarray) -> float | None:
    """Spearman's rank correlation of score and length, over the texts that are paid for their content.

    A text that is paid `missing_eos_score` is not: its score says nothing of its length.

    Args:
        scores, lengths: float64 (B,) of B texts.
        ended: bool (B,), True for texts that ended by themselves.

    Returns:
        None where the scores or the lengths do not vary.
    """
    if task.missing_eos_score is None:
        return spearman(scores, lengths)
    return spearman(scores[ended], lengths[ended])


def _histogram(scores: np.ndarray) -> list[tuple[float, float, int]]:
    """(from, to, texts) of bars of equal width, or of each score if there are few different ones."""
    values, counts = np.unique(scores, return_counts=True)
    if len(values) <= BARS:
        return [(float(value), float(value), int(count)) for value, count in zip(values, counts, strict=True)]
    edges = np.histogram_bin_edges(scores, bins=BARS)
    counts = np.histogram(scores, bins=edges)[0]
    return [(float(low), float(high), int(count)) for low, high, count in zip(edges, edges[1:], counts, strict=False)]


def _degenerate(
    task: Task, prompts: Sequence[Prompt], episodes: Episodes, scores: np.ndarray, n: int
) -> list[DegenerateText]:
    """The scores of degenerate texts, each made from the first sample of a prompt, beside the score of that sample.

    Args:
        prompts: P prompts.
        episodes: P n samples, those of a prompt one after the other.
        scores: float64 (P n,), theirs.
        n: samples per prompt.

    Returns:
        the kinds of text that could be made for at least one prompt; [] without a tokenizer that can encode texts.
    """
    if task.tokenizer is None or not callable(task.tokenizer):
        return []
    firsts = np.arange(len(prompts)) * n
    responses = episodes.responses()
    texts = [task.text_of(responses[row]) for row in firsts]
    found = []
    for name, make in BESIDE_A_RESPONSE.items():
        made = {i: make(prompt.text, text) for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))}
        changed = {i: text for i, text in made.items() if text is not None and text != texts[i]}
        encoded = {i: ids for i, text in changed.items() if (ids := _encoded(task, text))}
        if not encoded:
            continue
        tried = list(encoded)
        scores_made = raw_scores(task.reward, task, [prompts[i] for i in tried], list(encoded.values()))
        beats = float((scores_made > scores[firsts[tried]]).mean())
        found.append(DegenerateText(name, float(scores_made.mean()), beats, changed[tried[0]]))
    return found


def _encoded(task: Task, text: str) -> list[int]:
    """The token ids of a text as a response, cut at the length cap; an empty text is the EOS alone.

    Returns:
        [] for a text that the tokenizer cannot encode, and for an empty one where the task has no EOS.
    """
    try:
        encoded = task.tokenizer(text, add_special_tokens=False)
    except LMEnvError:  # an enumerable task has a vocabulary of its own
        return []
    ids = list(encoded["input_ids"])[: task.max_new_tokens]
    return ids or sorted(task.eos_token_ids)[:1]
