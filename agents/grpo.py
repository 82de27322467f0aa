"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300), and its "Dr." variant.

The defaults are the paper's: rewards standardized within the group, each sequence divided by its own length, k3 as a
loss. Each of the three changes the objective E[score] - beta KL: the std rescales the reward prompt by prompt,
division by length favors long answers among bad ones, and k3 as a loss has a fixed point of its own. TRL 1.16
multiplies k3 by the importance ratio, as DeepSeek-V3.2 does (arXiv:2512.02556), which has the gradient
of k2 and so the fixed point of that. `scale_by_std=False, length_normalization="constant"` is Dr. GRPO (Liu et al.
2025, arXiv:2503.20783); with `kl_in="reward"` as well, the optimum is the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from agents.base.config import AgentConfig
from agents.base.group import GroupAgent, GroupConfig, group_metrics
from agents.learning.losses import clip_fraction, clipped_policy_loss
from agents.learning.policy import TokenEvaluation
from agents.learning.rollout import Rollout
from agents.learning.updater import MicroBatch
from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.objective.kl import k3
from lm_env.validation import check_choice

__all__ = ["GRPO", "GRPOConfig"]


@explained
@dataclass(frozen=True)
class GRPOConfig(GroupConfig):
    """Options of GRPO."""

    kl_in: Literal["reward", "loss", "loss_with_ratio"] = "loss"
    """`loss`: beta k3 beside the policy loss, which has another fixed point.  `loss_with_ratio`: the same times
    the importance ratio, TRL's default; its fixed point is that of k2.  `reward`: k1 per token, the exact gradient
    of the objective."""
    length_normalization: Literal["constant", "sequence", "token"] = "sequence"
    """What divides a sequence's sum over tokens: the length cap (unbiased), its own length, or (`token`) all
    tokens of the batch at once."""
    scale_by_std: bool = True
    """Divide by the group's standard deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise ConfigurationError(
                "GRPO compares a sample with the others of its group, and alone its advantage is 0: group_size must be"
                " at least 2"
            )
        check_choice("kl_in", self.kl_in, ("reward", "loss", "loss_with_ratio"))
        check_choice("length_normalization", self.length_normalization, ("constant", "sequence", "token"))


class GRPO(GroupAgent):
    """GRPO; see `GRPOConfig` for its options.  beta is the environment's (the paper's is .04)."""

    Config: ClassVar[type[AgentConfig]] = GRPOConfig
    config: GRPOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`n_epochs` passes over the rollout, one optimizer step per minibatch."""
        config = self.config
        returns = rollout.scored.rewards.sum(1) if config.kl_in == "reward" else rollout.scored.scores
        groups = returns.reshape(-1, config.group_size)
        advantages = self.advantages(groups)
        for rows in self.minibatches(rollout, config.batch_size, config.n_epochs):
            with self.updater.step(rollout, rows, self.token_weights(rollout, rows)) as step:
                for batch in step.micro_batches():
                    evaluation = step.evaluate(batch)
                    step.backward(self.loss(evaluation, batch, advantages.reshape(-1)))
        return {**self.updater.metrics(), **group_metrics(groups, advantages)}

    def advantages(self, returns: np.ndarray) -> np.ndarray:
        """(r - mean) / std within each group, (prompts, G); 0 where all are equal.

        Without the std, the expected gradient is (G - 1) / G of the true one: the mean holds the
        sample itself.
        """
        centered = returns - returns.mean(1, keepdims=True)
        if not self.config.scale_by_std:
            return centered
        return centered / (returns.std(1, ddof=1, keepdims=True) + 1e-4)

    def loss(self, evaluation: TokenEvaluation, batch: MicroBatch, advantages: np.ndarray) -> Tensor:
        """Clipped policy loss of each token, (N,), and beta k3 where the KL is in the loss."""
        old_logprobs = batch.old_logprobs
        policy_loss = clipped_policy_loss(
            evaluation.logprobs, old_logprobs, batch.tokens(advantages), self.config.clip_range
        )
        batch.record(
            policy_loss=policy_loss,
            clip_fraction=clip_fraction(evaluation.logprobs, old_logprobs, self.config.clip_range),
        )
        if self.config.kl_in == "reward" or self.task.kl.beta == 0:  # at beta 0 the reference may give -inf
            return policy_loss
        penalty = k3(evaluation.logprobs, batch.ref_logprobs)
        if self.config.kl_in == "loss_with_ratio":
            penalty = penalty * torch.exp(evaluation.logprobs - old_logprobs)
        batch.record(kl_loss=penalty)
        return policy_loss + self.task.kl.beta * penalty

    def token_weights(self, rollout: Rollout, rows: np.ndarray) -> np.ndarray:
        """The weight of each token of an episode in a minibatch, (B,); see `length_normalization`."""
        lengths = rollout.episodes.response_lengths.astype(np.float64)
        if self.config.length_normalization == "token":
            return np.full(len(lengths), 1 / lengths[rows].sum())
        if self.config.length_normalization == "sequence":
            return 1 / (lengths * len(rows))
        return np.full(len(lengths), 1 / (self.task.max_new_tokens * len(rows)))
