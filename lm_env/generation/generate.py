"""LocalBackend: whole episodes by continuous batching with a model in this process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.generation.backend import Decoding, Generation, Sampling
from lm_env.generation.cache_support import why_no_static_step
from lm_env.generation.continuous_batch import ContinuousBatch
from lm_env.generation.decoders import FullDecoder, make_decoder
from lm_env.generation.static_writer import StaticWriter
from lm_env.generation.writer import EagerWriter, ValueOf
from lm_env.models.adapters import adapter_layers, adapter_state
from lm_env.models.inspection import check_positions, device_of, evaluating
from lm_env.models.rounded_copy import RoundedCopy
from lm_env.models.weight_watch import WeightWatch
from lm_env.objective.task import Task
from lm_env.progress import Progress

__all__ = ["LocalBackend"]

# The default of `Decoding.look_every` on an accelerator, where each read makes the host wait for the device.
LOOK_EVERY = 8


class LocalBackend:
    """A `GenerationBackend` in this process: the task's own model, with a KV cache of `slots` rows.

    All tensors of the decoding stay on the device; the host reads the tokens once every few steps.  On CUDA the
    step is captured as a CUDA graph, which is kept with its KV cache for the next call, until `release`.  A model whose
    step cannot be captured is run step by step, see `why_no_static_step`.

    Args:
        task: says where a text ends, which tokens may come next, and the temperature.
        slots: the most texts that are decoded at a time.
        model: the causal LM that is sampled from; default: the task's.
        value_of: maps the last hidden states (k, D) to values (k,), which are then returned with the texts.
        decoding: the precision, whether the step is compiled, and how often the host reads the tokens.

    Raises:
        ConfigurationError: bf16 is asked of a quantized model.
    """

    def __init__(
        self,
        task: Task,
        slots: int = 32,
        *,
        model: nn.Module | None = None,
        value_of: ValueOf | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        self.task = task
        self.slots = slots
        self.model = task.model if model is None else model
        self.value_of = value_of
        self.decoding = decoding or Decoding()
        self._watch = WeightWatch(self.model)
        self._version = 0
        wide = any(p.is_floating_point() and p.dtype != torch.bfloat16 for p in self.model.parameters())
        self._rounded = RoundedCopy(self.model) if self.decoding.bf16 and wide else None
        self._kept: StaticWriter | None = None
        self._kept_for: tuple[object, ...] = ()

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
        model = self.model if self._rounded is None else self._rounded.refresh()
        try:
            batch = self._run(model, prompts, sampling, progress)
        except BaseException:
            self.release()  # what it holds may be half of a step, or NaN
            raise
        return Generation(batch.episodes(), batch.values_before(), self._version, self._rounded is not None)

    def release(self) -> None:
        """Free the memory that is kept between two calls: the KV cache and the captured steps."""
        self._kept = None

    def __getstate__(self) -> dict[str, object]:
        """Leave out the static writer: captured steps cannot be copied."""
        return {**self.__dict__, "_kept": None}

    def _run(
        self, model: nn.Module, prompts: Sequence[Prompt], sampling: Sampling, progress: str | None
    ) -> ContinuousBatch:
        batch = self._new_batch(model, prompts, sampling)
        with (
            torch.no_grad(),
            evaluating(model),
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
        return batch

    def _new_batch(self, model: nn.Module, prompts: Sequence[Prompt], sampling: Sampling) -> ContinuousBatch:
        task = self.task
        room = task.max_new_tokens
        width = max(len(p.ids) for p in prompts) + room
        device = device_of(model)
        look_every = self.decoding.look_every or (1 if device.type == "cpu" else LOOK_EVERY)
        static = self._static_writer(model, width, device)
        if static is not None:
            return ContinuousBatch(task, prompts, sampling, static, static.begin(len(prompts)), look_every)
        slots = min(self.slots, len(prompts))
        decoder = make_decoder(model, slots, width, want_hidden=self.value_of is not None)
        writer = EagerWriter(decoder, slots, room, task.temperature, self.value_of, device)
        if task.action_mask is not None or isinstance(decoder, FullDecoder):
            look_every = 1
        return ContinuousBatch(task, prompts, sampling, writer, slots, look_every)

    def _static_writer(self, model: nn.Module, width: int, device: torch.device) -> StaticWriter | None:
        """The kept static writer, or a new one; None if not asked for, or not possible for the task or model."""
        task = self.task
        if not (device.type == "cuda" or self.decoding.compile) or task.action_mask is not None:
            return None
        check_positions(model, width)
        longest = max(width, task.max_length)
        if why_no_static_step(model, longest) is not None:
            return None
        made_for = (self.slots, self.value_of, id(model), task.max_new_tokens, task.temperature, *_places(model))
        if self._kept is None or self._kept_for != made_for or self._kept.max_length < width:
            self.release()
            self._kept = StaticWriter(
                model, self.slots, longest, task.max_new_tokens, task.temperature, self.value_of, self.decoding.compile
            )
            self._kept_for = made_for
        return self._kept


def _places(model: nn.Module) -> tuple[object, ...]:
    """Everything that a captured step depends on: the addresses of the weights, and which adapters are in use."""
    modules = list(model.modules())
    tensors = [*model.parameters(), *model.buffers()]
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    adapters = adapter_state(adapter_layers(modules))
    return (implementation, adapters, *((t.data_ptr(), t.dtype, t.shape) for t in tensors))
