"""stable-baselines3's callbacks on agents whose step is a whole rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback

from lm_env.errors import ConfigurationError

__all__ = ["CallbackLike", "TrainingEnv", "as_callback"]

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
