"""`lm-env sft`: phase 1 of RLHF on one's own demonstrations, into a folder that every other command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agents.sft import supervised_finetune
from lm_env.errors import ConfigurationError
from lm_env.models.adapters import add_lora
from lm_env.models.export import export_language_model
from lm_env.models.loading import load_model, load_tokenizer
from lm_env.runs.console import say, speaks_and_writes
from lm_env.runs.folder import check_new
from lm_env.storage import Checkpointing, check_destination, remove_checkpoints, write_folder

__all__ = ["run_sft"]


def run_sft(
    *,
    model: str,
    data: str,
    out: Path,
    device: str,
    download: bool,
    separator: str = "",
    lora: int | None = None,
    merge: bool = False,
    resume: bool = False,
    **options: Any,
) -> None:
    """Fine-tune a copy of the model and write it to `out` in transformers' layout.

    On the way it is saved in a folder beside `out`, every ten minutes and when a signal ends it.

    Args:
        separator: text between prompt and response, in which `\\n` and `\\t` stand for a line break and a tab.
        lora: train adapters of this rank; they are written alone, or with `merge` as a whole model.
        options: of `supervised_finetune`.

    Raises:
        TrainingInterrupted: SIGINT or SIGTERM has come, and all is saved.
        CheckpointWriteError: `out` cannot be written or has no room, found before the training.
        RunLockedError: another process writes there.
        ConfigurationError: `merge` without adapters, or `out` holds a finished model; see also `supervised_finetune`.
    """
    if merge and lora is None:
        raise ConfigurationError("--merge merges adapters, and there are none: give --lora RANK, or leave it out")
    writes = speaks_and_writes()
    if writes:
        check_new(out)
        check_destination(out)
    lm: Any = load_model(model, device=device, download=download)
    base = lm.name_or_path
    if writes:
        check_destination(out, size=sum(p.numel() * p.element_size() for p in lm.parameters()))
    tokenizer = load_tokenizer(model, download=download)
    torch.manual_seed(options["seed"])
    if lora is not None:
        lm = add_lora(lm, lora, seed=options["seed"])

    def show(description: str) -> None:
        say("supervised fine-tuning", f"{model} on {data}")
        for line in description.splitlines():
            say("", line)

    unfinished = out.with_name(f"{out.name}.unfinished")
    report = supervised_finetune(
        lm,
        tokenizer,
        data,
        separator=separator.replace("\\n", "\n").replace("\\t", "\t"),
        download=download,
        progress_bar=True,
        show=show,
        checkpoint=Checkpointing(unfinished),
        resume=resume,
        **options,
    )
    if not writes:
        return
    write_folder(out, lambda folder: export_language_model(lm, tokenizer, folder, merge=merge, base=base))
    remove_checkpoints(unfinished)
    if report.held_out_losses:
        best = min(report.held_out_losses, key=lambda found: found.loss)
        say("", f"{len(report.losses)} steps; the weights kept are those of step {best.step}")
    if report.perplexity_before is not None:
        before = report.perplexity_before
        after = report.perplexity_after
        say("", f"perplexity of the responses held out: {before:.1f} before, {after:.1f} after")
    kind = "adapter" if lora is not None and not merge else "model"
    say("", f"the {kind} is in {out}: go on with  lm-env demo --model {out}")
