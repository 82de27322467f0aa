"""The options of an environment: what they are called, and how names become models and rewards."""

from __future__ import annotations

import copy
import importlib
import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
from torch import nn

from lm_env.errors import ConfigurationError
from lm_env.forwards import facts_of
from lm_env.kl import KLController
from lm_env.models import is_quantized, load_causal_lm, load_tokenizer
from lm_env.rewards import RewardFunction

__all__ = [
    "ActionMask",
    "TaskOptions",
    "check_numbers",
    "has_adapter",
    "resolve_eos",
    "resolve_models",
    "resolve_reward",
    "resolve_stop_strings",
    "under_adapter",
]

ActionMask = Callable[[np.ndarray, np.ndarray], np.ndarray]


class TaskOptions(TypedDict, total=False):
    """The keyword arguments of every environment; see `Task` for what each means."""

    model: nn.Module | str | os.PathLike
    tokenizer: Any
    prompts: Any
    reward: RewardFunction | Callable[..., Any] | str
    reference: nn.Module | str | os.PathLike | None
    beta: float | KLController
    max_prompt_tokens: int | None
    max_new_tokens: int
    eos_token_id: int | Sequence[int] | None
    stop_strings: Sequence[str]
    missing_eos_score: float | None
    cap_truncates: bool
    temperature: float
    action_mask: ActionMask | None
    device: str
    download: bool
    quantization_config: Any


def resolve_models(
    model: nn.Module | str | os.PathLike,
    reference: nn.Module | str | os.PathLike | None,
    tokenizer: Any,
    device: str,
    download: bool,
    quantization_config: Any = None,
) -> tuple[nn.Module, nn.Module, Any]:
    """(model, frozen reference, tokenizer); named models are loaded once and shared while frozen.

    A quantised model without anything to train is its own reference.
    """
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(str(tokenizer), download=download)
    if quantization_config is not None and not any(isinstance(m, str | os.PathLike) for m in (model, reference)):
        raise ConfigurationError(
            "quantization_config is for models given by name: load a live one with"
            " lm_env.models.load_model(name, quantization_config=...)"
        )
    if isinstance(model, str | os.PathLike):
        base, own = load_causal_lm(str(model), device, download, quantization_config)
        tokenizer = own if tokenizer is None else tokenizer
        # The base may have been frozen already, as the reference of another environment.
        live = base if is_quantized(base) else copy.deepcopy(base).requires_grad_(True)
        reference = base if reference is None else reference
    else:
        live = model
    facts_of(live)
    if isinstance(reference, str | os.PathLike):
        reference = load_causal_lm(str(reference), device, download, quantization_config)[0]
    elif reference is None and has_adapter(live):
        return live, live, tokenizer
    elif reference is None:
        reference = live if _immovable(live) else copy.deepcopy(live)
    if not (reference is live and _immovable(live)):
        _check_apart(live, reference)
    reference.requires_grad_(False).eval()
    return live, reference, tokenizer


def _immovable(model: nn.Module) -> bool:
    """Whether no training can change this model."""
    return is_quantized(model) and not any(p.requires_grad for p in model.parameters())


def has_adapter(model: nn.Module) -> bool:
    """Whether this is a peft model, whose adapter can be switched off."""
    return callable(getattr(model, "disable_adapter", None)) and callable(getattr(model, "get_base_model", None))


def under_adapter(adapter: nn.Module) -> nn.Module:
    """The transformers model with the adapter's layers in it, which has the LM's own interface."""
    return adapter.get_base_model()  # type: ignore[operator]


def _check_apart(model: nn.Module, reference: nn.Module) -> None:
    own = {p.data_ptr() for p in model.parameters() if p.numel()}
    if any(p.data_ptr() in own for p in reference.parameters() if p.numel()):
        raise ConfigurationError(
            "the reference shares weights with the model, so it would drift with it: leave it out, or pass a copy"
        )


def resolve_reward(reward: Any) -> Callable[..., Any]:
    """A reward function as it is, or the one that an import path `"package.module:name"` names.

    Raises:
        ConfigurationError: it cannot be imported, or called.
    """
    if isinstance(reward, str):
        module, _, name = reward.partition(":")
        try:
            reward = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(
                f"reward {module}:{name} cannot be imported ({error}): write 'package.module:function'"
            ) from error
        try:
            reward = reward() if isinstance(reward, type) else reward
        except TypeError as error:
            message = f"reward {module}:{name} cannot be made without arguments ({error}): pass an instance"
            raise ConfigurationError(message) from error
    if not callable(reward):
        raise ConfigurationError(
            f"reward must be a function f(prompts, responses, **columns) -> floats, not {type(reward).__name__}"
        )
    return reward


def resolve_eos(given: int | Iterable[int] | None, tokenizer: Any, vocab_size: int) -> frozenset[int]:
    """The ids that end a text; the tokenizer's, if none are given."""
    if given is None:
        given = getattr(tokenizer, "eos_token_id", None)
        if given is None:
            raise ConfigurationError(
                "no EOS: the tokenizer has no eos_token_id; pass eos_token_id=ID, or () to always run to the length cap"
            )
    try:
        ids = frozenset(map(operator.index, given if isinstance(given, Iterable) else [given]))
    except TypeError as error:
        raise ConfigurationError(f"eos_token_id must be a token id, or several, not {given!r}") from error
    if bad := [i for i in ids if not 0 <= i < vocab_size]:
        raise ConfigurationError(f"eos_token_id {bad[0]} is outside the model's vocabulary of {vocab_size}")
    return ids


def resolve_stop_strings(given: str | Sequence[str], tokenizer: Any) -> tuple[str, ...]:
    """The strings that end a text, checked."""
    strings = (given,) if isinstance(given, str) else tuple(given)
    if bad := [s for s in strings if not isinstance(s, str) or not s]:
        raise ConfigurationError(f"stop_strings holds {bad[0]!r}: each must be a non-empty string")
    if strings and tokenizer is None:
        raise ConfigurationError("stop_strings need a tokenizer, to see the text")
    return strings


def check_numbers(prompt: int | None, new: int, missing: float | None, temperature: float, cap_truncates: bool) -> None:
    """Refuse numbers that cannot work."""
    for name, value in (("max_prompt_tokens", 1 if prompt is None else prompt), ("max_new_tokens", new)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name} must be a whole number of at least 1, not {value!r}")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise ConfigurationError(f"temperature must be a finite number above 0, not {temperature!r}")
    number = isinstance(missing, int | float) and not isinstance(missing, bool)
    if missing is not None and not (number and math.isfinite(missing)):
        raise ConfigurationError(f"missing_eos_score must be finite or None, not {missing!r}")
    if missing is not None and cap_truncates:
        raise ConfigurationError("missing_eos_score pays at the cap, cap_truncates pays nothing there: choose one")
