"""The weights under training as files that vLLM loads: the whole model, with its adapter merged in."""

from __future__ import annotations

from pathlib import Path

from lm_env.errors import UnsupportedModelError
from lm_env.models.export import export_language_model
from lm_env.objective.task import Task
from lm_env.storage import write_folder

__all__ = ["write_weights"]


def write_weights(task: Task, folder: Path) -> None:
    """Write the task's model and tokenizer into a folder, whole or not at all.

    Raises:
        UnsupportedModelError: the model is none of transformers'.
        ConfigurationError: it has an adapter on a quantized base, which cannot be merged.
        CheckpointWriteError: see `lm_env.storage.write_folder`.
    """

    def fill(new: Path) -> None:
        model = task.adapter or task.model
        if not export_language_model(model, task.tokenizer, new, merge=task.adapter is not None):
            raise UnsupportedModelError(
                f"{type(task.model).__name__} is no transformers model, so vLLM cannot load it: use LocalBackend"
            )

    write_folder(folder, fill)
