"""How a training run goes: the means over each rollout, for the log, and one line of them beside the progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np

from agents.learning.rollout import Rollout
from lm_env.progress import Progress

__all__ = ["ProgressLine", "rollout_metrics", "standard_error"]


class ProgressLine:
    """The progress over generated tokens, with the last rollout's score and KL."""

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self._asked_for = total
        self._progress = Progress(total, done=done, enabled=enabled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.close()

    def show(self, timesteps: int, rollout: Rollout) -> None:
        """Move to `timesteps`."""
        scored = rollout.scored
        note = f"score {scored.scores.mean():.3f}, KL {scored.kl.mean():.2f}" if len(rollout) else "no episodes"
        if timesteps > self._asked_for:
            note += f", {self._asked_for:,} tokens were asked for: the last rollout is whole"
        self._progress.update(timesteps - self._progress.done, note)


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Means over the episodes of a rollout, under the names that they are logged by; nothing of an empty one.

    A name that ends in `_se` is the standard error of the mean without it.
    """
    if not len(rollout):
        return {}
    scored = rollout.scored
    rewards = scored.rewards.sum(1)
    prompts = [prompt.text for prompt in rollout.episodes.prompts]
    row = {
        "rollout/score": float(scored.scores.mean()),
        "rollout/score_se": standard_error(scored.scores, prompts),
        **{f"rollout/score/{name}": float(np.nanmean(values)) for name, values in scored.parts.items()},
        "rollout/reward": float(rewards.mean()),
        "rollout/reward_se": standard_error(rewards, prompts),
        "rollout/kl": float(scored.kl.mean()),
        "rollout/kl_se": standard_error(scored.kl, prompts),
        "rollout/entropy": float(-scored.logprobs[rollout.mask].mean()),
        "rollout/length": float(rollout.episodes.response_lengths.mean()),
        "rollout/ended": float(scored.ended.mean()),
    }
    if rollout.mismatch is not None:
        row["rollout/logprob_mismatch"] = float(rollout.mismatch.mean())
        row["rollout/logprob_mismatch_max"] = float(rollout.mismatch.max())
    if rollout.ratios is not None:
        row["rollout/ratio"] = float(rollout.ratios[rollout.mask].mean())
    return row


def standard_error(values: np.ndarray, prompts: Sequence[str]) -> float:
    """The standard error of the mean of `values` (B,): over prompts, or over texts where there is a single prompt.

    Texts of the same prompt are not independent of each other, hence the sandwich estimator over clusters: with C
    prompts and s_c the sum of the deviations of prompt c, sqrt(C / (C - 1) sum_c s_c^2) / B.  One text per prompt
    gives the usual standard error; a single text gives NaN.
    Source: Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference", section II.
    """
    _, cluster = np.unique(prompts, return_inverse=True)
    cluster = cluster if cluster.any() else np.arange(len(values))
    count = int(cluster.max()) + 1
    if count < 2 or not np.isfinite(values).all():
        return math.nan
    sums = np.bincount(cluster, weights=values - values.mean())
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(values))
