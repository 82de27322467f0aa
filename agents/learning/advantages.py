"""Advantages and returns from per-token rewards.  Pure: arrays in, arrays out.

Shapes: B episodes, T response tokens; `mask` bool (B, T), True at real tokens, which come first.
"""

from __future__ import annotations

import numpy as np

__all__ = ["gae", "whiten"]


def gae(
    rewards: np.ndarray,
    values: np.ndarray,
    mask: np.ndarray,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16).

    Args:
        rewards, values: float (B, T); values[t] is V of the state BEFORE token t.
        last_values: float (B,), V after the last token: of truncated episodes, 0 where terminated.

    Returns:
        (advantages, returns), float64 (B, T), 0 in the padding, whatever the inputs hold there.
    """
    rewards, values = np.where(mask, rewards, 0.0), np.where(mask, values, 0.0)
    rows, steps = mask.shape
    following = np.zeros((rows, steps))
    following[:, :-1] = values[:, 1:]
    if last_values is not None and rows:
        following[np.arange(rows), mask.sum(1) - 1] = last_values
    delta = np.where(mask, rewards + gamma * following - values, 0.0)
    advantages = np.zeros((rows, steps))
    running = np.zeros(rows)
    for t in reversed(range(steps)):
        running = delta[:, t] + gamma * lam * running
        advantages[:, t] = running
    return np.where(mask, advantages, 0.0), np.where(mask, advantages + values, 0.0)


def whiten(x: np.ndarray, mask: np.ndarray, *, keep_mean: bool = False) -> np.ndarray:
    """(x - mean) / sqrt(biased variance + 1e-8) over the real entries (lm-human-preferences).

    Args:
        keep_mean: add the mean back (for rewards; not for advantages).

    Returns:
        float64, the shape of x, 0 in the padding.
    """
    real = x[mask]
    if not real.size:
        return np.zeros(x.shape)
    mean = real.mean()
    whitened = (np.where(mask, x, mean) - mean) / np.sqrt(real.var() + 1e-8)
    return np.where(mask, whitened + mean if keep_mean else whitened, 0.0)
