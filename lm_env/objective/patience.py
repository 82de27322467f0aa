"""A reward function that may fail: asked again, given up after a deadline, or its texts left out.

`PatientReward` is a reward function around another one, for any environment and any agent.  The agents of
this package use `SkippingReward` in their rollouts, for `on_reward_error="skip"`.

Shapes: B texts.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from lm_env.errors import (
    ConfigurationError,
    RewardError,
    RewardTimeoutError,
    RewardUnavailableError,
    RewardValueError,
)
from lm_env.objective.rewards import ask_reward, lengths_of, name_of, parts_of
from lm_env.objective.scores import Scores, checked_rows, checked_scores
from lm_env.objective.wrapping import WrappedReward
from lm_env.validation import check_choice, check_integer, check_number

__all__ = ["OnRewardError", "PatientReward", "SkippingReward", "patient"]

log = logging.getLogger(__name__)

T = TypeVar("T")

OnRewardError = Literal["raise", "retry", "skip"]
"""What an agent does when its reward function fails."""

MAX_CALLS = 64
"""How often `SkippingReward` asks about one batch at most, in order to find the texts at which the function fails."""

MAX_HANGING = 64
"""How many calls may hang at a time.  Beyond it none is made, so that a dead function does not fill the memory."""


class PatientReward(WrappedReward):
    """The same reward function, given up after a deadline, and asked again where it fails.

    A call that hangs cannot be ended from outside: it is left to itself in its thread, and what it
    returns later is not read.  So a function with a deadline must bear to be called while an earlier call of it
    hangs.  It runs in a thread of its own; without a deadline it runs in the caller's.

    Args:
        reward: any reward function.
        deadline: seconds that a call may take; None: as long as it wants.
        attempts: how often it is asked, at least 1, before its error is raised.
        pause: seconds before the second attempt; they double from one to the next.

    Attributes:
        errors: how many calls have failed.
    """

    def __init__(
        self, reward: Callable[..., Any], *, deadline: float | None = None, attempts: int = 3, pause: float = 1.0
    ) -> None:
        if not callable(reward):
            raise ConfigurationError(f"{type(self).__name__} takes a reward function, not {reward!r}")
        self.reward = reward
        self.deadline = None if deadline is None else check_number("deadline", deadline, low=0.0, above=True)
        self.attempts = check_integer("attempts", attempts)
        self.pause = check_number("pause", pause, low=0.0)
        self.errors = 0
        self._hanging: list[threading.Thread] = []

    @property
    def causal(self) -> bool:
        """What the reward function says of itself; AttributeError where it says nothing."""
        return self.reward.causal  # type: ignore[union-attr]

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> Scores:
        """The scores of the reward function, checked.

        Raises:
            RewardError, RewardValueError: of the last attempt.
            RewardTimeoutError: the last attempt took longer than the deadline.
        """
        for attempt in range(1, self.attempts):
            try:
                return self._asked(prompts, responses, columns)
            except RewardError as error:
                pause = self.pause * 2 ** (attempt - 1)
                log.warning("attempt %d of %d, the next in %g s: %s", attempt, self.attempts, pause, error)
                time.sleep(pause)
        return self._asked(prompts, responses, columns)

    def _asked(self, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Scores:
        """One call, checked."""
        try:
            raw = self._raw(prompts, responses, columns)
            return checked_scores(name_of(self), raw, prompts, responses, lengths_of(columns))
        except RewardError:
            self.errors += 1
            raise

    def _raw(self, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Any:
        """What the function returned, whatever it is."""
        if self.deadline is None:
            return ask_reward(self.reward, prompts, responses, columns)
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        if len(self._hanging) >= MAX_HANGING:
            raise RewardTimeoutError(
                f"reward function {name_of(self)} was not called: {len(self._hanging)} earlier calls of it still hang;"
                " see why it does not answer"
            )
        outcome, thread = _in_thread(lambda: ask_reward(self.reward, prompts, responses, columns), self.deadline)
        if outcome is None:
            self._hanging.append(thread)
            raise RewardTimeoutError(
                f"reward function {name_of(self)} has not answered within {self.deadline:g} s (batch of"
                f" {len(responses)}; {len(self._hanging)} calls hang): raise the deadline, or see why it does not"
                " answer"
            )
        return outcome()


class SkippingReward(PatientReward):
    """Leaves out the texts at which the function fails: they are in `Scores.failed`, and score 0.

    Scores that are no finite numbers belong to their texts alone.  After an exception or a wrong number of scores the
    batch is halved, and again, until the texts that cause it are found, or it was asked `MAX_CALLS` times:
    then what is left is given up.  After a deadline, and where a remote reward is not available, the texts of that call
    are given up at once, so that a dead function costs one deadline per batch.
    """

    def __init__(self, reward: Callable[..., Any], *, deadline: float | None = None) -> None:
        super().__init__(reward, deadline=deadline, attempts=1)
        self._parts: dict[str, np.ndarray] = {}

    @property
    def last_parts(self) -> Mapping[str, Any]:
        """See `PatientReward`; NaN for texts that could not be scored."""
        return self._parts

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> Scores:
        """The scores of those texts that could be scored."""
        total = Scores(np.zeros(len(responses)))
        failed: list[int] = []
        self._parts = {}
        waiting = deque([np.arange(len(responses))] if len(responses) else [])
        calls = 0
        while waiting:
            rows = waiting.popleft().tolist()
            chosen = {name: [values[i] for i in rows] for name, values in columns.items()}
            calls += 1
            try:
                if calls > MAX_CALLS:
                    raise RewardTimeoutError(f"reward function {name_of(self)} failed too often at one batch")
                scores = self._asked([prompts[i] for i in rows], [responses[i] for i in rows], chosen)
            except RewardError as error:
                if not failed and len(rows) == len(responses):
                    log.warning("%s", error)
                if isinstance(error, RewardTimeoutError | RewardUnavailableError) or len(rows) == 1:
                    failed += rows
                else:
                    waiting.extend(np.array_split(rows, 2))
                continue
            failed += [rows[i] for i in scores.failed]
            total = total.placed(rows, scores)
            for name, values in parts_of(self.reward, len(rows)).items():
                self._parts.setdefault(name, np.full(len(responses), np.nan))[rows] = values
        if failed:
            log.warning("%d of %d texts are skipped", len(failed), len(responses))
        return total.without(failed)

    def _asked(self, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Scores:
        """One call; single scores may be bad."""
        try:
            raw = self._raw(prompts, responses, columns)
        except RewardError:
            self.errors += 1
            raise
        try:
            return checked_scores(name_of(self), raw, prompts, responses, lengths_of(columns))
        except RewardValueError as error:
            self.errors += 1
            scores = checked_rows(name_of(self), raw, prompts, responses, lengths_of(columns))
            log.warning("%s", error)
            return scores


def patient(reward: Callable[..., Any], on_error: OnRewardError, deadline: float | None) -> PatientReward | None:
    """A reward function in the wrapping that does as `on_error` says; None where it needs none.

    Raises:
        ConfigurationError: an unknown `on_error`, or a deadline that is not above 0.
    """
    check_choice("on_reward_error", on_error, ("raise", "retry", "skip"))
    if on_error == "raise" and deadline is None:
        return None
    if on_error == "skip":
        return SkippingReward(reward, deadline=deadline)
    return PatientReward(reward, deadline=deadline, attempts=3 if on_error == "retry" else 1)


def _in_thread(call: Callable[[], T], seconds: float) -> tuple[Callable[[], T] | None, threading.Thread]:
    """(a function that returns or raises what the call did, or None where it took longer; its thread)."""
    outcome: list[Callable[[], T]] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(call)
        except BaseException as error:
            outcome.append(_raiser(error))
        else:
            outcome.append(lambda: result)

    thread = threading.Thread(target=run, name="reward", daemon=True)  # a daemon does not keep the process alive
    thread.start()
    thread.join(seconds)
    return (outcome[0] if outcome else None), thread


def _raiser(error: BaseException) -> Callable[[], Any]:
    def again() -> Any:
        raise error

    return again
