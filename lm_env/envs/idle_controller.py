"""Warn where an `AdaptiveKL` never adapts, because the loop that drives the environment does not update it.

The environment cannot update it: only the loop knows which episodes belong to the training.
"""

from __future__ import annotations

import warnings

from lm_env.envs.untrained import outside
from lm_env.objective.kl import AdaptiveKL
from lm_env.objective.task import Task

__all__ = ["IdleControllerWarner"]

EPISODES = 4096
"""Finished episodes after which a loop that updates the controller at all would have done so: many rollouts."""


class IdleControllerWarner:
    """Warns, once, where many episodes have ended and nobody has updated the task's adaptive controller."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._episodes = 0
        self._first = task.kl.beta
        self._settled = not isinstance(task.kl, AdaptiveKL)

    def settle(self) -> None:
        """Never warn: who drives the environment updates the controller, or leaves it alone on purpose."""
        self._settled = True

    def note(self, ended: int) -> None:
        """Take note of a step in which so many episodes end."""
        kl = self._task.kl
        if self._settled or kl.beta != self._first:
            self._settled = True
            return
        self._episodes += ended
        if self._episodes >= EPISODES:
            self._settled = True
            warnings.warn(
                f"beta has been {kl.beta:g} for {self._episodes} episodes: nothing updates the AdaptiveKL.  Agents of"
                " this package do so by themselves; in a loop of your own, call env.task.kl.update(mean_kl, episodes)"
                " with the mean over finished episodes of their summed info['kl'], or give beta as a number",
                stacklevel=outside(),
            )
