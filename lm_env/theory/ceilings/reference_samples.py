"""Scores of samples of a task's reference, from which the ceiling is estimated.

Shapes: P prompts, n samples per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lm_env.data.prompts import Prompt
from lm_env.distributed import processes_for
from lm_env.errors import ConfigurationError, RewardError
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
    divided: bool = False,
) -> np.ndarray:
    """Sample n texts of the reference for each prompt, and return the scores that are paid for them.

    Args:
        seed: the seed of the sampling.
        slots: texts decoded at a time.
        progress: the label of a progress bar over the texts; None shows none.
        divided: several processes call this alike; each writes its share of the texts, and all get all scores.

    Returns:
        float64 (P, n), ready for `ceiling`, `frontier` and `best_of_n`.

    Raises:
        ConfigurationError: the task masks tokens, see `check_unmasked`.
        RewardError, RewardValueError: the task's reward function failed, in any of the processes.
    """
    check_integer("n", n)
    check_unmasked(task)
    drawn = [prompt for prompt in prompts for _ in range(n)]
    together = processes_for(len(drawn), divided)
    sampling = Sampling(torch.Generator().manual_seed(seed)).of_share(together, len(drawn), task.max_new_tokens)

    def scores() -> np.ndarray:
        with task.as_reference():
            backend = LocalBackend(task, slots, model=task.reference)
            episodes = backend.generate(drawn[together.share(len(drawn))], sampling, progress=progress).episodes
        return episode_scores(task, episodes)[0]

    own = together.attempt(scores, RewardError)
    return together.gather_rows({"scores": own}, len(own))["scores"].reshape(len(prompts), n)


def check_unmasked(task: Task) -> None:
    """Raise ConfigurationError if a task masks tokens: its optimum is then not pi_ref exp(score / beta) / Z."""
    if task.action_mask is not None:
        raise ConfigurationError(
            "the ceiling is not estimated for a task with an action_mask: its optimum is the reference conditioned on"
            " the allowed texts, and what is sampled under the mask follows another distribution"
        )
