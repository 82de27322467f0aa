"""What the agents with a value function share: options, advantages by GAE, the entropy bonus.

Shapes: B episodes, T response tokens, N response tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from agents.base.agent import BatchedAgent
from agents.base.config import AgentConfig
from agents.learning.advantages import gae, whiten
from agents.learning.losses import entropy
from agents.learning.metrics import explained_variance
from agents.learning.policy import Evaluation
from agents.learning.rollout import Rollout
from lm_env.validation import check_numbers

__all__ = ["ActorCritic", "ActorCriticConfig", "Targets"]


@dataclass(frozen=True)
class ActorCriticConfig(AgentConfig):
    """Options of the agents with a value function."""

    gamma: float = 1.0
    """Discount; below 1 the agent no longer maximizes E[score] - beta KL."""
    gae_lambda: float = 0.95
    """1 takes the whole return to come, lower values lean more on the critic."""
    vf_coef: float = 0.1
    """Weight of the value loss beside the policy's."""
    ent_coef: float = 0.0
    """Weight of an entropy bonus; above 0 it moves the optimum."""
    normalize_advantage: bool = True
    """Bring the advantages of a rollout to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "gamma", "gae_lambda", low=0.0, high=1.0)
        check_numbers(self, "vf_coef", "ent_coef", low=0.0)


@dataclass(frozen=True)
class Targets:
    """What a rollout says that the policy and the critic should have done."""

    advantages: np.ndarray
    """float64 (B, T): how much better each token was than the critic expected; perhaps normalized."""
    returns: np.ndarray
    """float64 (B, T): what the critic should have said before each token."""
    metrics: dict[str, float]
    """`explained_variance` of the critic, and `advantage_std` before normalization."""


class ActorCritic(BatchedAgent):
    """A policy with a value function; an algorithm's own file has its loss and its update."""

    Config: ClassVar[type[AgentConfig]] = ActorCriticConfig
    config: ActorCriticConfig

    def targets(self, rollout: Rollout) -> Targets:
        """Advantages and returns of a rollout by generalized advantage estimation."""
        config = self.config
        mask = rollout.mask
        advantages, returns = gae(
            rollout.scored.rewards,
            rollout.values,
            mask,
            gamma=config.gamma,
            lam=config.gae_lambda,
            last_values=rollout.last_values,
        )
        metrics = {
            "explained_variance": explained_variance(rollout.values[mask], returns[mask]),
            "advantage_std": float(advantages[mask].std()),
        }
        return Targets(whiten(advantages, mask) if config.normalize_advantage else advantages, returns, metrics)

    @property
    def needs_logits(self) -> bool:
        """Whether the loss reads the whole distribution: for the entropy bonus."""
        return self.config.ent_coef > 0

    def entropy_bonus(self, evaluation: Evaluation) -> Tensor | float:
        """`ent_coef` times the entropy of each next-token distribution, (N,) nats; 0 without a bonus."""
        if evaluation.logits is None or not self.needs_logits:
            return 0.0
        return self.config.ent_coef * entropy(evaluation.logits, self.policy.temperature)
