"""Actions that carry the logprobs they were sampled with, from a policy to the environment that is stepped with them.

stable-baselines3 hands the policy's actions to `env.step(actions.cpu().numpy())` and nothing else, and
`agent.set_env` does not mention the new environment to the policy.  So the actions themselves bring what the
KL in the reward needs: `SampledTokens` is a tensor and `SampledActions` the array made from it, both with a
`Sample` attached.  Wrappers such as `VecMonitor` pass the array on as it is, and copies of it keep the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

__all__ = ["ActingPolicy", "Sample", "SampledActions", "SampledTokens", "carry"]


class ActingPolicy(Protocol):
    """What an environment needs to know of the policy that acts in it."""

    takes_action_masks: bool
    """Whether it samples allowed tokens only, in a task with an `action_mask`."""
    temperature_given: bool
    """Whether the user chose the policy's temperature; else it is that of the environment it was made for."""

    @property
    def lm(self) -> nn.Module:
        """The language model."""

    @property
    def temperature(self) -> float:
        """What the logits are divided by."""

    def logprob_fn(self, observation: dict[str, np.ndarray], actions: np.ndarray) -> ArrayLike:
        """Logprobs (k,) of actions that the policy did not sample."""


@dataclass
class Sample:
    """What a policy knows of the n actions that it has just sampled."""

    policy: ActingPolicy
    input_ids: np.ndarray
    """int64 (n, L): the texts that were acted on, right-padded."""
    lengths: np.ndarray
    """int64 (n,)."""
    tokens: np.ndarray
    """int64 (n,)."""
    logprobs: np.ndarray
    """float (n,), nats."""
    final: bool
    """Whether the environment must be stepped with these very tokens, as in a rollout that is learned from."""
    received: bool = False
    """Whether a `TextVecEnv` has been stepped with it."""

    def led_to(self, input_ids: np.ndarray, lengths: np.ndarray) -> bool:
        """Whether texts have grown by one token, and all that have by the token sampled for them."""
        if lengths.shape != self.lengths.shape:
            return False
        grown = np.flatnonzero(lengths == self.lengths + 1)
        return len(grown) > 0 and np.array_equal(input_ids[grown, self.lengths[grown]], self.tokens[grown])


class SampledActions(np.ndarray):
    """Token ids int64 (n,) with the `sample` they come from, which copies and views keep."""

    sample: Sample | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.sample = getattr(source, "sample", None)


class SampledTokens(Tensor):
    """Token ids int64 (n,) with the `sample` they come from, which `cpu` and `numpy` keep."""

    sample: Sample | None = None

    def cpu(self, *args: Any, **kwargs: Any) -> SampledTokens:
        """The same on the CPU."""
        tokens = super().cpu(*args, **kwargs).as_subclass(SampledTokens)
        tokens.sample = self.sample
        return tokens

    def numpy(self, *args: Any, **kwargs: Any) -> SampledActions:
        """As an array."""
        actions = super().numpy(*args, **kwargs).view(SampledActions)
        actions.sample = self.sample
        return actions


def carry(tokens: Tensor, sample: Sample) -> SampledTokens:
    """The tokens (n,), with their sample attached."""
    carried = tokens.as_subclass(SampledTokens)
    carried.sample = sample
    return carried
