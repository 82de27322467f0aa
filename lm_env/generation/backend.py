"""The interface of generation: callers ask a `GenerationBackend` for texts and do not depend on how they are generated.

Shapes: B episodes, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt

__all__ = ["Generation", "GenerationBackend", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's distribution, which is never filtered or reshaped."""

    generator: torch.Generator | None = None
    """The source of randomness, on the CPU whatever the model's device; None: torch's global one."""
    deterministic: bool = False
    """Take the likeliest token instead of drawing one."""


@dataclass(frozen=True)
class Generation:
    """Texts, and what was computed along with them."""

    episodes: Episodes
    """One for each prompt, in the prompts' order, with the logprobs of the distribution sampled from."""
    values: np.ndarray | None
    """float64 (B, T): the value before each token, where the backend reads values along; else None."""
    weights_version: int
    """Which weights wrote them: it grows whenever the weights have changed between two calls."""


class GenerationBackend(Protocol):
    """Writes texts with the weights of the model under training."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, progress: str | None = None) -> Generation:
        """Write a response to every prompt, each carried through to its end.

        Args:
            prompts: at least one.
            progress: the label of a progress bar over the texts; None shows none.

        Raises:
            ConfigurationError: there are no prompts.
        """
        ...
