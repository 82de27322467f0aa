"""LocalBackend: whole episodes by continuous batching with a model in this process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.generation.backend import Generation, Sampling
from lm_env.generation.continuous_batch import ContinuousBatch
from lm_env.generation.decoders import FullDecoder, make_decoder
from lm_env.generation.writer import EagerWriter, ValueOf
from lm_env.models.inspection import device_of, evaluating
from lm_env.models.weight_watch import WeightWatch
from lm_env.objective.task import Task
from lm_env.validation import check_integer

__all__ = ["LocalBackend"]

# Tokens of each slot that an accelerator writes before the host reads them: each look makes the host wait for it.
LOOK_EVERY = 8


class LocalBackend:
    """A `GenerationBackend` in this process: the task's own model, with a KV cache of `slots` rows.

    Args:
        task: where a text ends, which tokens may come next, the temperature.
        slots: texts under way at a time.
        model: the causal LM that writes; default: the task's.
        value_of: maps the hidden states under the logits to values, which are then kept along.
        look_every: tokens of each slot that are written before the host reads them; the texts are the same for
            every number.  Default: 8 on an accelerator, and 1 on the CPU, where reading costs nothing and a slot is
            free at once.  It is 1 for a task that masks tokens, and for a model that has no KV cache.

    Raises:
        ConfigurationError: `look_every` is no positive integer.
    """

    def __init__(
        self,
        task: Task,
        slots: int = 32,
        *,
        model: nn.Module | None = None,
        value_of: ValueOf | None = None,
        look_every: int | None = None,
    ) -> None:
        if look_every is not None:
            check_integer("look_every", look_every)
        self.task = task
        self.slots = slots
        self.model = task.model if model is None else model
        self.value_of = value_of
        self.look_every = look_every
        self._watch = WeightWatch(self.model)
        self._version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, progress: str | None = None) -> Generation:
        """See `GenerationBackend.generate`.

        Raises:
            ConfigurationError: there are no prompts.
            NonFiniteError: the model's logits are NaN.
        """
        if not prompts:
            raise ConfigurationError("there is nothing to write to: give at least one prompt")
        self._version += self._watch.changed()
        batch = self._new_batch(prompts, sampling)
        with (
            torch.no_grad(),
            evaluating(self.model),
            tqdm(total=len(prompts), desc=progress, unit="text", leave=False, disable=progress is None) as bar,
        ):
            while batch.busy():
                batch.refill()
                batch.advance()
                bar.update(batch.ended - bar.n)
        if not np.isfinite(batch.logprobs).all():
            raise NonFiniteError(
                f"{type(self.model).__name__} gives NaN logits, so no text can be sampled from it: load a checkpoint"
                " from before its weights became NaN, and lower the learning rate if training made them so"
            )
        return batch.finished(self._version)

    def _new_batch(self, prompts: Sequence[Prompt], sampling: Sampling) -> ContinuousBatch:
        task = self.task
        slots = min(self.slots, len(prompts))
        width = max(len(p.ids) for p in prompts) + task.max_new_tokens
        decoder = make_decoder(self.model, slots, width, want_hidden=self.value_of is not None)
        device = device_of(self.model)
        writer = EagerWriter(decoder, slots, task.max_new_tokens, task.temperature, self.value_of, device)
        look_every = self.look_every or (1 if device.type == "cpu" else LOOK_EVERY)
        if task.action_mask is not None or isinstance(decoder, FullDecoder):
            look_every = 1
        return ContinuousBatch(task, prompts, sampling, writer, slots, look_every)
