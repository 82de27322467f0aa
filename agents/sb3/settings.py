"""The hyperparameters of stable-baselines3's agents as JSON, and back, taking nothing on trust."""

from __future__ import annotations

import inspect
from numbers import Real
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, ConfigurationError

__all__ = ["read_arguments", "read_groups", "read_policy_kwargs", "saved_arguments", "saved_policy_kwargs"]

# Arguments of the algorithms that are given anew at `load`, name a place to write, or say nothing about the training.
NOT_SAVED = {
    "self",
    "policy",
    "env",
    "policy_kwargs",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
    "tensorboard_log",
    "verbose",
    "device",
    "monitor_wrapper",
    "_init_setup_model",
}


def saved_arguments(agent: OnPolicyAlgorithm) -> dict[str, Any]:
    """The constructor's arguments, as the agent has them.

    Raises:
        ConfigurationError: one is a function that JSON cannot hold.
    """
    names = _parameters(type(agent)).keys() - NOT_SAVED
    return {name: _json_value(name, getattr(agent, name)) for name in sorted(names) if hasattr(agent, name)}


def saved_policy_kwargs(agent: OnPolicyAlgorithm) -> dict[str, Any]:
    """What the policy was made with, its optimizer's class aside.

    Raises:
        ConfigurationError: a model is among it.
    """
    kwargs = {k: v for k, v in agent.policy_kwargs.items() if k != "optimizer_class"}
    kwargs["optimizer_kwargs"] = agent.policy.optimizer_kwargs
    if "model" in kwargs or not isinstance(kwargs.get("critic", ""), str):
        raise ConfigurationError(
            "a model in policy_kwargs is not saved: give it to the environment; critic can be 'shared' or 'separate'"
        )
    return kwargs


def read_arguments(saved: dict[str, Any], algo_class: type[OnPolicyAlgorithm]) -> dict[str, Any]:
    """Saved arguments as the algorithm takes them; those of `NOT_SAVED`, such as places to write, are left out.

    Raises:
        CheckpointMismatchError: the algorithm has no such argument.
        CheckpointCorruptError: a value is of another kind than the argument's.
    """
    parameters = _parameters(algo_class)
    read = {}
    for name, value in saved.items():
        if name in NOT_SAVED:
            continue
        if name not in parameters:
            raise CheckpointMismatchError(f"the saved {name} is no argument of this version's {algo_class.__name__}")
        read[name] = _argument(name, value, parameters[name])
    return read


def read_policy_kwargs(saved: dict[str, Any]) -> dict[str, Any]:
    """Saved arguments of a policy of this package.

    Raises:
        CheckpointCorruptError: there is no such argument, or its value is of another kind.
    """
    checks = {
        "critic": lambda value: value in ("shared", "separate"),
        "temperature": lambda value: value is None or (_is_number(value) and value > 0),
        "optimizer_kwargs": lambda value: isinstance(value, dict) and all(map(_is_plain, value.values())),
    }
    for name, value in saved.items():
        if name not in checks or not checks[name](value):
            raise CheckpointCorruptError(f"the saved policy_kwargs hold {name}={value!r}: use another checkpoint")
    return saved


def read_groups(saved: Any, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Saved parameter groups of an optimizer, for one that has the groups `own`.

    Raises:
        CheckpointMismatchError: other parameters were trained.
        CheckpointCorruptError: a value is of another kind than the optimizer's own.
    """
    if not isinstance(saved, list) or not all(isinstance(group, dict) for group in saved):
        raise CheckpointCorruptError("the saved optimizer has no list of parameter groups: use another checkpoint")
    counts = [len(group["params"]) if isinstance(group.get("params"), list) else -1 for group in saved]
    if counts != [len(group["params"]) for group in own]:
        raise CheckpointMismatchError(
            f"{counts} tensors were trained, {[len(group['params']) for group in own]} are trainable here"
        )
    for group, other in zip(saved, own, strict=True):
        for name, value in group.items():
            if name not in other or not _alike(value, other[name]):
                raise CheckpointCorruptError(f"the saved optimizer has {name}={value!r}: use another checkpoint")
    return [{**other, **group} for group, other in zip(saved, own, strict=True)]


def _parameters(algo_class: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(algo_class.__init__).parameters)  # type: ignore[misc]


def _json_value(name: str, value: Any) -> Any:
    if isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, ConstantSchedule):
        value = value.val
    if isinstance(value, LinearSchedule):
        return {"linear": [value.start, value.end, value.end_fraction]}
    if callable(value):
        raise ConfigurationError(
            f"{name} is a function, which JSON cannot hold: use a number or stable-baselines3's LinearSchedule"
        )
    return value


def _argument(name: str, value: Any, parameter: inspect.Parameter) -> Any:
    """One argument, of the kind of its default; a schedule where the algorithm takes functions."""
    takes_schedule = "Callable" in str(parameter.annotation)
    if takes_schedule and isinstance(value, dict) and value.keys() == {"linear"}:
        numbers = value["linear"]
        if isinstance(numbers, list) and len(numbers) == 3 and all(map(_is_number, numbers)) and numbers[2] > 0:
            return LinearSchedule(*numbers)
    elif parameter.default is inspect.Parameter.empty or _alike(value, parameter.default):
        return value
    raise CheckpointCorruptError(f"the saved {name} cannot be {value!r}: use another checkpoint")


def _alike(value: Any, own: Any) -> bool:
    """Whether a value of JSON is of the kind of our own one."""
    if isinstance(own, bool):
        return value is None or isinstance(value, bool)
    if own is None:
        return value is None or isinstance(value, bool) or _is_number(value)
    if isinstance(own, int):
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(own, Real):
        return _is_number(value)
    if isinstance(own, list | tuple):
        return (
            isinstance(value, list)
            and len(value) == len(own)
            and all(_alike(v, o) for v, o in zip(value, own, strict=True))
        )
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool) or _is_number(value) or isinstance(value, list)
