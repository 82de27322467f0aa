"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300), and its "Dr." variant.

The defaults are the paper's: rewards standardized within the group, each sequence divided by its own
length, k3 as a loss.  None of the three leaves the objective E[score] - beta KL alone: the std
rescales the reward prompt by prompt, the length division favors long bad answers, and k3 as a loss
has a fixed point of its own.  `scale_by_std=False, length_normalization="constant"` is Dr. GRPO (Liu
et al. 2025, arXiv:2503.20783); with `kl_in="reward"` as well, the optimum is the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agents.base.config import AgentConfig
from agents.base.group import GroupAgent, GroupConfig

__all__ = ["GRPO", "GRPOConfig"]


@dataclass(frozen=True)
class GRPOConfig(GroupConfig):
    """Options of GRPO."""

    kl_in: Literal["reward", "loss"] = "loss"
    length_normalization: Literal["constant", "sequence", "token"] = "sequence"
    scale_by_std: bool = True
    """Divide by the group's standard deviation."""


class GRPO(GroupAgent):
    """GRPO; see `GRPOConfig` for its options.  beta is the environment's (the paper's is .04)."""

    Config: ClassVar[type[AgentConfig]] = GRPOConfig
    config: GRPOConfig

    def advantages(self, returns: np.ndarray) -> np.ndarray:
        """(r - mean) / std within each group; 0 where all are equal.

        Without the std, the expected gradient is (G - 1) / G of the true one: the mean holds the
        sample itself.
        """
        centered = returns - returns.mean(1, keepdims=True)
        if not self.config.scale_by_std:
            return centered
        return centered / (returns.std(1, ddof=1, keepdims=True) + 1e-4) if returns.shape[1] > 1 else centered
