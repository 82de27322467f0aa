"""What is known about a causal LM before it is used: its sizes, its trunk, and what its forward takes.

A model here is anything with the forward of a transformers causal LM: `input_ids (B, L)` in, an
object with `.logits (B, L, V)` out.  Sequences are RIGHT-padded everywhere: position ids are then
0, 1, 2, ..., no real token attends to a pad, and absolute-position models need nothing special.

Shapes: B rows, L tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lm_env.errors import UnsupportedModelError
from lm_env.models.adapters import without_wrapper
from lm_env.models.inputs import plain_arguments

__all__ = ["ModelFacts", "check_positions", "device_of", "evaluating", "facts_of", "trunk_of"]


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
                **plain_arguments(frozenset(accepts), ids),
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
        if trunk_of(model) is not None:
            states = trunk_of(model)(**plain_arguments(frozenset(accepts), ids)).last_hidden_state  # type: ignore[misc]
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


def trunk_of(model: nn.Module) -> nn.Module | None:
    """The model without its LM head, where transformers has one to give."""
    model = without_wrapper(model)
    prefix = getattr(model, "base_model_prefix", "")
    trunk = getattr(model, prefix, None) if prefix else None
    head = getattr(model, "get_output_embeddings", None)
    return trunk if isinstance(trunk, nn.Module) and callable(head) and head() is not None else None


@contextmanager
def _loud_head(model: nn.Module) -> Iterator[None]:
    """The LM head's output times 1000: shows what a model does to its logits after it, even where they are small."""
    if trunk_of(model) is None:
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
