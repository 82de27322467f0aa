"""The random streams of an agent: prompts, minibatches and sampling each draw from their own.

The global generators of Python, NumPy and PyTorch are not used here; a reward function or a callback may
use them, so a run that goes on from a checkpoint finds them as they were.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from lm_env.errors import CheckpointCorruptError

__all__ = ["Randomness", "global_random_state", "set_global_random_state"]


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


def global_random_state() -> dict[str, Any]:
    """Where the global generators of Python, NumPy and PyTorch (CPU and CUDA) stand, as JSON."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in devices],
    }


def set_global_random_state(state: dict[str, Any]) -> None:
    """Put the global generators where they stood; those of CUDA devices that are not here are passed over.

    Raises:
        CheckpointCorruptError: the state is not what `global_random_state` gave.
    """
    try:
        version, numbers, gauss = state["python"]
        devices = [torch.tensor(one, dtype=torch.uint8) for one in state["cuda"]]
        cpu = torch.tensor(state["torch"], dtype=torch.uint8)
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(tuple(state["numpy"]))
        torch.set_rng_state(cpu)
        if torch.cuda.is_available():
            for index, one in enumerate(devices[: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(one, index)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointCorruptError(f"the saved random state is damaged ({error}): use another one") from error
