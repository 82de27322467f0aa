"""Advantage actor-critic: one unclipped gradient step on each whole rollout.

Mnih et al. 2016 (arXiv:1602.01783), synchronous.  It is PPO with one epoch, one minibatch and no
clipping in effect (Huang et al. 2022, arXiv:2205.09123), and is written as that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agents.base.config import AgentConfig
from agents.ppo import PPO, PPOConfig

__all__ = ["A2C", "A2CConfig"]


@dataclass(frozen=True)
class A2CConfig(PPOConfig):
    """Options of A2C: those of PPO, with what makes it A2C as defaults."""

    learning_rate: float = 3e-4
    batch_size: int = 128
    """Episodes per optimizer step: the whole rollout."""
    n_epochs: int = 1
    clip_range_vf: float | None = None
    vf_coef: float = 0.5
    normalize_advantage: bool = False


class A2C(PPO):
    """A2C with a per-token KL penalty; see `A2CConfig` for its options."""

    Config: ClassVar[type[AgentConfig]] = A2CConfig
