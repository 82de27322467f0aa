"""What a task is, in a line for people and as JSON for logs; no weights, no lists of prompts."""

from __future__ import annotations

import inspect
import os
from typing import Any

from torch import nn

from lm_env.objective.kl import FixedKL, KLController
from lm_env.objective.rewards import name_of
from lm_env.objective.scores import short_repr

__all__ = [
    "count_in_words",
    "describe_task",
    "env_in_words",
    "id_of",
    "name_of_model",
    "parameters_in_words",
    "reward_in_words",
    "task_in_words",
]


def count_in_words(count: int) -> str:
    """A count in three digits: 999, 3.42k, 135M, 1.24B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def parameters_in_words(model: nn.Module) -> str:
    """The number of a model's parameters, and of those that are trained where these are others."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    words = f"{count_in_words(total)} parameters"
    return words if trained in (0, total) else f"{words}, {count_in_words(trained)} trained"


def name_of_model(model: nn.Module | str | os.PathLike) -> str:
    """What a model was asked for by; a live one goes by its class."""
    return str(os.fspath(model)) if isinstance(model, str | os.PathLike) else type(model).__name__


def reward_in_words(reward: object) -> str:
    """A reward function by its name, or by its `repr` where it has one that tells more."""
    if inspect.isroutine(reward) or type(reward).__repr__ is object.__repr__:
        modules = [value for value in getattr(reward, "__dict__", {}).values() if isinstance(value, nn.Module)]
        return f"{name_of(reward)} ({parameters_in_words(modules[0])})" if modules else name_of(reward)
    return " ".join(short_repr(reward, 300).split())


def _beta_in_words(kl: KLController) -> str:
    return f"beta {kl.beta:g}" if isinstance(kl, FixedKL) else f"beta {kl.beta:.4g} ({type(kl).__name__})"


def task_in_words(task: Any) -> str:
    """A `Task` in one line, without its name."""
    prompts = f"{len(task.prompts):,} prompt{'s' if len(task.prompts) != 1 else ''}"
    return (
        f"{task.model_name} with {parameters_in_words(task.model)}, {prompts}, reward"
        f" {_cut(reward_in_words(task.reward))}, {_beta_in_words(task.kl)}, at most {task.max_new_tokens} new"
        " tokens"
    )


def id_of(env: Any) -> str | None:
    """The id that an environment is registered under; None for one that was made by its class."""
    spec = getattr(env, "spec", None)
    return None if spec is None else str(spec.id)


def env_in_words(env: Any) -> str:
    """An environment with a `task`, and with `num_envs` where there are several texts at a time, in one line."""
    name = id_of(env)
    several = getattr(env, "num_envs", None)
    begin = f"{name}: " if name else ""
    begin += "" if several is None else f"{several} at a time, "
    return f"{type(env).__name__}({begin}{task_in_words(env.task)})"


def _cut(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def describe_task(task: Any) -> dict[str, Any]:
    """The options of a `Task` as JSON, with the names of what JSON cannot hold."""
    return {
        "model": task.model_name,
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "trained_parameters": sum(p.numel() for p in task.model.parameters() if p.requires_grad),
        "adapter": task.adapter is not None,
        "prompts": len(task.prompts),
        "reward": reward_in_words(task.reward),
        "kl_controller": type(task.kl).__name__,
        "beta": task.kl.beta,
        "max_prompt_tokens": task.max_prompt_tokens,
        "max_new_tokens": task.max_new_tokens,
        "temperature": task.temperature,
        "stop_strings": list(task.stop_strings),
        "missing_eos_score": task.missing_eos_score,
        "cap_truncates": task.cap_truncates,
        "action_mask": None if task.action_mask is None else name_of(task.action_mask),
    }
