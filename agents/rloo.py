"""REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agents.base.config import AgentConfig
from agents.base.group import GroupAgent, GroupConfig
from lm_env.errors import ConfigurationError

__all__ = ["RLOO", "RLOOConfig"]


@dataclass(frozen=True)
class RLOOConfig(GroupConfig):
    """Options of RLOO."""

    group_size: int = 4

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

    def advantages(self, returns: np.ndarray) -> np.ndarray:
        """r - mean of the other samples of the group; the expected gradient is the true one."""
        size = returns.shape[1]
        return (returns - returns.mean(1, keepdims=True)) * size / (size - 1)
