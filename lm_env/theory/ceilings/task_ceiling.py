"""The ceiling of a task on some prompts in one call, from as many samples as it takes.

The number of samples is doubled for all prompts.  To draw more only for prompts with a small effective sample size
would be cheaper, but biased: a prompt whose best texts were not sampled yet has a large one, so sampling would stop
exactly where they were missed, and J* would be too low.

Shapes: P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_env.data.prompts import Prompt, Prompts
from lm_env.objective.task import Task
from lm_env.theory.ceilings.reference_samples import sample_reference_scores
from lm_env.theory.ceilings.tilting import Ceiling, ceiling
from lm_env.validation import check_integer, check_number

__all__ = ["enough_reference_scores", "task_ceiling"]

GROWTH = 16
"""The default of `most`, in units of `samples`."""


def task_ceiling(
    task: Task,
    prompts: Any = None,
    *,
    samples: int = 96,
    most: int | None = None,
    seed: int = 0,
    highest: float | None = None,
    progress: str | None = None,
    divided: bool = False,
) -> Ceiling:
    """Sample the task's reference on some prompts, and estimate the ceiling at the task's beta.

    Args:
        prompts: anything that `lm_env.load_prompts` takes; None: all of the task's own.
        samples, most, seed, highest, progress, divided: see `enough_reference_scores`.

    Raises:
        ConfigurationError, InvalidPromptError: no prompts can be had; beta is 0, at which there is no ceiling; a
            number cannot work; or the task masks tokens.
        RewardError, RewardValueError: the task's reward function failed.
    """
    chosen = task.prompts if prompts is None else prompts
    if not isinstance(chosen, Prompts) and not all(isinstance(prompt, Prompt) for prompt in chosen):
        chosen = task.load_prompts(chosen, any_length=True)
    chosen = list(chosen)
    beta = task.kl.beta
    scores = enough_reference_scores(
        task, chosen, beta, samples=samples, most=most, seed=seed, highest=highest, progress=progress, divided=divided
    )
    return ceiling(scores, beta, highest)


def enough_reference_scores(
    task: Task,
    prompts: Sequence[Prompt],
    beta: float,
    *,
    samples: int = 96,
    most: int | None = None,
    seed: int = 0,
    highest: float | None = None,
    progress: str | None = None,
    divided: bool = False,
) -> np.ndarray:
    """Scores of samples of the reference, doubled in number until the ceiling is trusted (`Ceiling.trusted`).

    Args:
        beta: the weight of the KL penalty, score per nat.
        samples: samples per prompt at the start, at least 2.
        most: the largest number of samples per prompt; None: 16 times `samples`.
        highest: see `ceiling`.
        progress: the label of a progress bar over the texts of each round; None shows none.
        divided: see `sample_reference_scores`.

    Returns:
        float64 (P, n), ready for `ceiling`, `frontier` and `best_of_n`.

    Raises:
        ConfigurationError, RewardError, RewardValueError: see `task_ceiling`.
    """
    check_number("beta", beta, low=0.0, above=True)
    check_integer("samples", samples, low=2)
    most = GROWTH * samples if most is None else check_integer("most", most, low=samples)
    how: dict[str, Any] = {"progress": progress, "divided": divided}
    scores = sample_reference_scores(task, prompts, samples, seed=seed, **how)
    while 2 * scores.shape[1] <= most and not ceiling(scores, beta, highest).trusted:
        size = scores.shape[1]
        new = sample_reference_scores(task, prompts, size, seed=seed + size, **how)
        scores = np.concatenate([scores, new], axis=1)
    return scores
