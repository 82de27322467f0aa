"""A task's fingerprint: what a checkpoint remembers of it, so that another task is noticed when training goes on.

A checkpoint holds weights, not the environment.  Weights of the same shapes fit a model with other
heads, and training goes on without a word under another reward or reference.  The fingerprint names
each of these things by a number, a name or a digest, and JSON holds it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError
from lm_env.models.adapters import base_tensors, without_wrapper
from lm_env.objective.task import Task

__all__ = [
    "check_fingerprint",
    "check_same_task",
    "compare_fingerprints",
    "model_digest",
    "model_settings",
    "task_fingerprint",
]

Fingerprint = dict[str, str | int | float]

WHOLE_BYTES = 512 * 2**20
"""Weights up to this size are hashed whole; of larger ones an even sample of about this size."""

_WITHOUT_EFFECT = re.compile(
    r".*drop.*|.*_token_id|architectures|chunk_size_feed_forward|dtype|id2label|init_.*|initializer_.*|label2id"
    r"|name_or_path|num_labels|output_(attentions|hidden_states|logits|router_logits|scores)|pretraining_tp|problem_type"
    r"|return_dict.*|task_specific_params|torch_dtype|transformers_version|use_cache"
)
"""Settings of a model that change nothing of what it computes from weights that are given."""

DEEPEST = 8
"""How deeply the parts of a reward are searched; no reward of this package is nested so deeply."""
LONGEST = 1000
"""Entries of a list or dict in which parts of a reward are searched; those of longer ones are data."""


def task_fingerprint(task: Task) -> Fingerprint:
    """What a checkpoint saves of its task.

    Keys that begin with `model.`, and `vocabulary`, say what the weights mean; all others say what is optimized.
    `reference` is a SHA-256 over all weights of the reference up to `WHOLE_BYTES`, see `model_digest`, and keys that
    begin with `reference.` are its settings.  `reward_weights` and `reward_settings` are those of the reward and of all
    that lies in it.
    """
    prompts = [[p.ids.tolist(), p.text, dict(p.columns)] for p in task.prompts]
    return {
        **model_settings("model", task.model),
        "vocabulary": _vocabulary(task),
        "reference": model_digest(task.reference),
        **model_settings("reference", task.reference),
        "reward": _name_of(task.reward),
        "reward_weights": _weights_of(task.reward),
        "reward_settings": _settings_of(task.reward),
        "prompts": f"{len(prompts)} with digest {_digest(prompts)}",
        "temperature": task.temperature,
        "max_new_tokens": task.max_new_tokens,
        "eos_token_ids": json.dumps(sorted(task.eos_token_ids)),
        "stop_strings": json.dumps(task.stop_strings),
        "missing_eos_score": json.dumps(task.missing_eos_score),
        "cap_truncates": task.cap_truncates,
        "action_mask": "none" if task.action_mask is None else _name_of(task.action_mask),
    }


def compare_fingerprints(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """Each thing that differs, with a sentence about it; empty if all is the same.

    Settings of a model that only one of the two names are passed over: another version of
    transformers may have added them.
    """
    optional = ("model.", "reference.")
    names = [n for n in {**saved, **current} if not n.startswith(optional) or (n in saved and n in current)]
    absent = "nothing"
    return {
        name: f"{name} differs: {saved.get(name, absent)} was saved, {current.get(name, absent)} is given"
        for name in names
        if saved.get(name, absent) != current.get(name, absent)
    }


def check_fingerprint(saved: Any, task: Task, path: Any, *, replaced: Collection[str] = ()) -> None:
    """Compare the fingerprint that was saved at `path` with the task that is given; nothing is changed.

    What is optimized may change on purpose, so another reward, reference, temperature, cap or other
    prompts are a warning.

    Args:
        replaced: keys that say nothing, as their settings, because loading replaces what they stand for.

    Raises:
        CheckpointCorruptError: `saved` is no fingerprint.
        CheckpointMismatchError: the weights were saved for a model that computes something else
            (other heads, another activation), or for other tokens.
    """
    found = _differences(saved, task, path)
    differences = {name: said for name, said in found.items() if name.split(".")[0] not in replaced}
    meaning = [said for name, said in differences.items() if name.split(".")[0] in ("model", "vocabulary")]
    if meaning:
        raise CheckpointMismatchError(f"{path} was saved for another model: {'; '.join(meaning)}")
    if differences:
        warnings.warn(
            f"{path} was saved for another task, and training goes on with the one given:"
            f" {'; '.join(differences.values())}",
            stacklevel=4,
        )


def check_same_task(saved: Any, task: Task, path: Any) -> None:
    """Refuse any difference between the fingerprint saved at `path` and the task, for a run that goes on.

    Raises:
        CheckpointCorruptError: `saved` is no fingerprint.
        CheckpointMismatchError: something differs; the message names it.
    """
    if differences := _differences(saved, task, path):
        raise CheckpointMismatchError(
            f"the run in {path} has another task: {'; '.join(differences.values())}; give it the task that it began"
            " with (to train its weights on another one, load them and call learn)"
        )


def _differences(saved: Any, task: Task, path: Any) -> dict[str, str]:
    if not isinstance(saved, Mapping) or "vocabulary" not in saved:
        raise CheckpointCorruptError(f"{path} holds no fingerprint of its task: use another checkpoint")
    return compare_fingerprints(saved, task_fingerprint(task))


@torch.no_grad()
def model_digest(model: nn.Module, whole_bytes: int = WHOLE_BYTES) -> str:
    """A SHA-256 over a model's class, weights and saved buffers, without those of an adapter in it.

    Of a model larger than `whole_bytes`, every n-th weight is read, so that about as many bytes are;
    the digest then says so.  The cost is that of reading these bytes once.
    """
    kept = model.state_dict(keep_vars=True).keys()
    tensors = base_tensors(model) + [buffer for name, buffer in model.named_buffers() if name in kept]
    size = sum(t.numel() * t.element_size() for t in tensors)
    stride = max(-(-size // whole_bytes), 1)
    digest = hashlib.sha256(type(without_wrapper(model)).__name__.encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1)[::stride].contiguous().cpu().view(torch.uint8).numpy().tobytes())
    kind = "all weights" if stride == 1 else f"a sample of 1 weight in {stride}"
    return f"{kind}, {digest.hexdigest()[:16]}"


def model_settings(prefix: str, model: nn.Module) -> Fingerprint:
    """The class of a model, and what its configuration says of how it computes, under keys `prefix.NAME`."""
    inside = without_wrapper(model)
    settings: Fingerprint = {f"{prefix}.class": type(inside).__name__}
    config: Any = getattr(inside, "config", None)
    for name, value in sorted(config.to_dict().items() if hasattr(config, "to_dict") else ()):
        if not name.startswith("_") and not _WITHOUT_EFFECT.fullmatch(name):
            plain = isinstance(value, str | int | float)
            settings[f"{prefix}.{name}"] = value if plain else json.dumps(value, sort_keys=True, default=str)
    return settings


def _vocabulary(task: Task) -> str:
    tokens: dict[str, int] = getattr(task.tokenizer, "get_vocab", dict)()
    named = f", tokens with digest {_digest(sorted(tokens.items()))}" if tokens else ""
    return f"{task.vocab_size}{named}"


def _name_of(function: Any) -> str:
    """The name of a function, or of the class of an object that is called, with the reward that it wraps."""
    while isinstance(function, partial):
        function = function.func
    name: str = getattr(function, "__qualname__", type(function).__qualname__)
    wrapped = _wrapped_reward(function)
    return name if wrapped is None else f"{name}({_name_of(wrapped)})"


def _wrapped_reward(function: Any) -> Any:
    """What a reward such as `Causal` holds as its `reward`; None where there is no such thing."""
    wrapped = getattr(function, "__dict__", {}).get("reward")
    return wrapped if callable(wrapped) else None


def _weights_of(reward: Any) -> str:
    """Digests of the networks that a reward is, holds, or wraps."""
    found = [model_digest(part) for part in _parts_of(reward) if isinstance(part, nn.Module)]
    return ", ".join(dict.fromkeys(found)) or "none"


def _settings_of(reward: Any) -> str:
    """The settings of a reward and of those that it wraps: fields of frozen dataclasses, and `fingerprint`s.

    Other attributes may be counters and caches, which change while a run goes on.
    """
    found = []
    for part in filter(callable, _parts_of(reward)):
        if dataclasses.is_dataclass(part) and part.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
            plain = [f"{name}={value!r}" for name, value in values.items() if _is_plain(value)]
            found += [f"{type(part).__name__}({', '.join(plain)})"] if plain else []
        if isinstance(given := getattr(part, "fingerprint", None), str):
            found.append(given)
    words = "; ".join(dict.fromkeys(found)) or "none"
    return words if len(words) <= 300 else f"{words[:300]}... with digest {_digest(words)}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _parts_of(value: Any, depth: int = 0, seen: set[int] | None = None) -> Iterator[Any]:
    """A reward, and what lies in it: attributes, entries of lists and dicts, what a partial or a method is bound to."""
    seen = set() if seen is None else seen
    if value is None or isinstance(value, str | bytes | int | float | type) or depth > DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    yield value
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping | list | tuple):
        inner = (value.values() if isinstance(value, Mapping) else value) if len(value) <= LONGEST else ()
    elif isinstance(value, partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif inspect.ismethod(value):
        inner = [value.__self__]
    elif callable(value) and not isinstance(value, nn.Module):
        inner = getattr(value, "__dict__", {}).values()
    for part in inner:
        yield from _parts_of(part, depth + 1, seen)


def _digest(value: Any) -> str:
    """The same for equal values of JSON; of anything else, its type counts."""
    text = json.dumps(value, sort_keys=True, default=lambda other: type(other).__name__)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
