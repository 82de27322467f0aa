"""`lm-env demo`: supervised model, reward model from comparisons, PPO -- and what came of it.

A person would compare the samples; here a judge does, by default a lexicon whose words people have
rated.  PPO sees the trained reward model alone, never the judge: the judge's own score before and
after (`gold`) tells whether the optimized reward was worth optimizing.

Each phase leaves a file or folder in `out` and is not gone through again once that is there, so that a demo
that was stopped goes on at the unfinished phase:

    demo.yaml                       the options
    pairs.jsonl                     two samples of the supervised model to each prompt
    comparisons.jsonl               which of them the judge prefers
    reward_model/                   what was learned from the comparisons
    run.yaml, progress.csv, ...     the training, a folder of `lm-env train`, with policy/ as its result
    summary.json, samples.md, curves.png
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from lm_env.cli.demo.before_after import SAMPLES, SUMMARY, BeforeAfter, plot_curves, write_summary
from lm_env.cli.demo.phases import (
    REWARD_MODEL,
    TEMPERATURE,
    DemoConfig,
    Gold,
    Sampled,
    compare,
    curves_of,
    kept,
    make_task,
    sample_pairs,
    split_prompts,
    train_reward_model,
    training_settings,
)
from lm_env.errors import CheckpointWriteError, ConfigurationError
from lm_env.report import write_report
from lm_env.runs.config_files import read_config, write_config
from lm_env.runs.console import say
from lm_env.runs.folder import RunFolder, command_line
from lm_env.runs.judges import make_judge
from lm_env.runs.train import train_reserved
from lm_env.storage import check_destination
from reward_models import Comparison, RewardModel

__all__ = ["DemoConfig", "resumed_demo", "run_demo"]

OPTIONS = "demo.yaml"
CURVES = "curves.png"
MAY_CHANGE = ("device", "download")


def resumed_demo(out: Path, given: dict[str, Any]) -> DemoConfig:
    """The demo in a folder, to go on with; one with the options given where there is none.

    Raises:
        ConfigurationError: an option given is another one than the demo began with.
    """
    begun = read_config(out / OPTIONS) if (out / OPTIONS).exists() else {}
    known = {name: value for name, value in begun.items() if name in {f.name for f in fields(DemoConfig)}}
    for name, value in given.items():
        if name in known and name not in MAY_CHANGE and known[name] != value:
            raise ConfigurationError(
                f"{name} is {known[name]!r} in {out} and {value!r} here: a demo goes on as it began; leave it out, or"
                " choose another folder"
            )
    return DemoConfig(out=out, **{**known, **given})


def run_demo(config: DemoConfig, *, resume: bool = False) -> dict[str, Any]:
    """Run the phases that are not finished; writes everything to `config.out` and returns the summary.

    Raises:
        ConfigurationError: another demo is there, and `resume` is not set.
        CheckpointWriteError: something in `config.out` cannot be written, found before the first phase.
        RunLockedError: another run writes there.
        TrainingInterrupted: Ctrl-C or SIGTERM has come in a training, and all is saved.
    """
    folder = RunFolder(config.out)
    if not resume and (config.out / OPTIONS).exists():
        raise ConfigurationError(
            f"{config.out} holds a demo: go on with it by resume=True, or choose another folder for a new one"
        )
    with _reserved(folder, resume):
        return _run_demo(config, folder, resume)


def _run_demo(config: DemoConfig, folder: RunFolder, resume: bool) -> dict[str, Any]:
    started = time.time()
    torch.manual_seed(config.seed)

    say("1  the supervised model", f"{config.model}, {TEMPERATURE} temperature")
    judge = make_judge(config.judge, device=config.device, download=config.download)
    supervised = make_task(config, judge)
    folder.check_room(4 * 4 * sum(p.numel() for p in supervised.model.parameters()))  # policy, moments, reward model
    training_prompts, test_prompts = split_prompts(config, supervised)
    if not (config.out / OPTIONS).exists():
        remark = "The options of this demo; `lm-env demo --out FOLDER --resume` goes on with it."
        write_config(config.out / OPTIONS, config.options(), {"command": command_line()}, remark=remark)
    pairs = kept(config.out / "pairs.jsonl", lambda: sample_pairs(config, supervised, training_prompts))

    say(
        "2  a reward model from comparisons",
        f"{config.comparisons} pairs of its samples, preferred by the judge '{config.judge}'",
    )
    compared = kept(config.out / "comparisons.jsonl", lambda: compare(config, pairs, judge))
    accuracy = train_reward_model(config, supervised, pairs, [Comparison(**row) for row in compared], resume)
    rm = RewardModel.load(config.out / REWARD_MODEL, device=config.device)
    say("", f"{len(compared)} comparisons without ties; held-out accuracy {accuracy:.3f}")

    say("3  PPO against the reward model", f"beta {config.beta:g}, {config.timesteps:,} tokens")
    settings = training_settings(config, supervised, training_prompts, test_prompts)
    if not folder.is_finished:
        train_reserved(settings, folder, resume=resume, progress_bar=True, callbacks=[Gold(judge)])
    trained = make_task(config, judge, model=str(folder.policy), reference=supervised.reference)

    before, after = (Sampled(task, test_prompts, config.seed) for task in (supervised, trained))
    report = BeforeAfter(before.metrics(rm, judge), after.metrics(rm, judge), before.rows(judge), after.rows(judge))
    say("4  before and after", f"{len(test_prompts)} prompts that PPO did not see")
    report.show()
    summary = {
        "rm_accuracy": accuracy,
        **report.summary(),
        "seconds": round(time.time() - started, 1),
        "seed": config.seed,
        "config": {**config.options(), "out": str(config.out)},
    }
    plot_curves(curves_of(folder), config.out / CURVES)
    write_summary(config.out, summary, report)
    page = write_report(config.out)
    say(
        "",
        f"{summary['seconds']:.0f} s; everything is in {config.out}: look at {page}, and try  lm-env sample --model"
        f" {folder.policy}",
    )
    return summary


@contextmanager
def _reserved(folder: RunFolder, resume: bool) -> Iterator[None]:
    """Inside, the folder is this demo's alone; what could not be written there at the end is an error at once."""
    with folder.reserve(resume=resume):
        try:
            check_destination(folder.path / REWARD_MODEL)
            for file in (folder.path / CURVES, folder.path / SUMMARY, folder.path / SAMPLES):
                if file.exists():
                    file.open("ab").close()
        except OSError as error:
            kind = type(error) if isinstance(error, CheckpointWriteError) else CheckpointWriteError
            raise kind(f"cannot write to {folder.path}: {error}; choose another folder") from error
        yield
