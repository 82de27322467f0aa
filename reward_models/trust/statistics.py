"""Shares with intervals, calibration, rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Share",
    "calibration_bins",
    "correlation",
    "expected_calibration_error",
    "fitted_scale",
    "sigmoid",
    "spearman",
    "wilson",
]

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share of successes with its 95% Wilson interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f}, n {self.count:,})"


def wilson(successes: Sequence[float] | np.ndarray) -> Share | None:
    """The share of successes, each 0, 1 or a half, with Wilson's 95% interval; None of nothing.

    Source: Wilson 1927.  The interval takes the trials as independent; comparisons of one prompt are less so.
    """
    values = np.asarray(successes, dtype=np.float64)
    n = len(values)
    if n == 0:
        return None
    p = float(values.mean())
    center = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return Share(p, min(max(0.0, center - half), p), max(min(1.0, center + half), p), n)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(x, dtype=np.float64) / 2))


def calibration_bins(margins: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean predicted probability, share right, count) of bins by the probability that the model gives its choice.

    Args:
        margins: the score of the better response minus that of the worse, in nats of log-odds.
    """
    margins = np.asarray(margins, dtype=np.float64)
    sure = sigmoid(np.abs(margins))  # 1/2 to 1
    right = (margins > 0) + 0.5 * (margins == 0)
    place = np.minimum(((sure - 0.5) * 2 * bins).astype(int), bins - 1)
    found = []
    for b in range(bins):
        inside = place == b
        if inside.any():
            found.append((float(sure[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    return found


def expected_calibration_error(margins: np.ndarray, bins: int = 10) -> float:
    """The mean distance between the predicted probability and the share of right choices, over bins of the former.

    Source: Guo et al. 2017 (arXiv:1706.04599), with the choice between two responses as the prediction.
    """
    found = calibration_bins(margins, bins)
    total = sum(count for _, _, count in found)
    return sum(count * abs(sure - right) for sure, right, count in found) / total if total else 0.0


def fitted_scale(margins: np.ndarray) -> float:
    """The factor by which margins must be multiplied for the log-likelihood of the choices to be highest.

    1 is calibrated, below 1 the model is too sure, above 1 not sure enough.  The likelihood is concave in it.  Where no
    choice is wrong it grows for ever; the factor is then the largest that is searched, which brings the mean absolute
    margin to 100.  If all margins are 0, every factor is as good, and it is 1.
    """
    margins = np.asarray(margins, dtype=np.float64)
    unit = float(np.abs(margins).mean())
    if unit == 0:
        return 1.0
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        slope = float(np.sum(margins / unit * sigmoid(-middle * margins / unit)))
        low, high = (middle, high) if slope > 0 else (low, middle)
    return (low + high) / 2 / unit


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation; None where one of them does not vary, or for fewer than three."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None as in `correlation`."""
    return correlation(_mean_ranks(x), _mean_ranks(y))


def _mean_ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(np.asarray(x, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
