"""Likelihood of given texts: its gradient, and perplexity.  For fine-tuning and for PPO-ptx.

Shapes: B texts, P prompt, T response, L = P + T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from torch import nn

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.models.inputs import length_batches
from lm_env.models.logprobs import response_logprobs, response_outputs, token_logprobs

__all__ = ["add_likelihood_gradient", "perplexity", "text_episodes"]


def text_episodes(prompts: Sequence[Prompt], rows: Sequence[Sequence[int]], given: Sequence[int]) -> Episodes:
    """Texts as episodes.

    Args:
        rows: the token ids of each text, prompt and all.
        given: how many of them are the prompt, at least 1: no likelihood is asked of these.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return Episodes(ids, np.asarray(given, dtype=np.int64), lengths, prompts)


def add_likelihood_gradient(
    model: nn.Module,
    episodes: Episodes,
    scale: float,
    micro_batch_tokens: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> float:
    """Add the gradient of -scale x mean log pi(response token) to the parameters' `grad`.

    Args:
        micro_batch_tokens: padded tokens per forward; memory only, the gradient is the same.
        autocast: the context of the forwards.

    Returns:
        the mean negative log-likelihood, nats per token, before any step.
    """
    count, total = int(episodes.response_lengths.sum()), 0.0
    for part in length_batches(episodes.lengths, micro_batch_tokens):
        with autocast():
            outputs, targets = response_outputs(model, episodes[part])
            logprobs = token_logprobs(outputs.logits, targets)  # T = 1: the texts were not sampled
        loss = -logprobs.sum() / count
        (scale * loss).backward()
        total += loss.item()
    return total


def perplexity(model: nn.Module, episodes: Episodes) -> float:
    """exp of the mean negative log-likelihood per response token, at temperature 1."""
    return float(np.exp(-response_logprobs(model, episodes).sum() / episodes.response_lengths.sum()))
