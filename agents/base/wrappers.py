"""Wrappers around an environment whose task an agent takes: harmless, or to be refused.

A batched agent and `TextVecEnv` read the task of the environment and write texts by themselves.  They never call a
wrapper's `step` or `reset`, so a wrapper that changes rewards, actions or ends would be dropped without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gymnasium import Wrapper, wrappers
from gymnasium.vector import VectorWrapper
from gymnasium.wrappers import vector
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan, VecEnvWrapper, VecMonitor

from lm_env.errors import ConfigurationError

__all__ = ["check_wrappers"]

BASES = (Wrapper, VectorWrapper, VecEnvWrapper)
"""They pass everything on."""
METHODS = (
    *("reward", "rewards", "action", "actions", "observation", "observations"),
    *("step", "step_async", "step_wait", "reset"),
)
"""What a wrapper overrides in order to change an environment."""
HARMLESS = (
    wrappers.Autoreset,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RecordVideo,
    wrappers.RenderCollection,
    wrappers.HumanRendering,
    vector.DictInfoToList,
    vector.HumanRendering,
    vector.RecordEpisodeStatistics,
    vector.RecordVideo,
    Monitor,
    VecCheckNan,
    VecMonitor,
)
"""They override `step` and `reset` to observe, or to reset after an end, and leave rewards, actions and ends alone."""


def check_wrappers(env: Any, max_new_tokens: int) -> None:
    """Refuse wrappers that change the environment inside them, judged by what their classes override.

    Args:
        env: an environment, wrapped or not.
        max_new_tokens: where the task ends a text by itself; a `TimeLimit` that is not shorter changes nothing.

    Raises:
        ConfigurationError: it names the wrapper and the remedy.
    """
    for wrapper in _wrappers_of(env):
        name = type(wrapper).__name__
        if (method := _overridden(wrapper)) is not None:
            raise ConfigurationError(
                f"the wrapper {name} has a `{method}` of its own, which would never be called: the task is taken out of"
                " the environment, and its texts are written without the wrappers.  Put what it does into the task,"
                " such as a changed reward into the reward function, or pass env.unwrapped to go on without it"
            )
        limit = getattr(wrapper, "_max_episode_steps", None) if isinstance(wrapper, wrappers.TimeLimit) else None
        if isinstance(limit, int) and limit < max_new_tokens:
            raise ConfigurationError(
                f"the wrapper {name} (max_episode_steps={limit}) would not be asked, and the texts have up to"
                f" {max_new_tokens} tokens: leave it out, and make the environment with max_new_tokens={limit}"
            )


def _wrappers_of(env: Any) -> Iterator[Any]:
    while isinstance(env, BASES):
        yield env
        env = env.venv if isinstance(env, VecEnvWrapper) else env.env


def _overridden(wrapper: Any) -> str | None:
    """The first of `METHODS` that the class of a wrapper, or a parent that is not harmless, overrides."""
    for parent in type(wrapper).__mro__:
        if parent in BASES:
            return None
        if parent not in (*HARMLESS, wrappers.TimeLimit):
            found = next((method for method in METHODS if method in vars(parent)), None)
            if found is not None:
                return found
    return None
