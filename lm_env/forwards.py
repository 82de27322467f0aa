"""Forwards of a causal LM, and log-probs of given tokens.

A model here is anything with the forward of a transformers causal LM: `input_ids (B, L)` in, an
object with `.logits (B, L, V)` out.  Sequences are RIGHT-padded everywhere: position ids are then
0, 1, 2, ..., no real token attends to a pad, and absolute-position models need nothing special.

Shapes: B rows, P prompt, T response, L = P + T, V vocabulary, D hidden, N = all response tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lm_env.episodes import Episodes
from lm_env.errors import UnsupportedModelError

__all__ = [
    "LOGIT_BUDGET",
    "ModelFacts",
    "Outputs",
    "Positions",
    "check_positions",
    "chunked_logprobs",
    "device_of",
    "evaluating",
    "facts_of",
    "forward",
    "length_batches",
    "plain_forward",
    "response_hidden",
    "response_logprobs",
    "response_outputs",
    "restrict",
    "token_logprobs",
]

# Logits that may stand in memory at once: 32M numbers, 128 MB in fp32.
LOGIT_BUDGET = 2**25
# Padded tokens from which on a separate forward costs less than the padding that it saves.
WORTH_A_FORWARD = 512


# -- facts about a model ---------------------------------------------------------------------------
@dataclass(frozen=True)
class ModelFacts:
    """What a probe of a few tokens tells about a model."""

    vocab_size: int
    """V: the width of the logits, which may exceed `len(tokenizer)`."""
    hidden_size: int | None
    """D, or None for a model that returns no hidden states."""
    max_positions: int | None
    """The longest sequence with positions of its own, or None for no limit."""
    arguments: frozenset[str]
    """The names that its forward takes."""
    splits: bool
    """logits == output embeddings(trunk(ids)): logits can be had for some positions alone."""


_facts: WeakKeyDictionary[nn.Module, ModelFacts] = WeakKeyDictionary()


def facts_of(model: nn.Module) -> ModelFacts:
    """The facts of a model, probed once.

    Raises:
        UnsupportedModelError: it is no causal LM.
    """
    if model not in _facts:
        _facts[model] = _probe(model)
    return _facts[model]


@torch.no_grad()
def _probe(model: nn.Module) -> ModelFacts:
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"a model must be a torch.nn.Module with the forward of a causal LM, not {type(model).__name__}"
        )
    parameters = inspect.signature(model.forward).parameters.values()
    accepts = {p.name for p in parameters}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        accepts |= {"attention_mask", "position_ids", "output_hidden_states"}
    # Two tokens, for a pad's embedding is zero and tells nothing; two rows that differ in the last one alone.
    ids = torch.tensor([[0, 1], [0, 0]], device=device_of(model))
    with evaluating(model), _loud_head(model):
        try:
            out = model(
                **_arguments(frozenset(accepts), ids),
                **({"output_hidden_states": True} if "output_hidden_states" in accepts else {}),
            )
            logits = out.logits
        except (TypeError, AttributeError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not run as a causal LM: model(input_ids=...) must return .logits (B, L,"
                f" V); {error}"
            ) from error
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise UnsupportedModelError(
                f"{type(model).__name__} returns logits of shape {tuple(logits.shape)} for input_ids (2, 2): (2, 2, V)"
                " is needed"
            )
        size = float(logits.abs().max())
        noise = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 1e-2
        if not torch.allclose(logits[0, 0], logits[1, 0], rtol=0, atol=noise * size):
            raise UnsupportedModelError(
                f"{type(model).__name__} is no causal LM: a later token changes the logits of an earlier one"
            )
        states = getattr(out, "hidden_states", None)
        hidden = states[-1].shape[-1] if states else None
        splits = False
        if _trunk(model) is not None:
            states = _trunk(model)(**_arguments(frozenset(accepts), ids)).last_hidden_state  # type: ignore[misc]
            rebuilt = model.get_output_embeddings()(states)  # type: ignore[operator]
            splits = rebuilt.shape == logits.shape and torch.allclose(rebuilt, logits, rtol=0, atol=1e-5 * size)
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return ModelFacts(logits.shape[-1], hidden, positions, frozenset(accepts), splits)


def check_positions(model: nn.Module, length: int) -> None:
    """Raise UnsupportedModelError unless the model has positions for `length` tokens."""
    limit = facts_of(model).max_positions
    if limit is not None and length > limit:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {limit} positions and cannot hold {length} tokens: "
            "lower max_prompt_tokens or max_new_tokens"
        )


def _trunk(model: nn.Module) -> nn.Module | None:
    """The model without its LM head, where transformers has one to give."""
    if callable(getattr(model, "get_base_model", None)):  # peft's wrapper, whose own `model` is the whole LM
        model = model.get_base_model()  # type: ignore[operator]
    prefix = getattr(model, "base_model_prefix", "")
    trunk = getattr(model, prefix, None) if prefix else None
    has_head = callable(getattr(model, "get_output_embeddings", None)) and model.get_output_embeddings() is not None  # type: ignore[operator]
    return trunk if has_head and isinstance(trunk, nn.Module) else None


@contextmanager
def _loud_head(model: nn.Module) -> Iterator[None]:
    """The LM head's output times 1000: shows what a model does to its logits after it, even where they are small."""
    if _trunk(model) is None:
        yield
        return
    head = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_hook(lambda _module, _inputs, output: 1000 * output)
    try:
        yield
    finally:
        handle.remove()


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module | Sequence[nn.Module]) -> Iterator[None]:
    """Dropout off inside a model (or these modules); afterwards each one's training flag as it was."""
    training = [module for module in (model.modules() if isinstance(model, nn.Module) else model) if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


# -- forwards --------------------------------------------------------------------------------------
Positions = tuple[Tensor, Tensor] | tuple[slice, int]


class Outputs(NamedTuple):
    """Logits (..., V) and, when asked for, the last hidden states (..., D) under them."""

    logits: Tensor
    hidden: Tensor | None


def _arguments(accepts: frozenset[str], ids: Tensor) -> dict[str, Tensor | bool]:
    """Arguments of a plain forward over right-padded rows.

    The mask is all ones on purpose: right pads come after every real token, so causality alone
    hides them, and attention keeps its fast mask-free kernel.
    """
    arguments: dict[str, Tensor | bool] = {"input_ids": ids}
    if "attention_mask" in accepts:
        arguments["attention_mask"] = torch.ones_like(ids)
    if "position_ids" in accepts:
        arguments["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    if "use_cache" in accepts:
        arguments["use_cache"] = False
    return arguments


def forward(model: nn.Module, at: Positions, want_hidden: bool = False, **arguments: Any) -> Outputs:
    """One forward, with logits for the chosen positions alone.

    Args:
        at: (rows (N,), positions (N,)) of the logits wanted, or a (slice, position) of them.
        arguments: what the model's forward is called with (`input_ids`, a cache, ...).

    Returns:
        Outputs with logits (N, V) and hidden (N, D).
    """
    facts = facts_of(model)
    if facts.splits:
        hidden = _trunk(model)(**arguments).last_hidden_state[at]  # type: ignore[misc]
        return Outputs(model.get_output_embeddings()(hidden), hidden if want_hidden else None)  # type: ignore[operator]
    if want_hidden and facts.hidden_size is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} returns no hidden_states, so it cannot carry a value head: pass a separate critic"
        )
    out = model(**arguments, **({"output_hidden_states": True} if want_hidden else {}))
    return Outputs(out.logits[at], out.hidden_states[-1][at] if want_hidden else None)


def plain_forward(model: nn.Module, ids: Tensor, at: tuple[Tensor, Tensor], want_hidden: bool = False) -> Outputs:
    """`forward` over right-padded rows `ids (B, L)` without a cache."""
    return forward(model, at, want_hidden, **_arguments(facts_of(model).arguments, ids))


def response_outputs(model: nn.Module, episodes: Episodes, want_hidden: bool = False) -> tuple[Outputs, Tensor]:
    """Logits that predict each response token of the episodes, padding excluded.

    Returns:
        Outputs with logits (N, V), hidden (N, D), and the response tokens (N,), row after row.
    """
    ids, rows, at = _response_index(model, episodes)
    return plain_forward(model, ids, (rows, at - 1), want_hidden), ids[rows, at]


def response_hidden(model: nn.Module, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """The hidden states (N, D) under those logits, and the tokens (N,), of a model that `splits`."""
    ids, rows, at = _response_index(model, episodes)
    hidden = _trunk(model)(**_arguments(facts_of(model).arguments, ids)).last_hidden_state  # type: ignore[misc]
    return hidden[rows, at - 1], ids[rows, at]


def chunked_logprobs(model: nn.Module, hidden: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi(token) from hidden states, at most `LOGIT_BUDGET` logits in memory at a time.

    Each chunk's logits are computed again for the backward pass, so N x V never stands whole.

    Args:
        hidden: (N, D) of `response_hidden`.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    size = max(1, LOGIT_BUDGET // facts_of(model).vocab_size)

    def piece(states: Tensor, chosen: Tensor) -> Tensor:
        return token_logprobs(head(states), chosen, temperature)

    pieces = zip(hidden.split(size), tokens.split(size), strict=True)
    return torch.cat([checkpoint(piece, states, chosen, use_reentrant=False) for states, chosen in pieces])


def _response_index(model: nn.Module, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (B, L) without what the padding holds, and (row, position) of each response token, (N,) each."""
    device = device_of(model)
    width = int(episodes.lengths.max())
    padding = np.arange(width) >= episodes.lengths[:, None]
    ids = torch.from_numpy(np.where(padding, 0, episodes.input_ids[:, :width])).to(device)
    rows, columns = np.nonzero(episodes.response_mask())
    positions = columns + episodes.prompt_lengths[rows]
    return ids, torch.from_numpy(rows).to(device), torch.from_numpy(positions).to(device)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi(token) of the softmax of logits / temperature; the one place where it is computed.

    Args:
        logits: (..., V), any floating dtype; computed in fp32 at least.
        tokens: int64 (...,).

    Returns:
        (...,) nats.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def restrict(logits: Tensor, allowed: np.ndarray) -> Tensor:
    """-inf where `allowed` (bool, the shape of `logits`) is False."""
    return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)


def _flat_rows(mask: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Indices into all N response tokens of those of some rows, row after row."""
    starts = np.concatenate([[0], np.cumsum(mask.sum(1))])
    return np.concatenate([np.arange(starts[r], starts[r + 1]) for r in rows])


def length_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Cut rows into batches of similar length, each of at most `tokens` padded tokens (or one row).

    A batch that is worth a forward of its own ends where rows get shorter than three quarters of its
    longest, so that at most a quarter of what is computed is padding.

    Args:
        lengths: int (B,).

    Returns:
        index arrays, each row exactly once, longest first.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    batches, start = [], 0
    while start < len(order):
        longest = int(descending[start])
        similar = int(np.searchsorted(-descending, -0.75 * longest, side="right")) - start
        size = min(max(1, tokens // longest), max(similar, -(-WORTH_A_FORWARD // longest)))
        batches.append(order[start : start + size])
        start += size
    return batches


@torch.no_grad()
def response_logprobs(
    model: nn.Module, episodes: Episodes, temperature: float = 1.0, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Log-probs of all response tokens: one forward per sequence, batched by length.

    Args:
        allowed: bool (N, V), tokens that the model's distribution is restricted to.

    Returns:
        float32 (float64 for a float64 model) (B, T) nats, 0 in the padding.
    """
    facts = facts_of(model)
    check_positions(model, int(episodes.lengths.max(initial=0)))
    result: np.ndarray | None = None
    mask = episodes.response_mask()
    with evaluating(model):
        for rows in length_batches(episodes.lengths, max(1, LOGIT_BUDGET // facts.vocab_size)):
            part = episodes[rows]
            outputs, tokens = response_outputs(model, part)
            logits = outputs.logits if allowed is None else restrict(outputs.logits, allowed[_flat_rows(mask, rows)])
            values = token_logprobs(logits, tokens, temperature).cpu().numpy()
            if result is None:
                result = np.zeros(mask.shape, dtype=values.dtype)
            i, t = np.nonzero(part.response_mask())
            result[rows[i], t] = values
    return np.zeros(mask.shape, np.float32) if result is None else result
