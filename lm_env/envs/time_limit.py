"""Warn where Gymnasium's `TimeLimit` cuts texts before they are scored.

`gymnasium.make(..., max_episode_steps=N)` wraps the environment in one.  The text is then `truncated` after N tokens,
the reward function is never asked about it, and nothing tells.  An environment does not know its wrappers; those that
call its `reset` are found among the callers.
"""

from __future__ import annotations

import warnings
from types import FrameType

import gymnasium
from gymnasium.wrappers import TimeLimit

__all__ = ["TimeLimitWarner"]


class TimeLimitWarner:
    """Warns, once."""

    def __init__(self) -> None:
        self._settled = False

    def notice(self, caller: FrameType | None, max_new_tokens: int) -> None:
        """Look through the wrappers that call `reset`.

        Args:
            caller: the frame that called `reset`.
            max_new_tokens: where the task ends a text by itself.
        """
        level = 3  # the caller of `reset`, seen from here
        while not self._settled and caller is not None:
            wrapper = caller.f_locals.get("self")
            if not isinstance(wrapper, gymnasium.Wrapper):
                return
            limit = getattr(wrapper, "_max_episode_steps", None) if isinstance(wrapper, TimeLimit) else None
            if isinstance(limit, int) and limit < max_new_tokens:
                self._settled = True
                warnings.warn(
                    f"max_episode_steps={limit} (a TimeLimit) cuts every longer text, and no score is paid for it: leave"
                    f" it out, and make the environment with max_new_tokens={limit}, at which the score is paid",
                    stacklevel=level + 1,
                )
            caller = caller.f_back
            level += 1
