"""Agents of stable-baselines3 on disk without pickle: safetensors and JSON.

`agent.save` of stable-baselines3 writes a zip that is unpickled on load, which runs whatever code is
in it.  `save` here writes a folder: the LM as transformers has it (`AutoModelForCausalLM.from_pretrained`
reads it), and `agent/` with the value head, the optimizer, the hyperparameters and a fingerprint of the
task.  The writing is that of `lm_env.storage`: whole or not at all, with checksums.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor
from transformers import PreTrainedModel

from agents.learning.policy import ValueHeadPolicy
from agents.sb3.settings import (
    read_arguments,
    read_groups,
    read_policy_kwargs,
    saved_arguments,
    saved_policy_kwargs,
)
from agents.sb3.vec_env import TextSpace
from lm_env.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    ConfigurationError,
    LMEnvError,
    UnsafeFileError,
)
from lm_env.models.export import check_finite, check_mergeable, export_language_model
from lm_env.models.loading import read_pretrained
from lm_env.models.optimization import join_optimizer, split_optimizer
from lm_env.objective.fingerprint import check_fingerprint, task_fingerprint
from lm_env.objective.task import Task
from lm_env.storage import folder_of, read_folder, read_json, write_folder
from lm_env.validation import check_integer, checked_path

__all__ = ["load", "save"]

Algorithm = TypeVar("Algorithm", bound=OnPolicyAlgorithm)

VERSION = 1  # of agent/state.json
OURS = ("CausalLMPolicy", "MaskableCausalLMPolicy", "EpisodeRolloutBuffer", "MaskableEpisodeRolloutBuffer")
STOCK = ("DictRolloutBuffer", "MaskableDictRolloutBuffer")
OPTIMIZERS = ("Adam", "AdamW", "RMSprop", "SGD")

STATE = {
    "version": int,
    "agent": str,
    "policy": str,
    "buffer": str,
    "arguments": dict,
    "policy_kwargs": dict,
    "optimizer_class": str,
    "fingerprint": dict,
    "num_timesteps": int,
    "n_updates": int,
    "kl": dict,
    "optimizer": dict,
}
"""What agent/state.json holds."""


@dataclass(frozen=True)
class _Saved:
    """All that was read from a folder, before anything is changed."""

    state: dict[str, Any]
    tensors: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save(agent: OnPolicyAlgorithm, path: str | Path, *, merge: bool = False) -> Path:
    """Write an agent with a policy of this package to the folder `path`; one that ends in `.zip` loses that ending.

    Args:
        merge: of a peft model, write the whole language model, its adapter merged into a copy of it; otherwise the
            adapter alone.

    Raises:
        ConfigurationError: a hyperparameter is neither a number nor a schedule that JSON can hold.
        NonFiniteError: a weight is NaN or infinite; nothing was written.
        CheckpointWriteError: see `write_folder`.
    """
    env = agent.get_env()  # after set_env, not the one that the policy was made for
    task = _task(agent.observation_space if env is None else env.observation_space)
    lm = network_of(agent).lm
    adapter = task.adapter if task.model is lm else None
    checked_path("the path", path)
    if merge:
        check_mergeable(adapter or lm)
    base = getattr(task.reference, "name_or_path", None)
    check_finite(agent.policy.state_dict())
    optimizer, layout = split_optimizer(agent.policy.optimizer.state_dict())
    state = {
        "version": VERSION,
        "agent": type(agent).__name__,
        "policy": _known(type(agent.policy).__name__, OURS),
        "buffer": _known(type(agent.rollout_buffer).__name__, (*OURS, *STOCK)),
        "arguments": saved_arguments(agent),
        "policy_kwargs": saved_policy_kwargs(agent),
        "optimizer_class": _known(agent.policy.optimizer_class.__name__, OPTIMIZERS),
        "fingerprint": task_fingerprint(task),
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "kl": task.kl.state_dict(),
        "optimizer": layout,
    }

    def fill(folder: Path) -> None:
        written = export_language_model(adapter or lm, task.tokenizer, folder, merge=merge, base=base)
        whole = written and adapter is None
        own = folder / "agent"
        own.mkdir()
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in agent.policy.state_dict().items()}
        save_file(
            {k: v for k, v in tensors.items() if not (whole and k.startswith("network.lm."))},
            own / "policy.safetensors",
        )
        save_file(optimizer, own / "optimizer.safetensors")
        (own / "state.json").write_text(json.dumps(state))

    return write_folder(path, fill)


def load(algo_class: type[Algorithm], path: str | Path, env: Any, **arguments: Any) -> Algorithm:
    """The agent saved at `path`, on `env`, whose model takes the saved weights.

    If this raises, no weight of the environment has changed.  A warning tells of another reward,
    reference, temperature, length cap or other prompts than those of the saved agent, and of another
    fixed beta, which the saved one replaces.

    Args:
        algo_class: `PPO`, `A2C`, ...: the class that was saved.
        env: a `TextVecEnv`, wrapped or not, of the same vocabulary.
        arguments: of `algo_class`, in place of the saved ones, or beside them (`verbose`, `device`,
            `tensorboard_log`): places to write are not taken from a file.

    Raises:
        UnsafeFileError: `path` is a file, such as a zip of stable-baselines3's own `save`.
        CheckpointCorruptError: a file is missing or damaged.
        CheckpointMismatchError: another algorithm, vocabulary or model, or a later version of the format.
    """
    if checked_path("the path", path).is_file() and not folder_of(path).is_dir():
        raise UnsafeFileError(
            f"{path} is a file, and those of stable-baselines3 are unpickled: {algo_class.__name__}.load does that"
        )
    task = _task(getattr(env, "observation_space", None))
    saved = read_folder(path, lambda folder: _read(folder, path, algo_class, task))
    state = saved.state
    options = read_arguments(state["arguments"], algo_class) | arguments
    policy_kwargs = {
        **read_policy_kwargs(state["policy_kwargs"]),
        "optimizer_class": getattr(torch.optim, _known(state["optimizer_class"], OPTIMIZERS)),
    }
    policy = _part(state["policy"])
    buffer = _part(state["buffer"])
    try:
        agent = algo_class(policy, env, policy_kwargs=policy_kwargs, rollout_buffer_class=buffer, **options)
    except LMEnvError:
        raise
    except (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointMismatchError(
            f"no {algo_class.__name__} can be made with the arguments saved in {path} and those given ({error})"
        ) from error
    _check_fit(agent.policy.state_dict(), saved.tensors, path)
    optimizer = _read_optimizer(agent, saved, path)
    try:
        task.kl.load_state_dict(state["kl"])  # the last that can be refused
    except (ConfigurationError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointMismatchError):
            raise
        raise CheckpointCorruptError(f"the KL controller saved in {path} cannot be restored ({error})") from error
    agent.policy.load_state_dict(saved.tensors)
    agent.policy.optimizer.load_state_dict(optimizer)
    agent.policy.set_training_mode(True)  # weights have changed
    agent.num_timesteps = state["num_timesteps"]
    agent._n_updates = state["n_updates"]
    return agent


# -- reading -----------------------------------------------------------------------------------------
def _read(folder: Path, path: str | Path, algo_class: type, task: Task) -> _Saved:
    state = read_json(folder / "agent" / "state.json")
    _check_state(state, path)
    if state["agent"] != algo_class.__name__:
        raise CheckpointMismatchError(
            f"{path} holds a {state['agent']}, not a {algo_class.__name__}: load it with that class"
        )
    # Under an adapter, the base is saved with it; where the base is the reference, it comes back with it.
    base_is_reference = task.adapter is not None and task.reference is task.model
    check_fingerprint(state["fingerprint"], task, path, replaced=["reference"] if base_is_reference else [])
    try:
        tensors = load_file(folder / "agent" / "policy.safetensors")
        optimizer = load_file(folder / "agent" / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointCorruptError(f"the weights in {path} cannot be read ({error})") from error
    if not any(name.startswith("network.lm.") for name in tensors) and isinstance(task.model, PreTrainedModel):
        lm = read_pretrained(type(task.model), folder, name=path)
        tensors |= {f"network.lm.{name}": value for name, value in lm.state_dict().items()}
    return _Saved(state, tensors, optimizer)


def _check_state(state: dict[str, Any], path: str | Path) -> None:
    version = state.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointMismatchError(
            f"{path} holds an agent in version {version} of the format and this package reads up to {VERSION}:"
            " use a newer lm_env"
        )
    for name, kind in STATE.items():
        if type(state.get(name)) is not kind:
            raise CheckpointCorruptError(
                f"{path} holds no agent of agents.sb3 ({name} in state.json is no {kind.__name__})"
            )
    if version != VERSION:
        raise CheckpointCorruptError(f"{path}: version {version} of the format never was")
    try:
        for name in ("num_timesteps", "n_updates"):
            check_integer(name, state[name], low=0)
        for name, names in (("policy", OURS), ("buffer", (*OURS, *STOCK)), ("optimizer_class", OPTIMIZERS)):
            _known(state[name], names)
    except ConfigurationError as error:
        raise CheckpointCorruptError(f"{path}: {error}") from error


def _check_fit(own: dict[str, Tensor], tensors: dict[str, Tensor], path: str | Path) -> None:
    """All of it before the first weight is replaced, which `load_state_dict` does not do."""
    misfit = None
    if odd := sorted(own.keys() ^ tensors.keys()):
        misfit = f"{odd[0]} is only in {'the environment' if odd[0] in own else 'the checkpoint'}"
    for name in sorted(own.keys() & tensors.keys()):
        if own[name].shape != tensors[name].shape:
            misfit = misfit or f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
    if misfit is not None:
        raise CheckpointMismatchError(f"the weights in {path} do not fit the environment's model: {misfit}")


def _read_optimizer(agent: OnPolicyAlgorithm, saved: _Saved, path: str | Path) -> dict[str, Any]:
    """The optimizer's state, checked against the one that takes it."""
    own = agent.policy.optimizer
    parameters = [p for group in own.param_groups for p in group["params"]]
    groups = read_groups(saved.state["optimizer"].get("param_groups"), own.state_dict()["param_groups"])
    try:
        joined = join_optimizer(saved.optimizer, {"param_groups": groups})
    except ValueError as error:
        raise CheckpointCorruptError(f"the optimizer saved in {path} names no tensors ({error})") from error
    for index, entries in joined["state"].items():
        fits = 0 <= index < len(parameters)
        if not fits or any(t.ndim and t.shape != parameters[index].shape for t in entries.values()):
            raise CheckpointMismatchError(f"the optimizer saved in {path} does not fit the trainable weights")
    return joined


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


def _task(space: Any) -> Task:
    env = space.env if isinstance(space, TextSpace) else None
    if env is None:
        raise ConfigurationError("agents.sb3 saves and loads agents on a TextVecEnv: make one with TextVecEnv.from_env")
    return env.task
