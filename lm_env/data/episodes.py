"""Whole episodes as arrays: what a rollout yields and what `env.score` scores.

Shapes: B episodes, P prompt, T response, L = P + T.  Right-padded; the lengths say what is real,
never a pad id, so pad == eos is no special case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from lm_env.errors import ConfigurationError

if TYPE_CHECKING:
    from lm_env.data.prompts import Prompt

__all__ = ["Episodes", "ScoredEpisodes", "text_episodes"]


@dataclass(frozen=True)
class Episodes:
    """B finished episodes."""

    input_ids: np.ndarray
    """int64 (B, L): prompt, then response (its EOS included), then padding of any value."""
    prompt_lengths: np.ndarray
    """int64 (B,), at least 1."""
    lengths: np.ndarray
    """int64 (B,): prompt plus response."""
    prompts: Sequence[Prompt]
    """B prompts, with the extra columns that the reward may read."""
    logprobs: np.ndarray | None = None
    """float (B, T): logprobs of the response tokens under the distribution they were sampled from."""

    def __post_init__(self) -> None:
        for name, ndim in (("input_ids", 2), ("prompt_lengths", 1), ("lengths", 1)):
            object.__setattr__(self, name, _as_array(name, getattr(self, name), "iu", "integers", ndim))
        if self.logprobs is not None:
            object.__setattr__(self, "logprobs", _as_array("logprobs", self.logprobs, "f", "floats", 2))
        rows = len(self.input_ids)
        if not (len(self.prompt_lengths) == len(self.lengths) == len(self.prompts) == rows):
            raise ConfigurationError("episodes need one prompt, one prompt length and one length per row of input_ids")
        if (
            rows
            and (
                (self.prompt_lengths < 1)
                | (self.lengths <= self.prompt_lengths)
                | (self.lengths > self.input_ids.shape[1])
            ).any()
        ):
            raise ConfigurationError("episodes need 1 <= prompt length < length <= columns of input_ids in every row")
        if self.logprobs is not None and self.logprobs.shape != (shape := self.response_mask().shape):
            raise ConfigurationError(
                f"episodes have logprobs {self.logprobs.shape}: (rows, longest response) is {shape}"
            )

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: np.ndarray) -> Episodes:
        """The given rows, in that order; indices, or a bool mask."""
        rows = np.arange(len(self))[rows]
        longest = int(self.response_lengths[rows].max(initial=0))
        return replace(
            self,
            input_ids=self.input_ids[rows],
            prompt_lengths=self.prompt_lengths[rows],
            lengths=self.lengths[rows],
            prompts=[self.prompts[int(i)] for i in rows],
            logprobs=None if self.logprobs is None else self.logprobs[rows, :longest],
        )

    @property
    def response_lengths(self) -> np.ndarray:
        """int64 (B,)."""
        return self.lengths - self.prompt_lengths

    def response_mask(self) -> np.ndarray:
        """bool (B, T): column t is the t-th response token; T is the longest response."""
        lengths = self.response_lengths
        return np.arange(int(lengths.max()) if len(lengths) else 0) < lengths[:, None]

    def responses(self) -> list[list[int]]:
        """The response tokens of each row, the EOS included."""
        return [row[p:n].tolist() for row, p, n in zip(self.input_ids, self.prompt_lengths, self.lengths, strict=True)]


def text_episodes(prompts: Sequence[Prompt], rows: Sequence[Sequence[int]], given: Sequence[int]) -> Episodes:
    """Texts as episodes.

    Args:
        rows: the token ids of each text, prompt and all.
        given: how many of them are the prompt, at least 1: no likelihood is asked of these.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return Episodes(ids, np.asarray(given, dtype=np.int64), lengths, prompts)


def _as_array(name: str, values: object, kinds: str, described: str, ndim: int) -> np.ndarray:
    """The values as an array, integers as int64; arrays, CPU tensors and nested lists are taken.

    Raises:
        ConfigurationError: the values have another kind of numbers or another number of dimensions.
    """
    try:
        array = np.asarray(values)
    except Exception as error:  # ragged lists, tensors on a GPU or with a gradient
        raise ConfigurationError(f"{name} of episodes cannot be made a numpy array: {error}") from error
    if (array.dtype.kind not in kinds and array.size) or array.ndim != ndim:
        raise ConfigurationError(
            f"{name} of episodes must be {described} with {ndim} dimensions, not {array.dtype} with {array.ndim}"
        )
    return array.astype(np.int64) if kinds == "iu" else array


@dataclass(frozen=True)
class ScoredEpisodes:
    """What the environment says of B episodes, per token."""

    rewards: np.ndarray
    """float64 (B, T): token_scores - beta (logprobs - ref_logprobs); 0 in the padding."""
    scores: np.ndarray
    """float64 (B,): the score paid for the whole text, the sum of its token_scores (a missing EOS may have
    replaced it)."""
    logprobs: np.ndarray
    """float64 (B, T), nats."""
    ref_logprobs: np.ndarray
    """float64 (B, T), nats."""
    ended: np.ndarray
    """bool (B,): an EOS or a stop string ended the episode, not the length cap."""
    token_scores: np.ndarray
    """float64 (B, T): the score paid at each token, all of it at the last one unless the reward function scores
    tokens; 0 in the padding."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name -> float64 (B,): the unweighted scores of the parts of a sum of rewards (`RewardFunction.last_parts`);
    NaN where a text was not scored.  Empty for a reward without parts."""
    failed: np.ndarray | None = None
    """bool (B,): episodes whose score could not be had, and which a trainer leaves out; None: of none it is known."""

    def __getitem__(self, rows: np.ndarray) -> ScoredEpisodes:
        """The given rows, in that order; indices, or a bool mask.  The padding stays as wide as it is."""
        arrays = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays, parts={name: values[rows] for name, values in self.parts.items()})

    @property
    def kl(self) -> np.ndarray:
        """float64 (B,): log pi - log pi_ref of each whole response, nats (k1; its mean estimates the KL)."""
        return (self.logprobs - self.ref_logprobs).sum(1)
