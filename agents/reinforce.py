"""REINFORCE (Williams 1992) with a baseline: a running mean of the returns, or a value function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from agents.a2c import A2C, A2CConfig
from agents.base.config import AgentConfig
from agents.base.group import GroupAgent, GroupConfig

__all__ = ["Reinforce", "ReinforceConfig", "ReinforceValue", "ReinforceValueConfig"]


@dataclass(frozen=True)
class ReinforceConfig(GroupConfig):
    """Options of REINFORCE with a running-mean baseline."""

    group_size: int = 1
    baseline_decay: float = 0.9
    """Of the running mean, per rollout."""


class Reinforce(GroupAgent):
    """Return minus a running mean of the returns of EARLIER rollouts; unbiased, high variance."""

    Config: ClassVar[type[AgentConfig]] = ReinforceConfig
    config: ReinforceConfig
    baseline: float | None = None

    def advantages(self, returns: np.ndarray) -> np.ndarray:
        """r - baseline; the first rollout, which has no past, is its own baseline."""
        mean = float(returns.mean())
        baseline = mean if self.baseline is None else self.baseline
        decay = self.config.baseline_decay
        self.baseline = decay * baseline + (1 - decay) * mean
        return returns - baseline

    def extra_state(self) -> dict[str, Any]:
        """The running mean."""
        return {"baseline": self.baseline}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.baseline = state["baseline"]


@dataclass(frozen=True)
class ReinforceValueConfig(A2CConfig):
    """Options of REINFORCE with a value baseline: A2C with lambda 1."""

    gae_lambda: float = 1.0


class ReinforceValue(A2C):
    """The return to come minus V(s): no bootstrapping, so no bias from a wrong value."""

    Config: ClassVar[type[AgentConfig]] = ReinforceValueConfig
