"""Decoders: n slots of text that grow token by token, each at its own pace.

`make_decoder` gives a model the KV cache of `SlotDecoder` where that is right for it, and else
`FullDecoder`, which runs the whole text again at each step.

Shapes: n slots, k of them at a time, P prompt tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from lm_env.generation.cache_support import why_no_slot_cache
from lm_env.generation.slot_cache import SlotDecoder, check_room
from lm_env.models.inspection import check_positions, device_of
from lm_env.models.logprobs import Outputs, plain_forward

__all__ = ["Decoder", "FullDecoder", "make_decoder"]


class Decoder(Protocol):
    """n slots of text that grow token by token.

    A call that raises leaves the slots of a `step` as they were, and those of a `start` as they were or empty.
    """

    lengths: np.ndarray
    """int64 (n,): tokens that each slot holds.  Setting one to 0 empties the slot."""

    def start(self, slots: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> Outputs:
        """Begin anew in `slots (k,)` with right-padded `ids (k, P)`; logits (k, V) of the next token."""

    def step(self, slots: np.ndarray, tokens: np.ndarray | Tensor) -> Outputs:
        """Append `tokens (k,)` to `slots (k,)`, ascending; logits (k, V) of the next token.

        Tokens that are a tensor on the model's device need not come to the host.
        """

    def keep(self, slots: np.ndarray) -> None:
        """Drop all other slots; the kept ones are renumbered 0, 1, ... in the given order."""

    def copy_row(self, source: Self, row: int, targets: np.ndarray, length: int) -> None:
        """Let `targets (k,)` hold the first `length` tokens of a row of `source`, or none if it holds fewer.

        Args:
            source: this decoder, or another one of the same model.
        """


def make_decoder(model: nn.Module, slots: int, max_length: int, want_hidden: bool = False) -> Decoder:
    """The fastest decoder that is right for the model.

    Args:
        max_length: the longest text that a slot will hold, in tokens.
        want_hidden: return the last hidden states as well (for a value head).

    Raises:
        UnsupportedModelError: the model has fewer positions than `max_length`, or its logits depend on more
            than the text before them.
    """
    check_positions(model, max_length)
    if why_no_slot_cache(model, max_length) is None:
        return SlotDecoder(model, slots, max_length, want_hidden)
    return FullDecoder(model, slots, max_length, want_hidden)


class FullDecoder:
    """The whole text again at each step: right for every causal model, and slow for long texts."""

    def __init__(self, model: nn.Module, slots: int, max_length: int, want_hidden: bool = False) -> None:
        self.model, self.want_hidden = model, want_hidden
        self.lengths = np.zeros(slots, dtype=np.int64)
        self._ids = np.zeros((slots, max_length), dtype=np.int64)

    def start(self, slots: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> Outputs:
        width = int(lengths.max())
        check_room(width, self._ids.shape[1])
        self.lengths[slots] = 0
        self._ids[slots, :width] = ids[:, :width]
        return self._forward(slots, lengths)

    def step(self, slots: np.ndarray, tokens: np.ndarray | Tensor) -> Outputs:
        at = self.lengths[slots]
        check_room(int(at.max()) + 1, self._ids.shape[1])
        self._ids[slots, at] = tokens.cpu().numpy() if isinstance(tokens, Tensor) else tokens
        return self._forward(slots, at + 1)

    def keep(self, slots: np.ndarray) -> None:
        self._ids, self.lengths = self._ids[slots], self.lengths[slots]

    def copy_row(self, source: Self, row: int, targets: np.ndarray, length: int) -> None:
        held = length if source.lengths[row] >= length else 0
        self._ids[targets, :held] = source._ids[row, :held]
        self.lengths[targets] = held

    @torch.no_grad()
    def _forward(self, slots: np.ndarray, lengths: np.ndarray) -> Outputs:
        device = device_of(self.model)
        ids = torch.from_numpy(self._ids[slots, : int(lengths.max())]).to(device)
        at = (torch.arange(len(slots), device=device), torch.from_numpy(lengths - 1).to(device))
        outputs = plain_forward(self.model, ids, at, self.want_hidden)
        self.lengths[slots] = lengths
        return outputs
