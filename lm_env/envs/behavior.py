"""Who tells the environment log pi of the tokens taken.

Three sources, in this order: the acting policy PUBLISHES it with its actions (free, exact); else a
bound scorer computes it; else the environment's own model does.  An agent that trains other weights
than the environment's model must publish or bind, or its KL is not in the reward.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from lm_env.errors import ConfigurationError, PublishedActionsError

__all__ = ["LOGPROB_SOURCES", "Behavior", "LogprobFn"]

LogprobFn = Callable[[dict[str, np.ndarray], np.ndarray], ArrayLike]
"""`logprob_fn(observation, actions (k,)) -> logprobs (k,)`; observation: `input_ids (k, L)`, `length (k, 1)`."""

LOGPROB_SOURCES = ("published", "logprob_fn", "model")


class Behavior:
    """Published logprobs of n slots, and a scorer for those who do not publish."""

    def __init__(self, slots: int) -> None:
        self.logprob_fn: LogprobFn | None = None
        self._waiting = np.zeros(slots, dtype=bool)
        self._actions = np.zeros(slots, dtype=np.int64)
        self._logprobs = np.zeros(slots)

    def publish(self, actions: ArrayLike, logprobs: ArrayLike, slots: ArrayLike | None = None) -> None:
        """Announce the logprobs of the actions of the coming step.  Each is used once.

        Args:
            actions: int (k,), exactly those that `step` will get.
            logprobs: float (k,), nats, under the distribution that they were sampled from.
            slots: (k,) the slots meant; all by default.

        Raises:
            PublishedActionsError: shapes that do not fit, or a value that is no logprob.
        """
        n = len(self._waiting)
        index = np.arange(n) if slots is None else np.asarray(slots).reshape(-1)
        taken = np.asarray(actions).reshape(-1)
        values = np.asarray(logprobs, dtype=np.float64).reshape(-1)
        if not len(index) == len(taken) == len(values):
            raise PublishedActionsError(
                f"published {len(taken)} actions and {len(values)} logprobs for {len(index)} slots: one each is needed"
            )
        whole = taken.dtype.kind in "iu" and index.dtype.kind in "iu"
        if not whole or ((index < 0) | (index >= n)).any():
            raise PublishedActionsError(
                f"published actions {taken} of slots {index}: both must be integers, slots from 0 to {n - 1}"
            )
        bad = ~np.isfinite(values) | (values > 1e-3)
        if bad.any():
            raise PublishedActionsError(
                f"published logprob {values[bad][0]} of slot {index[bad][0]}: a logprob is finite and at most 0"
            )
        self._waiting[index], self._actions[index], self._logprobs[index] = True, taken, np.minimum(values, 0.0)

    def published(self, slots: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of the slots have published (k,) bool, their logprobs (k,), junk elsewhere).

        Raises:
            PublishedActionsError: an action differs from the one published; what was published is dropped.
        """
        waiting = self._waiting[slots]
        differ = waiting & (self._actions[slots] != actions)
        if differ.any():
            slot = slots[differ][0]
            message = (
                f"slot {slot} was stepped with action {actions[differ][0]}, but the logprob of action "
                f"{self._actions[slot]} was published: step with the very actions that were published"
            )
            self.clear(slots)
            raise PublishedActionsError(message)
        return waiting, self._logprobs[slots]

    def clear(self, slots: np.ndarray) -> None:
        """What these slots published has been used (or belongs to an episode that is gone)."""
        self._waiting[slots] = False

    def ask(self, observation: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        """The bound logprob_fn's logprobs (k,), checked."""
        assert self.logprob_fn is not None
        values = np.asarray(self.logprob_fn(observation, actions), dtype=np.float64).reshape(-1)
        if values.shape != actions.shape or not np.isfinite(values).all() or (values > 1e-3).any():
            raise ConfigurationError(
                f"the bound logprob_fn must return {len(actions)} finite logprobs (at most 0), not {values!r}"
            )
        return np.minimum(values, 0.0)
