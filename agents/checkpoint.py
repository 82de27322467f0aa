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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointWriteError
from lm_env.models import without_weight_bars

if TYPE_CHECKING:
    from agents.base import BatchedAgent

__all__ = ["load_agent", "save_agent", "verify_folder", "write_folder"]

MANIFEST = "manifest.json"


# -- folders ---------------------------------------------------------------------------------------
def write_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Have `fill(folder)` write files, then put the folder at `path` in one step.

    Raises:
        CheckpointWriteError: anything went wrong; what was at `path` before is still there.
    """
    path = path.absolute()
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        fill(staging)
        files = sorted(p for p in staging.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(staging)): _digest(p) for p in files}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for file in [*files, staging / MANIFEST, staging]:
            _flush(file)
        os.chmod(staging, 0o755)
        _swap(staging, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        raise CheckpointWriteError(f"cannot write {path}: {error}; what was there before is untouched") from error
    return path


def verify_folder(path: Path) -> Path:
    """The newest whole folder at `path`.

    Raises:
        CheckpointCorruptError: a file is missing or differs from its checksum, in every copy.
    """
    problems = []
    for folder in (path, _previous(path)):
        problem = _problem(folder)
        if problem is None:
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


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _problem(folder: Path) -> str | None:
    if not (folder / MANIFEST).is_file():
        return f"{folder} is no saved agent (it has no {MANIFEST})"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest.items():
            if (folder / name).resolve().parent != (folder / name).parent.resolve() or ".." in Path(name).parts:
                return f"{folder / MANIFEST} names a file outside the folder"
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if _digest(folder / name) != digest:
                return f"{folder / name} is damaged (its checksum differs)"
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
        lm, adapter = agent.task.model, agent.task.adapter
        if isinstance(lm, PreTrainedModel):
            whole: Any = lm if adapter is None else copy.deepcopy(adapter).merge_and_unload()  # type: ignore[operator]
            with without_weight_bars():
                whole.save_pretrained(folder)
            if hasattr(agent.task.tokenizer, "save_pretrained"):
                agent.task.tokenizer.save_pretrained(folder)
        own = folder / "agent"
        own.mkdir()
        save_file(_tensors(agent), own / "policy.safetensors")
        tensors, layout = _split(agent.optimizer.state_dict())
        save_file(tensors, own / "optimizer.safetensors")
        state = {
            "agent": type(agent).__name__,
            "config": vars(agent.config),
            "vocab_size": agent.task.vocab_size,
            "num_timesteps": agent.num_timesteps,
            "num_rollouts": agent.num_rollouts,
            "kl": agent.task.kl.state_dict(),
            "prompt_rng": agent.prompt_rng.bit_generator.state,
            "shuffle_rng": agent.shuffle_rng.bit_generator.state,
            "generator": agent.generator.get_state().tolist(),
            "optimizer": layout,
        }
        (own / "state.json").write_text(json.dumps(state))

    return write_folder(path, fill)


def load_agent(cls: type[Any], path: Path, env: Any, **options: Any) -> Any:
    """The agent saved at `path`, on `env`, whose model takes the saved weights."""
    folder = verify_folder(path)
    state = json.loads((folder / "agent" / "state.json").read_text())
    if state["agent"] != cls.__name__:
        raise CheckpointMismatchError(
            f"{path} holds an agent of class {state['agent']}, not {cls.__name__}: load it with that class"
        )
    agent = cls(env, **state["config"], **options)
    if state["vocab_size"] != agent.task.vocab_size:
        raise CheckpointMismatchError(
            f"vocab_size differs: {state['vocab_size']} in {path}, {agent.task.vocab_size} in the environment"
        )
    lm = agent.task.model
    tensors = load_file(folder / "agent" / "policy.safetensors")
    if agent.task.adapter is not None:  # the base is the environment's own; only the adapter was trained
        tensors = agent.policy.state_dict() | tensors
    elif isinstance(lm, PreTrainedModel):
        with without_weight_bars():
            saved = type(lm).from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tensors |= {f"lm.{k}": v for k, v in saved.state_dict().items()}
    try:
        agent.policy.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointMismatchError(f"the weights in {path} do not fit the environment's model: {error}") from error
    agent.optimizer.load_state_dict(_join(load_file(folder / "agent" / "optimizer.safetensors"), state["optimizer"]))
    agent.num_timesteps = state["num_timesteps"]
    agent.num_rollouts = state["num_rollouts"]
    agent.task.kl.load_state_dict(state["kl"])
    agent.prompt_rng.bit_generator.state = state["prompt_rng"]
    agent.shuffle_rng.bit_generator.state = state["shuffle_rng"]
    agent.generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))
    return agent


def _tensors(agent: BatchedAgent) -> dict[str, Tensor]:
    """What the LM's own folder does not hold: heads, critics, a table's rows, an adapter's weights."""
    state = agent.policy.state_dict()
    if isinstance(agent.task.model, PreTrainedModel):
        own = (
            {n for n, p in agent.policy.named_parameters() if p.requires_grad}
            if agent.task.adapter is not None
            else set()
        )
        state = {k: v for k, v in state.items() if not k.startswith("lm.") or k in own}
    return {k: v.detach().clone().contiguous() for k, v in state.items()}


def _split(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state -> (its tensors, all else as JSON)."""
    tensors = {f"{i}.{k}": v.detach().cpu().clone() for i, entry in state["state"].items() for k, v in entry.items()}
    return tensors, {"param_groups": state["param_groups"]}


def _join(tensors: dict[str, Tensor], layout: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": layout["param_groups"]}
