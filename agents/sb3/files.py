"""Agents of stable-baselines3 on disk without pickle: safetensors and JSON.

`agent.save` of stable-baselines3 writes a zip that is unpickled on load, which runs whatever code is
in it.  `save` here writes a folder: the LM as transformers has it (`AutoModelForCausalLM.from_pretrained`
reads it), and `agent/` with the value head, the optimizer and the hyperparameters.  The writing is
that of `agents.run.checkpoint`: whole or not at all, with checksums.
"""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from transformers import PreTrainedModel

from agents.learning.policy import ValueHeadPolicy
from agents.sb3.vec_env import TextSpace
from lm_env.errors import CheckpointMismatchError, ConfigurationError, UnsafeFileError
from lm_env.models.export import export_language_model
from lm_env.models.optimization import join_optimizer, split_optimizer
from lm_env.objective.task import Task
from lm_env.storage import verify_folder, write_folder

__all__ = ["load", "save"]

Algorithm = TypeVar("Algorithm", bound=OnPolicyAlgorithm)

# Arguments of the algorithms that are given anew at `load`, or say nothing about the training.
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
OURS = ("CausalLMPolicy", "MaskableCausalLMPolicy", "EpisodeRolloutBuffer", "MaskableEpisodeRolloutBuffer")
STOCK = ("DictRolloutBuffer", "MaskableDictRolloutBuffer")
OPTIMIZERS = ("Adam", "AdamW", "RMSprop", "SGD")


def save(agent: OnPolicyAlgorithm, path: str | Path) -> Path:
    """Write an agent with a policy of this package to the folder `path`.

    Raises:
        ConfigurationError: a hyperparameter is neither a number nor a schedule that JSON can hold.
        CheckpointWriteError: see `write_folder`.
    """
    task = _task(agent)
    state = {
        "agent": type(agent).__name__,
        "policy": _known(type(agent.policy).__name__, OURS),
        "buffer": _known(type(agent.rollout_buffer).__name__, (*OURS, *STOCK)),
        "arguments": _arguments(agent),
        "policy_kwargs": _policy_kwargs(agent),
        "optimizer_class": _known(agent.policy.optimizer_class.__name__, OPTIMIZERS),
        "vocab_size": task.vocab_size,
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "kl": task.kl.state_dict(),
    }

    def fill(folder: Path) -> None:
        lm = task.adapter or network_of(agent).lm
        whole = export_language_model(lm, task.tokenizer, folder) and task.adapter is None
        own = folder / "agent"
        own.mkdir()
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in agent.policy.state_dict().items()}
        save_file(
            {k: v for k, v in tensors.items() if not (whole and k.startswith("network.lm."))},
            own / "policy.safetensors",
        )
        optimizer, layout = split_optimizer(agent.policy.optimizer.state_dict())
        save_file(optimizer, own / "optimizer.safetensors")
        (own / "state.json").write_text(json.dumps({**state, "optimizer": layout}))

    return write_folder(Path(path), fill)


def load(algo_class: type[Algorithm], path: str | Path, env: Any, **arguments: Any) -> Algorithm:
    """The agent saved at `path`, on `env`, whose model takes the saved weights.

    Args:
        algo_class: `PPO`, `A2C`, ...: the class that was saved.
        env: a `TextVecEnv`, wrapped or not, of the same vocabulary.
        arguments: of `algo_class`, in place of the saved ones (or beside them: `verbose`, `device`).

    Raises:
        UnsafeFileError: `path` is a file, such as a zip of stable-baselines3's own `save`.
        CheckpointCorruptError: a file is missing or damaged.
        CheckpointMismatchError: another algorithm, vocabulary or model.
    """
    if Path(path).is_file():
        raise UnsafeFileError(
            f"{path} is a file, and those of stable-baselines3 are unpickled: {algo_class.__name__}.load does that"
        )
    folder = verify_folder(Path(path))
    state = json.loads((folder / "agent" / "state.json").read_text())
    if state["agent"] != algo_class.__name__:
        raise CheckpointMismatchError(
            f"{path} holds a {state['agent']}, not a {algo_class.__name__}: load it with that class"
        )
    options = {name: _read_value(value) for name, value in state["arguments"].items()} | arguments
    policy_kwargs = {
        **state["policy_kwargs"],
        "optimizer_class": getattr(torch.optim, _known(state["optimizer_class"], OPTIMIZERS)),
    }
    agent = algo_class(
        _part(state["policy"]), env, policy_kwargs=policy_kwargs, rollout_buffer_class=_part(state["buffer"]), **options
    )
    task = _task(agent)
    if state["vocab_size"] != task.vocab_size:
        raise CheckpointMismatchError(
            f"vocab_size differs: {state['vocab_size']} in {path}, {task.vocab_size} in the environment"
        )
    _read_weights(agent, folder)
    agent.policy.optimizer.load_state_dict(
        join_optimizer(load_file(folder / "agent" / "optimizer.safetensors"), state["optimizer"])
    )
    agent.num_timesteps, agent._n_updates = state["num_timesteps"], state["n_updates"]
    task.kl.load_state_dict(state["kl"])
    return agent


# -- the model ---------------------------------------------------------------------------------------
def _read_weights(agent: OnPolicyAlgorithm, folder: Path) -> None:
    lm = network_of(agent).lm
    tensors = load_file(folder / "agent" / "policy.safetensors")
    if not any(name.startswith("network.lm.") for name in tensors) and isinstance(lm, PreTrainedModel):
        saved = type(lm).from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tensors |= {f"network.lm.{name}": value for name, value in saved.state_dict().items()}
    try:
        agent.policy.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointMismatchError(f"the weights in {folder} do not fit the environment's model: {error}") from error
    agent.policy.set_training_mode(True)  # weights have changed


# -- the hyperparameters -----------------------------------------------------------------------------
def _arguments(agent: OnPolicyAlgorithm) -> dict[str, Any]:
    """The constructor's arguments, as the agent has them."""
    names = set(inspect.signature(type(agent).__init__).parameters) - NOT_SAVED
    return {name: _json_value(name, getattr(agent, name)) for name in sorted(names) if hasattr(agent, name)}


def _policy_kwargs(agent: OnPolicyAlgorithm) -> dict[str, Any]:
    kwargs = {k: v for k, v in agent.policy_kwargs.items() if k != "optimizer_class"}
    kwargs["optimizer_kwargs"] = agent.policy.optimizer_kwargs
    if "model" in kwargs or not isinstance(kwargs.get("critic", ""), str):
        raise ConfigurationError(
            "a model in policy_kwargs is not saved: give it to the environment; critic can be 'shared' or 'separate'"
        )
    return kwargs


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


def _read_value(value: Any) -> Any:
    return LinearSchedule(*value["linear"]) if isinstance(value, dict) and "linear" in value else value


# -- parts by name -----------------------------------------------------------------------------------
def _part(name: str) -> Any:
    """The policy or buffer class of this name; None for a stock buffer, which an algorithm takes by itself."""
    return None if _known(name, (*OURS, *STOCK)) in STOCK else getattr(import_module("agents.sb3"), name)


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ConfigurationError(f"{name} is not saved or loaded by agents.sb3; known are {', '.join(names)}")
    return name


def network_of(agent: OnPolicyAlgorithm) -> ValueHeadPolicy:
    """The LM and the critic of an agent with a policy of this package."""
    return cast(ValueHeadPolicy, agent.policy.network)


def _task(agent: OnPolicyAlgorithm) -> Task:
    space = agent.observation_space
    env = space.env if isinstance(space, TextSpace) else None
    if env is None:
        raise ConfigurationError("agents.sb3 saves and loads agents on a TextVecEnv: make one with TextVecEnv.from_env")
    return env.task
