"""Estimates from samples of the reference: means over prompts with their errors, and exponential tilting.

Shapes: P prompts, n samples of the reference per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_env.errors import ConfigurationError

__all__ = ["Estimate", "ReferenceScores", "checked_scores", "tilt", "tilted"]

ReferenceScores = np.ndarray | Sequence[np.ndarray]
"""float (P, n), or P arrays (n,) of their own lengths."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts, and its standard error over prompts."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """The mean of values (P,); the error is NaN for a single prompt."""
        se = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
        return cls(float(values.mean()), se)

    @classmethod
    def ratio(cls, above: np.ndarray, below: np.ndarray) -> Estimate:
        """The ratio of two means over the same prompts, by the delta method (Cochran 1977, equation 6.4).

        The error takes into account that both vary together from prompt to prompt.

        Args:
            above, below: float (P,); the mean of `below` is not 0.
        """
        mean = float(above.mean() / below.mean())
        rest = cls.of(above - mean * below)
        return cls(mean, rest.se / abs(float(below.mean())))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if math.isnan(self.se) else f"{self.mean:.3f} +- {self.se:.3f}"


def checked_scores(scores: ReferenceScores) -> list[np.ndarray]:
    """P arrays (n,) float64.

    Raises:
        ConfigurationError: there are none, or one has fewer than 2 numbers, or holds one that is not finite.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    if not rows or any(row.ndim != 1 or len(row) < 2 or not np.isfinite(row).all() for row in rows):
        shape = getattr(scores, "shape", f"{len(scores)} rows")
        raise ConfigurationError(
            f"scores must be finite, (prompts, samples) with at least 2 samples of each prompt, not {shape}"
        )
    return rows


def tilted(scores: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """J* jackknifed, J* plain, E*[score] jackknifed, and the effective sample size, (P,) each, of scores (P, n)."""
    n = scores.shape[1]
    weights = tilt(scores, beta)
    plain = _log_mean_exp(scores, beta)
    tilted = (weights * scores).sum(1)
    # Leave one out: the sums without each sample, and with them both estimates.
    rest = 1 - weights
    with np.errstate(divide="ignore", invalid="ignore"):
        left_value = plain[:, None] + beta * (np.log(rest) - math.log1p(-1 / n))
        left_score = (tilted[:, None] - weights * scores) / rest
    alone = rest < 1e-9  # one sample carries all the weight: what the others say must be computed afresh
    for row in np.flatnonzero(alone.any(1)):
        for column in np.flatnonzero(alone[row]):
            others = np.delete(scores[row], column)[None]
            left_value[row, column] = _log_mean_exp(others, beta)[0]
            left_score[row, column] = (tilt(others, beta) * others).sum()
    value = n * plain - (n - 1) * left_value.mean(1)
    score = n * tilted - (n - 1) * left_score.mean(1)
    return value, plain, score, 1 / (weights**2).sum(1)


def tilt(scores: np.ndarray, beta: float) -> np.ndarray:
    """exp(score / beta), each row to sum 1, (P, n)."""
    logits = scores / beta
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def _log_mean_exp(scores: np.ndarray, beta: float) -> np.ndarray:
    """beta log mean exp(score / beta) of each row, (P,)."""
    return beta * (np.logaddexp.reduce(scores / beta, axis=1) - math.log(scores.shape[1]))
