"""SlotDecoder: a KV cache whose rows start, end and reset on their own.

n slots share one cache of fixed size.  `start` begins new texts in some slots, `step` appends one
token to each given slot; both return the logits of the next token.  A step costs one token per
slot, however unequal the slots' lengths are: each row writes its key and value at its own position
and a mask hides what lies beyond it.

`make_decoder` falls back on `FullDecoder`, which runs the whole text again at each step, for models
that this mechanism cannot serve: sliding windows, recurrent states, ALiBi, no cache at all.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from lm_env.errors import UnsupportedModelError
from lm_env.models.inspection import check_positions, device_of, evaluating, facts_of
from lm_env.models.logprobs import Outputs, Positions, forward, plain_forward

__all__ = ["Decoder", "FullDecoder", "SlotDecoder", "make_decoder", "why_no_slot_cache"]

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """n slots of text that grow token by token."""

    lengths: np.ndarray
    """int64 (n,): tokens that each slot holds."""

    def start(self, slots: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> Outputs:
        """Begin anew in `slots (k,)` with right-padded `ids (k, P)`; logits (k, V) of the next token."""

    def step(self, slots: np.ndarray, tokens: np.ndarray) -> Outputs:
        """Append `tokens (k,)` to `slots (k,)`, ascending; logits (k, V) of the next token."""

    def keep(self, slots: np.ndarray) -> None:
        """Drop all other slots; the kept ones are renumbered 0, 1, ... in the given order."""

    def copy_row(self, source: Self, row: int, targets: np.ndarray, length: int) -> None:
        """Let `targets (k,)` hold the first `length` tokens of a row of `source`, or none if it holds fewer.

        Args:
            source: this decoder, or another one of the same model.
        """


def make_decoder(model: nn.Module, slots: int, max_length: int, want_hidden: bool = False) -> Decoder:
    """The fastest decoder that is right for the model.

    Args:
        max_length: the longest text that a slot will hold, in tokens.
        want_hidden: return the last hidden states as well (for a value head).

    Raises:
        UnsupportedModelError: the model has fewer positions than `max_length`.
    """
    check_positions(model, max_length)
    if why_no_slot_cache(model) is None:
        return SlotDecoder(model, slots, max_length, want_hidden)
    return FullDecoder(model, slots, max_length, want_hidden)


class _Plan:
    """Where the forward under way writes and reads: shared by all layers of a cache."""

    slots: Tensor | slice = slice(None)  # what attention reads: all rows need no copy
    rows: Tensor | None = None  # where a one-token step writes, (k,)
    positions: Tensor | None = None  # (k,) of a one-token step; None while a prompt is taken in
    column: int | None = None  # the one position that all rows write, where they do: a slice is cheaper than an index
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
        plan, keys, values = self.plan, self.keys, self.values
        assert keys is not None and values is not None
        if plan.positions is None:
            keys[plan.slots, :, : plan.width] = key_states.to(keys.dtype)
            values[plan.slots, :, : plan.width] = value_states.to(values.dtype)
            return key_states, value_states
        if plan.column is not None:
            keys[:, :, plan.column] = key_states[:, :, 0]
            values[:, :, plan.column] = value_states[:, :, 0]
        else:
            keys[plan.rows, :, plan.positions] = key_states[:, :, 0].to(keys.dtype)
            values[plan.rows, :, plan.positions] = value_states[:, :, 0].to(values.dtype)
        return keys[plan.slots, :, : plan.width], values[plan.slots, :, : plan.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.plan.width, 0

    def get_seq_length(self) -> int:
        return self.plan.past

    def get_max_length(self) -> int:
        return self.max_length


class SlotDecoder:
    """Per-row KV cache for transformers models with full attention and explicit position ids."""

    def __init__(self, model: nn.Module, slots: int, max_length: int, want_hidden: bool = False) -> None:
        reason = why_no_slot_cache(model)
        if reason is not None:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be decoded slot by slot: it {reason}; make_decoder falls back on full"
                " forwards"
            )
        self._init(model, slots, max_length, want_hidden)

    def _init(self, model: nn.Module, slots: int, max_length: int, want_hidden: bool) -> None:
        self.model, self.max_length, self.want_hidden = model, max_length, want_hidden
        self.lengths = np.zeros(slots, dtype=np.int64)
        self._device = device_of(model)
        self._plan = _Plan()
        count = model.config.get_text_config(decoder=True).num_hidden_layers  # type: ignore[operator,union-attr]
        self._layers = [_SlotLayer(self._plan, slots, max_length) for _ in range(count)]
        self._cache = Cache(layers=list(self._layers))
        self._additive_mask = model.config._attn_implementation == "eager"  # type: ignore[union-attr]

    @torch.no_grad()
    def start(self, slots: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> Outputs:
        width = int(lengths.max())
        _check_room(width, self.max_length)
        tokens = self._tensor(ids[:, :width])
        self._plan.slots, self._plan.positions, self._plan.past, self._plan.width = self._tensor(slots), None, 0, width
        self.lengths[slots] = lengths
        last = (torch.arange(len(slots), device=self._device), self._tensor(lengths) - 1)
        # Right pads write keys past the row's length; the row's own tokens overwrite them before they are read.
        return self._forward(
            tokens, torch.ones_like(tokens), torch.arange(width, device=self._device).expand_as(tokens), last
        )

    @torch.no_grad()
    def step(self, slots: np.ndarray, tokens: np.ndarray) -> Outputs:
        at = self.lengths[slots]
        width = int(at.max()) + 1
        _check_room(width, self.max_length)
        positions = self._tensor(at)
        self._plan.rows = self._tensor(slots)
        self._plan.slots = slice(None) if len(slots) == len(self.lengths) else self._plan.rows
        self._plan.positions, self._plan.past, self._plan.width = positions, width - 1, width
        level = int(at.min()) + 1 == width
        self._plan.column = width - 1 if level and len(slots) == len(self.lengths) else None
        if level:
            mask = torch.ones(
                (len(slots), width), dtype=torch.long, device=self._device
            )  # nothing to hide: the fast kernel
        else:
            mask = self._mask(positions, width)
        self.lengths[slots] = at + 1
        return self._forward(self._tensor(tokens)[:, None], mask, positions[:, None], (slice(None), 0))

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
        for mine, theirs in zip(self._layers, source._layers, strict=True) if held and len(others) else ():
            assert theirs.keys is not None and theirs.values is not None
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            assert mine.keys is not None and mine.values is not None
            mine.keys[others, :, :held] = theirs.keys[row, :, :held].clone()
            mine.values[others, :, :held] = theirs.values[row, :, :held].clone()
        self.lengths[targets] = held

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, at: Positions) -> Outputs:
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

    def _mask(self, positions: Tensor, width: int) -> Tensor:
        """(k, 1, 1, width): what a token at each row's position may attend to."""
        seen = (torch.arange(width, device=self._device) <= positions[:, None])[:, None, None]
        if not self._additive_mask:
            return seen
        dtype = next(self.model.parameters()).dtype
        return torch.zeros(seen.shape, dtype=dtype, device=self._device).masked_fill(~seen, torch.finfo(dtype).min)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.long, device=self._device)


class FullDecoder:
    """The whole text again at each step: right for every causal model, and slow for long texts."""

    def __init__(self, model: nn.Module, slots: int, max_length: int, want_hidden: bool = False) -> None:
        self.model, self.want_hidden = model, want_hidden
        self.lengths = np.zeros(slots, dtype=np.int64)
        self._ids = np.zeros((slots, max_length), dtype=np.int64)

    def start(self, slots: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> Outputs:
        width = int(lengths.max())
        _check_room(width, self._ids.shape[1])
        self._ids[slots, :width] = ids[:, :width]
        self.lengths[slots] = lengths
        return self._forward(slots)

    def step(self, slots: np.ndarray, tokens: np.ndarray) -> Outputs:
        _check_room(int(self.lengths[slots].max()) + 1, self._ids.shape[1])
        self._ids[slots, self.lengths[slots]] = tokens
        self.lengths[slots] += 1
        return self._forward(slots)

    def keep(self, slots: np.ndarray) -> None:
        self._ids, self.lengths = self._ids[slots], self.lengths[slots]

    def copy_row(self, source: Self, row: int, targets: np.ndarray, length: int) -> None:
        held = length if source.lengths[row] >= length else 0
        self._ids[targets, :held] = source._ids[row, :held]
        self.lengths[targets] = held

    @torch.no_grad()
    def _forward(self, slots: np.ndarray) -> Outputs:
        lengths = self.lengths[slots]
        device = device_of(self.model)
        ids = torch.from_numpy(self._ids[slots, : int(lengths.max())]).to(device)
        at = (torch.arange(len(slots), device=device), torch.from_numpy(lengths - 1).to(device))
        return plain_forward(self.model, ids, at, self.want_hidden)


def _check_room(length: int, max_length: int) -> None:
    if length > max_length:
        raise UnsupportedModelError(f"a slot cannot hold {length} tokens: the decoder's max_length is {max_length}")


_reasons: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def why_no_slot_cache(model: nn.Module) -> str | None:
    """None where `SlotDecoder` serves the model, else the reason; found out once and logged once.

    A model that is meant to be run whole (a table) says so by an attribute `kv_cache = False`.
    """
    if getattr(model, "kv_cache", True) is False:
        return "declares that it has no KV cache"
    if model not in _reasons:
        _reasons[model] = reason = _read_config(model) or _try_it(model)
        if reason is not None:
            log.warning(
                "%s %s: each step runs the whole text again (slower, same numbers)", type(model).__name__, reason
            )
    return _reasons[model]


def _read_config(model: nn.Module) -> str | None:
    if not isinstance(model, PreTrainedModel):
        return "is not a transformers model with a cache"
    config = model.config.get_text_config(decoder=True)
    if getattr(model, "_is_stateful", False):
        return "keeps a recurrent state"
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "uses ALiBi"
    missing = {"past_key_values", "position_ids", "attention_mask"} - facts_of(model).arguments
    if missing:
        return f"takes no {' or '.join(sorted(missing))} in its forward"
    layers: Any = getattr(config, "layer_types", None) or getattr(config, "attention_layers", ())
    kinds = set(layers) - {"full_attention", "global"}
    if kinds:
        return f"has layers of type {', '.join(sorted(kinds))}"
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
        return "attends within a sliding window"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"uses {config._attn_implementation} attention, which takes no mask of its own"
    return None


@torch.no_grad()
def _try_it(model: nn.Module) -> str | None:
    """Decode two rows of unequal length and compare with full forwards: the proof for this very model."""
    vocab, positions = facts_of(model).vocab_size, facts_of(model).max_positions or 6
    length = min(6, positions)
    if length < 3:
        return f"has {positions} positions, too few to need one"
    ids = np.arange(2 * length).reshape(2, length) * 7 % vocab
    with evaluating(model):
        try:
            fast = SlotDecoder.__new__(SlotDecoder)
            fast._init(model, 2, length, False)
            slow, both = FullDecoder(model, 2, length), np.arange(2)
            lengths = np.array([length // 3, length - 2])
            pairs = [(fast.start(both, ids, lengths), slow.start(both, ids, lengths))]
            pairs += [
                (fast.step(both, ids[both, lengths + i]), slow.step(both, ids[both, lengths + i])) for i in range(2)
            ]
        except Exception as error:  # any failure inside a foreign model means: not this way
            return f"does not run with a per-row cache ({type(error).__name__}: {error})"
    tolerance = 1e-3 if pairs[0][0].logits.dtype in (torch.float32, torch.float64) else 0.1
    worst = max(float((a.logits.float() - b.logits.float()).abs().max()) for a, b in pairs)
    return None if worst <= tolerance else f"gives other logits with a per-row cache (off by {worst:.2g})"
