"""Losses of reward-model training.  Pure: tensors in, a scalar out.

Shapes: B rows, K ranked responses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reward_models.preferences.records.preference import ranking_outcomes

__all__ = ["best_of_loss", "kwise_loss", "pairwise_loss", "plackett_luce_loss", "regression_loss"]


def pairwise_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    margins: Tensor | None = None,
    tied: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """-mean log sigmoid(chosen - rejected): ln 2 for a model that scores everything alike.

    Source: Bradley and Terry 1952; Ouyang et al. 2022 (arXiv:2203.02155), equation 1; margins: Touvron et al. 2023
    (arXiv:2307.09288), equation 2.

    Args:
        chosen_scores, rejected_scores: (B,) scores of the two responses of each comparison.
        margins: (B,) by how much the chosen score should be the higher one; default 0.  Ties have none.
        tied: bool (B,); a tie counts as half a victory of each side, so that its loss is least at equal scores.
        weights: (B,); the result is then the weighted sum instead of the mean.

    Returns:
        a scalar, nats.
    """
    difference = chosen_scores - rejected_scores
    loss = -F.logsigmoid(difference if margins is None else difference - margins)
    if tied is not None:
        even = -(F.logsigmoid(difference) + F.logsigmoid(-difference)) / 2
        loss = torch.where(tied, even, loss)
    return loss.mean() if weights is None else (loss * weights).sum()


def kwise_loss(scores: Tensor, ranking: Sequence[int | None]) -> Tensor:
    """The mean pairwise loss over all comparisons that a ranking holds, at one score per response.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), section 3.5: K forwards instead of K (K - 1).

    Args:
        scores: (K,).
        ranking: K ranks, 0 the best, equal ones tie; None is below all ranks, and not compared with other None.

    Returns:
        a scalar, nats; 0 where the ranking compares nothing.
    """
    outcomes = ranking_outcomes(ranking)
    if not outcomes:
        return scores.sum() * 0.0
    better, worse, tied = zip(*outcomes, strict=True)
    return pairwise_loss(scores[list(better)], scores[list(worse)], tied=torch.tensor(tied, device=scores.device))


def best_of_loss(scores: Tensor, best: Tensor) -> Tensor:
    """Cross-entropy of the choice of the best of K responses: ln K for a model that scores everything alike.

    Source: Ziegler et al. 2019 (arXiv:1909.08593), equation 1, with K = 4.

    Args:
        scores: (B, K).
        best: int64 (B,), the index of the response that was chosen.
    """
    return F.cross_entropy(scores, best)


def plackett_luce_loss(scores: Tensor, ranking: Sequence[int | None]) -> Tensor:
    """-log probability of a ranking when the best is chosen first, then the best of the rest, and so on.

    It is divided by the number of choices, so that records of different K count alike: K = 2 is the pairwise loss, and
    a ranking that holds the best alone is the loss of the best of K.  Responses that tie are each chosen out of
    all that are left, themselves included (Breslow's method).  Source: Plackett 1975; Luce 1959.

    Args:
        scores: (K,).
        ranking: K ranks, 0 the best; None is below all ranks, and never chosen.
    """
    levels = sorted({rank for rank in ranking if rank is not None})
    terms = []
    for level in levels:
        left = [i for i, rank in enumerate(ranking) if rank is None or rank >= level]
        chosen = [i for i in left if ranking[i] == level]
        if len(left) > 1:
            terms.append(torch.logsumexp(scores[left], dim=0) - scores[chosen])
    return torch.cat(terms).mean() if terms else scores.sum() * 0.0


def regression_loss(scores: Tensor, ratings: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean squared error: the score is to be the rating.

    Args:
        scores, ratings: (B,).
        weights: (B,); the result is then the weighted sum instead of the mean.
    """
    loss = (scores - ratings) ** 2
    return loss.mean() if weights is None else (loss * weights).sum()
