"""CachedActor: the next token's logits and values of n texts that grow by a token between calls.

It keeps the text that each row of its KV cache was computed from.  A row of an observation goes on
from the cache only if it is that text and one token more, under the very same weights; every other
row (a new episode, swapped rows, an edited text, a changed model) is computed from its beginning.  So
the cache can be slow, but never wrong.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.learning.policy import ValueHeadPolicy
from lm_env.generation.decoders import Decoder, make_decoder
from lm_env.models.logprobs import Outputs
from lm_env.models.weight_watch import WeightWatch

__all__ = ["CachedActor"]


class CachedActor:
    """n texts under way, read by a policy and its critic."""

    def __init__(self, network: ValueHeadPolicy) -> None:
        self._network = network
        self._decoders: list[Decoder] = []
        self._ids = np.zeros((0, 0), dtype=np.int64)
        self._lengths = np.zeros(0, dtype=np.int64)
        self._weights = WeightWatch(network)

    def forget(self) -> None:
        """Compute everything anew at the next call."""
        self._decoders, self._weights = [], WeightWatch(self._network)

    @torch.no_grad()
    def outputs(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits (n, V) of the next tokens, and V (n,).

        Args:
            ids: int64 (n, L), right-padded; lengths: int64 (n,).
        """
        if self._weights.changed() or not self._decoders or self._ids.shape != ids.shape:
            self._begin(ids.shape)
        known = self._continued_by(ids, lengths)
        old, new = np.flatnonzero(known), np.flatnonzero(~known)
        self._lengths[:] = 0  # until it has gone well
        parts = []
        if len(old):
            parts.append((old, [d.step(old, ids[old, lengths[old] - 1]) for d in self._decoders]))
        if len(new):
            parts.append((new, [d.start(new, ids[new], lengths[new]) for d in self._decoders]))
        self._ids[:], self._lengths[:] = ids, lengths
        if len(parts) == 1:
            return self._read(parts[0][1])
        read = [self._read(outputs) for _, outputs in parts]
        back = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _ in parts]))).to(read[0][0].device)
        return torch.cat([logits for logits, _ in read])[back], torch.cat([values for _, values in read])[back]

    def _begin(self, shape: tuple[int, ...]) -> None:
        network, (slots, width) = self._network, shape
        self._decoders = [make_decoder(network.lm, slots, width, want_hidden=network.critic is None)]
        if network.critic is not None:
            self._decoders.append(make_decoder(network.critic, slots, width, want_hidden=True))
        self._ids, self._lengths = np.zeros(shape, dtype=np.int64), np.zeros(slots, dtype=np.int64)

    def _continued_by(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """bool (n,): rows that are the text in the cache, and one token more."""
        grown = (self._lengths > 0) & (lengths == self._lengths + 1)
        beyond = np.arange(ids.shape[1]) >= self._lengths[:, None]
        return grown & ((ids == self._ids) | beyond).all(axis=1)

    def _read(self, outputs: list[Outputs]) -> tuple[Tensor, Tensor]:
        hidden = outputs[-1].hidden  # of the critic if there is one, else of the LM
        assert hidden is not None
        return outputs[0].logits, self._network.value_of(hidden)
