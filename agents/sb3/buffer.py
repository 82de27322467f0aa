"""EpisodeRolloutBuffer: whole episodes for `rollout_buffer_class=`, so that an update reads each text once.

The stock buffer shuffles single transitions: an update then runs the model over a whole prefix per
TOKEN.  This one keeps the text of each segment (an episode, or what of it lies in the rollout) once,
and yields minibatches of whole segments.  Returns and advantages are the stock buffer's own.

Shapes: n environments, L tokens, N transitions of a minibatch.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from agents.sb3.sequences import Sequences

__all__ = ["EpisodeRolloutBuffer"]


class EpisodeRolloutBuffer(RolloutBuffer):
    """`n_steps` x `n_envs` transitions as segments of episodes.

    `get(batch_size)` yields minibatches of whole segments: of nearly even sizes, and of at most
    `batch_size` transitions unless one segment alone is longer.  `observations` is a `Sequences`,
    which the policies of this package read.  A segment ends where an episode does and at the
    rollout's edge; the next rollout goes on within the same episode.
    """

    def reset(self) -> None:
        """Empty the buffer."""
        shape = (self.buffer_size, self.n_envs)
        self.actions = np.zeros((*shape, 1), dtype=np.int64)
        self.rewards, self.values, self.log_probs, self.episode_starts, self.returns, self.advantages = (
            np.zeros(shape, dtype=np.float32) for _ in range(6)
        )
        assert isinstance(self.observation_space, spaces.Dict)
        width = self.observation_space["input_ids"].shape[0]  # type: ignore[index]
        self._texts = np.zeros((self.n_envs, width), dtype=np.int64)
        self._segments = 0
        self._segment = np.zeros(shape, dtype=np.int64)
        self._position = np.full(shape, -1, dtype=np.int64)
        self.pos, self.full = 0, False

    def add(  # type: ignore[override]
        self,
        obs: dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """One step of n environments."""
        self._segment[self.pos] = self._write(obs["input_ids"], obs["length"].reshape(-1), episode_start)
        self._position[self.pos] = obs["length"].reshape(-1) - 1
        self.actions[self.pos] = action.reshape(self.n_envs, 1)
        self.rewards[self.pos], self.episode_starts[self.pos] = reward, episode_start
        self.values[self.pos] = value.detach().cpu().numpy().reshape(-1)
        self.log_probs[self.pos] = log_prob.detach().cpu().numpy().reshape(-1)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Minibatches of whole segments, in random order; everything at once without a `batch_size`."""
        for transitions in self.minibatches(batch_size):
            yield self._get_samples(transitions)

    def minibatches(self, batch_size: int | None) -> list[np.ndarray]:
        """Indices (step * n_envs + environment) of the transitions of each minibatch."""
        assert self.full, "the buffer is full after n_steps calls of add"
        segment = self._segment.reshape(-1)
        lengths = np.bincount(segment)
        transitions = np.split(np.argsort(segment, kind="stable"), np.cumsum(lengths)[:-1])
        order = np.random.permutation(self._segments)
        owner = _even_shares(lengths[order], len(segment) if batch_size is None else batch_size)
        return [np.concatenate([transitions[s] for s in order[owner == batch]]) for batch in np.unique(owner)]

    def _write(self, ids: np.ndarray, lengths: np.ndarray, episode_start: np.ndarray) -> np.ndarray:
        """Keep the texts so far; the segment (n,) that each environment is in."""
        before = np.full(self.n_envs, -1) if self.pos == 0 else self._segment[self.pos - 1]
        known = self._position[self.pos - 1] + 1  # 0 at the first step
        told = self._texts[before]
        goes_on = (before >= 0) & ~episode_start.astype(bool) & (lengths == known + 1)
        goes_on &= ((told == ids) | (np.arange(ids.shape[1]) >= known[:, None])).all(axis=1)
        segments = before.copy()
        fresh = int((~goes_on).sum())
        segments[~goes_on] = self._segments + np.arange(fresh)
        self._segments += fresh
        while len(self._texts) < self._segments:
            self._texts = np.concatenate([self._texts, np.zeros_like(self._texts)])
        self._texts[segments] = ids  # the newest text of a segment holds all the others
        return segments

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> RolloutBufferSamples:
        """The transitions with these indices."""
        return RolloutBufferSamples(
            self._sequences(batch_inds),  # type: ignore[arg-type]
            self.to_torch(self.actions.reshape(-1, 1)[batch_inds]),
            *(
                self.to_torch(a.reshape(-1)[batch_inds])
                for a in (self.values, self.log_probs, self.advantages, self.returns)
            ),
        )

    def _sequences(self, transitions: np.ndarray) -> Sequences:
        segments, rows = np.unique(self._segment.reshape(-1)[transitions], return_inverse=True)
        return Sequences(self._texts[segments], rows, self._position.reshape(-1)[transitions])


def _even_shares(lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """The minibatch (k,) of each of k segments: the fewest even shares in which none is too large."""
    total = int(lengths.sum())
    middles = np.cumsum(lengths) - lengths / 2
    count = -(-total // batch_size)
    while True:
        owner = (middles * count // total).astype(np.int64)
        if ((np.bincount(owner, lengths) <= batch_size) | (np.bincount(owner) == 1)).all():
            return owner
        count += 1
