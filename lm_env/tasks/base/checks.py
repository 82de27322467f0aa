"""Whether a task is sound, as far as that shows without a model: its splits, and scores of texts that nobody wants."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError, LMEnvError, RewardError
from lm_env.tasks.base.splits import SPLITS, prompt_of
from lm_env.tasks.base.text_task import TextTask, loaded

__all__ = ["check_task", "score_rows", "task_problems"]


def check_task(task: TextTask, rows: int = 8) -> None:
    """Raise ConfigurationError unless `task_problems`, which explains the arguments, finds nothing."""
    if found := task_problems(task, rows):
        raise ConfigurationError(f"the task {task.id} is not sound: {'; '.join(found)}")


def task_problems(task: TextTask, rows: int = 8) -> list[str]:
    """What is wrong with a task, in sentences; [] if nothing was found.

    Every split must have prompts, and no prompt may be in two of them, unless all three are the same.  The reward and
    the metrics must give a finite number to each text of `lm_env.objective.degenerate_texts.DEGENERATE` as the response
    to the first prompts of each split, and no score may exceed `TextTask.highest`.

    Args:
        rows: prompts of each split that are scored.
    """
    try:
        splits = {split: task.prompts(split) for split in SPLITS}
    except LMEnvError as error:
        return [f"its prompts cannot be read ({error})"]
    column = task.options.get("prompt_column")
    keys = {
        split: {json.dumps(prompt_of(row, column), sort_keys=True, default=str) for row in found}
        for split, found in splits.items()
    }
    problems = [f"the split {split} has no prompts" for split, found in keys.items() if not found]
    if len({frozenset(found) for found in keys.values()}) > 1:
        for one, other in itertools.combinations(SPLITS, 2):
            if shared := keys[one] & keys[other]:
                problems.append(f"{len(shared)} prompts, such as {min(shared):.60}, are in both {one} and {other}")
    for split, found in splits.items():
        if found:
            problems += _score_problems(task, found[:rows], split)
    return problems


def score_rows(function: Callable[..., Any], rows: Sequence[Any], responses: Sequence[str]) -> np.ndarray:
    """The scores of a reward function for responses to rows as `TextTask.prompts` gives them, float64 (B,).

    The function is called as an environment calls it, except that it gets no token ids.

    Raises:
        RewardError, RewardValueError: it raised, or returned something else than B finite numbers.
    """
    from lm_env.objective.rewards import score_responses

    texts = [str(prompt_of(row)) for row in rows]
    prompts = {name for row in rows if isinstance(row, Mapping) for name in row if row[name] is prompt_of(row)}
    names = {name for row in rows if isinstance(row, Mapping) for name in row} - prompts
    columns = {name: [row.get(name) for row in rows] for name in names}
    return score_responses(function, texts, responses, columns)


def _score_problems(task: TextTask, rows: Sequence[Any], split: str) -> list[str]:
    from lm_env.objective.degenerate_texts import DEGENERATE

    functions = {"the reward": task.reward, **{f"the metric {name}": f for name, f in task.metrics.items()}}
    problems = []
    for name, function in functions.items():
        if function is None:
            continue
        called = loaded(function) if isinstance(function, str) else function
        for kind, text_of in DEGENERATE.items():
            responses = [text_of(str(prompt_of(row))) for row in rows]
            try:
                scores = score_rows(called, rows, responses)
            except RewardError as error:
                problems.append(f"{name} fails for {kind} as the response to prompts of {split} ({error})")
                continue
            if name == "the reward" and task.highest is not None and scores.max() > task.highest:
                problems.append(f"{kind} scores {scores.max():g}, more than highest={task.highest:g}")
    return problems
