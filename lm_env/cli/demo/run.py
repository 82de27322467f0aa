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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lm_env.cli.demo.before_after import SAMPLES, SUMMARY, BeforeAfter, curves_of, plot_curves, write_summary
from lm_env.cli.loop.labellers import GoldLabeller
from lm_env.cli.loop.phases import (
    REWARD_MODEL,
    TEMPERATURE,
    RLHFConfig,
    Round,
    make_task,
    run_round,
    split_prompts,
)
from lm_env.cli.loop.run import resumed_config
from lm_env.cli.loop.samples import Sampled
from lm_env.distributed import require_one_process
from lm_env.errors import CheckpointWriteError, ConfigurationError
from lm_env.report import write_report
from lm_env.runs.config_files import write_config
from lm_env.runs.console import say
from lm_env.runs.folder import RunFolder, command_line
from lm_env.runs.judges import make_judge
from lm_env.storage import check_destination
from reward_models import RewardModel

__all__ = ["DemoConfig", "resumed_demo", "run_demo"]

OPTIONS = "demo.yaml"
CURVES = "curves.png"
MAY_CHANGE = ("device", "download")


@dataclass(frozen=True)
class DemoConfig(RLHFConfig):
    """What `lm-env demo --help` explains."""


def resumed_demo(out: Path, given: dict[str, Any]) -> DemoConfig:
    """The demo in a folder, to go on with; one with the options given where there is none.  See `resumed_config`."""
    return resumed_config(DemoConfig, out / OPTIONS, "demo", given, MAY_CHANGE)


def run_demo(config: DemoConfig, *, resume: bool = False) -> dict[str, Any]:
    """Run the phases that are not finished; writes everything to `config.out` and returns the summary.

    Raises:
        ConfigurationError: another demo is there, and `resume` is not set.
        CheckpointWriteError: something in `config.out` cannot be written, found before the first phase.
        RunLockedError: another run writes there.
        TrainingInterrupted: Ctrl-C or SIGTERM has come in a training, and all is saved.
    """
    require_one_process("lm-env demo runs")
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
    judge = make_judge(str(config.judge), device=config.device, download=config.download)
    supervised = make_task(config, judge)
    folder.check_room(4 * 4 * sum(p.numel() for p in supervised.model.parameters()))  # policy, moments, reward model
    training_prompts, test_prompts = split_prompts(config, supervised)
    if not (config.out / OPTIONS).exists():
        remark = "The options of this demo; `lm-env demo --out FOLDER --resume` goes on with it."
        write_config(config.out / OPTIONS, config.options(), {"command": command_line()}, remark=remark)
    this = Round(folder, 1, supervised, training_prompts, test_prompts)
    found = run_round(config, this, GoldLabeller(judge, str(config.judge)), judge, resume)
    rm = RewardModel.load(config.out / REWARD_MODEL, device=config.device)
    trained = make_task(config, judge, model=str(folder.policy), reference=supervised.reference)

    before, after = (Sampled(task, test_prompts, config.seed) for task in (supervised, trained))
    report = BeforeAfter(before.metrics(rm, judge), after.metrics(rm, judge), before.rows(judge), after.rows(judge))
    say("4  before and after", f"{len(test_prompts)} prompts that PPO did not see")
    report.show()
    summary = {
        "rm_accuracy": found["accuracy"],
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
