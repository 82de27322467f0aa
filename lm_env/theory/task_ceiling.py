"""The ceiling of a task on some prompts in one call, with more samples where they are needed.

Shapes: P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_env.data.prompts import Prompt
from lm_env.objective.task import Task
from lm_env.theory.ceiling import ENOUGH_ESS, Ceiling, ceiling
from lm_env.theory.estimate import effective_samples
from lm_env.theory.reference_samples import sample_reference_scores
from lm_env.validation import check_integer, check_number

__all__ = ["enough_reference_scores", "task_ceiling"]

MARGIN = 2.0
"""The effective sample size at which a prompt gets no more samples, in units of `ENOUGH_ESS`.  Stopping on what has
been sampled makes the estimate of J* low; with this margin by less than .2% of the gain where simulated."""
GROWTH = 16
"""The most samples of a prompt that nothing is said about, in units of those of every prompt."""


def task_ceiling(
    task: Task,
    prompts: Sequence[Prompt] | None = None,
    *,
    samples: int = 96,
    most: int | None = None,
    seed: int = 0,
    highest: float | None = None,
    progress: str | None = None,
) -> Ceiling:
    """Sample the task's reference on some prompts, and estimate the ceiling at the task's beta.

    Args:
        prompts: None: all of the task's own.
        samples, most, seed, progress: see `enough_reference_scores`.
        highest: see `ceiling`.

    Raises:
        ConfigurationError: beta is 0, at which there is no ceiling; a number cannot work; or the task masks tokens.
        RewardError, RewardValueError: the task's reward function failed.
    """
    chosen = list(task.prompts) if prompts is None else prompts
    beta = task.kl.beta
    scores = enough_reference_scores(task, chosen, beta, samples=samples, most=most, seed=seed, progress=progress)
    return ceiling(scores, beta, highest)


def enough_reference_scores(
    task: Task,
    prompts: Sequence[Prompt],
    beta: float,
    *,
    samples: int = 96,
    most: int | None = None,
    seed: int = 0,
    progress: str | None = None,
) -> list[np.ndarray]:
    """Scores of samples of the reference, more of them for prompts whose best texts are rare.

    Every prompt gets `samples`; then those with an effective sample size below `MARGIN` times what the ceiling needs,
    and those whose samples all score alike, get as many again as they have, and so on.

    Args:
        beta: where the effective sample size is measured, score per nat.
        samples: of each prompt, at least 2.
        most: of a prompt; None: 16 times `samples`; the same number as `samples` gives no prompt more than others.
        progress: the label of a progress bar over the texts of each round; None shows none.

    Returns:
        P arrays float64 (n,), ready for `ceiling`, `frontier` and `best_of_n`.

    Raises:
        ConfigurationError, RewardError, RewardValueError: see `task_ceiling`.
    """
    check_number("beta", beta, low=0.0, above=True)
    check_integer("samples", samples, low=2)
    most = GROWTH * samples if most is None else check_integer("most", most, low=samples)
    scores = list(sample_reference_scores(task, prompts, samples, seed=seed, progress=progress))
    few = list(range(len(prompts)))
    size = samples
    while 2 * size <= most:
        few = [i for i in few if np.ptp(scores[i]) == 0 or effective_samples(scores[i], beta) < MARGIN * ENOUGH_ESS]
        if not few:
            break
        label = progress and f"{progress}: {len(few)} prompts need more"
        new = sample_reference_scores(task, [prompts[i] for i in few], size, seed=seed + size, progress=label)
        for i, row in zip(few, new, strict=True):
            scores[i] = np.concatenate([scores[i], row])
        size *= 2
    return scores
