"""TextActorCritic: what the policies for stable-baselines3 and sb3-contrib have in common.

Acting costs one token per row (see `acting`), judging a minibatch one forward per text (see
`sequences`).  Actions are sampled by `lm_env.generation.sampling`, and their logprobs published to the
environment, so that the KL in the reward is that of the distribution sampled from.

Shapes: N states, V vocabulary, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.learning.losses import entropy
from agents.learning.policy import ValueHeadPolicy
from agents.sb3.acting import CachedActor
from agents.sb3.sequences import Observations, as_arrays, as_sequences
from agents.sb3.vec_env import TextSpace, TextVecEnv
from lm_env.errors import ConfigurationError
from lm_env.generation.sampling import sample
from lm_env.models.adapters import without_wrapper
from lm_env.models.inspection import device_of, facts_of
from lm_env.models.logprobs import plain_forward, token_logprobs

__all__ = ["TextActorCritic"]


class TextActorCritic:
    """Acts and judges for a policy of stable-baselines3, which owns the modules.

    Args:
        space: `TextVecEnv.observation_space`, or the Dict of a text environment.
        model: the causal LM; default: that of the environment behind the space.  LoRA models of peft
            are welcome: what they froze stays frozen.
        critic: see `ValueHeadPolicy`.
        temperature: divides the logits; default: the environment's.

    Raises:
        ConfigurationError: no model, a foreign space, or another vocabulary.
    """

    part_tokens = 8192
    """Padded tokens per forward of an update: texts of like length go together, so less is padding."""

    def __init__(
        self,
        space: spaces.Space,
        action_space: spaces.Space,
        model: nn.Module | None,
        critic: Any,
        temperature: float | None,
    ) -> None:
        env = space.env if isinstance(space, TextSpace) else None
        if not isinstance(space, spaces.Dict) or set(space.spaces) != {"input_ids", "length"}:
            raise ConfigurationError(
                f"the policy reads Dict(input_ids, length), not {space}: use TextVecEnv, or leave flat=True out"
            )
        if model is None and env is not None:
            model = env.task.model
        if model is None:
            raise ConfigurationError(
                "the policy finds no model: give a TextVecEnv, or policy_kwargs={'model': ...}; "
                "to load a zip of SB3, also pass observation_space=env.observation_space"
            )
        lm = without_wrapper(model)
        logits, actions = facts_of(lm).vocab_size, int(getattr(action_space, "n", 0))
        if logits != actions:
            raise ConfigurationError(f"the model has {logits} logits and the environment {actions} actions: match them")
        if isinstance(critic, str) and critic == "none":
            raise ConfigurationError(
                "stable-baselines3 learns a value function: critic is 'shared', 'separate' or a model"
            )
        if not any(p.requires_grad for p in lm.parameters()):
            lm.requires_grad_(True)
        temperature = temperature if temperature is not None else env.task.temperature if env is not None else 1.0
        self.env = env
        self.network = ValueHeadPolicy(lm, critic, temperature).eval()
        self._actor = CachedActor(self.network)
        if env is not None and env.task.model is not model:
            env.bind_logprob_fn(self.score)

    # -- acting ---------------------------------------------------------------------------------------
    def act(
        self, observations: Mapping[str, Tensor], allowed: Tensor | None, deterministic: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (N,), V (N,) and logprobs (N,), which are published if these are the environment's texts."""
        ids, lengths = as_arrays(observations)
        logits, values = self._actor.outputs(ids, lengths)
        tokens, logprobs = sample(_masked(logits, allowed), self.network.temperature, deterministic=deterministic)
        if self.env is not None and _shows(self.env, ids, lengths):
            self.env.mdp.behavior.publish(tokens.cpu().numpy(), logprobs.cpu().numpy())
        return tokens, values, logprobs

    def predict(self, observations: Mapping[str, Tensor], allowed: Tensor | None, deterministic: bool) -> Tensor:
        """Tokens (N,), without a word to the environment."""
        logits, _ = self._actor.outputs(*as_arrays(observations))
        return sample(_masked(logits, allowed), self.network.temperature, deterministic=deterministic)[0]

    def score(self, observation: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        """Logprobs (N,) of actions that were not published; the scorer of an environment with another model."""
        with torch.no_grad():
            tensors = {key: torch.from_numpy(value) for key, value in observation.items()}
            return self.evaluate(tensors, torch.from_numpy(actions), None)[1].cpu().numpy()

    def forget(self) -> None:
        """The weights are about to change: cached keys are of no use."""
        self._actor.forget()

    # -- judging --------------------------------------------------------------------------------------
    def evaluate(
        self, observations: Observations, actions: Tensor, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """V, logprob of the action and entropy of each state, each (N,)."""
        order, rows = [], []
        for states, logits, values in self._outputs(observations):
            logits = _masked(logits, None if allowed is None else allowed[states])
            logprobs = token_logprobs(logits, actions[states].to(logits.device), self.network.temperature)
            order.append(states)
            rows.append((values, logprobs, entropy(logits, self.network.temperature)))
        back = torch.cat(order).argsort()
        values, logprobs, entropies = (torch.cat(column)[back] for column in zip(*rows, strict=True))
        return values, logprobs, entropies

    def logits(self, observations: Observations) -> Tensor:
        """(N, V), divided by the temperature."""
        parts = [(states, logits) for states, logits, _ in self._outputs(observations)]
        back = torch.cat([states for states, _ in parts]).argsort()
        return torch.cat([logits for _, logits in parts])[back].float() / self.network.temperature

    def values(self, observations: Observations) -> Tensor:
        """V (N,); from the cache where no gradient is asked for."""
        if not torch.is_grad_enabled() and isinstance(observations, Mapping) and self.env is not None:
            ids, lengths = as_arrays(observations)
            if _shows(self.env, ids, lengths):
                return self._actor.outputs(ids, lengths)[1]
        parts = [(states, values) for states, _, values in self._outputs(observations)]
        back = torch.cat([states for states, _ in parts]).argsort()
        return torch.cat([values for _, values in parts])[back]

    def _outputs(self, observations: Observations) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(states (k,), logits (k, V), V (k,)), part by part, with gradients."""
        network = self.network
        device = device_of(network)
        for part in as_sequences(observations).parts(self.part_tokens):
            ids, states, *at = (
                torch.from_numpy(a).to(device) for a in (part.input_ids, part.states, part.rows, part.positions)
            )
            outputs = plain_forward(network.lm, ids, (at[0], at[1]), want_hidden=network.critic is None)
            hidden = outputs.hidden
            if network.critic is not None:
                hidden = plain_forward(network.critic, ids, (at[0], at[1]), want_hidden=True).hidden
            assert hidden is not None
            yield states, outputs.logits, network.value_of(hidden)


def _shows(env: TextVecEnv, ids: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether these are the texts that the environment holds at the moment."""
    return np.array_equal(lengths, env.mdp.lengths) and np.array_equal(ids, env.mdp.input_ids)


def _masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    if allowed is None:
        return logits
    return logits.masked_fill(~allowed.to(logits.device, torch.bool), -torch.inf)
