"""`lm-env loop`: rounds in which the current policy's texts are labelled, the reward model is refitted, and RL goes on.

A reward model is reliable on texts like those that it was trained on, and RL moves the policy away from them, to what
nobody has judged.  So the policy's own texts are judged again, and the reward model is trained anew on all comparisons
so far (Ziegler et al. 2019, arXiv:1909.08593, section 2.2; Stiennon et al. 2020, arXiv:2009.01325, section 3).  RL goes
on from the current policy, with the KL penalty against the supervised model.  The reward model begins at the supervised
model each time, and its scores are normalized on the first round's samples, so that beta means the same in every round.

    loop.yaml           the options
    supervised.json     what is measured of the supervised model
    round-1/            the phases of a round, see `phases`, and measured.json, what is measured after it
    summary.json, loop.png

A result that is there is not computed again, so that a loop goes on wherever it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from lm_env.cli.loop.files import kept_json
from lm_env.cli.loop.labellers import FileLabeller, GoldLabeller, Labeller
from lm_env.cli.loop.phases import REWARD_MODEL, Pairing, RLHFConfig, Round, make_task, run_round, split_prompts
from lm_env.cli.loop.rounds import plot_rounds, show_rounds
from lm_env.cli.loop.samples import Sampled
from lm_env.distributed import require_one_process
from lm_env.errors import CheckpointWriteError, ConfigurationError, RunLockedError
from lm_env.objective.task import Task
from lm_env.report import write_report
from lm_env.runs.config_files import read_config, write_config
from lm_env.runs.console import say
from lm_env.runs.folder import RunFolder, command_line
from lm_env.runs.judges import make_judge
from lm_env.storage import FileLock
from lm_env.validation import check_choice, check_integer, check_number
from reward_models import RewardModel

__all__ = ["LoopConfig", "resumed_config", "resumed_loop", "run_loop"]

OPTIONS = "loop.yaml"
SUMMARY = "summary.json"
MAY_CHANGE = ("device", "download", "rounds")

Labels = Literal["judge", "file"]
Config = TypeVar("Config", bound=RLHFConfig)


@dataclass(frozen=True)
class LoopConfig(RLHFConfig):
    """What `lm-env loop --help` explains; `comparisons` and `timesteps` are those of a round."""

    comparisons: int = 512
    timesteps: int = 40_000
    beta: float = 0.1
    rounds: int = 3
    labels: Labels = "judge"
    pairs: Pairing = "policy"

    def __post_init__(self) -> None:
        for name in ("comparisons", "timesteps", "rounds", "new_tokens"):
            check_integer(name, getattr(self, name))
        check_number("beta", self.beta, low=0.0)
        check_choice("labels", self.labels, get_args(Labels))
        check_choice("pairs", self.pairs, get_args(Pairing))
        if self.labels == "judge" and self.judge is None:
            raise ConfigurationError("labels by a judge need one: name a reward function, such as 'lexicon'")


def resumed_config(kind: type[Config], file: Path, noun: str, given: Mapping[str, Any], may_change: Any) -> Config:
    """The options of an unfinished loop or demo, from its folder; where nothing is saved, those that are given.

    Args:
        file: where they were written; its folder is `out`.
        noun: "loop" or "demo", for messages.
        given: the options that were given now.
        may_change: names of the options that may differ from those at the beginning.

    Raises:
        ConfigurationError: a given option differs from the one that the loop or demo began with.
    """
    begun = read_config(file) if file.exists() else {}
    known = {name: value for name, value in begun.items() if name in {f.name for f in fields(kind)}}
    for name, value in given.items():
        if name in known and name not in may_change and known[name] != value:
            raise ConfigurationError(
                f"{name} is {known[name]!r} in {file.parent} and {value!r} here: a {noun} goes on as it began; leave it"
                " out, or choose another folder"
            )
    return kind(out=file.parent, **{**known, **given})


def resumed_loop(out: Path, given: Mapping[str, Any]) -> LoopConfig:
    """The loop in a folder, to go on with; it may be given more rounds.  See `resumed_config`."""
    return resumed_config(LoopConfig, out / OPTIONS, "loop", given, MAY_CHANGE)


def run_loop(config: LoopConfig, *, resume: bool = False, labeller: Labeller | None = None) -> dict[str, Any]:
    """Run the rounds that are not finished; writes everything to `config.out` and returns the summary.

    Args:
        labeller: who compares the texts; default: the judge, or people through a file, as `config.labels` says.

    Raises:
        ConfigurationError: another loop is there, and `resume` is not set.
        LabelsAwaited: the pairs of a round are written out and wait for their labels.
        RunLockedError, CheckpointWriteError: another process writes there, or the folder cannot be written.
        TrainingInterrupted: Ctrl-C or SIGTERM has come in a training, and all is saved.
    """
    require_one_process("lm-env loop runs")
    if not resume and (config.out / OPTIONS).exists():
        raise ConfigurationError(
            f"{config.out} holds a loop: go on with it by resume=True, or choose another folder for a new one"
        )
    with _reserved(config.out):
        return _run_loop(config, resume, labeller)


def _run_loop(config: LoopConfig, resume: bool, labeller: Labeller | None) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    say("the supervised model", f"{config.model}, reference of all rounds")
    judge = None
    if config.judge is not None:
        judge = make_judge(config.judge, device=config.device, download=config.download)
    if labeller is None:
        by_judge = config.labels == "judge" and config.judge is not None
        labeller = GoldLabeller(judge, config.judge) if by_judge and config.judge else FileLabeller()
    supervised = make_task(config, judge)
    training, test = split_prompts(config, supervised)
    if not (config.out / OPTIONS).exists():
        remark = "The options of this loop; `lm-env loop --out FOLDER --resume` goes on with it."
        write_config(config.out / OPTIONS, config.options(), {"command": command_line()}, remark=remark)
    start = kept_json(
        config.out / "supervised.json", lambda: Sampled(supervised, test, config.seed).metrics(None, judge)
    )
    measured: list[dict[str, Any]] = []
    folders: list[RunFolder] = []
    for number in range(1, config.rounds + 1):
        folder = RunFolder(config.out / f"round-{number}")
        this = Round(folder, number, supervised, training, test, tuple(folders), config.pairs)
        say(f"round {number} of {config.rounds}", str(folder.path))
        measured.append(_finished(config, this, labeller, judge, resume))
        folders.append(folder)
    show_rounds(start, measured)
    summary = {"supervised": start, "rounds": measured, "config": {**config.options(), "out": str(config.out)}}
    (config.out / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    plot_rounds(start, measured, config.out / "loop.png")
    say("", f"everything is in {config.out}; try  lm-env sample --model {folders[-1].policy}")
    return summary


def _finished(config: LoopConfig, this: Round, labeller: Labeller, judge: Any, resume: bool) -> dict[str, Any]:
    """What is measured after a round, once its phases are done."""

    def measured() -> dict[str, Any]:
        with this.folder.reserve(resume=True):
            found = run_round(config, this, labeller, judge, resume)
        rm = RewardModel.load(this.path / REWARD_MODEL, device=config.device)
        trained: Task = make_task(config, judge, model=str(this.folder.policy), reference=this.supervised.reference)
        write_report(this.path)
        return {**found, **Sampled(trained, this.test_prompts, config.seed).metrics(rm, judge)}

    return kept_json(this.path / "measured.json", measured)


@contextmanager
def _reserved(out: Path) -> Iterator[None]:
    """Inside, the folder is this loop's alone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", out)
    except OSError as error:
        kind = RunLockedError if isinstance(error, RunLockedError) else CheckpointWriteError
        raise kind(f"cannot write to {out}: {error}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()
