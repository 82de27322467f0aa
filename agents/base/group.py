"""What the agents that compare samples share: several samples per prompt, one advantage per episode.

Shapes: B episodes = prompts x G samples, those of one prompt side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agents.base.agent import BatchedAgent
from agents.base.config import AgentConfig
from agents.learning.critic import CriticSource
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.validation import check_integers, check_numbers

__all__ = ["GroupAgent", "GroupConfig", "SampleGroupConfig", "group_metrics"]


@explained
@dataclass(frozen=True)
class SampleGroupConfig(AgentConfig):
    """Options of the agents that compare samples."""

    group_size: int = 8
    """G: samples per prompt; divides `rollout_episodes`."""
    batch_size: int = 128
    """Episodes per optimizer step."""
    n_epochs: int = 1
    """Passes over each rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, "group_size", "batch_size", "n_epochs")
        if self.rollout_episodes % self.group_size:
            raise ConfigurationError(
                f"rollout_episodes ({self.rollout_episodes}) must be a multiple of group_size ({self.group_size})"
            )


@explained
@dataclass(frozen=True)
class GroupConfig(SampleGroupConfig):
    """Options of those whose loss has the importance ratio."""

    clip_range: float = 0.2
    """How far the ratio may leave 1 before its gradient is cut; at the first step of a rollout it is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "clip_range", low=0.0, above=True)


class GroupAgent(BatchedAgent):
    """Several samples per prompt; an algorithm's own file has its advantages, its loss and its update."""

    Config: ClassVar[type[AgentConfig]] = SampleGroupConfig
    default_critic: ClassVar[CriticSource] = "none"
    config: SampleGroupConfig

    def draw_prompts(self) -> list[Prompt]:
        """Each prompt G times, side by side."""
        config = self.config
        drawn = self.task.prompts.sample(self.randomness.prompts, config.rollout_episodes // config.group_size)
        return [prompt for prompt in drawn for _ in range(config.group_size)]

    def usable(self, scored: np.ndarray) -> np.ndarray:
        """Whole groups alone: the others have too few samples to compare."""
        return scored.reshape(-1, self.config.group_size).all(1).repeat(self.config.group_size)


def group_metrics(returns: np.ndarray, advantages: np.ndarray) -> dict[str, float]:
    """What to log of the groups.

    Args:
        returns, advantages: float (prompts, G).

    Returns:
        `advantage_std`, and `equal_groups`: the share of groups whose samples all have the same return.
    """
    equal = float((returns.std(1) == 0).mean())
    return {"advantage_std": float(advantages.std()), "equal_groups": equal}
