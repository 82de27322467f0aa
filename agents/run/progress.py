"""One line that tells how a training run goes."""

from __future__ import annotations

from typing import Self

from agents.learning.rollout import Rollout
from lm_env.progress import Progress

__all__ = ["ProgressLine"]


class ProgressLine:
    """The progress over generated tokens, with the last rollout's score and KL."""

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self._asked_for = total
        self._progress = Progress(total, done=done, enabled=enabled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.close()

    def show(self, timesteps: int, rollout: Rollout) -> None:
        """Move to `timesteps`."""
        scored = rollout.scored
        note = f"score {scored.scores.mean():.3f}, KL {scored.kl.mean():.2f}" if len(rollout) else "no episodes"
        if timesteps > self._asked_for:
            note += f", {self._asked_for:,} tokens were asked for: the last rollout is whole"
        self._progress.update(timesteps - self._progress.done, note)
