"""Losses of reward-model training.  Pure: tensors in, a scalar out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["pairwise_loss"]


def pairwise_loss(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """-mean log sigmoid(chosen - rejected): ln 2 for a model that scores everything alike.

    Args:
        chosen_scores, rejected_scores: (B,) scores of the two responses of each comparison.

    Returns:
        a scalar, nats.
    """
    return -F.logsigmoid(chosen_scores - rejected_scores).mean()
