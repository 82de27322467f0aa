"""How well a reward model does on records that are held out, and when to stop because it no longer does better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lm_env.distributed import processes
from lm_env.models.inputs import length_batches
from reward_models.preferences.model import RewardModel
from reward_models.preferences.objectives import Group, Objective, Scorer, summed_loss

__all__ = ["EarlyStopping", "HeldOut", "Watched", "group_batches", "longest_rows", "measure"]

Watched = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class HeldOut:
    """A measurement in the course of training."""

    update: int
    """After how many updates."""
    loss: float
    """The objective's own, mean over groups."""
    accuracy: float | None
    """The share of untied comparisons ranked right, equal scores counting half; None without comparisons."""


def group_batches(groups: Sequence[Group], tokens: int) -> list[np.ndarray]:
    """Cut groups into batches of similar length, of at most about `tokens` padded tokens."""
    most = max((len(group.rows) for group in groups), default=1)
    return length_batches(longest_rows(groups), max(1, tokens // most))


def longest_rows(groups: Sequence[Group]) -> np.ndarray:
    """int: the tokens of the longest row of each group."""
    return np.array([max(len(row) for row in group.rows) for group in groups], dtype=np.int64)


@torch.no_grad()
def measure(scorer: Scorer, groups: Sequence[Group], objective: Objective, tokens: int, update: int = 0) -> HeldOut:
    """The loss and the accuracy on some groups; several processes call this alike, and each scores its share."""
    total = 0.0
    right: list[float] = []
    together = processes()
    own_groups = groups[together.share(len(groups))]
    for batch in group_batches(own_groups, tokens):
        part = [own_groups[i] for i in batch]
        scores = scorer([row for group in part for row in group.rows])
        total += float(summed_loss(scores, part, objective))
        start = 0
        for group in part:
            own = scores[start : start + len(group.rows)].tolist()
            start += len(group.rows)
            margins = [own[i] - own[j] for i, j, tied, _ in group.outcomes if not tied]
            right += [float(m > 0) + 0.5 * (m == 0) for m in margins]
    total = sum(together.gather(total))
    right = [share for found in together.gather(right) for share in found]
    return HeldOut(update, total / len(groups), float(np.mean(right)) if right else None)


class EarlyStopping:
    """Remembers the weights that did best on held-out groups, and stops where no newer ones have done better.

    Attributes:
        history: all measurements, the one before the first update included.
    """

    def __init__(
        self,
        model: RewardModel,
        scorer: Scorer,
        groups: Sequence[Group],
        objective: Objective,
        *,
        patience: int,
        watched: Watched = "loss",
        every: int = 1,
    ) -> None:
        self.model = model
        self.scorer = scorer
        self.groups = groups
        self.objective = objective
        self.patience = patience
        self.watched = watched
        self.every = every
        self.history: list[HeldOut] = []
        self.best: HeldOut | None = None
        self._weights: dict[str, Tensor] = {}
        self.stops(0)

    def stops(self, update: int) -> bool:
        """After every so many updates: measure, and say whether the last `patience` measurements were no better."""
        if update % self.every:
            return False
        found = measure(self.scorer, self.groups, self.objective, self.model.batch_tokens, update)
        self.history.append(found)
        if self.best is None or self._cost(found) < self._cost(self.best):
            self.best = found
            self._weights = {name: p.detach().clone() for name, p in self._trained()}
        later = [h for h in self.history if h.update > self.best.update]
        return len(later) >= self.patience

    def restore(self) -> None:
        """Put the best weights back."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self._weights[name])

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a run that goes on has to know: the measurements (JSON), and the best weights by name."""
        best = 0 if self.best is None else self.history.index(self.best)
        return {"history": [asdict(found) for found in self.history], "best": best}, self._weights

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.history = [HeldOut(**row) for row in state["history"]]
        self.best = self.history[state["best"]]
        self._weights = {name: tensors[name].to(p.device, p.dtype) for name, p in self._trained()}

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.model.network.named_parameters() if p.requires_grad]

    def _cost(self, found: HeldOut) -> float:
        if self.watched == "loss" or found.accuracy is None:
            return found.loss if math.isfinite(found.loss) else math.inf
        return -found.accuracy
