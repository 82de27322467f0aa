"""EpisodeRolloutBuffer: whole episodes for `rollout_buffer_class=`, so that an update reads each text once.

The stock buffer shuffles single transitions: an update then runs the model over a whole prefix per
TOKEN.  This one keeps the text of each segment (an episode, or the part of one that lies in the rollout) once,
and yields minibatches of whole segments.  Returns and advantages are computed by the stock buffer's own method.

Shapes: n environments, L tokens, N transitions of a minibatch, K segments.
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
    rollout's edge; the next rollout continues within the same episode.
    """

    def reset(self) -> None:
        """Empty the buffer."""
        shape = (self.buffer_size, self.n_envs)
        self.actions = np.zeros((*shape, 1), dtype=np.int64)
        for name in ("rewards", "values", "log_probs", "episode_starts", "returns", "advantages"):
            setattr(self, name, np.zeros(shape, dtype=np.float32))
        assert isinstance(self.observation_space, spaces.Dict)
        width = self.observation_space["input_ids"].shape[0]  # type: ignore[index]
        self._texts = np.zeros((self.n_envs, width), dtype=np.int64)
        self._segment_count = 0
        self._segment = np.zeros(shape, dtype=np.int64)
        self._position = np.full(shape, -1, dtype=np.int64)
        self.pos = 0
        self.full = False

    def add(  # type: ignore[override]
        self,
        obs: dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Add one step of n environments."""
        lengths = obs["length"].reshape(-1)
        self._segment[self.pos] = self._add_texts(obs["input_ids"], lengths, episode_start)
        self._position[self.pos] = lengths - 1
        self.actions[self.pos] = action.reshape(self.n_envs, 1)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
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
        order = np.random.permutation(self._segment_count)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        transitions = np.argsort(place[segment], kind="stable")
        minibatch = _even_shares(lengths[order], len(segment) if batch_size is None else batch_size)
        sizes = np.bincount(minibatch, lengths[order]).astype(np.int64)
        return [part for part in np.split(transitions, np.cumsum(sizes)[:-1]) if len(part)]

    def _add_texts(self, ids: np.ndarray, lengths: np.ndarray, episode_start: np.ndarray) -> np.ndarray:
        """Keep the newest texts (n, L); return the segment (n,) that each environment is in."""
        previous = np.full(self.n_envs, -1) if self.pos == 0 else self._segment[self.pos - 1]
        known_lengths = self._position[self.pos - 1] + 1  # At the first step these are all 0.
        known_texts = self._texts[previous]
        is_beyond = np.arange(ids.shape[1]) >= known_lengths[:, None]
        extends = (lengths == known_lengths + 1) & ((known_texts == ids) | is_beyond).all(axis=1)
        continues = (previous >= 0) & ~episode_start.astype(bool) & extends
        segments = previous.copy()
        begun = int((~continues).sum())
        segments[~continues] = self._segment_count + np.arange(begun)
        self._segment_count += begun
        while len(self._texts) < self._segment_count:
            self._texts = np.concatenate([self._texts, np.zeros_like(self._texts)])
        self._texts[segments] = ids  # The newest text of a segment contains all the others.
        return segments

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> RolloutBufferSamples:
        """The transitions with these indices."""
        columns = (self.values, self.log_probs, self.advantages, self.returns)
        return RolloutBufferSamples(
            self._sequences(batch_inds),  # type: ignore[arg-type]
            self.to_torch(self.actions.reshape(-1, 1)[batch_inds]),
            *(self.to_torch(column.reshape(-1)[batch_inds]) for column in columns),
        )

    def _sequences(self, transitions: np.ndarray) -> Sequences:
        segments, rows = np.unique(self._segment.reshape(-1)[transitions], return_inverse=True)
        return Sequences(self._texts[segments], rows, self._position.reshape(-1)[transitions])


def _even_shares(lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """Divide K segments, in the given order, into the fewest minibatches of nearly even sizes.

    Args:
        lengths: int (K,), transitions of each segment.
        batch_size: the most transitions of a minibatch of several segments.

    Returns:
        int64 (K,), ascending: the minibatch of each segment.
    """
    total = int(lengths.sum())
    middles = np.cumsum(lengths) - lengths / 2
    count = -(-total // batch_size)
    while True:
        minibatch = (middles * count // total).astype(np.int64)
        if ((np.bincount(minibatch, lengths) <= batch_size) | (np.bincount(minibatch) == 1)).all():
            return minibatch
        count += 1
