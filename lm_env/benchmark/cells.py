"""One cell of a benchmark: an agent trained on a task with one seed and then measured, or a task's baselines.

A benchmark is a grid of cells, each with a folder of its own below the benchmark's folder `out`.  The results of a
cell, its records, are in `record.json`, which is written in one step when the cell is done.  Until then the folder
holds its checkpoints, and a killed cell resumes from them.
"""

from __future__ import annotations

import math
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm_env.benchmark.entrants import Entrant, entrant
from lm_env.benchmark.measures.baselines import (
    CEILING_SEED,
    CEILING_TEXTS,
    ceiling_of,
    exact_optimum,
    without_training,
)
from lm_env.benchmark.measures.curve import LearningCurve
from lm_env.benchmark.measures.independent import IndependentModel
from lm_env.benchmark.measures.measuring import Measures, evaluation_prompts, measure, plain
from lm_env.benchmark.process_settings import keep_process_settings
from lm_env.benchmark.records import SCHEMA, Record, environment, given_options, parsed, write_json
from lm_env.benchmark.settings import BASELINES, AgentSpec, BenchSettings, Cell, TaskSpec
from lm_env.benchmark.shapes import record_problem
from lm_env.errors import CheckpointCorruptError, ConfigurationError
from lm_env.generation.generate import LocalBackend
from lm_env.models.export import export_language_model
from lm_env.objective.fingerprint import task_fingerprint
from lm_env.objective.kl import FixedKL
from lm_env.objective.task import Task
from lm_env.storage import EndOnSignals, remove_checkpoints, write_folder
from lm_env.tasks import Split, TextTask, get_task

__all__ = [
    "RATE_FACTORS",
    "has_best_rate",
    "read_cell",
    "run_cell",
    "tuned_rate",
]

RECORD = "record.json"
CHECKPOINTS_FOLDER = "checkpoints"
"""Names in the folder of a cell."""
RATE_FACTORS = (1.0, 3.0, 1 / 3, 10.0, 0.1, 1.7, 0.6)
"""The learning rates that are tried in tuning, as multiples of the agent's default; trial i takes the i-th."""
TRIAL_SEED = 10_000
"""The seed of every trial of the tuning, far from those of the runs."""
BASELINE_SEED = 0
"""The seed of the texts of the reference, of best-of-n and of random tokens."""


def read_cell(out: Path, cell: Cell) -> list[Record] | None:
    """The records of a cell that is done; None if it is not.

    Raises:
        CheckpointCorruptError: its file is damaged.
    """
    path = out / cell.path / RECORD
    try:
        content = parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointCorruptError(f"{path} is damaged ({error}): remove it, and the cell is run again") from error
    records = content.get("records") if isinstance(content, dict) else None
    if not isinstance(records, list) or not records:
        raise CheckpointCorruptError(f"{path} is damaged (it has no records): remove it, and the cell is run again")
    for record in records:
        if problem := record_problem(record) or _foreign(record, cell):
            raise CheckpointCorruptError(f"{path} is damaged ({problem}): remove it, and the cell is run again")
    return records


def _foreign(record: Record, cell: Cell) -> str | None:
    """Why a record is not one of this cell; None if it is."""
    if cell.agent == BASELINES:
        own = record["task"] == cell.task and record["kind"] in ("ceiling", "baseline")
    else:
        kind = "run" if cell.trial is None else "trial"
        found = tuple(record.get(name) for name in ("kind", "task", "agent", "seed", "trial"))
        own = found == (kind, cell.task, cell.agent, cell.seed, cell.trial)
    return None if own else "it is the record of another cell"


@keep_process_settings()
def run_cell(settings: BenchSettings, cell: Cell, out: Path) -> list[Record]:
    """Train and measure the agent of a cell, or measure the baselines of its task, and write the records.

    A training that was begun goes on from its last checkpoint.

    Args:
        settings: of the whole benchmark.
        cell: which task, agent and seed, or which trial of the tuning.
        out: the folder of the benchmark; the cell writes into `out / cell.path`.

    Returns:
        The records, as they are in the file: one run or trial; or, of baselines, the ceiling and each baseline.

    Raises:
        LMEnvError: what the task, agent or reward function raises; or the agent has changed something of its task
            other than the model.
        TrainingInterrupted: SIGINT or SIGTERM has come.  A training with checkpoints has finished its rollout and is
            saved; anything else has ended at once, and what it had not saved begins again in the next call.
    """
    spec = settings.task(cell.task)
    text_task = get_task(spec.name, **spec.options)
    seed = TRIAL_SEED if cell.trial is not None else cell.seed
    random.seed(seed)
    np.random.seed(seed)  # what libraries draw without a generator of their own
    torch.manual_seed(seed)
    common = {
        "schema": SCHEMA,
        "task": cell.task,
        "model": settings.model or text_task.model_name,
        **given_options(spec.options),
        **environment(settings.threads, settings.device),
    }
    with EndOnSignals(f"work on {cell}"):  # a training with checkpoints notes signals by itself, and saves first
        if cell.agent == BASELINES:
            records = _baselines(settings, text_task)
        else:
            records = [_run(settings, text_task, spec, cell, seed, out)]
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    records = [{**common, **plain(record), "finished": finished} for record in records]
    if problem := next(filter(None, map(record_problem, records)), None):
        raise ConfigurationError(f"the results of {cell} make no record ({problem})")
    if cell.trial is not None:
        _forget_begun_runs(settings, cell, out)
    write_json(out / cell.path / RECORD, {"records": records})
    with suppress(OSError):
        remove_checkpoints(out / cell.path / CHECKPOINTS_FOLDER)
    return records


def tuned_rate(settings: BenchSettings, out: Path, task: str, agent: str) -> float | None:
    """The learning rate of the trial with the largest J on the validation prompts; None without trials.

    Of trials with equal J the first one is taken, and the very first has the agent's default rate.
    """
    found = []
    for trial in range(settings.tune):
        records = read_cell(out, Cell(task, agent, trial=trial))
        if records and records[0]["learning_rate"] is not None:
            J = records[0]["metrics"]["J"]["mean"]
            found.append((-math.inf if J is None else J, -trial, records[0]["learning_rate"]))
    return max(found)[2] if found else None


def has_best_rate(settings: BenchSettings, out: Path, cell: Cell, records: list[Record] | None) -> bool:
    """Whether a cell that is done was run with the rate that the tuning finds best by now, or was not tuned at all."""
    rate = records[0].get("learning_rate") if records and records[0]["kind"] == "run" else None
    best = None if rate is None else tuned_rate(settings, out, cell.task, cell.agent)
    return best is None or rate == best


def _forget_begun_runs(settings: BenchSettings, trial: Cell, out: Path) -> None:
    """Remove the checkpoints of runs that began while this trial had failed: it may have the best rate."""
    for cell in settings.cells():
        if (cell.task, cell.agent, cell.trial) == (trial.task, trial.agent, None):
            remove_checkpoints(out / cell.path / CHECKPOINTS_FOLDER)


def _replaced_options(settings: BenchSettings) -> dict[str, Any]:
    """The options that the benchmark's own settings (model, device, download) replace in every task."""
    options: dict[str, Any] = {"device": settings.device, "download": settings.download}
    return options if settings.model is None else {"model": settings.model, **options}


def _baselines(settings: BenchSettings, text_task: TextTask) -> list[Record]:
    """The records of a task's ceiling, if it has one, its reference, best-of-n and random tokens."""
    task = text_task.task("test", **_replaced_options(settings))
    prompts, n = evaluation_prompts(task, text_task.prompts("test"), settings.prompts, settings.texts)
    rows = without_training(task, prompts, n, seed=BASELINE_SEED, measures=_measures(settings, text_task))
    baselines = [{"kind": "baseline", "agent": name, "seed": 0, **row} for name, row in rows.items()]
    if task.kl.beta == 0:  # the optimum is then the text with the largest score, however unlikely: no sample shows it
        return baselines
    most = settings.ceiling_most  # samples of each prompt
    samples = max(settings.ceiling_samples, math.ceil(CEILING_TEXTS / len(prompts)))
    samples = samples if most is None else min(samples, most)
    found = ceiling_of(
        task,
        prompts,
        samples=samples,
        most=most,
        seed=CEILING_SEED,
        highest=text_task.highest,
        optimum=exact_optimum(text_task, settings.prompts, **_replaced_options(settings)),
    )
    return [{"kind": "ceiling", "success_threshold": text_task.success, **found}, *baselines]


def _run(settings: BenchSettings, text_task: TextTask, spec: TaskSpec, cell: Cell, seed: int, out: Path) -> Record:
    """Train the agent of a cell, or go on with it, and measure it on prompts that it was not trained on."""
    agent_spec = settings.agent(cell.agent)
    tokens = spec.tokens or settings.tokens or text_task.budget
    trainee, rate = _with_rate(settings, agent_spec, cell, out)
    folder = (out / cell.path).absolute()  # an agent may change the working directory
    if not trainee.resumes:  # a resumed run would end with other weights, so it begins again
        shutil.rmtree(folder / CHECKPOINTS_FOLDER, ignore_errors=True)
    split: Split = "validation" if cell.trial is not None else "test"
    rows = text_task.prompts(split)
    curves: list[LearningCurve] = []
    fixed: dict[str, Any] = {}

    def make(num_envs: int) -> Any:
        if num_envs == 1:
            return text_task.make("train", **_replaced_options(settings))
        return text_task.make_vec(num_envs, "train", autoreset_mode="Disabled", **_replaced_options(settings))

    def curve_of(task: Task) -> LearningCurve:
        prompts, n = evaluation_prompts(task, rows, min(settings.prompts, settings.curve_texts), settings.curve_texts)
        every = tokens + 1 if cell.trial is not None else max(1, tokens // settings.evaluations)
        curves.append(LearningCurve(task, prompts, n, every=every, seed=cell.seed))
        fixed.update(_what_stays(task))
        return curves[-1]

    with keep_process_settings():  # what follows is measured alike for all agents
        trained = trainee.train(make, tokens, seed, curve_of, folder / CHECKPOINTS_FOLDER)
    curve = curves[-1]
    task = curve.task
    if changed := [name for name, value in _what_stays(task).items() if value != fixed[name]]:
        raise ConfigurationError(
            f"{cell.agent} has changed {' and '.join(changed)} of its task, so its numbers say nothing: an agent trains"
            " env.unwrapped.task.model, and leaves the rest as it is"
        )
    prompts, n = evaluation_prompts(task, rows, settings.prompts, settings.texts)
    measured = measure(task, LocalBackend(task), prompts, n, seed=cell.seed, measures=_measures(settings, text_task))
    if settings.keep_policies and cell.trial is None:
        write_folder(folder / "policy", lambda new: export_language_model(task.model, task.tokenizer, new))
    return {
        "kind": "run" if cell.trial is None else "trial",
        "agent": cell.agent,
        "seed": cell.seed,
        "trial": cell.trial,
        "settings": {"agent": agent_spec.name, **agent_spec.options, "budget": tokens},
        "learning_rate": rate,
        "exact_resume": trainee.resumes,
        "tokens": trained.tokens,
        "seconds": curve.seconds,
        "evaluation_seconds": curve.evaluation_seconds,
        "tokens_per_second": trained.tokens / curve.seconds if curve.seconds else None,
        "inference_tokens": measured["metrics"]["length"]["mean"],
        "curve": curve.points,
        "curve_prompts": len(curve.prompts),
        **measured,
    }


def _what_stays(task: Task) -> dict[str, Any]:
    """What an agent must leave as it is, by name: all of its task but the model and an adaptive beta."""
    fixed = {name: value for name, value in task_fingerprint(task).items() if not name.startswith("model.")}
    return fixed | {"reward": task.reward} | ({"beta": task.kl.beta} if isinstance(task.kl, FixedKL) else {})


def _with_rate(settings: BenchSettings, spec: AgentSpec, cell: Cell, out: Path) -> tuple[Entrant, float | None]:
    """(the entrant of a cell, its learning rate): in a trial the rate to be tried, in a run that of the best trial.

    Without tuning it is the agent's own rate, and None for an agent that has no learning rate.
    """
    untuned = entrant(spec)
    rate = untuned.learning_rate
    if rate is None or not settings.tune:
        return untuned, rate
    if cell.trial is not None:
        rate *= RATE_FACTORS[cell.trial]
    else:
        rate = tuned_rate(settings, out, cell.task, cell.agent) or rate
    return entrant(replace(spec, options={**spec.options, "learning_rate": rate})), rate


def _measures(settings: BenchSettings, text_task: TextTask) -> Measures:
    """What is measured in addition to score and KL: success, the task's metrics, another model's perplexity."""
    independent = None
    if settings.independent is not None:
        independent = IndependentModel(settings.independent, device=settings.device, download=settings.download)
    more = text_task.measure if text_task.metrics else None
    return Measures(success=text_task.success, independent=independent, more=more)
