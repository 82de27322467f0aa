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
        if self._settled:
            return
        cuts: int | None = None
        level = 3  # of the caller of `reset`, seen from here; at the end, of who called the outermost wrapper
        while caller is not None and isinstance(wrapper := caller.f_locals.get("self"), gymnasium.Wrapper):
            limit = getattr(wrapper, "_max_episode_steps", None) if isinstance(wrapper, TimeLimit) else None
            if isinstance(limit, int) and limit < max_new_tokens:
                cuts = limit
            caller = caller.f_back
            level += 1
        if cuts is not None:
            self._settled = True
            warnings.warn(
                f"max_episode_steps={cuts} (a TimeLimit) cuts every longer text, and no score is paid for it: leave it"
                f" out, and make the environment with max_new_tokens={cuts}, at which the score is paid",
                stacklevel=level,
            )
