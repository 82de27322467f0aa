"""SlotDecoder: a KV cache whose rows start, end and reset on their own.

n slots share one cache of fixed size.  `start` begins new texts in some slots, `step` appends one
token to each given slot; both return the logits of the next token.  A step costs one token per
slot, however unequal the slots' lengths are: each row writes its key and value at its own position,
and a mask hides what lies beyond it and what lies before the window of a layer that has one.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from lm_env.errors import UnsupportedModelError
from lm_env.generation.attention_window import attention_window
from lm_env.models.inspection import device_of, text_config
from lm_env.models.logprobs import Outputs, Positions, forward

__all__ = ["MASKED_ATTENTION", "SlotDecoder", "check_room"]

# The implementations of attention that take a mask of our own.
MASKED_ATTENTION = ("sdpa", "eager")


class _Plan:
    """Where the forward under way writes and reads, shared by all layers of a cache."""

    slots: Tensor | slice = slice(None)  # what attention reads: all rows need no copy
    rows: Tensor | None = None  # where a one-token step writes, (k,)
    positions: Tensor | None = None  # (k,) of a one-token step; None while a prompt is taken in
    column: int | None = None  # the one position that all rows write, where they do: a slice is cheaper than an index
    ending: Tensor | None = None  # (k, width) the positions to read where each row's last key has to come last
    past: int = 0  # tokens before the ones under way, as the causal mask counts them
    width: int = 0


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (n, heads, max_length, head_dim)."""

    is_sliding = False

    def __init__(self, plan: _Plan, slots: int, max_length: int) -> None:
        super().__init__()
        self.plan, self.slots, self.max_length = plan, slots, max_length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self.slots, key_states.shape[1], self.max_length)
        self.keys = key_states.new_zeros((*shape, key_states.shape[-1]))
        self.values = value_states.new_zeros((*shape, value_states.shape[-1]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self.plan
        assert self.keys is not None and self.values is not None
        if self.keys.dtype != key_states.dtype or self.keys.device != key_states.device:
            # The model has been moved, or given another dtype, since the last forward.
            self.keys = self.keys.to(key_states)
            self.values = self.values.to(value_states)
        keys, values = self.keys, self.values
        if plan.positions is None:
            keys[plan.slots, :, : plan.width] = key_states
            values[plan.slots, :, : plan.width] = value_states
            return key_states, value_states
        if plan.column is not None:
            keys[:, :, plan.column] = key_states[:, :, 0]
            values[:, :, plan.column] = value_states[:, :, 0]
        else:
            keys[plan.rows, :, plan.positions] = key_states[:, :, 0]
            values[plan.rows, :, plan.positions] = value_states[:, :, 0]
        if plan.ending is not None:
            assert plan.rows is not None
            rows = plan.rows[:, None]
            return keys[rows, :, plan.ending].transpose(1, 2), values[rows, :, plan.ending].transpose(1, 2)
        return keys[plan.slots, :, : plan.width], values[plan.slots, :, : plan.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.plan.width, 0

    def get_seq_length(self) -> int:
        return self.plan.past

    def get_max_length(self) -> int:
        return self.max_length


class SlotDecoder:
    """A `Decoder` with a KV cache, for models that `why_no_slot_cache` has nothing against.

    A forward that fails leaves the slots of a `step` as they were, and those of a `start` empty.
    """

    def __init__(self, model: nn.Module, slots: int, max_length: int, want_hidden: bool = False) -> None:
        self.model, self.max_length, self.want_hidden = model, max_length, want_hidden
        self.lengths = np.zeros(slots, dtype=np.int64)
        self.device = device_of(model)
        self._plan = _Plan()
        config = text_config(model)
        self._window = attention_window(config, max_length)
        self._layers = [_SlotLayer(self._plan, slots, max_length) for _ in range(config.num_hidden_layers)]
        self._cache = Cache(layers=list(self._layers))

    @torch.no_grad()
    def start(self, slots: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> Outputs:
        width = int(lengths.max())
        check_room(width, self.max_length)
        self.device = device_of(self.model)
        tokens = self._tensor(ids[:, :width])
        plan = self._plan
        plan.slots = self._tensor(slots)
        plan.positions = None
        plan.ending = None
        plan.past = 0
        plan.width = width
        last = (torch.arange(len(slots), device=self.device), self._tensor(lengths) - 1)
        self.lengths[slots] = 0
        # Right pads write keys past the row's length; the row's own tokens overwrite them before they are read.
        outputs = self._forward(
            tokens, torch.ones_like(tokens), torch.arange(width, device=self.device).expand_as(tokens), last
        )
        self.lengths[slots] = lengths
        return outputs

    @torch.no_grad()
    def step(self, slots: np.ndarray, tokens: np.ndarray | Tensor) -> Outputs:
        at = self.lengths[slots]
        width = int(at.max()) + 1
        check_room(width, self.max_length)
        self.device = device_of(self.model)
        positions = self._tensor(at)
        plan, window = self._plan, self._window
        plan.rows = self._tensor(slots)
        plan.slots = slice(None) if len(slots) == len(self.lengths) else plan.rows
        plan.positions, plan.past, plan.width = positions, width - 1, width
        same_length = int(at.min()) + 1 == width  # all stepped rows hold equally many tokens
        plan.column = width - 1 if same_length and len(slots) == len(self.lengths) else None
        plan.ending = None
        mask: Tensor | dict[str, Tensor]
        if same_length and (window.own or not window.hides(width)):
            mask = torch.ones((len(slots), width), dtype=torch.long, device=self.device)  # hides nothing: fast kernel
        else:
            mask = self._mask(positions, width)
        outputs = self._forward(self._tensor(tokens)[:, None], mask, positions[:, None], (slice(None), 0))
        self.lengths[slots] = at + 1
        return outputs

    @torch.no_grad()
    def step_first(self, tokens: Tensor, positions: Tensor, width: int) -> Outputs:
        """Append a token to each of the first k slots, from tensors alone: the host neither knows nor reads them.

        It does the same operations whatever the numbers are, so it can be captured or compiled.  `lengths` is left as
        it is.

        Args:
            tokens, positions: int64 (k,) on the model's device.
            width: of the keys that attention reads; beyond every position that matters.
        """
        count = len(tokens)
        plan = self._plan
        plan.rows = torch.arange(count, device=tokens.device)
        plan.slots = slice(0, count)
        plan.positions, plan.past, plan.width = positions, width - 1, width
        plan.column = plan.ending = None
        mask = self._mask(positions, width)
        return self._forward(tokens[:, None], mask, positions[:, None], (slice(None), 0))

    def move_first(self, slots: np.ndarray) -> None:
        """Move `slots (k,)` to the places 0, 1, ... of the same memory; the others are lost."""
        index = self._tensor(slots)
        for layer in self._layers:
            for stored in (layer.keys, layer.values):
                if stored is not None:
                    stored[: len(slots)] = stored[index]

    def keep(self, slots: np.ndarray) -> None:
        index = self._tensor(slots)
        self.lengths = self.lengths[slots]
        for layer in self._layers:
            layer.slots = len(slots)
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[index], layer.values[index]

    @torch.no_grad()
    def copy_row(self, source: Self, row: int, targets: np.ndarray, length: int) -> None:
        held = length if source.lengths[row] >= length else 0
        others = self._tensor(targets[targets != row] if source is self else targets)
        layers = zip(self._layers, source._layers, strict=True)
        for mine, theirs in layers if held and len(others) else ():
            assert theirs.keys is not None and theirs.values is not None
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            assert mine.keys is not None and mine.values is not None
            mine.keys[others, :, :held] = theirs.keys[row, :, :held].clone().to(mine.keys)
            mine.values[others, :, :held] = theirs.values[row, :, :held].clone().to(mine.values)
        self.lengths[targets] = held

    def _forward(self, tokens: Tensor, mask: Tensor | dict[str, Tensor], positions: Tensor, at: Positions) -> Outputs:
        return forward(
            self.model,
            at,
            self.want_hidden,
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )

    def _mask(self, positions: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """What one-token steps at these positions see of `width` keys, in the form that the model's attention takes."""
        window = self._window
        if not (window.own and window.hides(width)):
            return self._fitting(window.mask(positions, width))
        ending = torch.arange(1 - width, 1, device=positions.device) + positions[:, None]
        self._plan.ending = ending.clamp(min=0)
        return self._fitting((ending >= 0)[:, None, None])

    def _fitting(self, mask: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The mask (True: attend), or one for each type of layer, in the form that the model's attention takes."""
        if isinstance(mask, dict):
            return {kind: self._one_fitting(seen) for kind, seen in mask.items()}
        return self._one_fitting(mask)

    def _one_fitting(self, seen: Tensor) -> Tensor:
        implementation = self.model.config._attn_implementation  # type: ignore[union-attr]
        if implementation not in MASKED_ATTENTION:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} was switched to {implementation} attention, which takes no mask of its"
                " own: make the environment or the agent anew after switching"
            )
        if implementation == "sdpa":
            return seen
        dtype = next(self.model.parameters()).dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    def _tensor(self, array: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(array, dtype=torch.long, device=self.device)


def check_room(length: int, max_length: int) -> None:
    """Raise UnsupportedModelError unless a slot of `max_length` tokens holds `length` of them."""
    if length > max_length:
        raise UnsupportedModelError(f"a slot cannot hold {length} tokens: the decoder's max_length is {max_length}")
