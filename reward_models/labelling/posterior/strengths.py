"""Bradley-Terry strengths of responses, from which of them won against which.

P(i beats j) = sigmoid(s_i - s_j); a tie counts as half a win for each side.  If an annotator's choice is reversed with
probability f, they choose i with probability f + (1 - 2 f) sigmoid(s_i - s_j) (Chen et al. 2013).  The strengths of the
responses to many prompts, one group for each prompt, are fitted at once by Fisher scoring.

`reward_models.compare.bradley_terry` fits another model: whole language models instead of the responses to a prompt,
ties with a parameter of their own (Davidson 1970), no unreliable annotators, and intervals from resampled prompts
instead of the second derivative.  Without ties and with f = 0 both have the same maximum.

Source: Bradley & Terry 1952; Chen, Bennett, Collins-Thompson & Horvitz 2013, "Pairwise ranking aggregation in a
crowdsourced setting".

Shapes: C comparisons, n groups, K the most responses of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.validation import check_integer, check_number
from reward_models.trust.statistics import sigmoid

__all__ = ["Strengths", "bradley_terry", "fit_groups"]

MOST_STEPS = 200
LONGEST_STEP = 2.0


@dataclass(frozen=True)
class Strengths:
    """Strengths in log odds; their mean is 0.

    Attributes:
        mean: float64 (K,).
        covariance: float64 (K, K).
    """

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def standard_error(self) -> np.ndarray:
        """float64 (K,)."""
        return np.sqrt(np.clip(np.diag(self.covariance), 0, None))


def bradley_terry(
    first: Any, second: Any, wins: Any, *, count: int | None = None, prior_sd: float | None = None, flips: Any = 0.0
) -> Strengths:
    """Strengths of things that were compared in pairs, with their standard errors.

    Args:
        first, second: integers (C,), which two were compared.
        wins: (C,), 1 where the first one won, 0 where the second one did, 0.5 for a tie.
        count: how many things there are; default: as many as the comparisons name.
        prior_sd: standard deviation of a normal prior of each strength.  None: no prior, the maximum likelihood.
        flips: a number or (C,), the probability that the annotator's choice was reversed, below 1/2.

    Raises:
        ConfigurationError: the arguments do not fit together; or, without a prior, the comparisons leave a strength
            undetermined because a thing was never compared, always won or always lost.
    """
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    wins = np.asarray(wins, dtype=np.float64)
    if not len(first) or not first.shape == second.shape == wins.shape == (len(first),):
        raise ConfigurationError(
            f"first, second and wins have {first.size}, {second.size} and {wins.size} entries: give one of each for"
            " each comparison, and at least one comparison"
        )
    size = int(max(first.max(), second.max())) + 1 if count is None else check_integer("count", count, low=2)
    if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= size or (first == second).any():
        raise ConfigurationError(f"each comparison names two different things, by indexes from 0 to {size - 1}")
    if not ((wins >= 0) & (wins <= 1)).all():
        raise ConfigurationError("wins are 1 (the first one won), 0 (the second one did), or 0.5 (a tie)")
    flip = np.broadcast_to(np.asarray(flips, dtype=np.float64), wins.shape)
    if not ((flip >= 0) & (flip < 0.5)).all():
        raise ConfigurationError("flips are probabilities of at least 0 and below 1/2")
    if prior_sd is None:
        _check_determined(first, second, wins, size)
    else:
        check_number("prior_sd", prior_sd, low=0.0, above=True)
    group = np.zeros(len(first), dtype=np.int64)
    mean, covariance = fit_groups(group, first, second, wins, flip, np.ones(len(first)), (1, size), prior_sd)
    return Strengths(mean[0] - mean[0].mean(), _centered(covariance[0]))


def _centered(covariance: np.ndarray) -> np.ndarray:
    """The covariance of the strengths less their mean."""
    size = len(covariance)
    center = np.eye(size) - 1 / size
    return center @ covariance @ center


def _check_determined(first: np.ndarray, second: np.ndarray, wins: np.ndarray, size: int) -> None:
    """Raise unless the likelihood has a maximum: a chain of wins or ties leads from each thing to each other one.

    Source: Ford 1957.
    """
    beats = np.eye(size, dtype=bool)
    beats[first[wins > 0], second[wins > 0]] = True
    beats[second[wins < 1], first[wins < 1]] = True
    for _ in range(max(1, int(np.ceil(np.log2(size))))):
        beats = beats @ beats
    if not beats.all():
        alone = np.flatnonzero(~(beats & beats.T).all(1)).tolist()
        raise ConfigurationError(
            f"the comparisons leave strengths undetermined (of {', '.join(map(str, alone[:8]))}): some were never"
            " compared with the others, always won or always lost; pass prior_sd=1.5"
        )


def fit_groups(
    group: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    wins: np.ndarray,
    flip: np.ndarray,
    weight: np.ndarray,
    shape: tuple[int, int],
    prior_sd: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Strengths of many groups at once.

    Args:
        group, first, second: int64 (C,), which group, and which two of its things.
        wins, flip: float64 (C,), as `wins` and `flips` of `bradley_terry`.
        weight: float64 (C,), how much each comparison counts.
        shape: (n, K).
        prior_sd: standard deviation of a normal prior of each strength; None: no prior, and strengths of mean 0.

    Returns:
        mean (n, K) and covariance (n, K, K) of the Laplace approximation.  Without a prior, the variance of the mean
        over a group's strengths is arbitrary; `bradley_terry` removes it by centering.
    """
    n, size = shape
    strength = np.zeros((n, size))
    ridge = np.eye(size) / prior_sd**2 if prior_sd is not None else np.full((size, size), 1 / size)
    precision = np.tile(ridge, (n, 1, 1))
    for _ in range(MOST_STEPS):
        slope, precision = _derivatives(strength, group, first, second, wins, flip, weight, ridge)
        step = np.linalg.solve(precision, slope[:, :, None])[:, :, 0]
        longest = np.abs(step).max(1, keepdims=True)
        strength += step * np.minimum(1.0, LONGEST_STEP / np.maximum(longest, 1e-12))
        if longest.max() < 1e-9:
            break
    return strength, np.linalg.inv(precision)


def _derivatives(
    strength: np.ndarray,
    group: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    wins: np.ndarray,
    flip: np.ndarray,
    weight: np.ndarray,
    ridge: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The slope (n, K) of the log posterior, and its expected negative second derivative (n, K, K)."""
    difference = strength[group, first] - strength[group, second]
    honest = sigmoid(difference)
    p = np.clip(flip + (1 - 2 * flip) * honest, 1e-12, 1 - 1e-12)
    change = (1 - 2 * flip) * honest * (1 - honest)  # dp / d difference
    push = weight * (wins - p) / (p * (1 - p)) * change
    information = weight * change**2 / (p * (1 - p))
    slope = -strength @ ridge
    np.add.at(slope, (group, first), push)
    np.add.at(slope, (group, second), -push)
    precision = np.tile(ridge, (len(strength), 1, 1))
    for i, j, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
        np.add.at(precision, (group, i, j), sign * information)
    return slope, precision
