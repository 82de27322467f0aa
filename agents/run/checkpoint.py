"""A training run on disk: safetensors and JSON, never pickle; written whole or not at all, read whole or refused.

A checkpoint's folder is the language model in transformers' layout, and `agent/` with everything else.
This file knows what lies in the folder; what it means is for the agent that it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, NonFiniteError
from lm_env.models.loading import without_weight_bars
from lm_env.storage import verify_folder, write_folder

__all__ = ["Checkpoint", "folder_of", "language_model_tensors", "read_checkpoint", "write_checkpoint"]

FORMAT = 1
"""The version of what `write_checkpoint` writes."""

FIELDS: dict[str, type | tuple[type, ...]] = {
    "agent": str,
    "config": dict,
    "critic": (str, dict),
    "task": dict,
    "num_timesteps": int,
    "num_rollouts": int,
    "kl": dict,
    "randomness": dict,
    "optimizer": dict,
    "extra": dict,
}
"""What `Checkpoint.settings` holds, with the types of JSON."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a training run goes on from, apart from the environment."""

    settings: dict[str, Any]
    """JSON; see `FIELDS`."""
    weights: dict[str, Tensor]
    """The policy's tensors by name, without those of the language model where its own folder holds them."""
    updater: dict[str, Tensor]
    """The tensors of the optimizer and of the average of the weights."""


def folder_of(path: Path) -> Path:
    """The folder that a path names: stable-baselines3's callbacks put `.zip` behind what they save."""
    return path.with_suffix("") if path.suffix == ".zip" else path


def write_checkpoint(path: Path, checkpoint: Checkpoint, export: Callable[[Path], object]) -> Path:
    """Write a checkpoint, whole or not at all.

    Args:
        export: writes the language model into a folder, as `export_language_model` does.

    Raises:
        NonFiniteError: a weight is NaN or infinite; nothing was written.
        CheckpointWriteError: see `lm_env.storage.write_folder`.
    """
    for name, tensor in checkpoint.weights.items():
        check_finite(name, tensor)

    def fill(folder: Path) -> None:
        export(folder)
        own = folder / "agent"
        own.mkdir()
        save_file(checkpoint.weights, own / "policy.safetensors")
        save_file(checkpoint.updater, own / "optimizer.safetensors")
        (own / "state.json").write_text(json.dumps({"format": FORMAT, **checkpoint.settings}))

    return write_folder(folder_of(path), fill)


def read_checkpoint(path: Path) -> tuple[Checkpoint, Path]:
    """The newest whole checkpoint at `path`, and the folder that it was read from.

    Raises:
        CheckpointCorruptError: a file is missing, damaged, or not what an agent writes.
        CheckpointMismatchError: a later version of this package wrote it.
    """
    path = folder_of(path) if not path.exists() else path
    folder = verify_folder(path)
    own = folder / "agent"
    if not (own / "state.json").is_file():
        raise CheckpointCorruptError(f"{folder} holds no agent: {own / 'state.json'} is missing")
    try:
        settings = json.loads((own / "state.json").read_text())
        weights = load_file(own / "policy.safetensors")
        updater = load_file(own / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointCorruptError(f"{folder} holds no whole agent ({error}): use another checkpoint") from error
    _check_settings(settings, own / "state.json")
    return Checkpoint(settings, weights, updater), folder


def language_model_tensors(lm: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The weights of the language model that a checkpoint's folder holds, under the names that `lm` has for them.

    Raises:
        CheckpointCorruptError: the folder holds none.
    """
    assert isinstance(lm, PreTrainedModel)
    try:
        with without_weight_bars():
            saved = type(lm).from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointCorruptError(f"the language model in {folder} cannot be read: {error}") from error
    return saved.state_dict()


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise NonFiniteError for a tensor of weights with a NaN or an infinity."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError(
            f"{name} holds NaN or infinite weights, so nothing was saved: load the last checkpoint with a lower"
            " learning_rate"
        )


def _check_settings(settings: Any, file: Path) -> None:
    if not isinstance(settings, dict) or not isinstance(settings.get("format"), int):
        raise CheckpointCorruptError(f"{file} is not what an agent writes (it has no format): use another checkpoint")
    if settings["format"] > FORMAT:
        raise CheckpointMismatchError(
            f"{file} has format {settings['format']}, and this version of lm_env reads up to {FORMAT}: update lm_env"
        )
    for name, kind in FIELDS.items():
        value = settings.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            shown = "missing" if name not in settings else f"{value!r:.60}"
            raise CheckpointCorruptError(f"{name} in {file} is {shown}, and not what an agent writes")
