"""Whether `SlotDecoder` gives correct logits for a model: first from its configuration, then by a trial run."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_env.errors import UnsupportedModelError
from lm_env.generation.attention_window import WHOLE_TEXT, WINDOWED, AttentionWindow, attention_window, layer_kinds
from lm_env.generation.slot_cache import MASKED_ATTENTION, SlotDecoder
from lm_env.models.inspection import device_of, evaluating, facts_of, rope_types, text_config
from lm_env.models.logprobs import plain_forward

__all__ = ["why_no_slot_cache"]

log = logging.getLogger(__name__)

# Rotary embeddings whose frequencies are the same for every length of text.
STATIC_ROPES = {"default", "linear", "yarn", "llama3", "proportional"}
# The longest text that is tried where nothing in the configuration depends on the length.
USUAL_PROBE = 64
# The shortest, and what a text is longer than a window that it is to cross.
SHORTEST_PROBE = 6
BEYOND_THE_WINDOW = 4

_verdicts: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], str | None]] = WeakKeyDictionary()


def why_no_slot_cache(model: nn.Module, max_length: int) -> str | None:
    """None where `SlotDecoder` serves the model, else the reason; each reason is logged once.

    A model that is meant to be run whole (a table) says so by an attribute `kv_cache = False`.

    Args:
        max_length: the longest text, in tokens.  Windows and rotary embeddings that only longer texts would
            notice are no reason.

    Raises:
        UnsupportedModelError: the logits after a text depend on the length of the texts beside it, in a way
            that is not known.
        torch.OutOfMemoryError, MemoryError: the trial did not fit.  It is no verdict; the next call tries again.
    """
    if getattr(model, "kv_cache", True) is False:
        return "declares that it has no KV cache"
    verdicts = _verdicts.setdefault(model, {})
    reason = _read_config(model, max_length)
    key: tuple[Any, ...] = (reason,)
    if reason is None:
        window = attention_window(text_config(model), max_length)
        length = _probe_length(model, max_length, window)
        now = (facts_of(model), model.config._attn_implementation, model.dtype, device_of(model))  # type: ignore[union-attr]
        key = (window, length, now)
        reason = verdicts[key] if key in verdicts else _try_it(model, length)
    if reason is not None and reason not in verdicts.values():
        log.warning("%s %s: each step runs the whole text again (slower, same numbers)", type(model).__name__, reason)
    verdicts[key] = reason
    return reason


def _read_config(model: nn.Module, max_length: int) -> str | None:
    if not isinstance(model, PreTrainedModel):
        return "is not a transformers model with a cache"
    config = text_config(model)
    facts = facts_of(model)
    if getattr(model, "_is_stateful", False):
        return "keeps a recurrent state"
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "uses ALiBi"
    missing = {"past_key_values", "position_ids", "attention_mask"} - facts.arguments
    if missing:
        return f"takes no {' or '.join(sorted(missing))} in its forward"
    kinds = layer_kinds(config) - WHOLE_TEXT - WINDOWED
    if kinds:
        return f"has layers of type {', '.join(sorted(kinds))}"
    passed = [length for length in facts.switches if length < max_length]
    if passed:
        return f"changes its rotary embeddings beyond {passed[0]} tokens"
    if config._attn_implementation not in MASKED_ATTENTION:
        return f"uses {config._attn_implementation} attention, which takes no mask of its own"
    return None


def _probe_length(model: nn.Module, max_length: int, window: AttentionWindow) -> int:
    """Tokens of the longest text to try: as many as it takes to notice what depends on the length.

    It is rounded up, so that a few trials serve all lengths.
    """
    config = text_config(model)
    facts = facts_of(model)
    length = 1 << max(max_length - 1, SHORTEST_PROBE).bit_length()
    if set(rope_types(config)) <= STATIC_ROPES:
        length = min(length, USUAL_PROBE)
    limits = [facts.max_positions or length, *facts.switches]
    if window.reach is not None:
        length = max(length, window.reach + BEYOND_THE_WINDOW)
    else:
        limits.append(attention_window(config, float("inf")).reach or length)
    return min(length, *limits)


@torch.no_grad()
def _try_it(model: nn.Module, length: int) -> str | None:
    """Decode three rows of unequal length together and compare each with full forwards of that row by itself.

    The shortest row begins with one token, so that any dependence on the length of its neighbors shows.

    Args:
        length: that of the longest row after its last token.
    """
    if length < 3:
        return f"has {facts_of(model).max_positions} positions, too few for a KV cache to matter"
    rows = np.arange(3)
    ids = np.arange(3 * length).reshape(3, length) * 7 % facts_of(model).vocab_size
    lengths = np.array([length - 2, max(1, length - 3), 1])
    with evaluating(model):
        try:
            decoder = SlotDecoder(model, 3, length)
            logits = [decoder.start(rows, ids, lengths).logits]
            logits += [decoder.step(rows, ids[rows, lengths + i]).logits for i in range(2)]
        except (torch.OutOfMemoryError, MemoryError):  # this says nothing about the model: nothing is remembered
            raise
        except Exception as error:  # any failure inside a foreign model means: not this way
            return f"does not run with a per-row cache ({type(error).__name__}: {error})"
        alone = [[_after(model, ids[i : i + 1], n + step) for i, n in enumerate(lengths)] for step in (0, 1, 2)]
        pairs = [(ours, torch.cat(theirs)) for ours, theirs in zip(logits, alone, strict=True)]
        worst = max(_difference(ours, theirs) for ours, theirs in pairs)
        tolerance = 1e-3 if pairs[0][0].dtype in (torch.float32, torch.float64) else 0.1
        if worst <= tolerance:
            return None
        beside = _difference(_after(model, ids[2:], 3, pad=True), _after(model, ids[2:], 3))
    if beside > tolerance:
        raise UnsupportedModelError(
            f"the logits of {type(model).__name__} after 3 tokens change (by {beside:.2g}) with padding up to"
            f" {length}, so texts cannot be scored together: lower max_prompt_tokens or max_new_tokens, or give a model"
            " whose positions do not depend on the length"
        )
    return f"gives other logits with a per-row cache (off by {worst:.2g})"


def _after(model: nn.Module, ids: np.ndarray, length: int, pad: bool = False) -> Tensor:
    """The logits (1, V) after the first `length` tokens of one row, alone or with what follows them as padding."""
    device = device_of(model)
    text = torch.from_numpy(ids if pad else ids[:, :length]).to(device)
    at = (torch.zeros(1, dtype=torch.long, device=device), torch.tensor([length - 1], device=device))
    return plain_forward(model, text, at).logits


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())
