"""The fingerprint of a reward, which changes when its weights, settings or source code do, and its description."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lm_env.objective.description import reward_in_words
from lm_env.objective.fingerprint import model_digest, model_settings
from lm_env.objective.rewards import is_causal, name_of, reads_prefixes
from reward_models.serving.schema import LONGEST_NAME, RewardInfo

__all__ = ["describe_reward", "reward_fingerprint"]

DEEPEST = 8
"""How deeply the parts of a reward are searched; no reward of this package is nested so deeply."""

IDS = ("prompt_ids", "response_ids", "response_finished")
"""Columns that an environment makes itself."""


def reward_fingerprint(reward: object) -> str:
    """The reward's name and a digest of its weights, settings and source code: "RewardModel-53f2c0d9a4e81b77".

    It looks at public attributes, and at what lies in them; two rewards that differ in something else have the same
    fingerprint.  So it tells that a reward was replaced, and is no proof that it was not.
    """
    digest = hashlib.sha256()
    for fact in _facts(reward, 0):
        digest.update(fact.encode("utf-8", "backslashreplace") + b"\0")
    return f"{_printable(name_of(reward))[:60]}-{digest.hexdigest()[:16]}"


def describe_reward(reward: Any, max_texts: int, max_bytes: int) -> RewardInfo:
    """What a server says of its reward."""
    words = _printable(" ".join(reward_in_words(reward).split()))
    return RewardInfo(
        name=words[:LONGEST_NAME] or "reward",
        fingerprint=reward_fingerprint(reward),
        causal=is_causal(reward) if hasattr(reward, "causal") else None,
        reads_prefixes=reads_prefixes(reward),
        columns=_columns(reward),
        max_texts=max_texts,
        max_bytes=max_bytes,
    )


def _columns(reward: Any) -> tuple[str, ...] | None:
    """The columns that the reward's signature names; None where it takes any."""
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.name not in ("prompts", "responses", "self"))


def _facts(value: Any, depth: int) -> Iterator[str]:
    """Words for everything that scores depend on, always in the same order."""
    yield type(value).__qualname__
    if depth > DEEPEST:
        return
    if value is None or isinstance(value, str | bytes | int | float | complex | re.Pattern):
        yield repr(value)
    elif isinstance(value, torch.Tensor):
        yield _tensor_digest(value)
    elif isinstance(value, nn.Module):
        yield model_digest(value)
        yield repr(model_settings("model", value))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from _facts(inner, depth + 1)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _facts(inner, depth + 1)
    elif isinstance(value, set | frozenset):
        yield repr(sorted(map(repr, value)))
    elif hasattr(value, "get_vocab"):
        yield repr(sorted(value.get_vocab().items()))
    elif inspect.isroutine(value):
        yield getattr(value, "__qualname__", "")
        yield _source(value)
        yield from _facts(getattr(value, "__self__", None), depth + 1)
    else:
        fields = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        held = {**{name: getattr(value, name) for name in fields}, **getattr(value, "__dict__", {})}
        for name, inner in sorted(held.items()):
            if not name.startswith("_"):
                yield name
                yield from _facts(inner, depth + 1)
        yield _source(type(value))


def _source(code: Any) -> str:
    """The text of a function or class that a user has written; this package's own goes by its name."""
    module = getattr(code, "__module__", None) or ""
    if module.split(".")[0] in ("lm_env", "reward_models", "builtins", "torch", "transformers", "numpy"):
        return module
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return module


def _tensor_digest(tensor: torch.Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest()
    return f"{tuple(tensor.shape)} {tensor.dtype} {digest[:16]}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
