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
from lm_env.distributed import Processes
from lm_env.validation import check_integer

__all__ = ["Decoding", "Generation", "GenerationBackend", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's distribution, which is never filtered or reshaped."""

    generator: torch.Generator | None = None
    """The source of randomness, on the CPU whatever the model's device; None: torch's global one."""
    deterministic: bool = False
    """Take the likeliest token instead of drawing one."""
    uniforms: np.ndarray | None = None
    """float (B, max_new_tokens) in [0, 1): the number that each token of each text is drawn with, in place of
    the generator.  A text then does not depend on those written beside it, and two policies that are given the
    same numbers write alike as far as they agree."""

    @classmethod
    def fixed(cls, texts: int, tokens: int, seed: int) -> Sampling:
        """The same `uniforms` (texts, tokens) at every call, and no other randomness.

        Args:
            tokens: the task's `max_new_tokens`.
        """
        return cls(uniforms=np.random.default_rng(seed).random((texts, tokens), dtype=np.float32))

    def of_share(self, together: Processes, texts: int, tokens: int) -> Sampling:
        """What one of several processes writes its share of some texts with; this is that of all of them.

        Every process draws one uniform number for each token of each text, of the shares of the others as well, from a
        generator that is in the same state in all of them, and uses those of its share.  So no two use the same
        numbers, and the texts do not depend on the number of processes, one included.

        Args:
            texts: how many texts there are.
            tokens: the most tokens of a text.
        """
        if self.deterministic or together.count == 1:
            return self
        uniforms = self.uniforms
        if uniforms is None:
            rows = [
                torch.rand(tokens, generator=self.generator) for _ in range(texts)
            ]  # in the order in which a single process draws them
            uniforms = torch.stack(rows).numpy()
        return Sampling(uniforms=uniforms[together.share(texts)])


@dataclass(frozen=True)
class Decoding:
    """How a `LocalBackend` runs its model.  Apart from the rounding of `bf16`, no choice changes what it writes."""

    bf16: bool = False
    """A bfloat16 copy of the model writes; probabilities are computed from its logits in fp32.  The logprobs that are
    kept are those of the copy, which is what the texts were sampled from."""
    compile: bool = False
    """The decoding step is made by torch.compile, once, which takes about half a minute and needs a compiler.  Without
    one, or where it fails, the step runs as it is, and the log says so."""
    look_every: int | None = None
    """Tokens of each text that are written before the host reads them.  None: 8 on an accelerator, where each look
    makes the host wait, and 1 on the CPU, where it costs nothing and a slot is free at once.  It is always 1 for a
    task that masks tokens, and for a model without a KV cache."""

    def __post_init__(self) -> None:
        if self.look_every is not None:
            check_integer("look_every", self.look_every)


@dataclass(frozen=True)
class Generation:
    """Texts, and what was computed along with them."""

    episodes: Episodes
    """One for each prompt, in the prompts' order, with the logprobs of the distribution sampled from."""
    values: np.ndarray | None
    """float64 (B, T): the value before each token, where the backend reads values along; else None."""
    weights_version: int
    """Which weights wrote them: it grows whenever the weights have changed between two calls."""
    rounded: bool = False
    """Whether they were written in lower precision than that of the weights, or by another program, so that the model
    itself gives other logprobs, at least by the rounding."""


class GenerationBackend(Protocol):
    """Writes texts with the weights of the model under training."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, progress: str | None = None) -> Generation:
        """Write a response to every prompt, each carried through to its end.

        Args:
            prompts: at least one.
            progress: the label of a progress bar over the texts; None shows none.

        Raises:
            ConfigurationError: there are no prompts, or the uniforms have another shape.
        """
        ...
