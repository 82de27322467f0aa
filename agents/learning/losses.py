"""Per-token losses.  Pure: tensors (N,) in, tensors (N,) out; N real tokens, no padding.

The caller divides a sum of them by the number of tokens of the whole minibatch, so that cutting a
minibatch into micro-batches changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lm_env.models.logprobs import log_distribution

__all__ = ["clip_fraction", "clipped_policy_loss", "clipped_value_loss", "entropy"]


def clipped_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) (Schulman et al. 2017, arXiv:1707.06347, equation 7)."""
    ratio = torch.exp(logprobs - old_logprobs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clip_fraction(logprobs: Tensor, old_logprobs: Tensor, clip: float) -> Tensor:
    """1 where the ratio has left [1 - clip, 1 + clip], else 0, (N,); for the log."""
    ratio = torch.exp(logprobs - old_logprobs)
    return ((ratio - 1).abs() > clip).float()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """max of the squared errors with and without the step from the old value clipped, halved."""
    loss = (values - returns) ** 2
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (clipped - returns) ** 2)
    return loss / 2


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of the softmax of logits (N, V) / temperature, nats (N,).

    A logit of -inf adds nothing, and its gradient is 0.
    """
    logprobs = log_distribution(logits, temperature)
    # Masked before the product: 0 x -inf would be NaN in the backward pass, even where it is not taken.
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)
