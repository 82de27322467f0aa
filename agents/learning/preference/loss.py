"""What agents that learn from comparisons share: the loss of a comparison, and what it reads of a policy.

Shapes: B episodes, N response tokens, C comparisons.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lm_env.data.episodes import Episodes

__all__ = ["PreferenceLoss", "preference_loss", "response_sums"]

PreferenceLoss = Literal["sigmoid", "ipo"]


def preference_loss(
    differences: Tensor,
    chances: Tensor,
    beta: float,
    *,
    kind: PreferenceLoss = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of each comparison of two responses.

    "sigmoid" is DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7): the cross-entropy of the Bradley-Terry model
    whose reward is beta log(pi / pi_ref).  Where the chances are those of a reward r, its minimum over all policies is
    pi_ref exp(r / beta) / Z.  "ipo" is the squared distance of the difference from 1 / (2 beta) (Azar et al. 2023,
    arXiv:2310.12036, equation 17), which stays finite where a response always wins.

    Args:
        differences: (C,) log(pi / pi_ref) of the first response minus that of the second, nats.
        chances: (C,) probability that the first one is better: 1 for a comparison that somebody has made, 1/2 for a
            tie.
        beta: the weight of the KL penalty, score per nat.
        label_smoothing: the probability that a label is wrong, below 1/2 (conservative DPO, Mitchell 2023).

    Returns:
        (C,); nats for "sigmoid", squared nats for "ipo".
    """
    chances = chances * (1 - label_smoothing) + (1 - chances) * label_smoothing
    if kind == "ipo":
        target = 1 / (2 * beta)
        return chances * (differences - target) ** 2 + (1 - chances) * (differences + target) ** 2
    return -(chances * F.logsigmoid(beta * differences) + (1 - chances) * F.logsigmoid(-beta * differences))


def response_sums(values: Tensor, episodes: Episodes) -> Tensor:
    """The sum over each response's tokens.

    Args:
        values: (N,), of the episodes' response tokens, row after row.

    Returns:
        (B,).
    """
    owners = torch.from_numpy(np.repeat(np.arange(len(episodes)), episodes.response_lengths)).to(values.device)
    return torch.zeros(len(episodes), dtype=values.dtype, device=values.device).index_add(0, owners, values)
