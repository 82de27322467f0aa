"""Win rates of two models, as they are and controlled for length.

Shapes: C comparisons of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm_env.errors import ConfigurationError
from reward_models.compare.outcomes import Outcomes
from reward_models.trust.statistics import Z95, Share, sigmoid, wilson

__all__ = ["PairResult", "length_controlled", "pair_result", "position_share"]

PRIOR_SD = 10.0
"""Standard deviation, in nats of log-odds, of a normal prior of both coefficients.  It matters only where a model
always wins, or always with the longer text: the likelihood then has no maximum."""

MOST_STEPS = 100


@dataclass(frozen=True)
class PairResult:
    """How often the first of two models is better.

    Attributes:
        first, second: their names.
        wins, ties, losses: of the first one.
        prompts: how many prompts they were compared on.
        win_rate: a tie counts as half a win; Wilson's 95% interval over the prompts.
        length_controlled: the win rate that a logistic regression finds at equal length, with its 95% interval; None
            where all responses are equally long.
        length_effect: its coefficient of length, in nats of log-odds.
    """

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    prompts: int
    win_rate: Share
    length_controlled: Share | None
    length_effect: float | None


def pair_result(outcomes: Outcomes, first: int, second: int) -> PairResult:
    """How two models compare.

    Where there are several comparisons on a prompt, each prompt counts as one trial whose success is their mean.

    Raises:
        ConfigurationError: they were not compared.
    """
    own = outcomes.pair(first, second)
    if not len(own):
        raise ConfigurationError(
            f"{outcomes.names[first]} and {outcomes.names[second]} were not compared: name a pair of `Outcomes.pairs()`"
        )
    means = own.prompt_results()
    rate = wilson(means)
    assert rate is not None
    controlled = length_controlled(own.result, own.length_difference, own.weights())
    share, effect = (None, None) if controlled is None else controlled
    return PairResult(
        outcomes.names[first],
        outcomes.names[second],
        int((own.result == 1).sum()),
        int((own.result == 0.5).sum()),
        int((own.result == 0).sum()),
        len(means),
        rate,
        share,
        effect,
    )


def length_controlled(
    result: np.ndarray, length_difference: np.ndarray, weights: np.ndarray | None = None
) -> tuple[Share, float] | None:
    """The win rate at equal length: logistic regression on the difference in length, read at a difference of 0.

    logit P(win) = a + b tanh(d / std(d)), d the difference in characters; the win rate is sigmoid(a), and its interval
    comes from the curvature of the log-likelihood at its maximum.

    Source: Dubois et al. 2024 (arXiv:2404.04475), "Length-Controlled AlpacaEval", equation 2, without the term for the
    difficulty of an instruction, which takes a leaderboard of many models to fit.

    Args:
        result: (C,), 1, 0, or 1/2 for a tie.
        length_difference: (C,).
        weights: (C,); default: 1 each.

    Returns:
        (the win rate, b), or None where the length never differs.
    """
    y, d = np.asarray(result, dtype=np.float64), np.asarray(length_difference, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    spread = float(d.std()) if len(d) else 0.0
    if spread == 0.0:
        return None
    x = np.stack([np.ones_like(d), np.tanh(d / spread)], axis=1)
    coefficients = np.zeros(2)
    for _ in range(MOST_STEPS):
        p = sigmoid(x @ coefficients)
        gradient = x.T @ (w * (y - p)) - coefficients / PRIOR_SD**2
        hessian = _curvature(x, w * p * (1 - p))
        step = np.linalg.solve(hessian, gradient)
        coefficients += step / max(1.0, float(np.abs(step).max()) / 2)  # bounded, for the first steps overshoot
        if np.abs(step).max() < 1e-10:
            break
    p = sigmoid(x @ coefficients)
    error = float(np.sqrt(np.linalg.inv(_curvature(x, w * p * (1 - p)))[0, 0]))
    a, b = coefficients.tolist()
    low, rate, high = (float(sigmoid(np.array(a + k * Z95 * error))) for k in (-1, 0, 1))
    return Share(rate, low, high, round(float(w.sum()))), b


def position_share(outcomes: Outcomes) -> Share | None:
    """How often the response that was shown first was preferred, ties left out; 1/2 is no bias.

    None where no order is known, as for a judge that scores each response by itself: it has no position to prefer.
    """
    known = ~np.isnan(outcomes.shown_first) & (outcomes.result != 0.5)
    return wilson((outcomes.result[known] == outcomes.shown_first[known]).astype(np.float64))


def _curvature(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (x * weight[:, None]).T @ x + np.eye(x.shape[1]) / PRIOR_SD**2
