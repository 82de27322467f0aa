"""Proximal policy optimization on whole episodes.

Schulman et al. 2017 (arXiv:1707.06347) with the details of Ziegler et al. 2019 (arXiv:1909.08593):
the KL penalty is in the rewards, gamma is 1, lambda .95, advantages are whitened over the rollout,
both losses are clipped, the value loss weighs .1, dropout is off.  Different from there: no reward
whitening (it would change beta), and advantages are whitened once per rollout, not per minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents.base.actor_critic import ActorCritic, ActorCriticConfig, Batch
from agents.base.config import AgentConfig
from agents.learning.losses import clipped_policy_loss
from agents.learning.metrics import Means
from lm_env.validation import check_numbers

__all__ = ["PPO", "PPOConfig"]


@dataclass(frozen=True)
class PPOConfig(ActorCriticConfig):
    """Options of PPO."""

    clip_range: float = 0.2
    """How far the ratio may leave 1 before its gradient is cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "clip_range", low=0.0, above=True)


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

    def policy_loss(self, logprobs: Tensor, batch: Batch, means: Means) -> Tensor:
        """Clipped; see `clipped_policy_loss`."""
        clip = self.config.clip_range
        with torch.no_grad():
            means.add_tokens(clip_fraction=(((logprobs - batch.old_logprobs).exp() - 1).abs() > clip).float())
        return clipped_policy_loss(logprobs, batch.old_logprobs, batch.advantages, clip)
