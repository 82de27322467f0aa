"""What a preflight finds: numbers and sentences, as one record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lm_env.benchmark.measures.measuring import plain

__all__ = ["BetaPoint", "DegenerateText", "Preflight"]


@dataclass(frozen=True)
class BetaPoint:
    """The optimum at a beta."""

    beta: float
    score: float
    KL: float
    J: float
    ess: float
    """The median effective sample size; below about 10 J is a lower bound."""


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
    commonest: tuple[float, float]
    """(the commonest score, the share of the samples that have it)."""
    histogram: list[tuple[float, float, int]]
    """(from, to, texts); of at most 12 different scores, each has a row of its own, from itself to itself."""
    without_variance: float
    """The share of prompts whose samples all score alike."""
    equal_groups: float
    """The share of groups of 8 samples to a prompt that all score alike: they teach a group agent nothing."""
    length: float
    """Mean response tokens."""
    length_correlation: float | None
    """Spearman's rank correlation of score and length; None where one of them does not vary.  Texts that are paid
    `missing_eos_score` are left out, since that is no score of their content."""
    ended: float
    """The share of texts that ended by themselves."""
    truncated: float
    """The share of texts that the length cap ended."""
    degenerate: list[DegenerateText]
    best_of_n: list[tuple[int, float, float]]
    """(n, score, KL)."""
    beta: float
    """The beta of the task."""
    suggested_beta: float | None
    betas: list[BetaPoint]
    """The optimum over beta, the largest beta first; among them the task's and the suggested one."""
    tokens_per_second: float
    """The speed of sampling."""
    reward_seconds: float
    """Seconds that the reward function takes for 1,000 texts."""
    training_seconds: tuple[float, float]
    """Estimates for the budget, with one pass over each rollout and with four."""
    budget: int
    """Tokens that the training is to generate."""
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The findings as a JSON object."""
        return dict(plain(asdict(self)))

    def at(self, beta: float) -> BetaPoint | None:
        """The optimum at a beta that is among `betas`; None if it is not."""
        return next((point for point in self.betas if point.beta == beta), None)
