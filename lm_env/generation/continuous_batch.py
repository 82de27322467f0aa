"""ContinuousBatch: the unfinished texts of one call of `generate`, and the host's arrays that hold the results.

The prompts are fixed beforehand and the text of each is sampled to its end; a free slot
takes the next prompt.  (Taking the first n texts to finish would favor short ones.)  Each generated token costs one
one-token forward; the logprobs of sampling, and with a shared trunk the values, are kept, so
that collecting a rollout needs no further forward for them.

The host reads the tokens once every few steps.  It then finds the texts that have ended, discards what was sampled
past an end, and gives free slots the next prompts.  The uniform random numbers that choose the tokens of a text are
drawn when it begins, in the order of the prompts.  So a text depends neither on how often the host reads nor on the
slots.

Shapes: B episodes, S slots, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.generation.backend import Sampling
from lm_env.generation.writer import Writer, Written
from lm_env.objective.task import Task

__all__ = ["ContinuousBatch"]


class ContinuousBatch:
    """Samples B texts in S slots.

    Args:
        slots: S.
        look_every: tokens of each slot that are sampled before the host reads them; must be 1 if the task masks tokens.
    """

    def __init__(
        self, task: Task, prompts: Sequence[Prompt], sampling: Sampling, writer: Writer, slots: int, look_every: int
    ) -> None:
        self.task = task
        self.prompts = prompts
        self.sampling = sampling
        self.writer = writer
        self.look_every = look_every
        count = len(prompts)
        width = max(len(p.ids) for p in prompts) + task.max_new_tokens
        self.ids = np.full((count, width), task.pad_token_id, dtype=np.int64)
        self.prompt_lengths = np.array([len(p.ids) for p in prompts], dtype=np.int64)
        for row, prompt in zip(self.ids, prompts, strict=True):
            row[: len(prompt.ids)] = prompt.ids
        self.lengths = self.prompt_lengths.copy()
        self.logprobs = np.zeros((count, task.max_new_tokens), dtype=np.float64)
        self.values = np.zeros((count, task.max_new_tokens), dtype=np.float64)
        self.has_values = False
        self.episode_in = np.full(slots, -1)  # the episode in each slot as the host last saw it, -1: the slot is free
        self.drawn = np.zeros(slots, dtype=np.int64)  # tokens of each slot's response, those not yet read included
        self.unread: list[Written] = []
        self.upcoming = 0
        # Reading one prompt costs nearly as much as reading four, so free slots wait until there are a few.
        self.enough_to_refill = max(1, slots // 8)

    def busy(self) -> bool:
        """Whether any text is unfinished or not yet started."""
        return self.upcoming < len(self.prompts) or bool((self.episode_in >= 0).any())

    @property
    def ended(self) -> int:
        """How many texts the host knows to have ended."""
        return self.upcoming - int((self.episode_in >= 0).sum())

    def refill(self) -> None:
        """Give free slots the next prompts, and write the first token after each."""
        free = np.flatnonzero(self.episode_in < 0)
        left = len(self.prompts) - self.upcoming
        if not left or len(free) < min(self.enough_to_refill, left, len(self.episode_in)):
            return
        assert not self.unread, "slots become free at a look, which leaves nothing unread"
        free = free[:left]
        rows = np.arange(self.upcoming, self.upcoming + len(free))
        self.upcoming += len(free)
        self.episode_in[free] = rows
        self.drawn[free] = 0
        ids = self.ids[rows]
        self._keep(self.writer.start(free, ids, self.lengths[rows], self._uniforms(rows), self._allowed(rows)))

    def advance(self) -> None:
        """Sample one token of every unfinished text that is shorter than the length cap."""
        slots = np.flatnonzero((self.episode_in >= 0) & (self.drawn < self.task.max_new_tokens))
        if len(slots):
            self._keep(self.writer.step(slots, self._allowed(self.episode_in[slots])))
        elif self.unread:
            self.look()

    def look(self) -> None:
        """Read what has been written since the last look, and free the slots whose texts have ended."""
        tokens, logprobs = (_to_host([getattr(w, name) for w in self.unread]) for name in ("tokens", "logprobs"))
        given = [w.values for w in self.unread if w.values is not None]
        values = _to_host(given) if given else None
        self.has_values = values is not None
        start = 0
        for written in self.unread:
            part = slice(start, start + len(written.slots))
            start = part.stop
            self._append(written.slots, tokens[part], logprobs[part], None if values is None else values[part])
        self.unread = []
        self._drop_free_slots()

    def episodes(self) -> Episodes:
        """All the texts, once `busy` is False."""
        longest = int((self.lengths - self.prompt_lengths).max())
        width = int(self.lengths.max())
        return Episodes(
            self.ids[:, :width], self.prompt_lengths, self.lengths, self.prompts, self.logprobs[:, :longest]
        )

    def values_before(self) -> np.ndarray | None:
        """float64 (B, T): the value before each token; None without a value head."""
        longest = int((self.lengths - self.prompt_lengths).max())
        return self.values[:, :longest] if self.has_values else None

    def _keep(self, written: Written) -> None:
        """Leave what was written on the device until the next look."""
        self.drawn[written.slots] += 1
        self.unread.append(written)
        if len(self.unread) >= self.look_every:
            self.look()

    def _append(self, slots: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, values: np.ndarray | None) -> None:
        """Write down one token of each slot whose text has not ended before it."""
        under_way = self.episode_in[slots] >= 0
        slots = slots[under_way]
        rows = self.episode_in[slots]
        at = self.lengths[rows] - self.prompt_lengths[rows]
        self.ids[rows, self.lengths[rows]] = tokens[under_way]
        self.logprobs[rows, at] = logprobs[under_way]
        if values is not None:
            self.values[rows, at] = values[under_way]
        self.lengths[rows] += 1
        ended, capped = self.task.ends(self.ids[rows], self.prompt_lengths[rows], self.lengths[rows])
        self.episode_in[slots[ended | capped]] = -1

    def _drop_free_slots(self) -> None:
        """Go on with fewer slots once nothing will take the free ones any more."""
        if self.upcoming < len(self.prompts) or not self.busy():
            return
        used = np.flatnonzero(self.episode_in >= 0)
        size = self.writer.size_for(len(used))
        if size < len(self.episode_in):
            spare = np.flatnonzero(self.episode_in < 0)[: size - len(used)]
            slots = np.sort(np.concatenate([used, spare]))
            self.writer.keep(slots)
            self.episode_in = self.episode_in[slots]
            self.drawn = self.drawn[slots]

    def _uniforms(self, rows: np.ndarray) -> np.ndarray | None:
        """The uniform numbers that choose all tokens of the next k texts, float32 (k, T), given or newly drawn."""
        if self.sampling.deterministic:
            return None
        if self.sampling.uniforms is not None:
            return self.sampling.uniforms[rows].astype(np.float32, copy=False)
        texts = [torch.rand(self.task.max_new_tokens, generator=self.sampling.generator) for _ in rows]
        return torch.stack(texts).numpy()

    def _allowed(self, rows: np.ndarray) -> np.ndarray | None:
        """The tokens that may come next in some episodes, bool (k, V); None where all may."""
        if self.task.action_mask is None:
            return None
        spans = [(self.ids[r], self.prompt_lengths[r], self.lengths[r]) for r in rows]
        return np.stack([self.task.allowed_next(ids[:p], ids[p:n]) for ids, p, n in spans])


def _to_host(tensors: list[Tensor]) -> np.ndarray:
    """One copy from the device for all of them."""
    return torch.cat(tensors).cpu().numpy()
