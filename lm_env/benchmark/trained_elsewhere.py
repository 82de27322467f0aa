"""Models that were not trained here, measured on a task as the agents of a benchmark are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lm_env.benchmark.measures.baselines import CEILING_SEED, CEILING_TEXTS, ceiling_of, exact_optimum
from lm_env.benchmark.measures.independent import IndependentModel
from lm_env.benchmark.measures.measuring import Measures, evaluation_prompts, measure, plain
from lm_env.benchmark.records import SCHEMA, Record, environment, given_options
from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.generation.generate import LocalBackend
from lm_env.models.names import resolve
from lm_env.objective.task import Task
from lm_env.storage import read_json
from lm_env.tasks import TextTask, get_task
from lm_env.theory.ceilings import Ceiling

__all__ = ["NEEDS_REFERENCE", "evaluate_model"]

NEEDS_REFERENCE = ("kl", "kl_k1", "kl_per_token", "J", "perplexity")
"""Metrics that need a reference with the same vocabulary, and are left out where there is none."""


def evaluate_model(
    task: str,
    model: str | Path,
    *,
    label: str | None = None,
    reference: str | None = None,
    prompts: int = 128,
    texts: int = 512,
    ceiling_samples: int | None = 96,
    ceiling_texts: int | None = None,
    gold: Callable[..., Any] | None = None,
    independent: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    download: bool = False,
    threads: int = 1,
    progress: bool = False,
    eos_token_id: Sequence[int] | None = None,
    **task_options: Any,
) -> list[Record]:
    """Measure a model on the test prompts of a task.

    Args:
        task: as `lm_env.tasks.get_task` takes it.
        model: a folder in transformers' layout, a hub id, or another name that `lm_env.load_model` takes.
        label: the name of its row; default: the folder's or the hub id's last part.
        reference: what KL, J and perplexity are measured against; default: the task's own model.  Where it has another
            vocabulary, these are left out.
        prompts, texts: the most test prompts, and the least number of texts on all of them together.
        ceiling_samples: samples of the reference per prompt that the ceiling starts with; None estimates none.
        ceiling_texts: the largest number of these samples on all prompts; None: 16 times the number at the start.
            Fewer than 4,096 are not drawn, unless this number is smaller.
        gold: another reward function, which the model was not trained on.
        independent: a language model for a perplexity of its own.
        threads: of torch, as the record names them; this function does not set them.
        progress: show progress bars.
        eos_token_id: ids that end a text, `()` for none; None: what the task says, or the tokenizer.
        task_options: options of the task itself, such as `level=`.

    Returns:
        records as `lm-env bench` writes them: one of the kind `ceiling`, if one was asked for and there is a reference,
        and one of the kind `model`.

    Raises:
        ConfigurationError, ModelLoadError, MissingDependencyError: the task or a model cannot be had.
        RewardError: the reward function failed.
    """
    text_task = get_task(task, **task_options)
    over: dict[str, Any] = {"device": device, "download": download}
    if eos_token_id is not None:
        over["eos_token_id"] = list(eos_token_id)
    resolved, has_reference = _resolved(text_task, str(model), reference, over)
    chosen, n = evaluation_prompts(resolved, text_task.prompts("test"), prompts, texts)
    other = None if independent is None else IndependentModel(independent, device=device, download=download)
    more = text_task.measure if text_task.metrics else None
    measures = Measures(gold=gold, success=text_task.success, independent=other, more=more)
    measured = measure(resolved, LocalBackend(resolved), chosen, n, seed=seed, measures=measures)
    name = label or Path(str(model)).name
    own: Record = {"kind": "model", "agent": name, "seed": seed, "path": str(model), "trained": _training_of(model)}
    records = [{**own, **(measured if has_reference else _without_reference(measured))}]
    if ceiling_samples is not None and has_reference and resolved.kl.beta > 0:
        optimum = exact_optimum(text_task, prompts, **over, model=reference or _own_model(text_task))
        records.insert(0, _ceiling(text_task, resolved, chosen, ceiling_samples, ceiling_texts, optimum, progress))
    ends = {} if eos_token_id is None else {"eos_token_id": over["eos_token_id"]}
    circumstances = {**given_options({**task_options, **ends}), **environment(threads, device)}
    return _completed(records, text_task, reference or text_task.model_name, circumstances)


def _without_reference(measured: Record) -> Record:
    """A measurement without the metrics that need a reference, see `NEEDS_REFERENCE`; J of each prompt is None."""
    metrics = {name: value for name, value in measured["metrics"].items() if name not in NEEDS_REFERENCE}
    J = [None] * len(measured["by_prompt"]["J"])
    return {**measured, "metrics": metrics, "by_prompt": {**measured["by_prompt"], "J": J}}


def _ceiling(
    text_task: TextTask,
    task: Task,
    prompts: Sequence[Prompt],
    samples: int,
    texts: int | None,
    optimum: Callable[[], Ceiling] | None,
    progress: bool,
) -> Record:
    """The record of the kind `ceiling`.

    Args:
        samples, texts: `ceiling_samples` and `ceiling_texts` of `evaluate_model`.
        optimum: computes the optimum exactly; None: it is estimated.
    """
    least = max(samples, math.ceil(CEILING_TEXTS / len(prompts)))
    most = None if texts is None else max(2, texts // len(prompts))
    found = ceiling_of(
        task,
        prompts,
        samples=least if most is None else min(least, most),
        most=most,
        seed=CEILING_SEED,
        highest=text_task.highest,
        progress="samples of the reference, for the optimum" if progress else None,
        optimum=optimum,
    )
    return {"kind": "ceiling", "success_threshold": text_task.success, **found}


def _completed(records: list[Record], text_task: TextTask, model_name: str, circumstances: Record) -> list[Record]:
    """The records with what all of them say: the layout, the task, the reference's name, where and when."""
    common = {
        "schema": SCHEMA,
        "task": text_task.id.removeprefix("lm_env/"),
        "model": model_name,
        **circumstances,
    }
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return [{**common, **plain(record), "finished": finished} for record in records]


def _training_of(model: str | Path) -> Record | None:
    """How an agent of this package has trained the model of a folder: `agent`, `seed`, `tokens`; None for others."""
    file = Path(model) / "agent" / "state.json"
    if not file.is_file():
        return None
    saved = read_json(file)
    config = saved.get("config")
    found = {
        "agent": saved.get("agent"),
        "seed": config.get("seed") if isinstance(config, dict) else None,
        "tokens": saved.get("num_timesteps"),
    }
    known = isinstance(found["agent"], str) and all(type(found[name]) is int for name in ("seed", "tokens"))
    return found if known else None


def _resolved(text_task: TextTask, model: str, reference: str | None, over: dict[str, Any]) -> tuple[Task, bool]:
    """(the task with the model as its policy, whether it has a reference with the same vocabulary).

    Args:
        over: options of `lm_env.Task` that replace the task's own.
    """
    over = {**over, "model": model}
    own = text_task.options.get("reference")
    if reference is not None or own is None:
        over["reference"] = reference or _own_model(text_task)
    try:
        return text_task.task("test", **over), True
    except ConfigurationError as error:
        if reference is not None or "vocabulary" not in str(error):
            raise
    over["reference"] = None
    return text_task.task("test", **over), False


def _own_model(text_task: TextTask) -> Any:
    """The task's default model, by name where it has one."""
    return resolve(text_task.model) if isinstance(text_task.model, str) else text_task.task_options("test")["model"]
