"""REINFORCE (Williams 1992) with a baseline: a running mean of the returns, or a value function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from agents.a2c import A2C, A2CConfig
from agents.base.agent import BatchedAgent
from agents.base.config import AgentConfig
from agents.learning.critic import CriticSource
from agents.learning.policy import TokenEvaluation
from agents.learning.rollout import Rollout
from agents.learning.updater import MicroBatch
from lm_env.explain import explained
from lm_env.validation import check_numbers

__all__ = ["Reinforce", "ReinforceConfig", "ReinforceValue", "ReinforceValueConfig"]


@explained
@dataclass(frozen=True)
class ReinforceConfig(AgentConfig):
    """Options of REINFORCE with a running-mean baseline."""

    baseline_decay: float = 0.9
    """How much of the running mean is kept per rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "baseline_decay", low=0.0, high=1.0)


class Reinforce(BatchedAgent):
    """Return minus a running mean of the returns of EARLIER rollouts; unbiased, high variance."""

    Config: ClassVar[type[AgentConfig]] = ReinforceConfig
    default_critic: ClassVar[CriticSource] = "none"
    config: ReinforceConfig
    baseline: float | None = None
    """The running mean; None before the first rollout."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        """One optimizer step on the whole rollout."""
        advantages = self.advantages(rollout.scored.rewards.sum(1))
        # A constant divisor, so that the length of a text does not change what its tokens weigh.
        weights = np.full(len(rollout), 1 / (self.task.max_new_tokens * len(rollout)))
        with self.updater.step(rollout, weights=weights) as step:
            for batch in step.micro_batches():
                evaluation = step.evaluate(batch)
                step.backward(self.loss(evaluation, batch, advantages))
        return {**self.updater.metrics(), "advantage_std": float(advantages.std())}

    def advantages(self, returns: np.ndarray) -> np.ndarray:
        """r - baseline, (B,); the first rollout, which has no past, is its own baseline."""
        mean = float(returns.mean())
        baseline = mean if self.baseline is None else self.baseline
        decay = self.config.baseline_decay
        self.baseline = decay * baseline + (1 - decay) * mean
        return returns - baseline

    def loss(self, evaluation: TokenEvaluation, batch: MicroBatch, advantages: np.ndarray) -> Tensor:
        """-A log pi of each token, (N,)."""
        policy_loss = -batch.tokens(advantages) * evaluation.logprobs
        batch.record(policy_loss=policy_loss)
        return policy_loss

    def extra_state(self) -> dict[str, Any]:
        """The running mean."""
        return {"baseline": self.baseline}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.baseline = None if state["baseline"] is None else float(state["baseline"])


@explained
@dataclass(frozen=True)
class ReinforceValueConfig(A2CConfig):
    """Options of REINFORCE with a value baseline: A2C with lambda 1."""

    gae_lambda: float = 1.0
    """1: the whole return to come, nothing bootstrapped."""


class ReinforceValue(A2C):
    """The return to come minus V(s): no bootstrapping, so no bias from a wrong value."""

    Config: ClassVar[type[AgentConfig]] = ReinforceValueConfig
