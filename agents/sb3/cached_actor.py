"""CachedActor: the next token's logits and values of n texts that grow by a token between calls.

It keeps the text that each row of its KV cache was computed from.  A row of an observation continues the
cache only if it is that text plus one token, under the very same weights; every other row (a new episode,
swapped rows, an edited text, a changed model) is computed from its beginning.  So the cache may fail to save
time, but it never gives a wrong result.

Shapes: n texts, L tokens, V vocabulary.
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
    """The KV cache of n unfinished texts, for a policy and its critic."""

    def __init__(self, network: ValueHeadPolicy) -> None:
        self._network = network
        self._decoders: list[Decoder] = []
        self._ids = np.zeros((0, 0), dtype=np.int64)
        self._lengths = np.zeros(0, dtype=np.int64)
        self._weights = WeightWatch(network)

    def discard(self) -> None:
        """Drop the cache: the next call computes everything anew."""
        self._decoders = []
        self._weights = WeightWatch(self._network)

    def holds(self, count: int) -> bool:
        """Whether the cache is one of `count` texts."""
        return bool(self._decoders) and len(self._lengths) == count

    @torch.no_grad()
    def outputs(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits (n, V) of the next tokens, and V (n,).

        Args:
            ids: int64 (n, L), right-padded; lengths: int64 (n,).
        """
        if self._weights.changed() or not self._decoders or self._ids.shape != ids.shape:
            self._begin(ids.shape)
        continues = self._continued_by(ids, lengths)
        continued = np.flatnonzero(continues)
        begun = np.flatnonzero(~continues)
        self._lengths[:] = 0  # If a forward fails, no row counts as cached.
        parts = []
        if len(continued):
            newest = ids[continued, lengths[continued] - 1]
            parts.append(self._read([decoder.step(continued, newest) for decoder in self._decoders]))
        if len(begun):
            parts.append(self._read([decoder.start(begun, ids[begun], lengths[begun]) for decoder in self._decoders]))
        self._ids[:] = ids
        self._lengths[:] = lengths
        if len(parts) == 1:
            return parts[0]
        logits, values = (torch.cat(column) for column in zip(*parts, strict=True))
        original_order = torch.from_numpy(np.argsort(np.concatenate([continued, begun]))).to(logits.device)
        return logits[original_order], values[original_order]

    def _begin(self, shape: tuple[int, ...]) -> None:
        """Make an empty cache for `shape`, (n, L)."""
        network = self._network
        count, width = shape
        self._decoders = [make_decoder(network.lm, count, width, want_hidden=network.critic is None)]
        if network.critic is not None:
            self._decoders.append(make_decoder(network.critic, count, width, want_hidden=True))
        self._ids = np.zeros(shape, dtype=np.int64)
        self._lengths = np.zeros(count, dtype=np.int64)

    def _continued_by(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """bool (n,): rows that are the text in the cache plus one token."""
        grown = (self._lengths > 0) & (lengths == self._lengths + 1)
        beyond = np.arange(ids.shape[1]) >= self._lengths[:, None]
        return grown & ((ids == self._ids) | beyond).all(axis=1)

    def _read(self, outputs: list[Outputs]) -> tuple[Tensor, Tensor]:
        """Logits and values from what each decoder returned: the LM's first, then that of a critic of its own."""
        hidden = outputs[-1].hidden
        assert hidden is not None
        return outputs[0].logits, self._network.value_of(hidden)
