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

from agents.base.actor_critic import ActorCritic, ActorCriticConfig, Targets
from agents.base.config import AgentConfig
from agents.learning.policy import TokenEvaluation
from agents.learning.rollout import Rollout
from agents.learning.updater import MicroBatch
from lm_env.explain import explained
from lm_env.objective.kl import k3
from lm_env.validation import check_integers, check_numbers

__all__ = ["PPOPenalty", "PPOPenaltyConfig"]


@explained
@dataclass(frozen=True)
class PPOPenaltyConfig(ActorCriticConfig):
    """Options of PPO with a penalty on the step."""

    n_epochs: int = 4
    """Passes over each rollout."""
    batch_size: int = 32
    """Episodes per optimizer step."""
    target_step_kl: float = 0.01
    """Nats per token, between the policy before and after the update of a rollout."""
    clip_range_vf: float | None = 0.2
    """The largest trusted change of a value; None: no clipping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, "n_epochs", "batch_size")
        check_numbers(self, "target_step_kl", low=0.0, above=True)
        if self.clip_range_vf is not None:
            check_numbers(self, "clip_range_vf", low=0.0, above=True)


class PPOPenalty(ActorCritic):
    """PPO whose steps are held small by a penalty; see `PPOPenaltyConfig`."""

    Config: ClassVar[type[AgentConfig]] = PPOPenaltyConfig
    config: PPOPenaltyConfig
    step_coef: float = 1.0
    """c, the weight of the penalty."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`n_epochs` passes over the rollout; then the penalty's weight is adapted to the KL that the step had."""
        targets = self.targets(rollout)
        for rows in self.minibatches(rollout, self.config.batch_size, self.config.n_epochs):
            with self.updater.step(rollout, rows) as step:
                for batch in step.micro_batches():
                    evaluation = step.evaluate(batch, self.needs_logits)
                    step.backward(self.loss(evaluation, batch, targets))
        metrics = {**self.updater.metrics(), **targets.metrics, "step_coef": self.step_coef}
        self._adapt(metrics["approx_kl"])
        return metrics

    def loss(self, evaluation: TokenEvaluation, batch: MicroBatch, targets: Targets) -> Tensor:
        """-(ratio A) + c KL(old || new), the value loss and the entropy bonus of each token, (N,).

        The KL is estimated by k3 on tokens of the old policy.
        """
        old_logprobs = batch.old_logprobs
        ratio = torch.exp(evaluation.logprobs - old_logprobs)
        step_kl = k3(old_logprobs, evaluation.logprobs)
        policy_loss = -ratio * batch.tokens(targets.advantages) + self.step_coef * step_kl
        value_loss = self.value_loss(evaluation, batch, targets, self.config.clip_range_vf)
        batch.record(policy_loss=policy_loss, value_loss=value_loss)
        return policy_loss + self.config.vf_coef * value_loss - self.entropy_bonus(evaluation)

    def _adapt(self, step_kl: float) -> None:
        target = self.config.target_step_kl
        if step_kl < target / 1.5:
            self.step_coef = max(self.step_coef / 2, 1e-6)
        elif step_kl > target * 1.5:
            self.step_coef = min(self.step_coef * 2, 1e6)

    def extra_state(self) -> dict[str, Any]:
        """The penalty's weight."""
        return {"step_coef": self.step_coef}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.step_coef = float(state["step_coef"])
