"""What the agents with a value function share: advantages by GAE, a value loss beside the policy's.

Shapes: B episodes, T tokens, N real tokens of a micro-batch.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from agents.base.agent import BatchedAgent
from agents.base.config import AgentConfig
from agents.learning.advantages import gae, whiten
from agents.learning.losses import clipped_value_loss, entropy
from agents.learning.metrics import Means, explained_variance
from agents.learning.policy import Evaluation
from agents.learning.rollout import Rollout
from lm_env.validation import check_numbers

__all__ = ["ActorCritic", "ActorCriticConfig", "Batch"]


@dataclass(frozen=True)
class ActorCriticConfig(AgentConfig):
    """Options of the agents with a value function."""

    gamma: float = 1.0
    """Discount; below 1 the agent no longer maximizes E[score] - beta KL."""
    gae_lambda: float = 0.95
    clip_range_vf: float | None = 0.2
    """Largest trusted change of a value; None: no clipping."""
    vf_coef: float = 0.1
    ent_coef: float = 0.0
    """Weight of an entropy bonus; above 0 it moves the optimum."""
    normalize_advantage: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "gamma", "gae_lambda", low=0.0, high=1.0)
        check_numbers(self, "vf_coef", "ent_coef", low=0.0)
        if self.clip_range_vf is not None:
            check_numbers(self, "clip_range_vf", low=0.0, above=True)


class ActorCritic(BatchedAgent):
    """Updates policy and values together, `n_epochs` times over each rollout."""

    Config: ClassVar[type[AgentConfig]] = ActorCriticConfig
    config: ActorCriticConfig

    @property
    def needs_logits(self) -> bool:  # type: ignore[override]
        """For the entropy bonus."""
        return self.config.ent_coef != 0

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`n_epochs` passes over the rollout."""
        config, mask = self.config, rollout.mask
        advantages, returns = gae(
            rollout.scored.rewards,
            rollout.values,
            mask,
            gamma=config.gamma,
            lam=config.gae_lambda,
            last_values=rollout.last_values,
        )
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

    @abstractmethod
    def policy_loss(self, logprobs: Tensor, batch: Batch, means: Means) -> Tensor:
        """The policy's part of the loss, (N,); `means` takes what is to be logged of it."""

    def _loss(self, evaluation: Evaluation, batch: Batch, means: Means) -> Tensor:
        config = self.config
        policy = self.policy_loss(evaluation.logprobs, batch, means)
        value = clipped_value_loss(evaluation.values, batch.old_values, batch.returns, config.clip_range_vf)
        loss = policy + config.vf_coef * value
        if config.ent_coef and evaluation.logits is not None:
            loss = loss - config.ent_coef * entropy(evaluation.logits, self.policy.temperature)
        with torch.no_grad():
            log_ratio = evaluation.logprobs - batch.old_logprobs
            means.add_tokens(
                policy_loss=policy,
                value_loss=value,
                approx_kl=torch.expm1(log_ratio) - log_ratio,
            )
            means.first("first_log_ratio", log_ratio.abs().max())
        return loss


@dataclass(frozen=True)
class Batch:
    """What the loss of N tokens is held against, each (N,)."""

    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


class _Targets:
    """The rollout's constants, cut to the tokens of some episodes."""

    def __init__(self, rollout: Rollout, advantages: np.ndarray, returns: np.ndarray) -> None:
        self.mask = rollout.mask
        self.columns = (rollout.scored.logprobs, rollout.values, advantages, returns)

    def of(self, rows: np.ndarray, like: Evaluation) -> Batch:
        mask = self.mask[rows]
        return Batch(*(torch.from_numpy(c[rows][mask]).to(like.values) for c in self.columns))
