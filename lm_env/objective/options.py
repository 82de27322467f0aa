"""The options of an environment: what they are called, and how names become models and rewards."""

from __future__ import annotations

import copy
import difflib
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from torch import nn

from lm_env.data.prompts import Overflow
from lm_env.data.tokenizing import check_tokenizer
from lm_env.errors import ConfigurationError
from lm_env.models.adapters import has_adapter, without_wrapper
from lm_env.models.inspection import facts_of, is_quantized
from lm_env.models.loading import load_causal_lm, load_tokenizer
from lm_env.objective.functions import load_function
from lm_env.objective.kl import KLController
from lm_env.objective.rewards import RewardFunction
from lm_env.storage import folder_of
from lm_env.validation import check_flag, check_integer, check_known, check_number

__all__ = [
    "ActionMask",
    "ResolvedModels",
    "TaskOptions",
    "check_limits",
    "check_task_options",
    "checked_action_mask",
    "resolve_eos",
    "resolve_models",
    "resolve_reward",
    "resolve_stop_strings",
]

REWARDS_BY_NAME = "reward_models:load_reward"
"""What loads a reward by its name.  It is imported when it is needed, for this package does without the other."""

ActionMask = Callable[[np.ndarray, np.ndarray], np.ndarray]


class TaskOptions(TypedDict, total=False):
    """The keyword arguments of every environment; see `Task` for what each means."""

    model: nn.Module | str | os.PathLike
    tokenizer: Any
    prompts: Any
    reward: RewardFunction | Callable[..., Any] | str
    reference: nn.Module | str | os.PathLike | None
    beta: float | KLController
    prompt_column: str | None
    overflow: Overflow
    add_special_tokens: bool
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


def check_task_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigurationError unless each of these is an option of an environment, and those needed are there."""
    check_known("an environment", options, TaskOptions.__annotations__)
    for name in ("model", "prompts", "reward"):
        if name not in options:
            raise ConfigurationError(f"an environment needs a {name}: pass {name}=...; lm_env.Task says what it may be")


@dataclass(frozen=True)
class ResolvedModels:
    """The models of a task, and the tokenizer that belongs to them."""

    model: nn.Module
    """The causal LM under training; of a peft model the transformers model inside it."""
    reference: nn.Module
    """The frozen reference; `model` itself where switching the adapter off gives it, or nothing can train."""
    adapter: nn.Module | None
    """The peft wrapper around `model`, if there is one."""
    tokenizer: Any


def resolve_models(
    model: nn.Module | str | os.PathLike,
    reference: nn.Module | str | os.PathLike | None,
    tokenizer: Any,
    device: str,
    download: bool,
    quantization_config: Any = None,
) -> ResolvedModels:
    """A model given by name is loaded once and shared while frozen; a model object is used as it is.

    Without a `reference`, a peft model's own base is the reference, and a quantized model without
    anything to train is its own.  The reference is frozen and put into eval mode, also a live one that the caller gave.

    Raises:
        ConfigurationError: options that do not fit together; a reference that shares weights with the model; or one,
            given by name, whose tokenizer has other words under the same ids.  The words of a live reference are not
            known and not checked.
        ModelLoadError, UnsupportedModelError, MissingDependencyError: a model cannot be had or used.
    """
    check_flag("download", download)
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(str(tokenizer), download=download)
    check_tokenizer(tokenizer)
    if quantization_config is not None and not any(isinstance(m, str | os.PathLike) for m in (model, reference)):
        raise ConfigurationError(
            "quantization_config is for models given by name: load a live one with"
            " lm_env.load_model(name, quantization_config=...)"
        )
    if isinstance(model, str | os.PathLike):
        base, own_tokenizer = load_causal_lm(str(model), device, download, quantization_config)
        tokenizer = own_tokenizer if tokenizer is None else tokenizer
        # The base may have been frozen already, as the reference of another environment.
        model = base if is_quantized(base) else copy.deepcopy(base).requires_grad_(True)
        reference = base if reference is None else reference
    facts_of(model)
    if isinstance(reference, str | os.PathLike):
        name = str(reference)
        reference, its_tokenizer = load_causal_lm(name, device, download, quantization_config)
        _check_same_words(tokenizer, its_tokenizer, name)
    adapter = model if has_adapter(model) else None
    if reference is None and adapter is not None:
        inside = without_wrapper(adapter)
        return ResolvedModels(inside, inside, adapter, tokenizer)
    if reference is None:
        reference = model if _immovable(model) else copy.deepcopy(model)
    if not (reference is model and _immovable(model)):
        _check_apart(model, reference)
    reference.requires_grad_(False).eval()
    return ResolvedModels(without_wrapper(model), without_wrapper(reference), adapter, tokenizer)


def _check_same_words(tokenizer: Any, of_reference: Any, name: str) -> None:
    """Raise ConfigurationError if a token id is one word to the model and another to its reference.

    Special and added tokens may differ, as those of a chat model differ from its base model's.  A tokenizer that cannot
    list its vocabulary is not checked.
    """
    if not all(callable(getattr(each, "get_vocab", None)) for each in (tokenizer, of_reference)):
        return
    own, theirs = ({i: word for word, i in each.get_vocab().items()} for each in (tokenizer, of_reference))
    ordinary = (own.keys() & theirs.keys()) - _special_ids(tokenizer) - _special_ids(of_reference)
    if differing := [i for i in ordinary if own[i] != theirs[i]]:
        i = min(differing)
        raise ConfigurationError(
            f"the reference {name!r} has another vocabulary than the model: token {i} is {theirs[i]!r} to it and"
            f" {own[i]!r} to the model, so a KL between them means nothing; give the model that training starts from"
        )


def _special_ids(tokenizer: Any) -> set[int]:
    """The ids of a tokenizer's special tokens, and of all that were added to its vocabulary."""
    added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    return {*getattr(tokenizer, "all_special_ids", ()), *added.values()}


def _immovable(model: nn.Module) -> bool:
    """Whether no training can change this model."""
    return is_quantized(model) and not any(p.requires_grad for p in model.parameters())


def _check_apart(model: nn.Module, reference: nn.Module) -> None:
    own = {p.data_ptr() for p in model.parameters() if p.numel()}
    if any(p.data_ptr() in own for p in reference.parameters() if p.numel()):
        raise ConfigurationError(
            "the reference shares weights with the model, so training changes both: leave it out, or pass a copy"
        )


def resolve_reward(reward: Any, *, device: str | None = None) -> Callable[..., Any]:
    """A reward function as it is, or the one that a text names.

    Args:
        reward: a function; `"package.module:function"` or `"file.py:function"`; `"lexicon"`; a folder with a saved
            reward model, or with a sequence classifier; or the address of a reward server, `"http://..."`.
        device: where a network that is loaded is put.

    Raises:
        ConfigurationError: it cannot be imported, or called.
        ModelLoadError, CheckpointCorruptError, CheckpointMismatchError: the folder cannot be read.
        RewardUnavailableError, RewardTimeoutError, RewardProtocolError: no reward server answers at the address.
    """
    if isinstance(reward, os.PathLike) or (
        isinstance(reward, str)
        and (reward == "lexicon" or reward.lower().startswith(("http://", "https://")) or folder_of(reward).is_dir())
    ):
        return load_function(REWARDS_BY_NAME, "name")(reward, device=device)
    if isinstance(reward, str):
        if ":" not in reward:
            meant = "did you mean 'lexicon'?  " if difflib.get_close_matches(reward, ["lexicon"]) else ""
            raise ConfigurationError(
                f"{reward!r} is no folder and names no function: {meant}write 'package.module:function' or"
                " 'file.py:function', or give the folder of a reward model, 'lexicon' or the address of a reward server"
            )
        return load_function(reward, "prompts, responses, **columns")
    if not callable(reward):
        raise ConfigurationError(
            "reward must be a function f(prompts, responses, **columns) -> floats, or the name of one, not"
            f" {type(reward).__name__}"
        )
    return reward


def resolve_eos(given: int | Iterable[int] | None, tokenizer: Any, vocab_size: int) -> frozenset[int]:
    """The ids that end a text; the tokenizer's, if none are given."""
    if given is None:
        given = getattr(tokenizer, "eos_token_id", None)
        if given is None:
            raise ConfigurationError(
                "no EOS: the tokenizer has no eos_token_id; pass eos_token_id=ID (--eos-token-id ID), or () to always"
                " run to the length cap"
            )
    try:
        several = list(given) if isinstance(given, Iterable) else [given]
        if any(isinstance(i, bool) for i in several):  # operator.index takes True for token 1
            raise TypeError("a bool is no token id")
        ids = frozenset(map(operator.index, several))
    except TypeError as error:
        raise ConfigurationError(f"eos_token_id must be a token id, or several, not {given!r}") from error
    if bad := [i for i in ids if not 0 <= i < vocab_size]:
        raise ConfigurationError(f"eos_token_id {bad[0]} is outside the model's vocabulary of {vocab_size}")
    return ids


def resolve_stop_strings(given: str | Sequence[str], tokenizer: Any) -> tuple[str, ...]:
    """The strings that end a text, checked."""
    if not isinstance(given, str | Iterable):
        raise ConfigurationError(f"stop_strings must be a string or a list of strings, not {given!r}")
    strings = (given,) if isinstance(given, str) else tuple(given)
    if bad := [s for s in strings if not isinstance(s, str) or not s]:
        raise ConfigurationError(f"stop_strings holds {bad[0]!r}: each must be a non-empty string")
    if strings and tokenizer is None:
        raise ConfigurationError("stop_strings need a tokenizer, to see the text")
    return strings


def checked_action_mask(given: Any) -> ActionMask | None:
    """The function that says which tokens may come next; ConfigurationError if it cannot be called."""
    if given is not None and not callable(given):
        raise ConfigurationError(
            f"action_mask must be a function f(prompt_ids, response_ids) -> bool (V,), not {given!r:.60}"
        )
    return given


def check_limits(
    max_prompt_tokens: int | None,
    max_new_tokens: int,
    missing_eos_score: float | None,
    temperature: float,
    cap_truncates: bool,
) -> None:
    """Refuse numbers and flags that cannot work."""
    check_flag("cap_truncates", cap_truncates)
    if max_prompt_tokens is not None:
        check_integer("max_prompt_tokens", max_prompt_tokens)
    check_integer("max_new_tokens", max_new_tokens)
    check_number("temperature", temperature, low=0.0, above=True)
    if missing_eos_score is not None:
        check_number("missing_eos_score", missing_eos_score)
        if cap_truncates:
            raise ConfigurationError(
                "missing_eos_score pays at the cap, cap_truncates pays nothing there: choose one of them"
            )
