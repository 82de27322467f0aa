"""Agents on disk: safetensors and JSON, never pickle; whole or not at all.

A folder is written beside its place under a temporary name, with a manifest of checksums last,
flushed, and renamed.  What was there before is moved to `NAME.previous` and removed afterwards, so a
process killed at any moment leaves a whole folder behind; the loader looks for both.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from agents.critic import describe_critic, rebuild_critic
from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointWriteError
from lm_env.models import is_quantized, without_weight_bars
from lm_env.task import Task

if TYPE_CHECKING:
    from agents.base import BatchedAgent

__all__ = ["join_optimizer", "load_agent", "save_agent", "split_optimizer", "verify_folder", "write_folder"]

MANIFEST = "manifest.json"


# -- folders ---------------------------------------------------------------------------------------
def check_destination(path: Path) -> None:
    """Raise CheckpointWriteError where `write_folder` could not write; better before the work than after it."""
    path = path.absolute()
    try:
        for folder in (path, _previous(path)):
            if folder.exists() and not (folder / MANIFEST).is_file() and not _is_empty(folder):
                raise FileExistsError(f"{folder} was not saved by this package; choose another name or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent).cleanup()
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; what was there before is untouched") from error


def write_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Have `fill(folder)` write files, then put the folder at `path` in one step.

    Raises:
        CheckpointWriteError: anything went wrong, or `path` holds something that was not written here;
            what was at `path` before is still there.
    """
    path = path.absolute()
    check_destination(path)
    staging: Path | None = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        fill(staging)
        files = sorted(p for p in staging.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(staging)): _digest(p) for p in files}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for written in [*staging.rglob("*"), staging]:
            _flush(written)
        os.chmod(staging, 0o755)
        _swap(staging, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; what was there before is untouched") from error
    finally:
        if staging is not None:  # gone already if all went well
            shutil.rmtree(staging, ignore_errors=True)
    return path


def verify_folder(path: Path) -> Path:
    """The newest whole folder at `path`; a warning tells of one that was passed over.

    Raises:
        CheckpointCorruptError: a file is missing or differs from its checksum, in every copy.
    """
    problems: list[str] = []
    for folder in (path, _previous(path)):
        problem = _problem(folder)
        if problem is None:
            if problems:
                warnings.warn(f"{problems[0]}: taking {folder}, which was saved before it", stacklevel=4)
            return folder
        problems.append(problem)
    raise CheckpointCorruptError(f"{problems[0]}: use another checkpoint, or save again")


def _swap(staging: Path, path: Path) -> None:
    previous = _previous(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(path, previous)
    os.rename(staging, path)
    _flush(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _problem(folder: Path) -> str | None:
    if not (folder / MANIFEST).is_file():
        return f"{folder} is no saved agent (it has no {MANIFEST})"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest.items():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                return f"{folder / MANIFEST} names a file outside the folder"
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if _digest(folder / name) != digest:
                return f"{folder / name} is damaged (its checksum differs)"
        # transformers reads what it finds (an adapter, say), so nothing of that kind may have been added.
        for file in [*folder.glob("*"), *folder.glob("agent/*")]:
            if file.suffix in (".json", ".safetensors") and str(file.relative_to(folder)) not in {MANIFEST, *manifest}:
                return f"{file} was added later (it is not in {MANIFEST})"
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder / MANIFEST} is damaged ({error})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- agents ----------------------------------------------------------------------------------------
def save_agent(agent: BatchedAgent, path: Path) -> Path:
    """The LM in transformers' layout (with its tokenizer), and `agent/` with all else."""

    def fill(folder: Path) -> None:
        if isinstance(agent.task.model, PreTrainedModel):
            _export(agent.task, folder)
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


def _export(task: Task, folder: Path) -> None:
    """The LM as `AutoModelForCausalLM` reads it: adapters merged, or, over a quantised base, beside its name."""
    lm: Any = task.model
    adapter: Any = task.adapter
    with without_weight_bars():
        if adapter is None:
            lm.save_pretrained(folder)
        elif is_quantized(lm):  # merged, they would be rounded
            adapter.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub
        else:
            copy.deepcopy(adapter).merge_and_unload().save_pretrained(folder)
    if hasattr(task.tokenizer, "save_pretrained"):
        task.tokenizer.save_pretrained(folder)


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
