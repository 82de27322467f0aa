"""Advantage actor-critic: one plain policy-gradient step on each whole rollout.

Mnih et al. 2016 (arXiv:1602.01783), synchronous.  With one epoch, one minibatch and no value clipping
PPO takes the same steps (Huang et al. 2022, arXiv:2205.09123).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from agents.base.actor_critic import ActorCritic, ActorCriticConfig, Targets
from agents.base.config import AgentConfig
from agents.learning.policy import TokenEvaluation
from agents.learning.rollout import Rollout
from agents.learning.updater import MicroBatch
from lm_env.explain import explained

__all__ = ["A2C", "A2CConfig"]


@explained
@dataclass(frozen=True)
class A2CConfig(ActorCriticConfig):
    """Options of A2C."""

    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    vf_coef: float = 0.5
    """Weight of the value loss beside the policy's."""
    normalize_advantage: bool = False
    """Bring the advantages of a rollout to mean 0 and standard deviation 1."""


class A2C(ActorCritic):
    """A2C with a per-token KL penalty; see `A2CConfig` for its options."""

    Config: ClassVar[type[AgentConfig]] = A2CConfig
    config: A2CConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """One optimizer step on the whole rollout."""
        targets = self.targets(rollout)
        with self.updater.step(rollout) as step:
            for batch in step.micro_batches():
                evaluation = step.evaluate(batch, self.needs_logits)
                step.backward(self.loss(evaluation, batch, targets))
        return {**self.updater.metrics(), **targets.metrics}

    def loss(self, evaluation: TokenEvaluation, batch: MicroBatch, targets: Targets) -> Tensor:
        """-A log pi, the value loss and the entropy bonus of each token, (N,)."""
        policy_loss = -batch.tokens(targets.advantages) * evaluation.logprobs
        value_loss = self.value_loss(evaluation, batch, targets, None)
        batch.record(policy_loss=policy_loss, value_loss=value_loss)
        return policy_loss + self.config.vf_coef * value_loss - self.entropy_bonus(evaluation)
