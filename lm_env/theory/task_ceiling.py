"""The ceiling of a task on some prompts, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from lm_env.data.prompts import Prompt
from lm_env.objective.task import Task
from lm_env.theory.ceiling import Ceiling, ceiling
from lm_env.theory.reference_samples import sample_reference_scores

__all__ = ["task_ceiling"]


def task_ceiling(
    task: Task,
    prompts: Sequence[Prompt] | None = None,
    *,
    samples: int = 96,
    seed: int = 0,
    highest: float | None = None,
    progress: str | None = None,
) -> Ceiling:
    """Sample the task's reference on some prompts, and estimate the ceiling at the task's beta.

    Args:
        prompts: None: all of the task's own.
        samples: of the reference for each prompt.
        highest: see `ceiling`.
        progress: the label of a progress bar; None shows none.
    """
    chosen = list(task.prompts) if prompts is None else prompts
    scores = sample_reference_scores(task, chosen, samples, seed=seed, progress=progress)
    return ceiling(scores, task.kl.beta, highest)
