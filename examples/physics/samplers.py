"""Samplers whose probabilities are not quite those that the trainer computes.

Shapes: S states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from exact import normalized

from lm_env import TokenMDP
from lm_env.theory.credit import Credits

Sampler: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""From the trainer's logprobs (S, V) to those (S, V) that texts are sampled with."""


def temperature(t: float) -> Sampler:
    """The sampler divides its logits by t."""
    return lambda policy: normalized(policy / t)


def bfloat16(policy: np.ndarray) -> np.ndarray:
    """The sampler computes logits in bfloat16, with 8 significant bits."""
    return normalized(torch.from_numpy(policy).to(torch.bfloat16).double().numpy())


def fixed_error(std: float, seed: int = 0) -> Sampler:
    """The sampler's logits have normal errors, always the same ones, as if another program had computed them."""

    def sampler(policy: np.ndarray) -> np.ndarray:
        return normalized(policy + np.random.default_rng(seed).normal(scale=std, size=policy.shape))

    return sampler


def top_p(p: float) -> Sampler:
    """The sampler keeps only the likeliest tokens, as few as together have a probability of at least p."""

    def sampler(policy: np.ndarray) -> np.ndarray:
        order = np.argsort(-policy, axis=1)
        likeliest = np.exp(np.take_along_axis(policy, order, axis=1))
        before = likeliest.cumsum(1) - likeliest
        kept = np.take_along_axis(before < p, np.argsort(order, axis=1), axis=1)
        return normalized(np.where(kept, policy, -np.inf))

    return sampler


def mismatch(mdp: TokenMDP, policy: np.ndarray, sampled: np.ndarray) -> float:
    """Mean of abs(logprob - logprob of the sampler) over sampled tokens: `rollout/logprob_mismatch`."""
    credits = Credits(mdp, policy, 1.0, behavior=sampled)
    per_text = credits.probabilities @ np.abs(credits.step_ratio).sum(1)
    return float(per_text / (credits.probabilities @ credits.lengths[:, 0]))
