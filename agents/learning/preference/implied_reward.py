"""How the reward that a policy implies, beta log(pi / pi_ref), ranks responses that were compared.

Shapes: R responses of a batch, K comparisons that are not ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from agents.learning.preference.judged_texts import JudgedBatch

__all__ = ["NO_COMPARISONS", "ImpliedReward", "ranked_comparisons"]

ROUNDING = 1e-4
"""Log-ratios that differ by less, in nats, count as equal: forwards of the same weights may round differently."""
NO_COMPARISONS = np.zeros((0, 3))


@dataclass(frozen=True)
class ImpliedReward:
    """How a policy's implied reward, beta log(pi / pi_ref), ranks the responses that were compared."""

    comparisons: int
    """How many comparisons are not ties; accuracy, margin and logprobs refer to them."""
    right: float
    """How many of them the implied reward ranks right, equal ones counting half."""
    margin: float
    """Mean implied reward of the chosen response minus that of the rejected one."""
    chosen_logprob: float
    rejected_logprob: float
    """Mean logprob of a whole chosen and of a whole rejected response, nats."""
    loss: float
    """The mean loss of a record."""

    @property
    def accuracy(self) -> float:
        """The share of comparisons ranked right; 1/2 for the reference itself."""
        return self.right / self.comparisons if self.comparisons else math.nan

    @classmethod
    def of(cls, ranked: np.ndarray, beta: float, loss: float) -> Self:
        """From the comparisons of all records.

        Args:
            ranked: float64 (K, 3), of `ranked_comparisons`.
            beta: weight of the KL penalty, score per nat.
            loss: the mean loss of a record.
        """
        ahead = ranked[:, 0]
        right = float((ahead > 0).sum() + (ahead == 0).sum() / 2)
        if not len(ranked):
            return cls(0, right, math.nan, math.nan, math.nan, loss)
        margin, chosen, rejected = (float(mean) for mean in ranked.mean(0))
        return cls(len(ranked), right, beta * margin, chosen, rejected, loss)


def ranked_comparisons(batch: JudgedBatch, logprobs: np.ndarray, ref_logprobs: np.ndarray) -> np.ndarray:
    """How far the policy puts the chosen response of each comparison that is no tie ahead of the rejected one.

    Args:
        logprobs, ref_logprobs: float64 (R,), of each whole response under policy and reference, nats.

    Returns:
        float64 (K, 3): the log-ratio of the chosen response less that of the rejected one, and the policy's logprobs
        of both.
    """
    ratio = logprobs - ref_logprobs
    chosen, rejected = batch.first[batch.chances == 1], batch.second[batch.chances == 1]
    ahead = ratio[chosen] - ratio[rejected]
    ahead = np.where(np.abs(ahead) < ROUNDING, 0.0, ahead)
    return np.stack([ahead, logprobs[chosen], logprobs[rejected]], 1)
