"""Likelihood of given texts: its gradient, and perplexity.  For fine-tuning and for PPO-ptx.

Shapes: B texts, P prompt, T response, L = P + T.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from torch import nn

from lm_env.data.episodes import Episodes, text_episodes
from lm_env.distributed import processes
from lm_env.models.inputs import length_batches
from lm_env.models.logprobs import response_logprobs, response_outputs, token_logprobs
from lm_env.models.packing import ROW_TOKENS, pack, packed_outputs

__all__ = ["add_likelihood_gradient", "perplexity", "text_episodes", "text_logprobs"]


def add_likelihood_gradient(
    model: nn.Module,
    episodes: Episodes,
    scale: float,
    micro_batch_tokens: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    *,
    packed: bool = False,
) -> float:
    """Add the gradient of -scale x mean log pi(response token) to the parameters' `grad`.

    Several processes call this alike, and each adds the gradient of its share of the texts; the mean is over the
    tokens of all of them.

    Args:
        micro_batch_tokens: padded tokens per forward; memory only, the gradient is the same.
        autocast: the context of the forwards.
        packed: read several texts side by side in a row without padding; the gradient is the same.

    Returns:
        the mean negative log-likelihood, nats per token, before any step; of several processes, this one's part of
        that sum.
    """
    count, total = int(episodes.response_lengths.sum()), 0.0
    episodes = episodes[processes().deal(episodes.lengths)]
    if packed:
        parts = pack(episodes.lengths, min(micro_batch_tokens, ROW_TOKENS))
    else:
        parts = length_batches(episodes.lengths, micro_batch_tokens)
    for part in parts:
        with autocast():
            outputs, targets = (packed_outputs if packed else response_outputs)(model, episodes[part])
            logprobs = token_logprobs(outputs.logits, targets)  # T = 1: the texts were not sampled
        loss = -logprobs.sum() / count
        (scale * loss).backward()
        total += loss.item()
    return total


def perplexity(model: nn.Module, episodes: Episodes) -> float:
    """exp of the mean negative log-likelihood per response token, at temperature 1; processes as in `text_logprobs`."""
    return float(np.exp(-text_logprobs(model, episodes).sum() / episodes.response_lengths.sum()))


def text_logprobs(model: nn.Module, episodes: Episodes, temperature: float = 1.0) -> np.ndarray:
    """The logprob of each whole response, float64 (B,), nats.

    Several processes call this alike; each reads its share of the texts, and all of them get the whole result.
    """
    together = processes()
    own = np.arange(len(episodes))[together.share(len(episodes))]
    totals = response_logprobs(model, episodes[own], temperature).astype(np.float64).sum(1)
    return together.gather_rows({"totals": totals}, len(own))["totals"]
