"""One line in the terminal that tells how a training run goes."""

from __future__ import annotations

from typing import Self

from tqdm.auto import tqdm

from agents.learning.rollout import Rollout

__all__ = ["ProgressLine"]


class ProgressLine:
    """A progress bar over generated tokens, with the last rollout's score and KL."""

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self._bar = tqdm(total=total, initial=done, unit="tok", unit_scale=True, disable=not enabled, leave=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def show(self, timesteps: int, rollout: Rollout) -> None:
        """Move the bar to `timesteps`."""
        if len(rollout):
            self._bar.set_postfix_str(
                f"score {rollout.scored.scores.mean():.3f}  KL {rollout.scored.kl.mean():.2f}", refresh=False
            )
        self._bar.update(min(timesteps, self._bar.total or timesteps) - self._bar.n)
