"""Whole episodes by continuous batching, without favoring short ones.

The prompts are fixed beforehand and every one of them is carried through to its end; a free slot
takes the next prompt.  (Taking the first n texts to finish would favor short ones.)  Each generated token costs one
one-token forward; the logprobs of sampling, and with a shared trunk the values, are kept and
never computed again.

Shapes: k slots of a call, B episodes, T response tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lm_env.data.episodes import Episodes
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.generation.backend import Generation, Sampling
from lm_env.generation.decoders import make_decoder
from lm_env.generation.sampling import sample
from lm_env.models.inspection import evaluating
from lm_env.models.logprobs import Outputs, restrict
from lm_env.models.weight_watch import WeightWatch
from lm_env.objective.task import Task
from lm_env.progress import Progress

__all__ = ["LocalBackend"]

ValueOf = Callable[[Tensor], Tensor]
"""Hidden states (k, D) -> values (k,)."""


class LocalBackend:
    """A `GenerationBackend` in this process: the task's own model, with a KV cache of `slots` rows.

    Args:
        task: where a text ends, which tokens may come next, the temperature.
        slots: texts under way at a time.
        model: the causal LM that writes; default: the task's.
        value_of: maps the hidden states under the logits to values, which are then kept along.
    """

    def __init__(
        self, task: Task, slots: int = 32, *, model: nn.Module | None = None, value_of: ValueOf | None = None
    ) -> None:
        self.task = task
        self.slots = slots
        self.model = task.model if model is None else model
        self.value_of = value_of
        self._watch = WeightWatch(self.model)
        self._version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, progress: str | None = None) -> Generation:
        """See `GenerationBackend.generate`.

        Raises:
            ConfigurationError: there are no prompts, or the uniforms have another shape.
            NonFiniteError: the model's logits are NaN.
        """
        if not prompts:
            raise ConfigurationError("there is nothing to write to: give at least one prompt")
        wanted = (len(prompts), self.task.max_new_tokens)
        if sampling.uniforms is not None and sampling.uniforms.shape != wanted:
            raise ConfigurationError(f"uniforms have the shape {sampling.uniforms.shape}: (texts, tokens) is {wanted}")
        self._version += self._watch.changed()
        batch = _ContinuousBatch(self, prompts, sampling)
        with (
            torch.no_grad(),
            evaluating(self.model),
            Progress(len(prompts), progress or "", unit="text", leave=False, enabled=progress is not None) as shown,
        ):
            while batch.busy():
                batch.refill()
                batch.advance()
                shown.update(batch.ended - shown.done)
        if not np.isfinite(batch.logprobs).all():
            raise NonFiniteError(
                f"{type(self.model).__name__} gives NaN logits, so no text can be sampled from it: load a checkpoint"
                " from before its weights became NaN, and lower the learning rate if training made them so"
            )
        return batch.finished(self._version)


class _ContinuousBatch:
    """The texts under way, and the arrays that they are written to."""

    def __init__(self, backend: LocalBackend, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        self.task = backend.task
        self.value_of = backend.value_of
        self.prompts = prompts
        self.sampling = sampling
        count = len(prompts)
        slots = min(backend.slots, count)
        width = max(len(p.ids) for p in prompts) + self.task.max_new_tokens
        self.ids = np.full((count, width), self.task.pad_token_id, dtype=np.int64)
        self.prompt_lengths = np.array([len(p.ids) for p in prompts], dtype=np.int64)
        for row, prompt in zip(self.ids, prompts, strict=True):
            row[: len(prompt.ids)] = prompt.ids
        self.lengths = self.prompt_lengths.copy()
        self.logprobs = np.zeros((count, self.task.max_new_tokens), dtype=np.float64)
        self.values = np.zeros((count, self.task.max_new_tokens), dtype=np.float64)
        self.decoder = make_decoder(backend.model, slots, width, want_hidden=self.value_of is not None)
        self.episode_in = np.full(slots, -1)  # the episode in each slot, -1: the slot is free
        self.upcoming = 0
        # Reading one prompt costs nearly as much as reading four, so free slots wait until there are a few.
        self.enough_to_refill = max(1, slots // 8)

    def busy(self) -> bool:
        """Whether any text is still to be begun or to be ended."""
        return self.upcoming < len(self.prompts) or bool((self.episode_in >= 0).any())

    @property
    def ended(self) -> int:
        """How many texts have come to their end."""
        return self.upcoming - int((self.episode_in >= 0).sum())

    def refill(self) -> None:
        """Give free slots the next prompts."""
        free = np.flatnonzero(self.episode_in < 0)
        left = len(self.prompts) - self.upcoming
        if not left or len(free) < min(self.enough_to_refill, left, len(self.episode_in)):
            return
        free = free[:left]
        rows = np.arange(self.upcoming, self.upcoming + len(free))
        self.upcoming += len(free)
        self.episode_in[free] = rows
        self._append(free, self.decoder.start(free, self.ids[rows], self.lengths[rows]))

    def advance(self) -> None:
        """Write one token of every text under way."""
        slots = np.flatnonzero(self.episode_in >= 0)
        if not len(slots):
            return
        if self.upcoming == len(self.prompts) and len(slots) < len(self.episode_in):
            self.decoder.keep(slots)  # nothing will take the free slots any more
            self.episode_in = self.episode_in[slots]
            slots = np.arange(len(slots))
        rows = self.episode_in[slots]
        self._append(slots, self.decoder.step(slots, self.ids[rows, self.lengths[rows] - 1]))

    def _append(self, slots: np.ndarray, outputs: Outputs) -> None:
        """Sample the next token of these slots, write it down, and free the slots whose text ends."""
        rows = self.episode_in[slots]
        logits = outputs.logits
        if self.task.action_mask is not None:
            spans = [(self.ids[r], self.prompt_lengths[r], self.lengths[r]) for r in rows]
            logits = restrict(logits, np.stack([self.task.allowed_next(ids[:p], ids[p:n]) for ids, p, n in spans]))
        at = self.lengths[rows] - self.prompt_lengths[rows]
        chosen = self.sampling
        uniform = None if chosen.uniforms is None else torch.from_numpy(chosen.uniforms[rows, at])
        tokens, logprobs = sample(logits, self.task.temperature, chosen.generator, chosen.deterministic, uniform)
        self.ids[rows, self.lengths[rows]] = tokens.cpu().numpy()
        self.logprobs[rows, at] = logprobs.cpu().numpy()
        if self.value_of is not None and outputs.hidden is not None:
            self.values[rows, at] = self.value_of(outputs.hidden).cpu().numpy()
        self.lengths[rows] += 1
        ended, capped = self.task.ends(self.ids[rows], self.prompt_lengths[rows], self.lengths[rows])
        self.episode_in[slots[ended | capped]] = -1

    def finished(self, weights_version: int) -> Generation:
        """All the texts, once none is under way."""
        longest = int((self.lengths - self.prompt_lengths).max())
        width = int(self.lengths.max())
        episodes = Episodes(
            self.ids[:, :width], self.prompt_lengths, self.lengths, self.prompts, self.logprobs[:, :longest]
        )
        values = None if self.value_of is None else self.values[:, :longest]
        return Generation(episodes, values, weights_version)
