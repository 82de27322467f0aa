"""stable-baselines3's callbacks on agents whose step is a whole rollout."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback

from lm_env.errors import ConfigurationError

__all__ = ["CallbackLike", "TrainingEnv", "as_callback", "callback_state", "restore_callbacks"]

log = logging.getLogger(__name__)

COUNTERS = (
    "n_calls",
    "last_time_trigger",
    "best_mean_reward",
    "last_mean_reward",
    "last_best_mean_reward",
    "no_improvement_evals",
)
"""The attributes in which stable-baselines3's callbacks keep how far they have come."""

CallbackLike = Callable[..., Any] | BaseCallback | Sequence[BaseCallback] | None
"""A callback of stable-baselines3, a list or tuple of them, a function `f(locals, globals) -> bool`, or none."""


class TrainingEnv:
    """The training environment as callbacks ask for it: `num_envs` is 1, all else is the environment's own.

    stable-baselines3's callbacks count in units of `num_envs`; here they count episodes and calls.
    """

    num_envs = 1

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


class _TokenProgressBar(ProgressBarCallback):
    """stable-baselines3's progress bar, moved by generated tokens instead of by one step per call."""

    shown = 0
    """The tokens that the bar has been moved by, those of earlier trainings included."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.shown = self.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.num_timesteps - self.shown)
        self.shown = self.num_timesteps
        return True


def as_callback(callback: CallbackLike) -> BaseCallback:
    """Whatever `learn` was given as one callback."""
    if type(callback) is ProgressBarCallback:  # a subclass keeps its own methods
        return _TokenProgressBar()
    if isinstance(callback, CallbackList):
        callback.callbacks = [as_callback(part) for part in callback.callbacks]
        return callback
    if isinstance(callback, BaseCallback):
        return callback
    if isinstance(callback, list | tuple):
        return CallbackList([as_callback(part) for part in callback])
    if callback is not None and not callable(callback):
        raise ConfigurationError(
            f"callback must be a callback, a list of them or a function, not {type(callback).__name__}"
        )
    return ConvertCallback(callback or (lambda local_variables, global_variables: True))


# -- a run that goes on ------------------------------------------------------------------------------
def callback_state(callback: BaseCallback) -> list[dict[str, Any]]:
    """Where each callback stands, those inside others included, as JSON.

    Of stable-baselines3's these are its counters.  A callback with `state_dict()`, which gives JSON, and
    `load_state_dict` is asked as well.
    """
    return [
        {
            "class": type(part).__name__,
            "counters": {name: float(vars(part)[name]) for name in COUNTERS if name in vars(part)},
            "own": part.state_dict() if _keeps_state(part) else None,
        }
        for part in _parts(callback)
    ]


def restore_callbacks(callback: BaseCallback, state: list[dict[str, Any]]) -> None:
    """Put callbacks like those that were saved where these stood; others begin anew, and the log says so."""
    parts = list(_parts(callback))
    if [type(part).__name__ for part in parts] != [saved["class"] for saved in state]:
        log.warning("the callbacks are not those of the run that goes on, so they begin anew")
        return
    for part, saved in zip(parts, state, strict=True):
        for name, value in saved["counters"].items():
            if name in vars(part):
                setattr(part, name, type(vars(part)[name])(value))
        if _keeps_state(part):
            part.load_state_dict(saved["own"])


def _parts(callback: BaseCallback) -> Iterator[Any]:
    yield callback
    inner = [*getattr(callback, "callbacks", ()), getattr(callback, "callback", None)]
    for part in inner:
        if isinstance(part, BaseCallback):
            yield from _parts(part)


def _keeps_state(callback: Any) -> bool:
    return callable(getattr(callback, "state_dict", None)) and callable(getattr(callback, "load_state_dict", None))
