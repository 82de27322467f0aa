"""Writers: the next token of every slot, drawn on the model's device and left there.

A writer combines a decoder with the sampling.  It returns tensors on the device; the host may read them later, several
tokens at a time.

Shapes: S slots, k of them in one call, P prompt tokens, T response tokens, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lm_env.generation.decoders import Decoder
from lm_env.generation.sampling import choose
from lm_env.models.logprobs import Outputs, restrict

__all__ = ["EagerWriter", "ValueOf", "Writer", "Written"]

ValueOf = Callable[[Tensor], Tensor]
"""Hidden states (k, D) -> values (k,)."""


class Written(NamedTuple):
    """The next token of each of k slots."""

    slots: np.ndarray
    """int64 (k,), known to the host."""
    tokens: Tensor
    """int64 (k,) on the model's device, like the two tensors below."""
    logprobs: Tensor
    """float (k,) nats, of the distribution sampled from."""
    values: Tensor | None
    """float (k,): the value before each token, if the writer has a value head; else None."""


class Writer(Protocol):
    """Writes texts in S slots, one token of each at a time."""

    def start(
        self,
        slots: np.ndarray,
        ids: np.ndarray,
        lengths: np.ndarray,
        uniforms: np.ndarray | None,
        allowed: np.ndarray | None = None,
    ) -> Written:
        """Start new texts in `slots (k,)` from right-padded prompts, and sample the first token of each.

        Args:
            ids, lengths: int64 (k, P) and (k,).
            uniforms: float32 (k, T): the uniform number that chooses each token of the text; None: the
                likeliest token each time.
            allowed: bool (k, V) or None: the tokens that may come.
        """

    def step(self, slots: np.ndarray, allowed: np.ndarray | None = None) -> Written:
        """Sample the next token in `slots (k,)`, in ascending order, and possibly in others as well."""

    def size_for(self, count: int) -> int:
        """How many slots this writer needs so that `count` of them can continue; at least `count`."""

    def keep(self, slots: np.ndarray) -> None:
        """Drop all other slots; the kept ones are renumbered 0, 1, ... in the given order."""


class EagerWriter:
    """A `Writer` over any decoder: each step runs only the given slots, with as many keys as their longest text.

    Args:
        decoder: holds the texts; with a `value_of`, made with `want_hidden`.
        slots: S.
        room: T, the longest response.
    """

    def __init__(
        self,
        decoder: Decoder,
        slots: int,
        room: int,
        temperature: float,
        value_of: ValueOf | None,
        device: torch.device,
    ) -> None:
        self.decoder = decoder
        self.temperature = temperature
        self.value_of = value_of
        self.device = device
        self._last = torch.zeros(slots, dtype=torch.long, device=device)
        self._uniforms = torch.zeros((slots, room), device=device)
        self._drawing = True
        self._count = np.zeros(slots, dtype=np.int64)  # tokens that each slot's response has

    def start(
        self,
        slots: np.ndarray,
        ids: np.ndarray,
        lengths: np.ndarray,
        uniforms: np.ndarray | None,
        allowed: np.ndarray | None = None,
    ) -> Written:
        self._count[slots] = 0
        self._drawing = uniforms is not None
        if uniforms is not None:
            self._uniforms[self._index(slots)] = self._index(uniforms)
        return self._draw(slots, self.decoder.start(slots, ids, lengths), allowed)

    def step(self, slots: np.ndarray, allowed: np.ndarray | None = None) -> Written:
        index = self._index(slots)
        return self._draw(slots, self.decoder.step(slots, self._last[index]), allowed)

    def size_for(self, count: int) -> int:
        return count

    def keep(self, slots: np.ndarray) -> None:
        index = self._index(slots)
        self.decoder.keep(slots)
        self._last = self._last[index]
        self._uniforms = self._uniforms[index]
        self._count = self._count[slots]

    def _draw(self, slots: np.ndarray, outputs: Outputs, allowed: np.ndarray | None) -> Written:
        index = self._index(slots)
        logits = outputs.logits if allowed is None else restrict(outputs.logits, allowed)
        uniform = self._uniforms[index, self._index(self._count[slots])] if self._drawing else None
        tokens, logprobs = choose(logits, uniform, self.temperature)
        values = None
        if self.value_of is not None and outputs.hidden is not None:
            values = self.value_of(outputs.hidden)
        self._last[index] = tokens
        self._count[slots] += 1
        return Written(slots, tokens, logprobs, values)

    def _index(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)
