"""Proximal policy optimisation on whole episodes.

Schulman et al. 2017 (arXiv:1707.06347) with the details of Ziegler et al. 2019 (arXiv:1909.08593):
the KL penalty is in the rewards, gamma is 1, lambda .95, advantages are whitened over the rollout,
both losses are clipped, the value loss weighs .1, dropout is off.  Different from there: no reward
whitening (it would change beta), and advantages are whitened once per rollout, not per minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from agents.advantages import gae, whiten
from agents.base import BatchedAgent
from agents.config import AgentConfig, check_number
from agents.losses import clipped_policy_loss, clipped_value_loss, entropy
from agents.metrics import Means, explained_variance
from agents.policy import Evaluation
from agents.rollout import Rollout

__all__ = ["PPO", "PPOConfig"]


@dataclass(frozen=True)
class PPOConfig(AgentConfig):
    """Options of PPO."""

    gamma: float = 1.0
    """Discount; below 1 the agent no longer maximises E[score] - beta KL."""
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    clip_range_vf: float | None = 0.2
    """Largest trusted change of a value; None: no clipping."""
    vf_coef: float = 0.1
    ent_coef: float = 0.0
    """Weight of an entropy bonus; above 0 it moves the optimum."""
    normalize_advantage: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "gamma", "gae_lambda", high=1.0)
        check_number(self, "clip_range", open_low=True)
        check_number(self, "vf_coef", "ent_coef")
        if self.clip_range_vf is not None:
            check_number(self, "clip_range_vf", open_low=True)


class PPO(BatchedAgent):
    """PPO with a per-token KL penalty; see `PPOConfig` for its options.

    Example:
        >>> import gymnasium, lm_env
        >>> from agents import PPO
        >>> env = gymnasium.make("lm_env/TokenMDP-v0")
        >>> agent = PPO(env, learning_rate=0.03, rollout_episodes=512, slots=512).learn(20_000)
    """

    Config: ClassVar[type[AgentConfig]] = PPOConfig
    config: PPOConfig

    @property
    def needs_logits(self) -> bool:  # type: ignore[override]
        """For the entropy bonus."""
        return self.config.ent_coef != 0

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`n_epochs` passes of clipped updates over the rollout."""
        config, mask = self.config, rollout.mask
        advantages, returns = gae(
            rollout.scored.rewards, rollout.values, mask,
            gamma=config.gamma, lam=config.gae_lambda, last_values=rollout.last_values,
        )  # fmt: skip
        targets = _Targets(rollout, whiten(advantages, mask) if config.normalize_advantage else advantages, returns)
        means = Means()
        for _ in range(config.n_epochs):
            for rows in self.minibatches(len(mask)):
                norm = self.optimize(
                    rollout, rows, lambda evaluation, part: self._loss(evaluation, targets.of(part, evaluation), means)
                )
                means.add("grad_norm", norm)
        return {
            **means.result(),
            "explained_variance": explained_variance(rollout.values[mask], returns[mask]),
            "advantage_std": float(advantages[mask].std()),
        }

    def policy_loss(self, logp: Tensor, batch: Batch) -> Tensor:
        """The policy's part of the loss, (N,)."""
        return clipped_policy_loss(logp, batch.old_logp, batch.advantages, self.config.clip_range)

    def _loss(self, evaluation: Evaluation, batch: Batch, means: Means) -> Tensor:
        config = self.config
        policy = self.policy_loss(evaluation.logp, batch)
        value = clipped_value_loss(evaluation.values, batch.old_values, batch.returns, config.clip_range_vf)
        loss = policy + config.vf_coef * value
        if config.ent_coef and evaluation.logits is not None:
            loss = loss - config.ent_coef * entropy(evaluation.logits, self.policy.temperature)
        with torch.no_grad():
            log_ratio = evaluation.logp - batch.old_logp
            means.add_tokens(
                policy_loss=policy,
                value_loss=value,
                approx_kl=torch.expm1(log_ratio) - log_ratio,
                clip_fraction=((log_ratio.exp() - 1).abs() > config.clip_range).float(),
            )
            means.first("first_log_ratio", log_ratio.abs().max())
        return loss


@dataclass(frozen=True)
class Batch:
    """What the loss of N tokens is held against, each (N,)."""

    old_logp: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


class _Targets:
    """The rollout's constants, cut to the tokens of some episodes."""

    def __init__(self, rollout: Rollout, advantages: np.ndarray, returns: np.ndarray) -> None:
        self.mask = rollout.mask
        self.columns = (rollout.scored.logp, rollout.values, advantages, returns)

    def of(self, rows: np.ndarray, like: Evaluation) -> Batch:
        mask = self.mask[rows]
        return Batch(*(torch.from_numpy(c[rows][mask]).to(like.values) for c in self.columns))
