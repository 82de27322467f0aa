"""Running means of what an update logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Means", "explained_variance"]


class Means:
    """Means over all tokens, or over all calls."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._firsts: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        """Count one value."""
        self._sums[name] += value
        self._counts[name] += 1

    def add_tokens(self, **columns: Tensor) -> None:
        """Count each entry of the tensors (N,)."""
        for name, values in columns.items():
            self._sums[name] += float(values.sum())
            self._counts[name] += values.numel()

    def first(self, name: str, value: Tensor) -> None:
        """Keep the first value ever given under this name."""
        if name not in self._firsts:
            self._firsts[name] = float(value)

    def state(self) -> dict[str, dict[str, Any]]:
        """What has been counted, as JSON."""
        return {"sums": self._sums, "counts": self._counts, "firsts": self._firsts}

    @classmethod
    def joined(cls, states: Sequence[dict[str, dict[str, Any]]]) -> Means:
        """Everything that several have counted (`state`); of first values the largest."""
        means = cls()
        for state in states:
            for name, value in state["sums"].items():
                means._sums[name] += value
                means._counts[name] += state["counts"][name]
            for name, value in state["firsts"].items():
                means._firsts[name] = max(value, means._firsts.get(name, value))
        return means

    def result(self) -> dict[str, float]:
        """Name -> mean or first value."""
        return {**{k: v / self._counts[k] for k, v in self._sums.items()}, **self._firsts}


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns); 1 is perfect, 0 no better than a constant, nan if constant."""
    variance = returns.var()
    return float("nan") if variance == 0 else float(1 - (returns - values).var() / variance)
