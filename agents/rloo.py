"""REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740).

With more than one step per rollout the ratio to the policy that sampled is clipped, as in PPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from agents.base.config import AgentConfig
from agents.base.group import GroupAgent, GroupConfig, group_metrics
from agents.learning.losses import clip_fraction, clipped_policy_loss
from agents.learning.policy import TokenEvaluation
from agents.learning.rollout import Rollout
from agents.learning.updater import MicroBatch
from lm_env.errors import ConfigurationError
from lm_env.explain import explained

__all__ = ["RLOO", "RLOOConfig"]


@explained
@dataclass(frozen=True)
class RLOOConfig(GroupConfig):
    """Options of RLOO."""

    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    group_size: int = 4
    """G: samples per prompt; divides `rollout_episodes`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise ConfigurationError(
                "RLOO compares a sample with the others of its group: group_size must be at least 2"
            )


class RLOO(GroupAgent):
    """RLOO: unbiased, without a value function; see `RLOOConfig`."""

    Config: ClassVar[type[AgentConfig]] = RLOOConfig
    config: RLOOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`n_epochs` passes over the rollout, one optimizer step per minibatch."""
        config = self.config
        returns = rollout.scored.rewards.sum(1).reshape(-1, config.group_size)
        advantages = self.advantages(returns)
        for rows in self.minibatches(rollout, config.batch_size, config.n_epochs):
            # A constant divisor, so that the length of a text does not change what its tokens weigh.
            weights = np.full(len(rollout), 1 / (self.task.max_new_tokens * len(rows)))
            with self.updater.step(rollout, rows, weights) as step:
                for batch in step.micro_batches():
                    evaluation = step.evaluate(batch)
                    step.backward(self.loss(evaluation, batch, advantages.reshape(-1)))
        return {**self.updater.metrics(), **group_metrics(returns, advantages)}

    def advantages(self, returns: np.ndarray) -> np.ndarray:
        """r - mean of the other samples of the group, (prompts, G); the expected gradient is the true one."""
        size = returns.shape[1]
        return (returns - returns.mean(1, keepdims=True)) * size / (size - 1)

    def loss(self, evaluation: TokenEvaluation, batch: MicroBatch, advantages: np.ndarray) -> Tensor:
        """Clipped policy loss of each token, (N,)."""
        clip_range = self.config.clip_range
        old_logprobs = batch.old_logprobs
        policy_loss = clipped_policy_loss(evaluation.logprobs, old_logprobs, batch.tokens(advantages), clip_range)
        batch.record(
            policy_loss=policy_loss,
            clip_fraction=clip_fraction(evaluation.logprobs, old_logprobs, clip_range),
        )
        return policy_loss
