"""`lm-env dpo`: direct preference optimization on a file of comparisons, into a folder that other commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lm_env.cli.options import Device, Download, Resume, Seed

__all__ = ["dpo"]

KL_PROMPTS = 64


def dpo(
    model: Annotated[
        str, typer.Argument(help="The supervised model to begin with, and the reference: 'reviews-3m', a folder, ...")
    ],
    file: Annotated[
        str,
        typer.Argument(help="Preferences (.jsonl, .json, .csv, .tsv, .parquet), or a hub id."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")] = Path("runs/dpo"),
    beta: Annotated[float, typer.Option(help="Weight of the KL penalty, score per nat.")] = 0.1,
    loss: Annotated[str, typer.Option(help="sigmoid, which is DPO, or ipo.")] = "sigmoid",
    label_smoothing: Annotated[float, typer.Option(help="The probability that a label is wrong.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="The temperature that the policy will be sampled at.")] = 1.0,
    epochs: Annotated[int, typer.Option(help="Passes over the data.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(help="Records per step.", min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(help="Adam's step size at the start; it falls to 0.")] = 2e-5,
    held_out_fraction: Annotated[float, typer.Option(help="Share of the prompts kept for the accuracy.")] = 0.1,
    resume: Resume = False,
    separator: Annotated[str, typer.Option(help="Text between prompt and response, such as '\\n'.")] = "",
    max_tokens: Annotated[
        int | None, typer.Option(help="Longer texts are cut.  [default: the model's positions]", min=2)
    ] = None,
    lora: Annotated[
        int | None, typer.Option(help="Train LoRA adapters of this rank, not all weights, and save them alone.", min=1)
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Save the whole model, the adapters merged into it.")] = False,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many looks in a row without a lower held-out loss; keep the best.", min=1),
    ] = None,
    eval_steps: Annotated[
        int | None, typer.Option(help="Steps between two looks.  [default: one pass over the data]", min=1)
    ] = None,
    new_tokens: Annotated[
        int, typer.Option(help="Length cap of the samples by which the KL is measured; 0: it is not measured.", min=0)
    ] = 64,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; the weights stay as they are.")] = False,
    format: Annotated[
        str | None, typer.Option("--format", help="Format of the file.  [default: recognized by its columns]")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    download: Download = False,
) -> None:
    """Direct preference optimization: learn from comparisons alone, without a reward model and without sampling.

    Prompts are held out, and the accuracy of the implied reward, beta log(pi / pi_ref), is measured on them, with the
    KL of the policy's own samples to the model that it began with.
    """
    run_dpo(
        model=model,
        file=file,
        out=out,
        resume=resume,
        separator=separator.replace("\\n", "\n").replace("\\t", "\t"),
        lora=lora,
        merge=merge,
        new_tokens=new_tokens,
        format=format,
        skip_bad=skip_bad,
        device=device,
        download=download,
        beta=beta,
        loss=loss,
        label_smoothing=label_smoothing,
        temperature=temperature,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        held_out_fraction=held_out_fraction,
        max_tokens=max_tokens,
        patience=patience,
        eval_steps=eval_steps,
        bf16=bf16,
        seed=seed,
    )


def run_dpo(
    *,
    model: str,
    file: str,
    out: Path,
    resume: bool,
    separator: str,
    lora: int | None,
    merge: bool,
    new_tokens: int,
    format: str | None,
    skip_bad: bool,
    device: str,
    download: bool,
    **options: Any,
) -> None:
    """Train a copy of the model and write it to `out` in transformers' layout.

    On the way it is saved in a folder beside `out`, every ten minutes and when a signal ends it.

    Args:
        lora: train adapters of this rank; they are written alone, or with `merge` as a whole model.
        options: the fields of `DPOConfig`.

    Raises:
        ConfigurationError: `merge` without adapters, or `out` holds a finished model; see also `dpo_finetune`.
        CheckpointWriteError, RunLockedError, TrainingInterrupted: as of `lm-env sft`.
    """
    from agents.dpo import DPOConfig, dpo_finetune
    from lm_env.cli.finetuning import FineTuning
    from lm_env.models.loading import load_model
    from lm_env.runs.console import say
    from reward_models.preferences.reading import read_preferences

    DPOConfig(**options)
    training = FineTuning(out, lora=lora, merge=merge)
    records = read_preferences(file, format=format, skip_bad=skip_bad, download=download)
    say("preferences", records.description(file))
    training.load(model, seed=options["seed"], device=device, download=download)
    say("direct preference optimization", f"{model}, beta {options['beta']:g}")
    report = dpo_finetune(
        training.lm,
        training.tokenizer,
        list(records),
        separator=separator,
        progress_bar=True,
        show=_show,
        checkpoint=training.checkpoint,
        resume=resume,
        **options,
    )
    if not training.writes:
        return
    training.write()
    for line in _lines(report):
        say("", line)
    if new_tokens:
        reference = None if lora is not None else load_model(model, device=device, download=download)
        prompts = _prompts(records, separator, options)
        say("", _sampled_kl(training.lm, reference, training.tokenizer, prompts, new_tokens, options))
    training.say_where(f"lm-env sample --model {out}")


def _show(description: str) -> None:
    from lm_env.runs.console import say

    for line in description.splitlines():
        say("", line)


def _lines(report: Any) -> list[str]:
    """What the report says of the records held out."""
    from lm_env.cli.finetuning import steps_made
    from reward_models.trust import wilson

    lines = [steps_made(report)]
    before, after = report.before, report.after
    if after is None or not after.comparisons:
        return lines
    wins = [1.0] * int(after.right) + [0.5] * round(2 * (after.right % 1))
    share = wilson([*wins, *[0.0] * (after.comparisons - len(wins))])
    return [
        *lines,
        f"on {after.comparisons:,} comparisons held out: accuracy of the implied reward {share}, margin"
        f" {after.margin:.3f}, loss {before.loss:.4f} before and {after.loss:.4f} after",
        f"logprob of a response, nats: chosen {before.chosen_logprob:.1f} before and {after.chosen_logprob:.1f} after,"
        f" rejected {before.rejected_logprob:.1f} and {after.rejected_logprob:.1f}",
    ]


def _prompts(records: Any, separator: str, options: dict[str, Any]) -> list[Any]:
    """Prompts to measure the KL on: those held out, where some are."""
    import numpy as np

    from reward_models.preferences.records import prompt_key
    from reward_models.preferences.splitting import split_records

    training, held_out = split_records(
        list(records), options["held_out_fraction"], np.random.default_rng(options["seed"])
    )
    chosen = {prompt_key(record.prompt): record.prompt for record in held_out or training}
    return [p + separator if isinstance(p, str) else list(p) for p in list(chosen.values())[:KL_PROMPTS]]


def _sampled_kl(
    lm: Any, reference: Any, tokenizer: Any, prompts: list[Any], new_tokens: int, options: dict[str, Any]
) -> str:
    """The KL of the policy's samples to the reference, in words."""
    from agents.run.evaluation import evaluate_texts
    from lm_env.generation import LocalBackend
    from lm_env.objective.rewards import no_reward
    from lm_env.objective.task import Task

    task = Task(
        model=lm,
        reference=reference,
        tokenizer=tokenizer,
        prompts=prompts,
        reward=no_reward,
        beta=options["beta"],
        max_new_tokens=new_tokens,
        overflow="truncate",
        temperature=options["temperature"],
    )
    found = evaluate_texts(task, LocalBackend(task, 32), list(task.prompts), seed=options["seed"])
    return f"KL to {'the base' if reference is None else 'the model before'}, of {found.texts} samples: {found.kl} nats"
