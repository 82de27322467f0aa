"""The expected information of a comparison: how much its answer would tell about which response is better.

The difference of two responses' strengths is normal with mean m and variance v.  The mutual information of the answer y
and the difference is I(y; difference) = h(E[p]) - E[h(p)] nats, where p is the probability of the answer given the
difference, and h the entropy of a binary answer.  It is large where the difference is uncertain, and small where the
two are known to differ or known to be alike.

Source: Lindley 1956; for comparisons Houlsby et al. 2011 (arXiv:1112.5745), equation 2.
"""

from __future__ import annotations

import numpy as np

__all__ = ["expected_information"]

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def expected_information(mean: np.ndarray, variance: np.ndarray, flip: float = 0.0) -> np.ndarray:
    """Nats, of the same shape as `mean`; at most ln 2.

    Args:
        mean, variance: of the difference of strengths, in log odds.
        flip: the probability that the annotator's choice is reversed.
    """
    mean = np.asarray(mean, dtype=np.float64)
    deviation = np.sqrt(np.asarray(variance, dtype=np.float64))
    difference = mean[..., None] + deviation[..., None] * NODES
    p = flip + (1 - 2 * flip) * 0.5 * (1 + np.tanh(difference / 2))
    return np.clip(_entropy(p @ WEIGHTS) - _entropy(p) @ WEIGHTS, 0, None)


def _entropy(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-15, 1 - 1e-15)
    return -p * np.log(p) - (1 - p) * np.log1p(-p)
