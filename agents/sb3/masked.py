"""MaskablePPO of sb3-contrib, for tasks with an `action_mask`.

A token that may not come next is never sampled, and it has no part in the logprobs, the entropy and the KL.
`TextVecEnv.env_method("action_masks")` gives the masks.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.learning.policy import Critic
from agents.sb3.buffer import EpisodeRolloutBuffer
from agents.sb3.policy import TextPolicy, make_optimizer
from agents.sb3.sequences import Observations
from agents.sb3.text_actor_critic import TextActorCritic
from lm_env.errors import MissingDependencyError

try:
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableDictRolloutBufferSamples
    from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
except ImportError as error:
    raise MissingDependencyError("MaskablePPO needs sb3-contrib: pip install 'lm-env[contrib]'") from error

__all__ = ["MaskableCausalLMPolicy", "MaskableEpisodeRolloutBuffer"]


class MaskableCausalLMPolicy(TextPolicy, MaskableActorCriticPolicy):
    """`CausalLMPolicy` for MaskablePPO; same arguments."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        model: nn.Module | None = None,
        critic: Critic = "shared",
        temperature: float | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        actor_critic = TextActorCritic(
            observation_space, action_space, model, critic, temperature, takes_action_masks=True
        )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.actor_critic = actor_critic
        self.network = actor_critic.network
        self.optimizer = make_optimizer(self, lr_schedule)

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (N,), values (N,) and logprobs (N,) of the restricted distribution; see `CausalLMPolicy.forward`."""
        return self.actor_critic.act(obs, _tensor(action_masks), deterministic)  # type: ignore[arg-type]

    def evaluate_actions(  # type: ignore[override]
        self, obs: Observations, actions: Tensor, action_masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, logprobs and entropies, each (N,)."""
        return self.actor_critic.evaluate(obs, actions, _tensor(action_masks))

    def get_distribution(  # type: ignore[override]
        self, obs: Observations, action_masks: np.ndarray | None = None
    ) -> MaskableCategoricalDistribution:
        """The next token's distribution."""
        distribution = MaskableCategoricalDistribution(int(self.action_space.n))  # type: ignore[attr-defined]
        distribution.proba_distribution(self.actor_critic.logits(obs)).apply_masking(action_masks)
        return distribution

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> Tensor:
        return self.actor_critic.predict(observation, _tensor(action_masks), deterministic)  # type: ignore[arg-type]


class MaskableEpisodeRolloutBuffer(EpisodeRolloutBuffer, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """`EpisodeRolloutBuffer` that also keeps masks, one byte per token instead of the stock buffer's four."""

    def reset(self) -> None:
        """Empty the buffer."""
        super().reset()
        self.mask_dims = int(self.action_space.n)  # type: ignore[attr-defined]
        self.action_masks = np.ones((self.buffer_size, self.n_envs, self.mask_dims), dtype=bool)

    def add(self, *args: Any, action_masks: np.ndarray | None = None, **kwargs: Any) -> None:
        """One step of n environments."""
        if action_masks is not None:
            self.action_masks[self.pos] = action_masks.reshape(self.n_envs, self.mask_dims)
        super().add(*args, **kwargs)

    def get(  # type: ignore[override]
        self, batch_size: int | None = None
    ) -> Generator[MaskableDictRolloutBufferSamples, None, None]:
        """Minibatches of whole segments, with their masks."""
        for transitions in self.minibatches(batch_size):
            masks = self.to_torch(self.action_masks.reshape(-1, self.mask_dims)[transitions])
            yield MaskableDictRolloutBufferSamples(*self._get_samples(transitions), action_masks=masks)  # type: ignore[arg-type]


def _tensor(masks: np.ndarray | Tensor | None) -> Tensor | None:
    return None if masks is None else torch.as_tensor(masks).reshape(-1, masks.shape[-1])
