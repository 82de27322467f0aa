"""Warn when an agent trains weights other than the environment's model and does not publish its logprobs.

The KL in the reward is then 0 for ever.  That the model equals its reference proves nothing: every
training begins that way, and a first rollout may be long.  The sign of the mistake is an optimizer
that repeatedly steps, between episodes, on parameters that do not belong to the model.

Those parameters may be a critic's alone, warmed up while the model itself writes, and then the KL is 0 as it should be.
Where there is a head of one output among them, the actions decide: as long as they look like samples of the
environment's model, nothing is said.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any
from weakref import WeakSet

import numpy as np
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from lm_env.generation.step_logprobs import Surprise
from lm_env.objective.task import Task

__all__ = ["UntrainedModelWarner", "outside"]

UPDATES = 4  # times that the weights of something else moved between two steps of the environment
EPISODES = 16  # whole episodes without KL after that
LOG_RATIO = 1e-5  # rounding; nearly all models give exactly 0
DEVIATIONS = 4.0  # from what samples of the environment's model would look like


class UntrainedModelWarner:
    """Warns, once, where the environment's model gives log pi while other weights are trained."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._steps_seen: int | None = None
        self._updates = 0
        self._episodes = 0
        self._settled = False
        self._next_look = EPISODES
        self.surprise: Surprise | None = None
        """What the actions of the environment's model are to be added to; None: nobody wants to know."""

    def note(self, log_ratios: np.ndarray, ended: np.ndarray) -> None:
        """Take note of a step of k slots, before anything of it is stored.

        Args:
            log_ratios: float (k,), the largest |log pi - log pi_ref| of each slot's episode so far.
            ended: bool (k,), whether the episode ends here with a log pi of the environment's model.
        """
        if self._settled:
            return
        if self._steps_seen is None:  # what was trained before the first step, such as a reward model, is no policy
            self._steps_seen = _steps.count
        if self._steps_seen != _steps.count:
            self._updates += 1
        self._steps_seen = _steps.count
        differs = log_ratios >= LOG_RATIO
        if (ended & differs).any():
            self._settled = True  # the model has been trained
        elif self._updates >= UPDATES and self._task.kl.beta:
            if self.surprise is None:
                self.surprise = Surprise()
            self._episodes += int(ended.sum())
            if self._episodes >= self._next_look:
                self._next_look *= 2  # looking at every episode would some day find chance alone
                self._look()

    def _look(self) -> None:
        own = {id(p) for p in self._task.model.parameters()}
        trained = [p for optimizer in _steps.optimizers for g in optimizer.param_groups for p in g["params"]]
        if any(id(p) in own for p in trained):
            self._settled = True  # it is in training; its first steps may have a learning rate of 0
            return
        critic = any(p.ndim == 2 and p.shape[0] == 1 for p in trained)
        if critic and self.surprise is not None and self.surprise.deviation < DEVIATIONS:
            return
        self._settled = True
        warnings.warn(
            "the KL in the reward has been 0 for whole episodes, while an optimizer trains other weights: log pi comes"
            " from the environment's own model, which still equals its reference.  Let the agent publish its logprobs"
            " (env.publish), bind a function of them (env.bind_logprob_fn), or train env.task.model; else no KL penalty"
            " holds it near the reference.",
            stacklevel=outside(),
        )


def outside() -> int:
    """The `stacklevel` of the first caller outside this package, seen from the caller of this function."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("lm_env."):
        level += 1
        frame = frame.f_back
    return level


class _Steps:
    """The steps of all optimizers of this process."""

    def __init__(self) -> None:
        self.count = 0
        self.optimizers: WeakSet[Optimizer] = WeakSet()
        register_optimizer_step_post_hook(self._note)

    def _note(self, optimizer: Optimizer, *_: Any) -> None:
        self.count += 1
        self.optimizers.add(optimizer)


_steps = _Steps()
