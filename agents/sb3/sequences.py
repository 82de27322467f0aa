"""Sequences: the states of a minibatch as the few texts that hold them.

A state is a prefix of a text, and one forward over the text gives the logits of all its prefixes.
`EpisodeRolloutBuffer` yields minibatches in this form; observations that come one by one (the stock
buffer's) are brought into it by finding which of them are prefixes of others.

Shapes: N states, S texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from lm_env.models.inputs import length_batches

__all__ = ["Observations", "Part", "Sequences", "as_arrays", "as_sequences"]


@dataclass(frozen=True)
class Part:
    """Texts of similar length, and the states in them."""

    states: np.ndarray
    """int64 (k,): which of the N states these are."""
    input_ids: np.ndarray
    """int64 (s, width), right-padded."""
    rows: np.ndarray
    """int64 (k,): the text of each state."""
    positions: np.ndarray
    """int64 (k,): the last token of each state."""


@dataclass(frozen=True)
class Sequences:
    """N states in S texts."""

    input_ids: np.ndarray
    """int64 (S, L), right-padded."""
    rows: np.ndarray
    """int64 (N,): the text of each state."""
    positions: np.ndarray
    """int64 (N,): the last token of each state."""

    @classmethod
    def from_observations(cls, input_ids: np.ndarray, lengths: np.ndarray) -> Sequences:
        """Share the texts of states that are exact prefixes of others.

        Args:
            input_ids: int64 (N, L), right-padded; lengths: int64 (N,).
        """
        input_ids = input_ids[:, : int(lengths.max())]
        real = np.arange(input_ids.shape[1]) < lengths[:, None]
        keys = np.where(real, input_ids, -1)
        order = np.lexsort(keys.T[::-1])
        # In lexicographic order a text comes right before those that it is a prefix of.
        agree = (keys[order[:-1]] == keys[order[1:]]) | ~real[order[:-1]]
        held = np.append(agree.all(axis=1), False)  # by the next one
        rows = np.empty(len(order), dtype=np.int64)
        rows[order] = np.cumsum(~held) - ~held
        return cls(input_ids[order[~held]], rows, lengths - 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, states: slice | np.ndarray) -> Sequences:
        """Some of the states."""
        return replace(self, rows=self.rows[states], positions=self.positions[states])

    def parts(self, tokens: int) -> Iterator[Part]:
        """Cut into parts of at most `tokens` padded tokens (or one text); each state is in one of them."""
        lengths = np.zeros(len(self.input_ids), dtype=np.int64)
        np.maximum.at(lengths, self.rows, self.positions + 1)
        used = np.flatnonzero(lengths)
        for batch in length_batches(lengths[used], tokens):
            texts = used[batch]
            place = np.full(len(lengths), -1)
            place[texts] = np.arange(len(texts))
            states = np.flatnonzero(place[self.rows] >= 0)
            width = int(lengths[texts].max())
            yield Part(states, self.input_ids[texts, :width], place[self.rows[states]], self.positions[states])


Observations: TypeAlias = "Sequences | Mapping[str, Any]"
"""`Sequences`, or tensors `input_ids (N, L)` and `length (N, 1)`."""


def as_arrays(observations: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids (N, L), lengths (N,)) of an observation in tensors."""
    lengths = observations["length"].reshape(-1).cpu().numpy()
    return observations["input_ids"].cpu().numpy(), lengths


def as_sequences(observations: Observations) -> Sequences:
    """Whatever a buffer gave, as `Sequences`."""
    return (
        observations if isinstance(observations, Sequences) else Sequences.from_observations(*as_arrays(observations))
    )
