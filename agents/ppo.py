"""Proximal policy optimization on whole episodes.

Schulman et al. 2017 (arXiv:1707.06347) with the details of Ziegler et al. 2019 (arXiv:1909.08593):
the KL penalty is in the rewards, gamma is 1, lambda is .95, both losses are clipped, the value loss has
weight .1, dropout is off.  Unlike there, rewards are not whitened (it would change beta), advantages are
normalized once per rollout, not per minibatch, and the default is one pass over each rollout, not four: it attains as
much for less KL and a quarter of the update's time (docs/optimum.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from agents.base.actor_critic import ActorCritic, ActorCriticConfig, Targets
from agents.base.config import AgentConfig
from agents.learning.losses import clip_fraction, clipped_policy_loss
from agents.learning.policy import TokenEvaluation
from agents.learning.rollout import Rollout
from agents.learning.updater import MicroBatch
from lm_env.explain import explained
from lm_env.validation import check_integers, check_numbers

__all__ = ["PPO", "PPOConfig"]


@explained
@dataclass(frozen=True)
class PPOConfig(ActorCriticConfig):
    """Options of PPO."""

    n_epochs: int = 1
    """Passes over each rollout."""
    batch_size: int = 32
    """Episodes per optimizer step."""
    clip_range: float = 0.2
    """How far the ratio may leave 1 before its gradient is cut."""
    clip_range_vf: float | None = 0.2
    """The largest trusted change of a value; None: no clipping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, "n_epochs", "batch_size")
        check_numbers(self, "clip_range", low=0.0, above=True)
        if self.clip_range_vf is not None:
            check_numbers(self, "clip_range_vf", low=0.0, above=True)


class PPO(ActorCritic):
    """PPO with a per-token KL penalty; see `PPOConfig` for its options.

    Example:
        >>> import gymnasium, lm_env
        >>> from agents import PPO
        >>> env = gymnasium.make("lm_env/TokenMDP-v0")
        >>> agent = PPO(env, learning_rate=0.03, rollout_episodes=512, slots=512).learn(20_000)
    """

    Config: ClassVar[type[AgentConfig]] = PPOConfig
    config: PPOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`n_epochs` passes over the rollout, one optimizer step per minibatch."""
        targets = self.targets(rollout)
        for rows in self.minibatches(rollout, self.config.batch_size, self.config.n_epochs):
            with self.updater.step(rollout, rows) as step:
                for batch in step.micro_batches():
                    evaluation = step.evaluate(batch, self.needs_logits)
                    step.backward(self.loss(evaluation, batch, targets))
        return {**self.updater.metrics(), **targets.metrics}

    def loss(self, evaluation: TokenEvaluation, batch: MicroBatch, targets: Targets) -> Tensor:
        """Clipped policy loss, clipped value loss and entropy bonus of each token, (N,)."""
        config = self.config
        old_logprobs = batch.old_logprobs
        policy_loss = clipped_policy_loss(
            evaluation.logprobs, old_logprobs, batch.tokens(targets.advantages), config.clip_range
        )
        value_loss = self.value_loss(evaluation, batch, targets, config.clip_range_vf)
        batch.record(
            policy_loss=policy_loss,
            value_loss=value_loss,
            clip_fraction=clip_fraction(evaluation.logprobs, old_logprobs, config.clip_range),
        )
        return policy_loss + config.vf_coef * value_loss - self.entropy_bonus(evaluation)
