"""The random streams of an agent: prompts, minibatches and sampling each draw from their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lm_env.errors import CheckpointCorruptError

__all__ = ["Randomness"]


class Randomness:
    """Three streams from one seed, so that no use of one shifts another."""

    def __init__(self, seed: int) -> None:
        self.prompts = np.random.default_rng(seed)
        self.minibatches = np.random.default_rng([seed, 1])
        self.sampling = torch.Generator().manual_seed(seed)
        """On the CPU, whatever the model's device, so that a seed means the same everywhere."""

    def state(self) -> dict[str, Any]:
        """Where the streams stand, as JSON."""
        return {
            "prompts": self.prompts.bit_generator.state,
            "minibatches": self.minibatches.bit_generator.state,
            "sampling": self.sampling.get_state().tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Randomness:
        """The streams that `state` described.

        Raises:
            CheckpointCorruptError: it does not describe any.
        """
        streams = cls(0)
        try:
            streams.prompts.bit_generator.state = state["prompts"]
            streams.minibatches.bit_generator.state = state["minibatches"]
            streams.sampling.set_state(torch.tensor(state["sampling"], dtype=torch.uint8))
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointCorruptError(f"the saved random state is damaged ({error}): use another one") from error
        return streams
