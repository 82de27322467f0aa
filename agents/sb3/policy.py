"""CausalLMPolicy: a causal LM as the `ActorCriticPolicy` of PPO, A2C and TRPO.

    env = TextVecEnv(32, model=..., prompts=..., reward=...)
    agent = PPO(CausalLMPolicy, env, gamma=1.0, rollout_buffer_class=EpisodeRolloutBuffer)

It trains the environment's own model in place.  Dropout is off, always: with it the first ratio of
an update is not 1.  TRPO differentiates twice, which the fused attention kernels do not: load the
model with `model.set_attn_implementation("eager")`; and it takes no frozen parameters.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.learning.policy import Critic
from agents.sb3.actor_critic import TextActorCritic
from agents.sb3.sequences import Observations
from lm_env.errors import ConfigurationError

__all__ = ["CausalLMPolicy"]


class CausalLMPolicy(ActorCriticPolicy):
    """pi(token | text) from a causal LM, V(text) from a head on it that starts at zero.

    Args:
        observation_space, action_space, lr_schedule, use_sde: given by the algorithm.
        model: the causal LM; default: the environment's own, which is then trained in place.  Another
            model is bound to the environment as its scorer.
        critic: `"shared"` (the head sits on the LM's trunk), `"separate"` (on a copy) or a model.
        temperature: default: the environment's.
        optimizer_class, optimizer_kwargs: default Adam with SB3's eps of 1e-5, over what is not frozen.

    Raises:
        ConfigurationError: no model is found, it does not fit the space, or the task masks tokens
            (that is for `MaskableCausalLMPolicy`).
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        use_sde: bool = False,
        model: nn.Module | None = None,
        critic: Critic = "shared",
        temperature: float | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        brain = TextActorCritic(observation_space, action_space, model, critic, temperature)
        if brain.env is not None and brain.env.task.action_mask is not None:
            raise ConfigurationError("the task masks tokens: use MaskableCausalLMPolicy with sb3-contrib's MaskablePPO")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            use_sde=use_sde,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.brain, self.network = brain, brain.network
        self.optimizer = make_optimizer(self, lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        """Nothing: the networks are there already."""

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode, whatever is asked for: no dropout."""
        return super().train(False)

    def set_training_mode(self, mode: bool) -> None:
        """Called by the algorithms before an update (True) and before acting (False)."""
        self.train(mode)
        if mode:
            self.brain.forget()

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (N,), values (N,), logprobs (N,); publishes the logprobs to the environment."""
        return self.brain.act(obs, None, deterministic)  # type: ignore[arg-type]

    def evaluate_actions(self, obs: Observations, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Values, logprobs and entropies, each (N,)."""
        return self.brain.evaluate(obs, actions, None)

    def get_distribution(self, obs: Observations) -> CategoricalDistribution:  # type: ignore[override]
        """The next token's distribution."""
        return CategoricalDistribution(int(self.action_space.n)).proba_distribution(self.brain.logits(obs))  # type: ignore[attr-defined]

    def predict_values(self, obs: Observations) -> Tensor:  # type: ignore[override]
        """V (N,)."""
        return self.brain.values(obs)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.brain.predict(observation, None, deterministic)  # type: ignore[arg-type]


def make_optimizer(policy: Any, lr_schedule: Schedule) -> torch.optim.Optimizer:
    """One optimizer over everything of the policy that is not frozen."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    fused = {"fused": True} if policy.optimizer_class in (torch.optim.Adam, torch.optim.AdamW) else {}
    return policy.optimizer_class(trained, lr=lr_schedule(1), **{**fused, **policy.optimizer_kwargs})
