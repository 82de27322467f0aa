"""`lm-env sft`: phase 1 of RLHF on one's own demonstrations, into a folder that every other command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agents.sft import supervised_finetune
from lm_env.cli.finetuning import FineTuning, steps_made
from lm_env.runs.console import say

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
    training = FineTuning(out, lora=lora, merge=merge)
    training.load(model, seed=options["seed"], device=device, download=download)
    torch.manual_seed(options["seed"])

    def show(description: str) -> None:
        say("supervised fine-tuning", f"{model} on {data}")
        for line in description.splitlines():
            say("", line)

    report = supervised_finetune(
        training.lm,
        training.tokenizer,
        data,
        separator=separator.replace("\\n", "\n").replace("\\t", "\t"),
        download=download,
        progress_bar=True,
        show=show,
        checkpoint=training.checkpoint,
        resume=resume,
        **options,
    )
    if not training.writes:
        return
    training.write()
    if report.held_out_losses:
        say("", steps_made(report))
    if report.perplexity_before is not None:
        before = report.perplexity_before
        after = report.perplexity_after
        say("", f"perplexity of the responses held out: {before:.1f} before, {after:.1f} after")
    training.say_where(f"go on with  lm-env demo --model {out}")
