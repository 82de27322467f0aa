"""What a batched agent writes to its log, by stable-baselines3's logger; docs/metrics.md explains the names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from stable_baselines3.common.logger import Logger, configure

from agents.learning.rollout import Rollout

__all__ = ["make_logger", "rollout_metrics"]


def make_logger(verbose: int, log_dir: str | Path | None) -> Logger:
    """A table on stdout if verbose; files in `log_dir`, TensorBoard's where it is installed."""
    if log_dir is None:
        return configure(None, ["stdout"] if verbose else [])
    formats = ["csv", *(["stdout"] if verbose else [])]
    if find_spec("tensorboard"):
        formats.append("tensorboard")
    return configure(str(log_dir), formats)


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Means over the episodes of a rollout, under the names that they are logged by."""
    scored = rollout.scored
    return {
        "rollout/score": float(scored.scores.mean()),
        "rollout/reward": float(scored.rewards.sum(1).mean()),
        "rollout/kl": float(scored.kl.mean()),
        "rollout/entropy": float(-scored.logprobs[rollout.mask].mean()),
        "rollout/length": float(rollout.episodes.response_lengths.mean()),
        "rollout/ended": float(scored.ended.mean()),
    }
