"""CausalLMPolicy: a causal LM as the `ActorCriticPolicy` of PPO, A2C and TRPO.

    env = TextVecEnv(32, model=..., prompts=..., reward=...)
    agent = PPO(CausalLMPolicy, env, gamma=1.0, rollout_buffer_class=EpisodeRolloutBuffer)

It trains the environment's own model in place, and goes on training it after `agent.set_env(other)`.
Dropout is always off, because with it the first ratio of an update is not 1.  TRPO differentiates twice, which
the fused attention kernels do not support: call `model.set_attn_implementation("eager")` first.  TRPO also
accepts no frozen parameters.
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
from agents.sb3.sequences import Observations
from agents.sb3.text_actor_critic import TextActorCritic

__all__ = ["CausalLMPolicy", "TextPolicy", "make_optimizer"]


class TextPolicy:
    """What policies of stable-baselines3 and of sb3-contrib do alike with a `TextActorCritic`; a mixin for both."""

    actor_critic: TextActorCritic

    def _build(self, lr_schedule: Schedule) -> None:
        """Do nothing: the networks exist already."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, so that there is no dropout."""
        return super().train(False)  # type: ignore[misc]

    def set_training_mode(self, mode: bool) -> None:
        """Called by the algorithm before an update (True) and before acting (False)."""
        self.train(mode)
        if mode:
            self.actor_critic.discard_cache()

    def predict_values(self, obs: Any) -> Tensor:
        """V (N,) of N observations."""
        return self.actor_critic.values(obs)


class CausalLMPolicy(TextPolicy, ActorCriticPolicy):
    """pi(token | text) from a causal LM, and V(text) from a value head that starts at zero.

    Args:
        observation_space, action_space, lr_schedule, use_sde: given by the algorithm.
        model: the causal LM; default: the environment's own, which is then trained in place.
        critic: `"shared"` (the value head reads the LM's trunk), `"separate"` (a copy of it) or a model.
        temperature: divides the logits; default: the environment's.
        optimizer_class, optimizer_kwargs: default Adam with SB3's eps of 1e-5, over what is not frozen.

    Raises:
        ConfigurationError: no model is found, it does not fit the space, or the task masks tokens, which takes
            `MaskableCausalLMPolicy`.
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
        actor_critic = TextActorCritic(
            observation_space, action_space, model, critic, temperature, takes_action_masks=False
        )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            use_sde=use_sde,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.actor_critic = actor_critic
        self.network = actor_critic.network
        self.optimizer = make_optimizer(self, lr_schedule)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (N,), which carry their logprobs to `TextVecEnv.step`, values (N,) and logprobs (N,)."""
        return self.actor_critic.act(obs, None, deterministic)  # type: ignore[arg-type]

    def evaluate_actions(self, obs: Observations, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Values, logprobs and entropies, each (N,)."""
        return self.actor_critic.evaluate(obs, actions, None)

    def get_distribution(self, obs: Observations) -> CategoricalDistribution:  # type: ignore[override]
        """The next token's distribution."""
        return CategoricalDistribution(int(self.action_space.n)).proba_distribution(self.actor_critic.logits(obs))  # type: ignore[attr-defined]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.actor_critic.predict(observation, None, deterministic)  # type: ignore[arg-type]


def make_optimizer(policy: Any, lr_schedule: Schedule) -> torch.optim.Optimizer:
    """One optimizer over all parameters of the policy that are not frozen."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    fused = {"fused": True} if policy.optimizer_class in (torch.optim.Adam, torch.optim.AdamW) else {}
    return policy.optimizer_class(trained, lr=lr_schedule(1), **{**fused, **policy.optimizer_kwargs})
