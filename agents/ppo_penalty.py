"""PPO with an adaptive KL penalty on the policy step instead of clipping.

Schulman et al. 2017 (arXiv:1707.06347), section 4: maximize ratio A - c KL(old || new); after each
rollout c is halved if the step's KL is below target / 1.5 and doubled if above 1.5 target.  This KL is
between two successive policies and has nothing to do with beta, which holds the policy near the
frozen reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.base.actor_critic import ActorCritic, ActorCriticConfig, Batch
from agents.base.config import AgentConfig
from agents.learning.metrics import Means
from agents.learning.rollout import Rollout
from lm_env.errors import ConfigurationError
from lm_env.objective.kl import k3

__all__ = ["PPOPenalty", "PPOPenaltyConfig"]


@dataclass(frozen=True)
class PPOPenaltyConfig(ActorCriticConfig):
    """Options of PPO with a penalty on the step."""

    target_step_kl: float = 0.01
    """Nats per token, between the policy before and after the update of a rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target_step_kl > 0:
            raise ConfigurationError(f"target_step_kl must be above 0, not {self.target_step_kl!r}")


class PPOPenalty(ActorCritic):
    """PPO whose steps are held small by a penalty; see `PPOPenaltyConfig`."""

    Config: ClassVar[type[AgentConfig]] = PPOPenaltyConfig
    config: PPOPenaltyConfig
    step_coef: float = 1.0

    def update(self, rollout: Rollout) -> dict[str, float]:
        """PPO's update, then the penalty's weight is adapted to the KL that the step had."""
        metrics = super().update(rollout)
        metrics["step_coef"] = self.step_coef
        target = self.config.target_step_kl
        if metrics["approx_kl"] < target / 1.5:
            self.step_coef = max(self.step_coef / 2, 1e-6)
        elif metrics["approx_kl"] > target * 1.5:
            self.step_coef = min(self.step_coef * 2, 1e6)
        return metrics

    def extra_state(self) -> dict[str, Any]:
        """The penalty's weight."""
        return {"step_coef": self.step_coef}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.step_coef = state["step_coef"]

    def policy_loss(self, logprobs: Tensor, batch: Batch, means: Means) -> Tensor:
        """-(ratio A) + c KL(old || new), the KL by k3 on tokens of the old policy."""
        ratio = torch.exp(logprobs - batch.old_logprobs)
        return -ratio * batch.advantages + self.step_coef * k3(batch.old_logprobs, logprobs)
