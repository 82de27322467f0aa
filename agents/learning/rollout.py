"""A rollout: episodes of the policy, scored, with all that an update needs.

Shapes: B episodes, T response tokens, N response tokens of some episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.learning.policy import ValueHeadPolicy
from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.data.prompts import Prompt
from lm_env.generation.backend import GenerationBackend, Sampling
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import score_episodes
from lm_env.objective.task import Task

__all__ = ["Rollout", "collect"]

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
    """float64 (N,): by how many nats the logprobs of some of the texts are off, where they were written in lower
    precision: the absolute difference to those that the policy itself gives; else None."""

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
        )

    @property
    def rounded(self) -> bool:
        """Whether the texts were written in lower precision than that of the policy's weights."""
        return self.mismatch is not None

    @property
    def mask(self) -> np.ndarray:
        """bool (B, T)."""
        return self.episodes.response_mask()


def collect(
    backend: GenerationBackend,
    policy: ValueHeadPolicy,
    task: Task,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    reward: Callable[..., Any] | None = None,
) -> Rollout:
    """Sample an episode for each prompt, then score them all: reference, values and reward in one pass each.

    Args:
        reward: see `score_episodes`.
    """
    generation = backend.generate(prompts, sampling)
    episodes = generation.episodes
    started = time.perf_counter()
    values = policy.values(episodes) if generation.values is None else generation.values
    last_values = np.zeros(len(episodes))
    scored = score_episodes(task, episodes, reward)
    if task.cap_truncates and not scored.ended.all():
        cut = np.flatnonzero(~scored.ended)
        part = episodes[cut]
        last_values[cut] = policy.next_outputs(part.input_ids, part.lengths)[1].cpu().numpy()
    mismatch = _mismatch(policy, task, episodes) if generation.rounded else None
    return Rollout(episodes, values, last_values, scored, time.perf_counter() - started, mismatch)


def _mismatch(policy: ValueHeadPolicy, task: Task, episodes: Episodes) -> np.ndarray:
    """abs(logprob of the policy - logprob of sampling) of each token of at most `MISMATCH_ROWS` episodes, (N,)."""
    assert episodes.logprobs is not None
    rows = np.linspace(0, len(episodes) - 1, min(len(episodes), MISMATCH_ROWS)).astype(np.int64)
    part = episodes[rows]
    own = response_logprobs(policy.lm, part, task.temperature, task.allowed_in(part)).astype(np.float64)
    mask = part.response_mask()
    return np.abs(own[mask] - episodes.logprobs[rows][mask])
