"""What `lm-env sft` and `lm-env dpo` share: a copy of a model that is fine-tuned, and the folder it is written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_env.errors import ConfigurationError
from lm_env.models.adapters import add_lora
from lm_env.models.export import export_language_model
from lm_env.models.loading import load_model, load_tokenizer
from lm_env.runs.console import say, speaks_and_writes
from lm_env.runs.folder import check_new
from lm_env.storage import Checkpointing, check_destination, remove_checkpoints, write_folder

__all__ = ["FineTuning", "steps_made"]


class FineTuning:
    """A fine-tuning of one model into one folder; of several processes only the first one writes.

    On the way it is saved in a folder beside `out`, every ten minutes and when a signal ends it.

    Args:
        out: the folder that `write` makes, in transformers' layout.
        lora: train adapters of this rank; they are written alone, or with `merge` as a whole model.

    Raises:
        ConfigurationError: `merge` without adapters, or `out` holds a finished model.
        CheckpointWriteError: `out` cannot be written.
        RunLockedError: another process writes there.
    """

    def __init__(self, out: Path, *, lora: int | None, merge: bool) -> None:
        if merge and lora is None:
            raise ConfigurationError("--merge merges adapters, and there are none: give --lora RANK, or leave it out")
        self.out = out
        self.lora = lora
        self.merge = merge
        self.writes = speaks_and_writes()
        self.checkpoint = Checkpointing(out.with_name(f"{out.name}.unfinished"))
        if self.writes:
            check_new(out)
            check_destination(out)

    def load(self, model: str, *, seed: int, device: str, download: bool) -> None:
        """Load the model as `lm`, with fresh adapters where they are to be trained, and its tokenizer.

        Args:
            seed: of the adapters' weights.

        Raises:
            CheckpointWriteError: there is no room for the model at `out`.
            ModelLoadError, MissingDependencyError: the model cannot be had.
        """
        lm: Any = load_model(model, device=device, download=download)
        self._base = lm.name_or_path
        if self.writes:
            check_destination(self.out, size=sum(p.numel() * p.element_size() for p in lm.parameters()))
        self.tokenizer: Any = load_tokenizer(model, download=download)
        self.lm: Any = lm if self.lora is None else add_lora(lm, self.lora, seed=seed)

    def write(self) -> None:
        """Write what was trained to `out`, and remove the checkpoints."""

        def export(folder: Path) -> None:
            export_language_model(self.lm, self.tokenizer, folder, merge=self.merge, base=self._base)

        write_folder(self.out, export)
        remove_checkpoints(self.checkpoint.folder)

    def say_where(self, command: str) -> None:
        """Say where the model is, and what to go on with."""
        kind = "adapter" if self.lora is not None and not self.merge else "model"
        say("", f"the {kind} is in {self.out}: {command}")


def steps_made(report: Any) -> str:
    """How many steps were made, and which weights were kept where early stopping watched the training."""
    steps = f"{len(report.losses)} steps"
    if not report.held_out_losses:
        return steps
    best = min(report.held_out_losses, key=lambda found: found.loss)
    return f"{steps}; the weights kept are those of step {best.step}"
