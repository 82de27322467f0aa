"""The optimum over beta, estimated from samples of the reference, and the beta that is suggested.

The optimum at a beta is the largest J = score - beta KL that any policy has; `lm_env.theory.ceilings` estimates it.

Shapes: P prompts, n samples per prompt.
"""

from __future__ import annotations

import math

import numpy as np

from lm_env.benchmark.preflight.findings import BetaPoint
from lm_env.theory.ceilings import ceiling

__all__ = ["TARGET_KL", "beta_points", "suggested_beta"]

TARGET_KL = math.log(16) - 15 / 16
"""The KL of best-of-16, log n - (n - 1) / n nats per response; the suggested beta is the one whose optimum has it."""
LARGEST_SHARE = 0.9
"""Where no optimum is that far from the reference, the suggested beta is the one whose optimum has this share of the
largest KL."""
SEARCHED = (1e-3, 1e3)
"""The suggested beta is searched between these multiples of the difference of the highest and the lowest score."""
HALVINGS = 40
FACTORS = tuple(2.0**power for power in range(4, -4, -1))
"""The betas for which the optimum is shown, as multiples of the task's."""


def suggested_beta(scores: np.ndarray) -> float | None:
    """The beta whose optimum is as far from the reference as best-of-16, 1.8 nats; None if no prompt's scores vary.

    Such an optimum gains enough to be worth a training, a short training can reach it, and the samples suffice to
    estimate it.  If the best texts are so frequent that no optimum is that far away, it is the beta whose optimum has
    nine tenths of the largest KL, and so nearly the largest score.

    Args:
        scores: float (P, n) of samples of the reference.

    Returns:
        score per nat, rounded to two digits.
    """
    difference = float(scores.max() - scores.min())
    if difference == 0 or bool((scores.max(1) == scores.min(1)).all()):
        return None
    low, high = (math.log(difference * factor) for factor in SEARCHED)
    target = min(TARGET_KL, LARGEST_SHARE * ceiling(scores, math.exp(low)).KL.mean)
    for _ in range(HALVINGS):  # bisection of log(beta): the optimum's KL falls as beta grows
        middle = (low + high) / 2
        low, high = (middle, high) if ceiling(scores, math.exp(middle)).KL.mean > target else (low, middle)
    return float(f"{math.exp((low + high) / 2):.2g}")


def beta_points(scores: np.ndarray, beta: float, suggested: float | None) -> list[BetaPoint]:
    """The optimum at multiples of a task's beta and at the suggested one, the largest beta first.

    Args:
        scores: float (P, n) of samples of the reference.
        beta: the task's, score per nat; if it is 0, the multiples are those of the suggested one.
        suggested: what `suggested_beta` found.

    Returns:
        [] if the task's beta is 0 and none is suggested.
    """
    base = beta or suggested
    if not base:
        return []
    betas = {base * factor for factor in FACTORS} | ({suggested} if suggested else set())
    points = []
    for each in sorted(betas, reverse=True):
        optimum = ceiling(scores, each)
        ess = float(np.median(optimum.ess))
        points.append(BetaPoint(optimum.beta, optimum.score.mean, optimum.KL.mean, optimum.J.mean, ess))
    return points
