"""What is known about a causal LM before it is used: its sizes, its trunk, what its forward takes, and its device.

A model here is anything with the forward of a transformers causal LM: `input_ids (B, L)` in, an
object with `.logits (B, L, V)` out; `lm_env.models.inputs` says how rows are padded.

Shapes: B rows, L tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lm_env.errors import ConfigurationError, NonFiniteError, UnsupportedModelError
from lm_env.models.adapters import without_wrapper
from lm_env.models.inputs import plain_arguments

__all__ = [
    "ModelFacts",
    "check_positions",
    "default_device",
    "device_of",
    "evaluating",
    "facts_of",
    "is_quantized",
    "rope_types",
    "text_config",
    "trunk_of",
    "usable_device",
]


@dataclass(frozen=True)
class ModelFacts:
    """What the configuration of a model and a forward of two tokens tell about it."""

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
    switches: tuple[int, ...]
    """Lengths, ascending, beyond which a text is read with other rotary frequencies from its first token on, as
    longrope does (arXiv:2402.13753).  The logits after a prefix are those of a forward on the prefix's side of them."""


_facts: WeakKeyDictionary[nn.Module, tuple[str | None, torch.Size | None, ModelFacts]] = WeakKeyDictionary()


def facts_of(model: nn.Module) -> ModelFacts:
    """The facts of a model, probed once, and again after its head has been resized or replaced.

    Raises:
        UnsupportedModelError: it is no causal LM.
        NonFiniteError: a weight is NaN or infinite.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"a model must be a torch.nn.Module with the forward of a causal LM, not {type(model).__name__}"
        )
    if model in _facts:
        place, shape, facts = _facts[model]
        if place is None or shape == _weight_shape(model, place):
            return facts
    facts = _probe(model)
    # Every step asks for the facts, and transformers' way to the head is slow: the name of its place is enough.
    head = _head_of(model)
    place = next((name for name, module in model.named_modules() if module is head), None)
    _facts[model] = (place, None if place is None else _weight_shape(model, place), facts)
    return facts


def _weight_shape(model: nn.Module, place: str) -> torch.Size | None:
    module: Any = model
    for name in place.split("."):
        module = module._modules.get(name)
        if module is None:
            return None
    weight = getattr(module, "weight", None)
    return None if weight is None else weight.shape


@torch.no_grad()
def _probe(model: nn.Module) -> ModelFacts:
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder, no causal LM: give a decoder-only model, which AutoModelForCausalLM loads"
        )
    if device_of(model).type == "meta":
        raise UnsupportedModelError(
            f"the weights of {name} are on the meta device, where there are no numbers: load them, with"
            " from_pretrained or load_state_dict(..., assign=True)"
        )
    accepted = _accepted_arguments(model)
    # Two tokens, for a pad's embedding is zero and tells nothing; two rows that differ in the last one alone.
    ids = torch.tensor([[0, 1], [0, 0]], device=device_of(model))
    arguments = plain_arguments(accepted, ids)
    trunk = trunk_of(model)
    with evaluating(model), _scaled_head(model):
        try:
            # transformers leaves hooks that cannot be pickled on a model that was asked for all its hidden states.
            whole = {"output_hidden_states": True} if trunk is None and "output_hidden_states" in accepted else {}
            out = model(**arguments, **whole)
            logits = out.logits
            states = getattr(out, "hidden_states", None)
            by_hidden_states = states[-1] if states else None
            last = by_hidden_states if trunk is None else trunk(**arguments).last_hidden_state
        except Exception as error:  # whatever a foreign model raises
            raise UnsupportedModelError(
                f"{name} does not run as a causal LM: model(input_ids=...) must return .logits (B, L, V); {error}"
            ) from error
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise UnsupportedModelError(
                f"{name} returns logits of shape {tuple(logits.shape)} for input_ids (2, 2): (2, 2, V) is needed"
            )
        _check_weights(model, logits)
        size = float(logits.abs().max())
        noise = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 1e-2
        if not torch.allclose(logits[0, 0], logits[1, 0], rtol=0, atol=noise * size):
            raise UnsupportedModelError(f"{name} is no causal LM: a later token changes the logits of an earlier one")
        splits = False
        if trunk is not None:
            rebuilt = model.get_output_embeddings()(last)  # type: ignore[operator]
            splits = rebuilt.shape == logits.shape and torch.allclose(rebuilt, logits, rtol=0, atol=1e-5 * size)
    return ModelFacts(
        vocab_size=logits.shape[-1],
        hidden_size=None if last is None else last.shape[-1],
        max_positions=_max_positions(model),
        arguments=accepted,
        splits=splits,
        switches=_switches(text_config(model)),
    )


def _check_weights(model: nn.Module, logits: torch.Tensor) -> None:
    """Raise NonFiniteError if logits are NaN, or not finite because a weight is NaN or +infinity.

    Logits of -infinity alone are those of tokens with probability 0.
    """
    if bool(torch.isfinite(logits).all()):
        return
    broken = next((name for name, p in model.named_parameters() if _is_broken(p)), None)
    if broken is not None or bool(torch.isnan(logits).any()):
        where = "its logits are NaN" if broken is None else f"its weight {broken!r} holds NaN or infinity"
        raise NonFiniteError(
            f"{type(model).__name__} cannot be used, {where}: a training that diverged, or numbers too large for the"
            " dtype, leave such weights; take an earlier checkpoint, or save it in float32 or bfloat16"
        )


def _is_broken(tensor: torch.Tensor) -> bool:
    return not bool((tensor < torch.inf).all())  # false for NaN as well


def _accepted_arguments(model: nn.Module) -> frozenset[str]:
    parameters = inspect.signature(model.forward).parameters.values()
    accepted = {p.name for p in parameters}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        accepted |= {"attention_mask", "position_ids", "output_hidden_states"}
    return frozenset(accepted)


def is_quantized(model: nn.Module) -> bool:
    """Whether weights are stored in fewer bits than they stand for, so that gradients cannot move them."""
    return bool(getattr(model, "is_quantized", False)) or any(not p.is_floating_point() for p in model.parameters())


def text_config(model: nn.Module) -> Any:
    """The configuration of the part that reads and writes text; None for a model without one."""
    config = getattr(model, "config", None)
    nested = getattr(config, "get_text_config", None)
    return nested(decoder=True) if callable(nested) else config


def _max_positions(model: nn.Module) -> int | None:
    config = text_config(model)
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def rope_types(config: Any) -> dict[str, dict[str, Any]]:
    """The rotary embeddings of a text configuration by their type ("default", "yarn", ...)."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    ropes = [part for part in (rope, *rope.values()) if isinstance(part, dict)]  # one, or one for each type of layer
    named = [(part.get("rope_type", part.get("type")), part) for part in ropes]
    return {name: part for name, part in named if name is not None}


def _switches(config: Any) -> tuple[int, ...]:
    long = rope_types(config).get("longrope", {}).get("original_max_position_embeddings")
    return () if long is None else (int(long),)


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
    return trunk if isinstance(trunk, nn.Module) and _head_of(model) is not None else None


def _head_of(model: nn.Module) -> nn.Module | None:
    head = getattr(model, "get_output_embeddings", None)
    return head() if callable(head) else None


@contextmanager
def _scaled_head(model: nn.Module) -> Iterator[None]:
    """Inside, the LM head's output is multiplied by 1000.

    It shows what a model does to its logits after the head (a soft cap, a scale) even while they are small.
    """
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


def usable_device(device: str | torch.device | None = None) -> str | torch.device:
    """The device that is asked for, or `default_device()`.

    In one of several processes that torchrun has started on a machine, "cuda" is the GPU with the process's number.

    Raises:
        ConfigurationError: no tensor can be put there.
    """
    device = device or default_device()
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second where PyTorch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"device {str(device)!r} cannot be used here ({reason}): choose cpu") from error
    return device


def default_device() -> str:
    """CUDA where there is a GPU, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def evaluating(model: nn.Module | Sequence[nn.Module]) -> Iterator[None]:
    """Dropout off inside a model (or these modules); afterward each one's training flag as it was."""
    training = [module for module in (model.modules() if isinstance(model, nn.Module) else model) if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
