"""What a batched agent writes to its log, by stable-baselines3's logger; docs/metrics.md explains the names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stable_baselines3.common.logger import Logger, configure

from agents.learning.rollout import Rollout

if TYPE_CHECKING:
    from agents.base.agent import BatchedAgent

__all__ = ["log_rollout", "make_logger"]


def make_logger(verbose: int, log_dir: str | Path | None) -> Logger:
    """A table on stdout if verbose; files in `log_dir`, TensorBoard's where it is installed."""
    if log_dir is None:
        return configure(None, ["stdout"] if verbose else [])
    formats = ["csv", *(["stdout"] if verbose else [])]
    if find_spec("tensorboard"):
        formats.append("tensorboard")
    return configure(str(log_dir), formats)


def log_rollout(
    agent: BatchedAgent, rollout: Rollout, metrics: dict[str, float], rollout_s: float, update_s: float
) -> None:
    """Record and write one rollout and its update, which took these seconds."""
    scored, lengths = rollout.scored, rollout.episodes.response_lengths
    shown = {
        "rollout/score": scored.scores.mean(),
        "rollout/reward": scored.rewards.sum(1).mean(),
        "rollout/kl": scored.kl.mean(),
        "rollout/entropy": -scored.logprobs[rollout.mask].mean(),
        "rollout/length": lengths.mean(),
        "rollout/ended": scored.ended.mean(),
        "rollout/beta": agent.task.kl.beta,
        **{f"train/{k}": v for k, v in metrics.items()},
        "train/learning_rate": agent.optimizer.param_groups[0]["lr"],
        "time/tokens_per_s": int(lengths.sum()) / (rollout_s + update_s),
        "time/rollout_s": rollout_s,
        "time/update_s": update_s,
        "time/total_timesteps": agent.num_timesteps,
    }
    for key, value in shown.items():
        agent.logger.record(key, float(value))
    agent.logger.dump(agent.num_timesteps)
