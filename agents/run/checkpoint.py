"""Agents on disk: safetensors and JSON, never pickle; whole or not at all.

A folder is written beside its place under a temporary name, with a manifest of checksums last,
flushed, and renamed.  What was there before is moved to `NAME.previous` and removed afterwards, so a
process killed at any moment leaves a whole folder behind; the loader looks for both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from agents.learning.critic import describe_critic, rebuild_critic
from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError
from lm_env.models.export import export_language_model
from lm_env.models.loading import without_weight_bars
from lm_env.storage import verify_folder, write_folder

if TYPE_CHECKING:
    from agents.base.agent import BatchedAgent

__all__ = ["join_optimizer", "load_agent", "save_agent", "split_optimizer"]


# -- agents ----------------------------------------------------------------------------------------
def save_agent(agent: BatchedAgent, path: Path) -> Path:
    """The LM in transformers' layout (with its tokenizer), and `agent/` with all else."""

    def fill(folder: Path) -> None:
        if isinstance(agent.task.model, PreTrainedModel):
            export_language_model(agent.task.adapter or agent.task.model, agent.task.tokenizer, folder)
        own = folder / "agent"
        own.mkdir()
        save_file(_tensors(agent), own / "policy.safetensors")
        tensors, layout = split_optimizer(agent.optimizer.state_dict())
        save_file(tensors, own / "optimizer.safetensors")
        state = {
            "agent": type(agent).__name__,
            "config": vars(agent.config),
            "critic": describe_critic(agent.policy),
            "model": type(agent.task.model).__name__,
            "vocab_size": agent.task.vocab_size,
            "num_timesteps": agent.num_timesteps,
            "num_rollouts": agent.num_rollouts,
            "kl": agent.task.kl.state_dict(),
            "prompt_rng": agent.prompt_rng.bit_generator.state,
            "shuffle_rng": agent.shuffle_rng.bit_generator.state,
            "generator": agent.generator.get_state().tolist(),
            "optimizer": layout,
            "extra": agent.extra_state(),
        }
        (own / "state.json").write_text(json.dumps(state))

    return write_folder(path, fill)


def load_agent(cls: type[Any], path: Path, env: Any, **options: Any) -> Any:
    """The agent saved at `path`, on `env`, whose model takes the saved weights.

    Nothing of the environment has changed if this raises.

    Args:
        options: of the class, in place of the saved ones or beside them.
    """
    folder = verify_folder(path)
    if not (folder / "agent" / "state.json").is_file():
        raise CheckpointCorruptError(f"{folder} holds no agent: {folder / 'agent' / 'state.json'} is missing")
    state = json.loads((folder / "agent" / "state.json").read_text())
    if state["agent"] != cls.__name__:
        raise CheckpointMismatchError(
            f"{path} holds an agent of class {state['agent']}, not {cls.__name__}: load it with that class"
        )
    if "critic" not in options:
        options["critic"] = rebuild_critic(state["critic"])
    agent = cls(env, **{**state["config"], **options})
    found = {"model": type(agent.task.model).__name__, "vocab_size": agent.task.vocab_size}
    for name, value in found.items():
        if state[name] != value:
            raise CheckpointMismatchError(f"{name} differs: {state[name]} in {path}, {value} in the environment")
    tensors = _read_tensors(agent, folder)
    optimizer = join_optimizer(load_file(folder / "agent" / "optimizer.safetensors"), state["optimizer"])
    if misfit := _misfit(agent, tensors, optimizer):
        raise CheckpointMismatchError(f"the weights in {path} do not fit the environment's model: {misfit}")
    agent.task.kl.load_state_dict(state["kl"])  # the last that can be refused
    weights = {k: v for k, v in tensors.items() if not k.startswith("ema.")}
    agent.policy.load_state_dict(weights, strict=agent.task.adapter is None)
    if agent.ema is not None:
        agent.ema.load_state_dict({k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")})
    agent.optimizer.load_state_dict(optimizer)
    agent.num_timesteps = state["num_timesteps"]
    agent.num_rollouts = state["num_rollouts"]
    agent.prompt_rng.bit_generator.state = state["prompt_rng"]
    agent.shuffle_rng.bit_generator.state = state["shuffle_rng"]
    agent.generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))
    agent.load_extra_state(state["extra"])
    return agent


def _tensors(agent: BatchedAgent) -> dict[str, Tensor]:
    """What the LM's own folder does not hold: heads, critics, averages, a table's rows; all that an adapter trains."""
    state = agent.policy.state_dict()
    if agent.task.adapter is not None:
        trained = {n for n, p in agent.policy.named_parameters() if p.requires_grad}
        state = {k: v for k, v in state.items() if k in trained}
    elif isinstance(agent.task.model, PreTrainedModel):
        state = {k: v for k, v in state.items() if not k.startswith("lm.")}
    if agent.ema is not None:
        state |= {f"ema.{k}": v for k, v in agent.ema.state_dict().items()}
    return {k: v.detach().clone().contiguous() for k, v in state.items()}


def _read_tensors(agent: BatchedAgent, folder: Path) -> dict[str, Tensor]:
    """What `_tensors` wrote, and the LM's own weights, by the names that they have in the policy."""
    tensors = load_file(folder / "agent" / "policy.safetensors")
    lm = agent.task.model
    # Under an adapter the base is the environment's own; only the adapter was trained.
    if isinstance(lm, PreTrainedModel) and agent.task.adapter is None:
        with without_weight_bars():
            saved = type(lm).from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tensors |= {f"lm.{k}": v for k, v in saved.state_dict().items()}
    return tensors


def _misfit(agent: BatchedAgent, tensors: dict[str, Tensor], optimizer: dict[str, Any]) -> str | None:
    """What of the saved state has no place in the agent, or the other way round; None if all fits."""
    own = agent.policy.state_dict() if agent.task.adapter is None else {}
    own |= _tensors(agent)
    if odd := sorted(own.keys() ^ tensors.keys()):
        return f"{odd[0]} is only in {'the environment' if odd[0] in own else 'the checkpoint'}"
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            return f"{name} has the shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
    counts = [[len(g["params"]) for g in o["param_groups"]] for o in (optimizer, agent.optimizer.state_dict())]
    return None if counts[0] == counts[1] else f"{counts[0]} tensors were trained, {counts[1]} are trainable here"


def split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state -> (its tensors, all else as JSON)."""
    tensors = {f"{i}.{k}": v.detach().cpu().clone() for i, entry in state["state"].items() for k, v in entry.items()}
    return tensors, {"param_groups": state["param_groups"]}


def join_optimizer(tensors: dict[str, Tensor], layout: dict[str, Any]) -> dict[str, Any]:
    """The state that `split_optimizer` has split."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": layout["param_groups"]}
