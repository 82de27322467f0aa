"""What the agents without a value function share: several samples per prompt, one advantage each.

An episode's advantage is the same at all its tokens.  Shapes: B episodes = prompts x G samples,
those of one prompt side by side.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from agents.base.agent import BatchedAgent
from agents.base.config import AgentConfig
from agents.learning.critic import CriticSource
from agents.learning.losses import clipped_policy_loss
from agents.learning.metrics import Means
from agents.learning.policy import Evaluation
from agents.learning.rollout import Rollout
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.objective.kl import k3
from lm_env.validation import check_choice

__all__ = ["GroupAgent", "GroupConfig"]


@dataclass(frozen=True)
class GroupConfig(AgentConfig):
    """Options of the agents that compare samples."""

    n_epochs: int = 1
    batch_size: int = 128
    """Episodes per optimizer step."""
    group_size: int = 8
    """G: samples per prompt; divides `rollout_episodes`."""
    clip_range: float = 0.2
    kl_in: Literal["reward", "loss"] = "reward"
    """`reward`: k1 per token, the exact gradient of the objective.  `loss`: beta k3 beside the policy
    loss, which has another fixed point."""
    length_normalization: Literal["constant", "sequence", "token"] = "constant"
    """What divides a sequence's sum over tokens: the cap (unbiased), its own length, or (`token`) all
    tokens of the batch at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 1 or self.rollout_episodes % self.group_size:
            raise ConfigurationError(
                f"rollout_episodes ({self.rollout_episodes}) must be a multiple of group_size ({self.group_size})"
            )
        check_choice("kl_in", self.kl_in, ("reward", "loss"))
        check_choice("length_normalization", self.length_normalization, ("constant", "sequence", "token"))


class GroupAgent(BatchedAgent):
    """Policy gradient with one advantage per episode."""

    Config: ClassVar[type[AgentConfig]] = GroupConfig
    default_critic: ClassVar[CriticSource] = "none"
    config: GroupConfig

    @abstractmethod
    def advantages(self, returns: np.ndarray) -> np.ndarray:
        """(prompts, G) returns of whole episodes -> advantages of the same shape."""

    def draw_prompts(self) -> list[Prompt]:
        """Each prompt G times, side by side."""
        config = self.config
        drawn = self.task.prompts.sample(self.prompt_rng, config.rollout_episodes // config.group_size)
        return [prompt for prompt in drawn for _ in range(config.group_size)]

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`n_epochs` passes of clipped policy-gradient steps."""
        config, scored = self.config, rollout.scored
        returns = scored.scores if config.kl_in == "loss" else scored.rewards.sum(1)
        groups = returns.reshape(-1, config.group_size)
        advantages = self.advantages(groups).reshape(-1)
        means = Means()
        for _ in range(config.n_epochs):
            for rows in self.minibatches(len(returns)):
                norm = self.optimize(
                    rollout,
                    rows,
                    lambda evaluation, part: self._loss(evaluation, rollout, advantages, part, means),
                    self._weights(rollout, rows),
                )
                means.add("grad_norm", norm)
        equal = (groups.std(1) == 0).mean() if config.group_size > 1 else 0.0
        return {**means.result(), "advantage_std": float(advantages.std()), "equal_groups": float(equal)}

    def _loss(
        self, evaluation: Evaluation, rollout: Rollout, advantages: np.ndarray, rows: np.ndarray, means: Means
    ) -> Tensor:
        mask = rollout.mask[rows]
        like = evaluation.logprobs
        old = torch.from_numpy(rollout.scored.logprobs[rows][mask]).to(like)
        per_token = torch.from_numpy(np.repeat(advantages[rows], mask.sum(1))).to(like)
        loss = clipped_policy_loss(like, old, per_token, self.config.clip_range)
        with torch.no_grad():
            log_ratio = like - old
            means.add_tokens(
                policy_loss=loss,
                approx_kl=torch.expm1(log_ratio) - log_ratio,
                clip_fraction=((log_ratio.exp() - 1).abs() > self.config.clip_range).float(),
            )
            means.first("first_log_ratio", log_ratio.abs().max())
        if self.config.kl_in == "loss":
            ref = torch.from_numpy(rollout.scored.ref_logprobs[rows][mask]).to(like)
            penalty = k3(like, ref)
            means.add_tokens(kl_loss=penalty.detach())
            loss = loss + self.task.kl.beta * penalty
        return loss

    def _weights(self, rollout: Rollout, rows: np.ndarray) -> np.ndarray:
        """Of each token of the rows (len(rows),), see `length_normalization`."""
        lengths = rollout.episodes.response_lengths[rows].astype(np.float64)
        if self.config.length_normalization == "token":
            return np.full(len(rows), 1 / lengths.sum())
        if self.config.length_normalization == "sequence":
            return 1 / (lengths * len(rows))
        return np.full(len(rows), 1 / (self.task.max_new_tokens * len(rows)))
