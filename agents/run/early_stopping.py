"""Early stopping: end a training once the loss on held-out texts no longer falls, and take the best weights back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EarlyStopping", "HeldOutLoss"]


@dataclass(frozen=True)
class HeldOutLoss:
    """A measurement on what is held out."""

    step: int
    """After how many steps."""
    loss: float


class EarlyStopping:
    """Measures every so many steps, remembers the weights that did best, and says when to stop.

    Args:
        parameters: what is trained, by name.
        measure: the held-out loss of the weights as they are.
        every: steps between two measurements.
        patience: measurements in a row, without one better than the best before them, that end the training.

    Attributes:
        history: all measurements, the one before the first step included.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], measure: Callable[[], float], *, every: int, patience: int
    ) -> None:
        self._parameters = parameters
        self._measure = measure
        self._every = every
        self._patience = patience
        self._best: dict[str, Tensor] = {}
        self.history: list[HeldOutLoss] = []
        self._look(0)

    @property
    def best(self) -> HeldOutLoss:
        """The measurement of the lowest loss, the earliest of equal ones."""
        return min(self.history, key=lambda found: found.loss)

    def stops(self, step: int) -> bool:
        """After a step: measure if it is time to; True once the patience is at its end."""
        if step % self._every == 0:
            self._look(step)
        return sum(found.step > self.best.step for found in self.history) >= self._patience

    @torch.no_grad()
    def restore(self, step: int) -> None:
        """At the end: measure, if that has not been done, and put the best weights back."""
        if self.history[-1].step != step:
            self._look(step)
        for name, parameter in self._parameters.items():
            parameter.copy_(self._best[name])

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a run that goes on has to know: the measurements (JSON), and the best weights by name."""
        return {"history": [asdict(found) for found in self.history]}, self._best

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.history = [HeldOutLoss(int(row["step"]), float(row["loss"])) for row in state["history"]]
        self._best = {name: tensors[name].to(p.device, p.dtype) for name, p in self._parameters.items()}

    def _look(self, step: int) -> None:
        found = HeldOutLoss(step, self._measure())
        if not self.history or found.loss < self.best.loss:
            self._best = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.history.append(found)
