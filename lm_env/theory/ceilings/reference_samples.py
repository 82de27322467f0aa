"""Scores of samples of a task's reference, from which the ceiling is estimated.

Shapes: P prompts, n samples per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lm_env.data.prompts import Prompt
from lm_env.errors import ConfigurationError
from lm_env.generation.backend import Sampling
from lm_env.generation.generate import LocalBackend
from lm_env.objective.scoring import episode_scores
from lm_env.objective.task import Task
from lm_env.validation import check_integer

__all__ = ["check_unmasked", "sample_reference_scores"]


def sample_reference_scores(
    task: Task,
    prompts: Sequence[Prompt],
    n: int,
    *,
    seed: int = 0,
    slots: int = 128,
    progress: str | None = None,
) -> np.ndarray:
    """Sample n texts of the reference for each prompt, and return the scores that are paid for them.

    Args:
        seed: the seed of the sampling.
        slots: texts decoded at a time.
        progress: the label of a progress bar over the texts; None shows none.

    Returns:
        float64 (P, n), ready for `ceiling`, `frontier` and `best_of_n`.

    Raises:
        ConfigurationError: the task masks tokens, see `check_unmasked`.
        RewardError, RewardValueError: the task's reward function failed.
    """
    check_integer("n", n)
    check_unmasked(task)
    drawn = [prompt for prompt in prompts for _ in range(n)]
    sampling = Sampling(torch.Generator().manual_seed(seed))
    with task.as_reference():
        backend = LocalBackend(task, slots, model=task.reference)
        episodes = backend.generate(drawn, sampling, progress=progress).episodes
    return episode_scores(task, episodes)[0].reshape(len(prompts), n)


def check_unmasked(task: Task) -> None:
    """Raise ConfigurationError if a task masks tokens: its optimum is then not pi_ref exp(score / beta) / Z."""
    if task.action_mask is not None:
        raise ConfigurationError(
            "the ceiling is not estimated for a task with an action_mask: its optimum is the reference conditioned on"
            " the allowed texts, and what is sampled under the mask follows another distribution"
        )
