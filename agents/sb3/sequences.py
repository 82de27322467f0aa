"""Sequences: the states of a minibatch, stored as the few texts that contain them.

A state is a prefix of a text, and one forward over the text gives the logits of all its prefixes.
`EpisodeRolloutBuffer` yields minibatches in this form; single observations (as in the stock buffer) are
converted by finding which of them are prefixes of others.

Shapes: N states, S texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from lm_env.errors import ConfigurationError
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
        is_token = np.arange(input_ids.shape[1]) < lengths[:, None]
        keys = np.where(is_token, input_ids, -1)
        order = np.lexsort(keys.T[::-1])
        # In lexicographic order, a text stands right before those that it is a prefix of.
        agrees = (keys[order[:-1]] == keys[order[1:]]) | ~is_token[order[:-1]]
        is_prefix_of_next = np.append(agrees.all(axis=1), False)
        is_kept = ~is_prefix_of_next
        rows = np.empty(len(order), dtype=np.int64)
        rows[order] = np.cumsum(is_kept) - is_kept
        return cls(input_ids[order[is_kept]], rows, lengths - 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, states: slice | np.ndarray) -> Sequences:
        """Some of the states."""
        return replace(self, rows=self.rows[states], positions=self.positions[states])

    def parts(self, tokens: int) -> Iterator[Part]:
        """Divide into parts of at most `tokens` padded tokens (or one text); each state is in one of them."""
        lengths = np.zeros(len(self.input_ids), dtype=np.int64)
        np.maximum.at(lengths, self.rows, self.positions + 1)
        used = np.flatnonzero(lengths)
        for batch in length_batches(lengths[used], tokens):
            texts = used[batch]
            row_in_part = np.full(len(lengths), -1)
            row_in_part[texts] = np.arange(len(texts))
            states = np.flatnonzero(row_in_part[self.rows] >= 0)
            width = int(lengths[texts].max())
            yield Part(states, self.input_ids[texts, :width], row_in_part[self.rows[states]], self.positions[states])


Observations: TypeAlias = "Sequences | Mapping[str, Any]"
"""`Sequences`, or tensors `input_ids (N, L)` and `length (N, 1)`."""


def as_arrays(observations: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """An observation in tensors as arrays: input_ids int64 (N, L), lengths int64 (N,).

    Raises:
        ConfigurationError: a wrapper has turned the token ids into floats.
    """
    ids = observations["input_ids"].cpu().numpy()
    lengths = observations["length"].reshape(-1).cpu().numpy()
    if ids.dtype.kind not in "iu" or lengths.dtype.kind not in "iu":
        raise ConfigurationError(
            f"the policy reads token ids, which are integers, not {ids.dtype}: VecNormalize needs norm_obs=False"
        )
    return ids, lengths


def as_sequences(observations: Observations) -> Sequences:
    """What a buffer yielded, as `Sequences`."""
    if isinstance(observations, Sequences):
        return observations
    return Sequences.from_observations(*as_arrays(observations))
