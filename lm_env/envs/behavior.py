"""Behavior: logprobs of the acting (behavior) policy, published or computed by a bound function.

Three sources, in this order: the acting policy PUBLISHES it with its actions (free, exact); else a
bound `logprob_fn` computes it; else the environment's own model does.  An agent that trains other
weights than the environment's model must publish or bind, or its KL is not in the reward.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from lm_env.envs.inputs import as_array, as_numbers
from lm_env.errors import ConfigurationError, PublishedActionsError

__all__ = ["LOGPROB_SOURCES", "Behavior", "LogprobFn"]

LogprobFn = Callable[[dict[str, np.ndarray], np.ndarray], ArrayLike]
"""`logprob_fn(observation, actions (k,)) -> logprobs (k,)`; observation: `input_ids (k, L)`, `length (k, 1)`."""

LOGPROB_SOURCES = ("published", "logprob_fn", "model")
_ROUNDING = 1e-3  # a logprob may be above 0 by so much


class Behavior:
    """Published logprobs of n slots, and a function for those that do not publish.

    Args:
        slots: n.
        vocab_size: V, where it is known: published actions are then token ids below it.
    """

    def __init__(self, slots: int, vocab_size: int | None = None) -> None:
        self._vocab_size = vocab_size
        self.logprob_fn: LogprobFn | None = None
        self._waiting = np.zeros(slots, dtype=bool)
        self._actions = np.zeros(slots, dtype=np.int64)
        self._logprobs = np.zeros(slots)

    def bind(self, logprob_fn: LogprobFn | None) -> None:
        """Have this function asked for slots that did not publish; None: none any more.

        Raises:
            ConfigurationError: it is no function.
        """
        if logprob_fn is not None and not callable(logprob_fn):
            raise ConfigurationError(
                f"logprob_fn must be a function f(observation, actions) -> logprobs, or None, not {logprob_fn!r}"
            )
        self.logprob_fn = logprob_fn

    def publish(self, actions: ArrayLike, logprobs: ArrayLike, slots: ArrayLike | None = None) -> None:
        """Announce the logprobs of the actions of the coming step.  Each is used once.

        Args:
            actions: int (k,), exactly those that `step` will get.
            logprobs: float (k,), nats, under the distribution that they were sampled from; a tensor's gradient
                is left aside.
            slots: int (k,), each once; all slots by default.

        Raises:
            PublishedActionsError: shapes that do not fit, an action that is no token id, or a value that is no
                logprob; what was published before stands.
        """
        n = len(self._waiting)
        index = np.arange(n) if slots is None else _integers("slots", slots)
        taken = _integers("actions", actions)
        try:
            values = as_numbers(logprobs)
        except ValueError as error:
            raise PublishedActionsError(f"published logprobs must be numbers: {error}") from error
        if not len(index) == len(taken) == len(values):
            raise PublishedActionsError(
                f"published {len(taken)} actions and {len(values)} logprobs for {len(index)} slots: one each is needed"
            )
        repeated = slots is not None and len(np.unique(index)) < len(index)
        if repeated or ((index < 0) | (index >= n)).any():
            raise PublishedActionsError(f"published for slots {index}: each may be there once, from 0 to {n - 1}")
        outside = (taken < 0) | (taken >= (self._vocab_size or np.inf))
        if outside.any():
            allowed = "0 and more are" if self._vocab_size is None else f"0 to {self._vocab_size - 1} are"
            raise PublishedActionsError(
                f"published action {taken[outside][0]} of slot {index[outside][0]} is no token id: {allowed}"
            )
        bad = ~np.isfinite(values) | (values > _ROUNDING)
        if bad.any():
            raise PublishedActionsError(
                f"published logprob {values[bad][0]} of slot {index[bad][0]}: a logprob is finite and at most 0"
            )
        self._waiting[index] = True
        self._actions[index] = taken
        self._logprobs[index] = np.minimum(values, 0.0)

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
        """Forget what these slots have published, because it was used or the episode is over."""
        self._waiting[slots] = False

    def ask(self, observation: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
        """The bound logprob_fn's logprobs (k,), checked.

        Raises:
            ConfigurationError: it returned something else.
        """
        assert self.logprob_fn is not None
        wanted = f"the bound logprob_fn must return {len(actions)} finite logprobs (at most 0)"
        returned = self.logprob_fn(observation, actions)
        try:
            values = as_numbers(returned)
        except ValueError as error:
            raise ConfigurationError(f"{wanted}: {error}") from error
        if values.shape != actions.shape:
            raise ConfigurationError(f"{wanted}, not {len(values)} numbers of shape {np.shape(as_array(returned))}")
        if not np.isfinite(values).all() or (values > _ROUNDING).any():
            raise ConfigurationError(f"{wanted}, not {reprlib.repr(values.tolist())}")
        return np.minimum(values, 0.0)


def _integers(name: str, values: ArrayLike) -> np.ndarray:
    """A flat array of integers.

    Raises:
        PublishedActionsError: it is none.
    """
    try:
        array = as_array(values).reshape(-1)
    except ValueError as error:
        raise PublishedActionsError(f"published {name} must be integers: {error}") from error
    if array.dtype.kind not in "iu":
        raise PublishedActionsError(f"published {name} must be integers, not {reprlib.repr(values)}")
    return array
