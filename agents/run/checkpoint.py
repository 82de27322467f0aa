"""A training run on disk: safetensors and JSON, never pickle; written whole or not at all, read whole or refused.

A checkpoint's folder is the language model in transformers' layout, and `agent/` with everything else.
This file defines the folder's layout; the agent interprets the contents.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lm_env.distributed import processes
from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, ModelLoadError
from lm_env.models.export import check_finite
from lm_env.models.loading import read_pretrained
from lm_env.storage import read_json, write_folder

__all__ = ["Checkpoint", "checkpoint_from_first", "language_model_tensors", "read_checkpoint", "write_checkpoint"]

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
    """The policy's tensors by name.  On disk the language model's are left out if its exported folder holds them."""
    updater: dict[str, Tensor]
    """The tensors of the optimizer and of the average of the weights."""


def write_checkpoint(path: Path, checkpoint: Checkpoint, export: Callable[[Path], object]) -> Path:
    """Write a checkpoint, whole or not at all.

    Args:
        export: writes the language model into a folder, as `export_language_model` does.

    Raises:
        NonFiniteError: a weight is NaN or infinite; nothing was written.
        CheckpointWriteError: see `lm_env.storage.write_folder`.
    """
    check_finite(checkpoint.weights)

    def fill(folder: Path) -> None:
        export(folder)
        own = folder / "agent"
        own.mkdir()
        save_file(checkpoint.weights, own / "policy.safetensors")
        save_file(checkpoint.updater, own / "optimizer.safetensors")
        (own / "state.json").write_text(json.dumps({"format": FORMAT, **checkpoint.settings}))

    return write_folder(path, fill)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a verified folder, as `lm_env.storage.read_folder` hands one out.

    Raises:
        CheckpointCorruptError: a file is missing, damaged, or not what an agent writes.
        CheckpointMismatchError: a later version of this package wrote it.
    """
    own = folder / "agent"
    if not (own / "state.json").is_file():
        raise CheckpointCorruptError("it holds no agent (agent/state.json is missing): load what was saved there")
    settings = read_json(own / "state.json")
    _check_settings(settings)
    try:
        weights = load_file(own / "policy.safetensors")
        updater = load_file(own / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointCorruptError(f"the agent's weights cannot be read ({error}): use another checkpoint") from error
    return Checkpoint(settings, weights, updater)


def checkpoint_from_first(checkpoint: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint that the first of several processes has read, in all of them; None where it found none."""
    content = None
    if checkpoint is not None:
        weights = {f"weights.{name}": tensor for name, tensor in checkpoint.weights.items()}
        updater = {f"updater.{name}": tensor for name, tensor in checkpoint.updater.items()}
        content = (checkpoint.settings, weights | updater)
    given = processes().from_first(content)
    if given is None:
        return None
    settings, tensors = given
    weights, updater = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("weights.", "updater.")
    )
    return Checkpoint(settings, weights, updater)


def language_model_tensors(lm: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The weights of the language model in a verified folder, under the names that `lm` has for them.

    Raises:
        CheckpointCorruptError: the folder holds none.
    """
    try:
        saved: nn.Module = read_pretrained(type(lm), folder, name=folder)
    except ModelLoadError as error:
        raise CheckpointCorruptError(f"the language model cannot be read: {error}") from error
    return saved.state_dict()


def _check_settings(settings: dict[str, Any]) -> None:
    version = settings.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointCorruptError(
            f"state.json is not what an agent writes (its format is {version!r:.60}): use another checkpoint"
        )
    if settings["format"] > FORMAT:
        raise CheckpointMismatchError(
            f"state.json has format {settings['format']}, and this lm_env reads up to {FORMAT}: update lm_env"
        )
    for name, kind in FIELDS.items():
        value = settings.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            shown = "missing" if name not in settings else f"{value!r:.60}"
            raise CheckpointCorruptError(
                f"{name} in state.json is {shown}, and not what an agent writes: use another checkpoint"
            )
