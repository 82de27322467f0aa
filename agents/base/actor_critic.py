"""What the agents with a value function share: options, advantages by GAE, the entropy bonus.

Shapes: B episodes, T response tokens, N response tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from agents.base.agent import BatchedAgent
from agents.base.config import AgentConfig
from agents.base.text_agent import task_of
from agents.learning.advantages import gae, whiten
from agents.learning.critic import CriticSource
from agents.learning.losses import clipped_value_loss, entropy
from agents.learning.metrics import explained_variance
from agents.learning.policy import TokenEvaluation
from agents.learning.rollout import Rollout
from agents.learning.score_critic import ScoreCritic
from agents.learning.updater import MicroBatch
from agents.run.checkpoint import Checkpoint
from lm_env.explain import explained
from lm_env.objective.rewards import reads_prefixes
from lm_env.validation import check_numbers

__all__ = ["ActorCritic", "ActorCriticConfig", "Targets"]

VALUE_HEAD_LAMBDA = 0.95
"""Default lambda of GAE with a value head, from Schulman et al. 2017 (arXiv:1707.06347)."""
SCORE_CRITIC_LAMBDA = 0.7
"""Default lambda of GAE with a `ScoreCritic` at the start of a training.

The critic is accurate from the first rollout on, so that little of the noisy return is needed while the steps are
large.  What it cannot see of a text it never learns, though, and with a lambda below 1 the policy does not learn it
either.  So lambda rises evenly to 1 at the end, where the steps are small and average the noise away."""


@explained
@dataclass(frozen=True)
class ActorCriticConfig(AgentConfig):
    """Options of the agents with a value function."""

    gamma: float = 1.0
    """Discount; below 1 the agent no longer maximizes E[score] - beta KL."""
    gae_lambda: float | None = None
    """1 uses the whole return, lower values rely more on the critic.  None: .95, but with `critic="score"` .7 at the
    start of a training, rising to 1 at its end."""
    vf_coef: float = 0.1
    """Weight of the value loss beside the policy's."""
    ent_coef: float = 0.0
    """Weight of an entropy bonus; above 0 it moves the optimum."""
    normalize_advantage: bool = True
    """Scale the advantages of a rollout to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "gamma", low=0.0, high=1.0)
        if self.gae_lambda is not None:
            check_numbers(self, "gae_lambda", low=0.0, high=1.0)
        check_numbers(self, "vf_coef", "ent_coef", low=0.0)


@dataclass(frozen=True)
class Targets:
    """What the policy and the critic are trained towards by one rollout."""

    advantages: np.ndarray
    """float64 (B, T): by how much each token was better than the critic expected; whitened if the config says so."""
    returns: np.ndarray
    """float64 (B, T): the target of the critic's value before each token."""
    metrics: dict[str, float]
    """`explained_variance` of the critic, and `advantage_std` before normalization."""


class ActorCritic(BatchedAgent):
    """A policy with a value function; an algorithm's own file has its loss and its update.

    Args:
        critic: see `BatchedAgent`; or `"score"`: no network, but a regression on the score of the unfinished text
            (`ScoreCritic`).  Default: `"score"` if the reward function declares that it can be called on unfinished
            texts (`reads_prefixes`, as the lexicon and the rules do), else `"shared"`.
    """

    Config: ClassVar[type[AgentConfig]] = ActorCriticConfig
    config: ActorCriticConfig

    def __init__(
        self, env: Any, *, critic: CriticSource | ScoreCritic | Literal["score"] | None = None, **options: Any
    ) -> None:
        self.score_critic: ScoreCritic | None = None
        env = gymnasium.make(env) if isinstance(env, str) else env
        if critic is None and reads_prefixes(task_of(env).reward):
            critic = "score"
        if isinstance(critic, str) and critic == "score":
            critic = ScoreCritic()
        if isinstance(critic, ScoreCritic):
            self.score_critic = critic
            critic = "none"
        super().__init__(env, critic=critic, **options)

    @property
    def gae_lambda(self) -> float:
        """The config's, or the default for the critic at hand and the progress of the training."""
        if self.config.gae_lambda is not None:
            return self.config.gae_lambda
        if self.score_critic is None:
            return VALUE_HEAD_LAMBDA
        return 1 - (1 - SCORE_CRITIC_LAMBDA) * self.remaining

    def targets(self, rollout: Rollout) -> Targets:
        """Advantages and returns of a rollout by generalized advantage estimation."""
        config = self.config
        mask = rollout.mask
        values = rollout.values
        if self.score_critic is not None:
            values = self.score_critic.values(self.task, rollout, self.reward)
        advantages, returns = gae(
            rollout.scored.rewards,
            values,
            mask,
            gamma=config.gamma,
            lam=self.gae_lambda,
            last_values=rollout.last_values,
        )
        metrics = {
            "explained_variance": explained_variance(values[mask], returns[mask]),
            "advantage_std": float(advantages[mask].std()),
        }
        return Targets(whiten(advantages, mask) if config.normalize_advantage else advantages, returns, metrics)

    def value_loss(
        self, evaluation: TokenEvaluation, batch: MicroBatch, targets: Targets, clip: float | None
    ) -> Tensor:
        """The critic's loss of each token, (N,); zeros where no network is trained as a critic."""
        if self.policy.value_head is None:
            return torch.zeros_like(evaluation.logprobs)
        return clipped_value_loss(evaluation.values, batch.old_values, batch.tokens(targets.returns), clip)

    def state(self) -> Checkpoint:
        """See `PolicyAgent.state`."""
        checkpoint = super().state()
        if self.score_critic is not None:
            checkpoint.settings["critic"] = {"score": self.score_critic.state()}
        return checkpoint

    def restore(self, checkpoint: Checkpoint) -> None:
        """See `PolicyAgent.restore`."""
        saved = checkpoint.settings["critic"]
        learned = None
        if self.score_critic is not None and isinstance(saved, dict) and isinstance(saved.get("score"), dict):
            learned = ScoreCritic.from_state(saved["score"])
        super().restore(checkpoint)
        own = self.score_critic
        if own is not None and learned is not None and (own.decay, own.ridge) == (learned.decay, learned.ridge):
            self.score_critic = learned

    @property
    def needs_logits(self) -> bool:
        """Whether the loss reads the whole distribution: for the entropy bonus."""
        return self.config.ent_coef > 0

    def entropy_bonus(self, evaluation: TokenEvaluation) -> Tensor | float:
        """`ent_coef` times the entropy of each next-token distribution, (N,) nats; 0 without a bonus."""
        if evaluation.logits is None or not self.needs_logits:
            return 0.0
        return self.config.ent_coef * entropy(evaluation.logits, self.policy.temperature)
