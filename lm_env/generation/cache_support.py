"""Whether `SlotDecoder` gives correct logits for a model: first from its configuration, then by a trial run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_env.errors import UnsupportedModelError
from lm_env.generation.attention_window import WHOLE_TEXT, WINDOWED, AttentionWindow, attention_window, layer_kinds
from lm_env.generation.host_reads import HostReadError, no_host_reads
from lm_env.generation.slot_cache import MASKED_ATTENTION, SlotDecoder
from lm_env.models.inspection import device_of, evaluating, facts_of, rope_types, text_config
from lm_env.models.logprobs import plain_forward

__all__ = ["why_no_slot_cache", "why_no_static_step"]

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
    reason = _read_config(model, max_length)
    return _verdict(model, max_length, reason, _by_lengths, "each step runs the whole text again")


def why_no_static_step(model: nn.Module, max_length: int) -> str | None:
    """None where `SlotDecoder.step_first` serves the model and reads nothing from the device, else the reason.

    On CUDA it is also captured as a graph and replayed.

    Args, Raises: as of `why_no_slot_cache`, which is asked first.
    """
    reason = why_no_slot_cache(model, max_length)
    if reason is not None:
        return reason
    return _verdict(model, max_length, None, _by_tensors, "its decoding step is not captured or compiled")


def _verdict(model: nn.Module, max_length: int, reason: str | None, step: _Step, consequence: str) -> str | None:
    """The reason that is known, remembered, or found out by a trial; it is logged once."""
    verdicts = _verdicts.setdefault(model, {})
    key: tuple[Any, ...] = (reason, step)
    if reason is None:
        window = attention_window(text_config(model), max_length)
        length = _probe_length(model, max_length, window)
        now = (facts_of(model), model.config._attn_implementation, model.dtype, device_of(model))  # type: ignore[union-attr]
        key = (window, length, now, step)
        reason = verdicts[key] if key in verdicts else _try_it(model, length, step)
    if reason is not None and reason not in verdicts.values():
        log.warning("%s %s: %s (slower, same numbers)", type(model).__name__, reason, consequence)
    verdicts[key] = reason
    return reason


_Step = Callable[[SlotDecoder, np.ndarray, np.ndarray], Tensor]
"""(decoder, tokens (3,), lengths before (3,)) -> logits (3, V)."""


def _by_lengths(decoder: SlotDecoder, tokens: np.ndarray, lengths: np.ndarray) -> Tensor:
    return decoder.step(np.arange(len(tokens)), tokens).logits


def _by_tensors(decoder: SlotDecoder, tokens: np.ndarray, lengths: np.ndarray) -> Tensor:
    given, positions = (torch.from_numpy(array).to(decoder.device) for array in (tokens, lengths))
    with no_host_reads():
        logits = decoder.step_first(given, positions, decoder.max_length).logits
    if decoder.device.type != "cuda":
        return logits
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = decoder.step_first(given, positions, decoder.max_length).logits
    graph.replay()
    return captured.clone()


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
def _try_it(model: nn.Module, length: int, step: _Step) -> str | None:
    """Decode three rows of unequal length together and compare each with full forwards of that row by itself.

    The shortest row begins with one token, so that any dependence on the length of its neighbors shows.

    Args:
        length: that of the longest row after its last token.
        step: how a token is appended.
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
            logits += [step(decoder, ids[rows, lengths + i], lengths + i) for i in range(2)]
        except (torch.OutOfMemoryError, MemoryError):  # this says nothing about the model: nothing is remembered
            raise
        except HostReadError as error:
            return f"needs the host at each step ({error})"
        except Exception as error:  # any failure inside a foreign model means: not this way
            return f"does not run with a per-row cache ({type(error).__name__}: {error})"
        alone = [[_after(model, ids[i : i + 1], n + more) for i, n in enumerate(lengths)] for more in (0, 1, 2)]
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
