"""A task's fingerprint: what a checkpoint remembers of it, so that another task is noticed when training goes on.

A checkpoint holds weights, not the environment.  Weights of the same shapes fit a model with other
heads, and training goes on without a word under another reward or reference.  The fingerprint names
each of these things by a number, a name or a digest, and JSON holds it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError
from lm_env.models.adapters import base_tensors, without_wrapper
from lm_env.objective.task import Task

__all__ = ["check_fingerprint", "check_same_task", "compare_fingerprints", "task_fingerprint", "weights_digest"]

Fingerprint = dict[str, str | int | float]

WHOLE_BYTES = 512 * 2**20
"""Weights up to this size are hashed whole; of larger ones an even sample of about this size."""

# Settings of a model that change nothing of what it computes from weights that are given.
_WITHOUT_EFFECT = (
    "architectures",
    "chunk_size",
    "drop",
    "dtype",
    "init",
    "label",
    "name_or_path",
    "output_",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "task_specific",
    "token_id",
    "transformers_version",
    "use_cache",
)


def task_fingerprint(task: Task) -> Fingerprint:
    """What a checkpoint saves of its task.

    Keys that begin with `model.`, and `vocabulary`, say what the weights mean; all others say what is optimized.
    `reference` is a SHA-256 over all weights of the reference up to `WHOLE_BYTES`; see `weights_digest`.
    """
    prompts = [[p.ids.tolist(), p.text, dict(p.columns)] for p in task.prompts]
    return {
        **_model_settings(task.model),
        "vocabulary": _vocabulary(task),
        "reference": weights_digest(task.reference),
        "reward": _name_of(task.reward),
        "reward_weights": _reward_digest(task.reward),
        "prompts": f"{len(prompts)} with digest {_digest(prompts)}",
        "temperature": task.temperature,
        "max_new_tokens": task.max_new_tokens,
        "eos_token_ids": json.dumps(sorted(task.eos_token_ids)),
        "stop_strings": json.dumps(task.stop_strings),
        "missing_eos_score": json.dumps(task.missing_eos_score),
        "cap_truncates": task.cap_truncates,
        "action_mask": "none" if task.action_mask is None else _name_of(task.action_mask),
    }


def compare_fingerprints(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that differs; none if all is the same.

    Settings of the model that only one of the two names are passed over: another version of
    transformers may have added them.
    """
    names = [n for n in {**saved, **current} if not n.startswith("model.") or (n in saved and n in current)]
    absent = "nothing"
    return [
        f"{name} differs: {saved.get(name, absent)} was saved, {current.get(name, absent)} is given"
        for name in names
        if saved.get(name, absent) != current.get(name, absent)
    ]


def check_fingerprint(saved: Any, task: Task, path: Any, *, replaced: Collection[str] = ()) -> None:
    """Compare the fingerprint that was saved at `path` with the task that is given; nothing is changed.

    What is optimized may change on purpose, so another reward, reference, temperature, cap or other
    prompts are a warning.

    Args:
        replaced: keys that say nothing, because loading replaces what they stand for.

    Raises:
        CheckpointCorruptError: `saved` is no fingerprint.
        CheckpointMismatchError: the weights were saved for a model that computes something else
            (other heads, another activation), or for other tokens.
    """
    differences = [d for d in _differences(saved, task, path) if not d.startswith(tuple(replaced))]
    meaning = [d for d in differences if d.startswith(("model.", "vocabulary"))]
    if meaning:
        raise CheckpointMismatchError(f"{path} was saved for another model: {'; '.join(meaning)}")
    if differences:
        warnings.warn(
            f"{path} was saved for another task, and training goes on with the one given: {'; '.join(differences)}",
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
            f"the run in {path} has another task: {'; '.join(differences)}; give it the task that it began with (to"
            " train its weights on another one, load them and call learn)"
        )


def _differences(saved: Any, task: Task, path: Any) -> list[str]:
    if not isinstance(saved, Mapping) or "vocabulary" not in saved:
        raise CheckpointCorruptError(f"{path} holds no fingerprint of its task: use another checkpoint")
    return compare_fingerprints(saved, task_fingerprint(task))


@torch.no_grad()
def weights_digest(model: nn.Module, whole_bytes: int = WHOLE_BYTES) -> str:
    """A SHA-256 over a model's weights and settings, without those of an adapter in it.

    Of a model larger than `whole_bytes`, every n-th weight is read, so that about as many bytes are;
    the digest then says so.  The cost is that of reading these bytes once.
    """
    tensors = base_tensors(model)
    size = sum(t.numel() * t.element_size() for t in tensors)
    stride = max(-(-size // whole_bytes), 1)
    digest = hashlib.sha256(json.dumps(_model_settings(model)).encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1)[::stride].contiguous().cpu().view(torch.uint8).numpy().tobytes())
    kind = "all weights" if stride == 1 else f"a sample of 1 weight in {stride}"
    return f"{kind}, {digest.hexdigest()[:16]}"


def _model_settings(model: nn.Module) -> Fingerprint:
    """The class of a model, and what its configuration says of how it computes."""
    inside = without_wrapper(model)
    settings: Fingerprint = {"model.class": type(inside).__name__}
    config: Any = getattr(inside, "config", None)
    for name, value in sorted(config.to_dict().items() if hasattr(config, "to_dict") else ()):
        if not name.startswith("_") and not any(part in name for part in _WITHOUT_EFFECT):
            plain = isinstance(value, str | int | float)
            settings[f"model.{name}"] = value if plain else json.dumps(value, sort_keys=True, default=str)
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


def _reward_digest(reward: Any) -> str:
    """The weights of a reward that is a network, or holds networks as its attributes, or wraps such a reward.

    Where they are on another machine, its `fingerprint` stands for them.
    """
    held = [reward, *vars(reward).values()] if hasattr(reward, "__dict__") else [reward]
    rewards = [reward]
    while (wrapped := _wrapped_reward(rewards[-1])) is not None:
        rewards.append(wrapped)
        held += [wrapped, *getattr(wrapped, "__dict__", {}).values()]
    digests = [weights_digest(part) for part in held if isinstance(part, nn.Module)]
    digests += [given for part in rewards if isinstance(given := getattr(part, "fingerprint", None), str)]
    return ", ".join(dict.fromkeys(digests)) or "none"


def _digest(value: Any) -> str:
    """The same for equal values of JSON; of anything else, its type counts."""
    text = json.dumps(value, sort_keys=True, default=lambda other: type(other).__name__)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
