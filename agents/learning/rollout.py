"""A rollout: episodes of the policy, scored, with all that an update needs.

Shapes: B episodes, T response tokens, N response tokens of some episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.learning.metrics import Means
from agents.learning.options import Updating
from agents.learning.policy import ValueHeadPolicy
from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.data.prompts import Prompt
from lm_env.distributed import processes
from lm_env.generation.backend import GenerationBackend, Sampling
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task

__all__ = ["MicroBatch", "Rollout", "collect"]

# Episodes that are scored again to tell how far the logprobs of sampling are off.
MISMATCH_ROWS = 16


@dataclass(frozen=True)
class Rollout:
    """B episodes with all that an update needs."""

    episodes: Episodes
    values: np.ndarray
    """float (B, T): V before each token under the policy that sampled; 0 in the padding."""
    last_values: np.ndarray
    """float (B,): V after the last token of truncated episodes, 0 for terminated ones."""
    scored: ScoredEpisodes
    scoring_seconds: float = 0.0
    """How long the reference, the critic and the reward function took."""
    mismatch: np.ndarray | None = None
    """float64 (N,): by how many nats the logprobs that texts were sampled with are off, where they were written in
    lower precision or by another program: the absolute difference to those that the policy itself gives.  Of all
    texts, or of some with `Updating(logprobs_of="sampler")`; None where the policy wrote the texts itself."""
    ratios: np.ndarray | None = None
    """float64 (B, T): the weight of each token's loss where `Updating.ratio_limit` is set and the texts were written
    with other probabilities than the policy's; None: all are 1."""

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, rows: np.ndarray) -> Rollout:
        """The given episodes, in that order; indices, or a bool mask."""
        episodes = self.episodes[rows]
        width = episodes.response_mask().shape[1]
        scored = self.scored[rows]
        narrow = {name: value[:, :width] for name, value in vars(scored).items() if getattr(value, "ndim", 0) == 2}
        return replace(
            self,
            episodes=episodes,
            values=self.values[rows, :width],
            last_values=self.last_values[rows],
            scored=replace(scored, **narrow),
            ratios=None if self.ratios is None else self.ratios[rows, :width],
        )

    @property
    def rounded(self) -> bool:
        """Whether the texts were written in lower precision than that of the policy's weights, or elsewhere."""
        return self.mismatch is not None

    @property
    def mask(self) -> np.ndarray:
        """bool (B, T)."""
        return self.episodes.response_mask()


class MicroBatch:
    """Some episodes of a rollout, and its arrays cut to their response tokens."""

    def __init__(self, rollout: Rollout, rows: np.ndarray, dtype: tuple[torch.device, torch.dtype], means: Means):
        self.rows = rows
        """int (k,): which episodes of the rollout these are."""
        self.episodes: Episodes = rollout.episodes[rows]
        self._rollout = rollout
        self._mask = rollout.mask[rows]
        self._device, self._dtype = dtype
        self._means = means

    def tokens(self, values: np.ndarray) -> Tensor:
        """The entries (N,) of the batch's response tokens, row after row.

        Args:
            values: of the whole rollout, (B, T) one per token, or (B,) one per episode.
        """
        rows = values[self.rows]
        real = rows[self._mask] if values.ndim == 2 else np.repeat(rows, self._mask.sum(1))
        return torch.from_numpy(real).to(self._device, self._dtype)

    @property
    def old_logprobs(self) -> Tensor:
        """(N,) logprobs under the policy before its update, nats; see `Updating.logprobs_of`."""
        return self.tokens(self._rollout.scored.logprobs)

    @property
    def ref_logprobs(self) -> Tensor:
        """(N,) logprobs under the reference, nats."""
        return self.tokens(self._rollout.scored.ref_logprobs)

    @property
    def old_values(self) -> Tensor:
        """(N,) values before each token, as the critic saw them when sampling."""
        return self.tokens(self._rollout.values)

    def record(self, **columns: Tensor) -> None:
        """Log the means over all tokens of the update, by name; each column is (N,)."""
        self._means.add_tokens(**{name: column.detach() for name, column in columns.items()})

    def record_first(self, **values: Tensor) -> None:
        """Log the first value that the update gives under each name."""
        for name, value in values.items():
            self._means.first(name, value)


def collect(
    backend: GenerationBackend,
    policy: ValueHeadPolicy,
    task: Task,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    reward: Callable[..., Any] | None = None,
    updating: Updating | None = None,
) -> Rollout:
    """Sample an episode for each prompt, then score them all: reference, values and reward in one pass each.

    Where several processes train together, each samples and scores its share, and all get the whole rollout.

    Args:
        prompts: B prompts, at least one for each process.
        sampling: of all B episodes.
        reward: see `score_episodes`.
        updating: says whose logprobs are taken where another sampler wrote the texts, and whether the tokens are to
            be weighted by ratios.
    """
    together = processes()
    share = together.share(len(prompts))
    sampling = sampling.of_share(together, len(prompts), task.max_new_tokens)
    own = _collect(backend, policy, task, prompts[share], sampling, reward, updating or Updating())
    arrays = together.gather_rows(_as_arrays(own), len(own))
    return _from_arrays(arrays, prompts, own.scoring_seconds)


def _collect(
    backend: GenerationBackend,
    policy: ValueHeadPolicy,
    task: Task,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    reward: Callable[..., Any] | None,
    updating: Updating,
) -> Rollout:
    """The rollout of one process."""
    generation = backend.generate(prompts, sampling)
    episodes = generation.episodes
    started = time.perf_counter()
    mismatch = ratios = None
    if generation.rounded and updating.logprobs_of == "sampler":
        mismatch = _mismatch(policy, task, episodes)
    elif generation.rounded:
        episodes, mismatch, ratios = _with_own_logprobs(policy, task, episodes, updating)
    values = policy.values(episodes) if generation.values is None else generation.values
    last_values = np.zeros(len(episodes))
    scored = score_episodes(task, episodes, reward)
    if task.cap_truncates and not scored.ended.all():
        cut = np.flatnonzero(~scored.ended)
        part = episodes[cut]
        last_values[cut] = policy.next_outputs(part.input_ids, part.lengths)[1].cpu().numpy()
    return Rollout(episodes, values, last_values, scored, time.perf_counter() - started, mismatch, ratios)


def _as_arrays(rollout: Rollout) -> dict[str, np.ndarray]:
    """All that a rollout consists of, but for its prompts."""
    episodes, scored = rollout.episodes, rollout.scored
    arrays = {
        "input_ids": episodes.input_ids,
        "prompt_lengths": episodes.prompt_lengths,
        "lengths": episodes.lengths,
        "logprobs": episodes.logprobs,
        "values": rollout.values,
        "last_values": rollout.last_values,
        "mismatch": rollout.mismatch,
        "ratios": rollout.ratios,
        **{f"scored.{name}": value for name, value in vars(scored).items() if name != "parts"},
        **{f"parts.{name}": value for name, value in scored.parts.items()},
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _from_arrays(arrays: Mapping[str, np.ndarray], prompts: Sequence[Prompt], seconds: float) -> Rollout:
    """The rollout that `_as_arrays` took apart."""
    scored = {name.removeprefix("scored."): array for name, array in arrays.items() if name.startswith("scored.")}
    parts = {name.removeprefix("parts."): array for name, array in arrays.items() if name.startswith("parts.")}
    episodes = Episodes(
        arrays["input_ids"], arrays["prompt_lengths"], arrays["lengths"], prompts, arrays.get("logprobs")
    )
    return Rollout(
        episodes,
        arrays["values"],
        arrays["last_values"],
        ScoredEpisodes(**scored, parts=parts),
        seconds,
        arrays.get("mismatch"),
        arrays.get("ratios"),
    )


def _with_own_logprobs(
    policy: ValueHeadPolicy, task: Task, episodes: Episodes, updating: Updating
) -> tuple[Episodes, np.ndarray, np.ndarray | None]:
    """(the episodes with the policy's own logprobs, by how much these differ (N,), the ratios (B, T) if asked for)."""
    assert episodes.logprobs is not None
    mask = episodes.response_mask()
    own = response_logprobs(policy.lm, episodes, task.temperature, task.allowed_in(episodes)).astype(np.float64)
    difference = np.where(mask, own - episodes.logprobs, 0.0)
    ratios = None
    if updating.ratio_limit is not None:
        exponents = difference if updating.ratio_of == "token" else difference.sum(1, keepdims=True)
        ratios = np.where(mask, np.exp(np.minimum(exponents, np.log(updating.ratio_limit))), 0.0)
    return replace(episodes, logprobs=own), np.abs(difference[mask]), ratios


def _mismatch(policy: ValueHeadPolicy, task: Task, episodes: Episodes) -> np.ndarray:
    """abs(logprob of the policy - logprob of sampling) of each token of at most `MISMATCH_ROWS` episodes, (N,)."""
    assert episodes.logprobs is not None
    rows = np.linspace(0, len(episodes) - 1, min(len(episodes), MISMATCH_ROWS)).astype(np.int64)
    part = episodes[rows]
    own = response_logprobs(policy.lm, part, task.temperature, task.allowed_in(part)).astype(np.float64)
    mask = part.response_mask()
    return np.abs(own[mask] - episodes.logprobs[rows][mask])
