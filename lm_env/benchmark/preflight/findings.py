"""What a preflight finds: numbers and sentences, as one record.  Its fields are the keys of the JSON file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lm_env.benchmark.measures.measuring import plain

__all__ = ["BetaPoint", "DegenerateText", "Preflight"]


@dataclass(frozen=True)
class BetaPoint:
    """The optimum at a beta, estimated from samples of the reference: the largest J = score - beta KL of any policy."""

    beta: float
    """Score per nat."""
    score: float
    KL: float
    """From the reference, nats per response."""
    J: float
    ess: float
    """The median over prompts of the effective sample size: how many samples the estimate rests on.  Below about 10, J
    is a lower bound."""


@dataclass(frozen=True)
class DegenerateText:
    """A kind of text that nobody wants, made from one sample of each prompt, and its scores beside the samples'."""

    name: str
    mean: float
    """Its mean score, over the prompts where it could be made."""
    beats: float
    """The share of these prompts on which it scores above the sample that it was made from."""
    example: str
    """The text of the first of these prompts."""


@dataclass(frozen=True)
class Preflight:
    """The findings before a training; scores in the unit of the reward, KL in nats per response."""

    prompts: int
    """How many prompts were sampled for."""
    samples: int
    """Samples of each of them."""
    score: float
    """The mean over all samples."""
    std: float
    """The standard deviation over all samples."""
    lowest: float
    highest: float
    commonest: tuple[float, float]
    """(the commonest score, the share of the samples that have it)."""
    histogram: list[tuple[float, float, int]]
    """(from, to, texts), the lowest scores first.  If there are at most 12 different scores, each has a bar of its own,
    from itself to itself."""
    without_variance: float
    """The share of prompts whose samples all score alike."""
    equal_groups: float
    """The share of groups of 8 samples to a prompt that all score alike: they teach a group agent nothing."""
    length: float
    """Mean tokens of a response."""
    length_correlation: float | None
    """Spearman's rank correlation of score and length; None where one of them does not vary.  Texts that are paid
    `missing_eos_score` are left out, since that is no score of their content."""
    ended: float
    """The share of texts that ended by themselves."""
    truncated: float
    """The share of texts that the length cap ended."""
    degenerate: list[DegenerateText]
    best_of_n: list[tuple[int, float, float]]
    """(n, mean score, KL) of the best of n samples; n = 1 is the reference."""
    beta: float
    """The beta of the task."""
    suggested_beta: float | None
    betas: list[BetaPoint]
    """The optimum over beta, the largest beta first; among them the task's and the suggested one."""
    tokens_per_second: float
    """The speed of sampling, response tokens per second."""
    reward_seconds: float
    """Seconds that the reward function takes for 1,000 texts."""
    training_seconds: tuple[float, float]
    """Estimated seconds of a training on `budget` tokens: with one pass over each rollout, and with four."""
    budget: int
    """Tokens that the training is to generate."""
    warnings: list[str] = field(default_factory=list)
    """What should be looked at before a training, in sentences."""

    def as_json(self) -> dict[str, Any]:
        """The findings as a JSON object."""
        return dict(plain(asdict(self)))

    def at(self, beta: float) -> BetaPoint | None:
        """The optimum at a beta that is among `betas`; None if it is not."""
        return next((point for point in self.betas if point.beta == beta), None)
