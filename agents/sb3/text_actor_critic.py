"""TextActorCritic: what the policies for stable-baselines3 and sb3-contrib have in common.

Acting costs one token per row (see `cached_actor`), evaluating a minibatch one forward per text (see
`sequences`).  Actions are sampled by `lm_env.generation.sampling`, and they carry their logprobs to the
environment that is stepped with them (see `sampled_actions`), so that the KL in the reward is that of the
distribution sampled from.

Shapes: N states, V vocabulary, L tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.learning.losses import entropy
from agents.learning.policy import ValueHeadPolicy
from agents.learning.trainable import check_adapter_trains, unfreeze_if_frozen
from agents.sb3.cached_actor import CachedActor
from agents.sb3.sampled_actions import Sample, SampledTokens, carry
from agents.sb3.sequences import Observations, as_arrays, as_sequences
from agents.sb3.vec_env import TextSpace
from lm_env.errors import ConfigurationError
from lm_env.generation.sampling import sample
from lm_env.models.adapters import without_wrapper
from lm_env.models.inspection import device_of, facts_of
from lm_env.models.logprobs import plain_forward, token_logprobs

__all__ = ["TextActorCritic"]


class TextActorCritic:
    """Acts and evaluates for a policy of stable-baselines3, which owns the modules.

    Args:
        space: `TextVecEnv.observation_space`, or the Dict of a text environment.
        model: the causal LM; default: that of the environment behind the space.  In a LoRA model of peft,
            what is frozen stays frozen.
        critic: see `ValueHeadPolicy`.
        temperature: divides the logits; default: the environment's.
        takes_action_masks: whether the algorithm gives the masks of a task with an `action_mask`.

    Raises:
        ConfigurationError: there is no model, the space is not that of a text environment, the vocabularies
            differ, or the task masks tokens and the algorithm does not.
    """

    part_tokens = 8192
    """Padded tokens per forward of an update, which takes texts of similar length together."""

    def __init__(
        self,
        space: spaces.Space,
        action_space: spaces.Space,
        model: nn.Module | None,
        critic: Any,
        temperature: float | None,
        *,
        takes_action_masks: bool,
    ) -> None:
        _check_space(space)
        env = space.env if isinstance(space, TextSpace) else None
        if model is None and env is not None:
            model = env.task.model
        if model is None:
            raise ConfigurationError(
                "the policy finds no model: give a TextVecEnv, or policy_kwargs={'model': ...}; "
                "to load a zip of SB3, also pass observation_space=env.observation_space"
            )
        lm = without_wrapper(model)
        logits = facts_of(lm).vocab_size
        actions = int(getattr(action_space, "n", 0))
        if logits != actions:
            raise ConfigurationError(f"the model has {logits} logits and the environment {actions} actions: match them")
        if isinstance(critic, str) and critic == "none":
            raise ConfigurationError(
                "stable-baselines3 learns a value function: critic is 'shared', 'separate' or a model"
            )
        if env is not None:
            check_adapter_trains(env.task)
        unfreeze_if_frozen(lm)
        self.takes_action_masks = takes_action_masks
        self.temperature_given = temperature is not None
        if temperature is None:
            temperature = 1.0 if env is None else env.task.temperature
        self.network = ValueHeadPolicy(lm, critic, temperature).eval()
        self._actor = CachedActor(self.network)
        self._last_sample: Sample | None = None
        # The policy may be moved to another environment and outlive this one, so it does not hold it.
        self._first_env = None if env is None else weakref.ref(env)
        if env is not None:
            env.set_policy(self)

    @property
    def lm(self) -> nn.Module:
        """The language model."""
        return self.network.lm

    @property
    def temperature(self) -> float:
        """What the logits are divided by."""
        return self.network.temperature

    # -- acting ---------------------------------------------------------------------------------------
    def act(
        self, observations: Mapping[str, Tensor], allowed: Tensor | None, deterministic: bool
    ) -> tuple[SampledTokens, Tensor, Tensor]:
        """Tokens (N,), V (N,) and logprobs (N,); the environment must be stepped with these very tokens.

        Raises:
            ConfigurationError: the last actions came to an environment without their logprobs.
        """
        ids, lengths = as_arrays(observations)
        self._check_received(ids, lengths)
        logits, values = self._actor.outputs(ids, lengths)
        tokens, logprobs = self._sample(logits, ids, lengths, allowed, deterministic, final=True)
        self._last_sample = tokens.sample
        return tokens, values, logprobs

    def predict(self, observations: Mapping[str, Tensor], allowed: Tensor | None, deterministic: bool) -> SampledTokens:
        """Tokens (N,), which the environment need not be stepped with."""
        ids, lengths = as_arrays(observations)
        logits, _ = self._actor.outputs(ids, lengths)
        return self._sample(logits, ids, lengths, allowed, deterministic, final=False)[0]

    def logprob_fn(self, observation: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        """Logprobs (N,) of actions that the policy did not sample; an environment with another model asks for them."""
        with torch.no_grad():
            tensors = {key: torch.from_numpy(value) for key, value in observation.items()}
            return self.evaluate(tensors, torch.from_numpy(actions), None)[1].cpu().numpy()

    def discard_cache(self) -> None:
        """Drop the KV cache, because the weights are about to change."""
        self._actor.discard()

    def _sample(
        self,
        logits: Tensor,
        ids: np.ndarray,
        lengths: np.ndarray,
        allowed: Tensor | None,
        deterministic: bool,
        *,
        final: bool,
    ) -> tuple[SampledTokens, Tensor]:
        """Tokens (N,) that carry their sample, and logprobs (N,)."""
        tokens, logprobs = sample(_masked(logits, allowed), self.temperature, deterministic=deterministic)
        carried = Sample(self, ids, lengths, tokens.cpu().numpy(), logprobs.cpu().numpy(), final)
        return carry(tokens, carried), logprobs

    def _check_received(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Raise if the last sampled actions were executed but no `TextVecEnv` received their logprobs.

        The policy's first environment is exempt: it asks `logprob_fn` for missing logprobs.
        """
        last = self._last_sample
        if last is None or last.received or self._first_env is None or not last.led_to(ids, lengths):
            return
        env = self._first_env()
        if env is not None and env.shows(ids, lengths):
            return
        self._last_sample = None
        raise ConfigurationError(
            "the logprobs of the last actions did not reach the environment, so the KL in its rewards may be of"
            " another model: after set_env the environment must be a TextVecEnv (TextVecEnv.from_env makes one of any"
            " text environment), and its wrappers must pass the actions on as they are"
        )

    # -- evaluating -----------------------------------------------------------------------------------
    def evaluate(
        self, observations: Observations, actions: Tensor, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """V, logprob of the action and entropy of each state, each (N,)."""
        order = []
        rows = []
        for states, logits, values in self._outputs(observations):
            logits = _masked(logits, None if allowed is None else allowed[states])
            logprobs = token_logprobs(logits, actions[states].to(logits.device), self.temperature)
            order.append(states)
            rows.append((values, logprobs, entropy(logits, self.temperature)))
        values, logprobs, entropies = (_in_order(order, column) for column in zip(*rows, strict=True))
        return values, logprobs, entropies

    def logits(self, observations: Observations) -> Tensor:
        """(N, V), divided by the temperature."""
        parts = [(states, logits) for states, logits, _ in self._outputs(observations)]
        order, logits = zip(*parts, strict=True)
        return _in_order(order, logits).float() / self.temperature

    def values(self, observations: Observations) -> Tensor:
        """V (N,); from the cache, where it is one of N texts and no gradient is asked for."""
        if not torch.is_grad_enabled() and isinstance(observations, Mapping):
            ids, lengths = as_arrays(observations)
            if self._actor.holds(len(ids)):
                return self._actor.outputs(ids, lengths)[1]
        parts = [(states, values) for states, _, values in self._outputs(observations)]
        order, values = zip(*parts, strict=True)
        return _in_order(order, values)

    def _outputs(self, observations: Observations) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(states (k,), logits (k, V), V (k,)), part by part, with gradients."""
        network = self.network
        device = device_of(network)
        for part in as_sequences(observations).parts(self.part_tokens):
            ids = torch.from_numpy(part.input_ids).to(device)
            states = torch.from_numpy(part.states).to(device)
            at = (torch.from_numpy(part.rows).to(device), torch.from_numpy(part.positions).to(device))
            outputs = plain_forward(network.lm, ids, at, want_hidden=network.critic is None)
            hidden = outputs.hidden
            if network.critic is not None:
                hidden = plain_forward(network.critic, ids, at, want_hidden=True).hidden
            assert hidden is not None
            yield states, outputs.logits, network.value_of(hidden)


def _check_space(space: spaces.Space) -> None:
    """Refuse observations that are not token ids and their number."""
    if not isinstance(space, spaces.Dict) or set(space.spaces) != {"input_ids", "length"}:
        raise ConfigurationError(
            f"the policy reads Dict(input_ids, length), not {space}: use TextVecEnv, or leave flat=True out"
        )


def _in_order(states: Any, parts: Any) -> Tensor:
    """The rows of all parts, in the order of the states that they belong to."""
    return torch.cat(list(parts))[torch.cat(list(states)).argsort()]


def _masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    if allowed is None:
        return logits
    return logits.masked_fill(~allowed.to(logits.device, torch.bool), -torch.inf)
