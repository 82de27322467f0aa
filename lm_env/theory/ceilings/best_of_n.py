"""Best-of-n from samples of the reference: its score without bias, and its exact KL, ties included.

Source: Stiennon et al. 2020 (arXiv:2009.01325), appendix G.3; Beirami et al. 2024 (arXiv:2401.01879).

Shapes: P prompts, count samples of the reference per prompt.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.theory.ceilings.estimate import Estimate, ReferenceScores, checked_scores
from lm_env.validation import check_integer

__all__ = ["BestOfN", "best_of_n"]


@dataclass(frozen=True)
class BestOfN:
    """The best of n samples by score, without any training."""

    n: int
    score: Estimate
    KL: float
    """Nats per response: log n - (n - 1) / n if no scores tie, and less if some do."""

    def J(self, beta: float) -> float:
        """E[score] - beta KL."""
        return self.score.mean - beta * self.KL


def best_of_n(scores: ReferenceScores, n: int) -> BestOfN:
    """Score and KL of the best of n samples of the reference, without bias in the score.

    The score is the mean, over all subsets of n of the given samples, of the best one (an order statistic).  The KL is
    exact for the empirical distribution of the scores: tied samples count as equal, and best-of-n picks one of them
    at random; untied samples are treated as draws from a continuous distribution.

    Args:
        scores: as in `ceiling`, with at least n samples per prompt; a quarter of them or fewer is advisable.

    Raises:
        ConfigurationError: there are fewer than n samples.
    """
    check_integer("n", n)
    rows = [np.sort(row) for row in checked_scores(scores)]
    fewest = min(len(row) for row in rows)
    if n > fewest:
        raise ConfigurationError(f"best of {n} needs at least {n} samples per prompt, not {fewest}")
    shares = {count: _largest_of_n(count, n) for count in {len(row) for row in rows}}
    kl = np.mean([_best_of_n_kl(row, n) for row in rows])
    return BestOfN(n, Estimate.of(np.array([row @ shares[len(row)] for row in rows])), float(kl))


def _largest_of_n(count: int, n: int) -> np.ndarray:
    """C(i, n-1) / C(count, n), float (count,): how often the i-th smallest (from 0) is the largest of a subset of n."""
    log_share = np.full(count, -np.inf)
    for i in range(n - 1, count):
        log_share[i] = _log_choose(i, n - 1) - _log_choose(count, n)
    return np.exp(log_share)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _best_of_n_kl(ordered: np.ndarray, n: int) -> float:
    """KL between best-of-n and the reference, by the levels of ascending scores (count,).

    In terms of the position u in [0, 1] of a sample among the reference's scores, best-of-n has the
    density n u^(n-1) where scores are continuous, and a constant one over each level of tied scores.
    """
    levels = np.flatnonzero(np.diff(ordered)) + 1
    edges = np.concatenate([[0], levels, [len(ordered)]]) / len(ordered)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        mass = high**n - low**n
        tied = (high - low) * len(ordered) > 1.5
        if tied:
            total += mass * math.log(mass / (high - low)) if mass > 0 else 0.0
        else:
            total += _continuous_part(high, n) - _continuous_part(low, n)
    return total


def _continuous_part(u: float, n: int) -> float:
    """The integral from 0 to u of n v^(n-1) log(n v^(n-1))."""
    if u == 0:
        return 0.0
    return float(u**n * (math.log(n) + (n - 1) * (math.log(u) - 1 / n)))
