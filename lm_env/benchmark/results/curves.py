"""Learning curves of several seeds as one line with a band, and where agents are in the plane of score and KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lm_env.benchmark.records import Record
from lm_env.benchmark.results.tables import Row, TaskTable, curve_shares

__all__ = ["Band", "Spot", "frontier_points", "learning_band", "spots"]

GRID = 40


@dataclass(frozen=True)
class Band:
    """A line with an error at each of its points."""

    x: Sequence[float]
    y: Sequence[float]
    se: Sequence[float]
    """Standard errors of the mean over seeds; NaN for a single seed."""


@dataclass(frozen=True)
class Spot:
    """An agent in the plane of score and KL, the means over its seeds."""

    label: str
    kl: float
    score: float
    trained: bool


def learning_band(
    table: TaskTable, row: Row, over: Literal["tokens", "seconds"], what: Literal["attained", "score"] = "attained"
) -> Band | None:
    """The mean learning curve of an agent's runs, interpolated linearly to the same places on the x axis.

    It ends where the shortest run ends.  None if there are no curves, or the optimum is no better than the reference.
    """
    lines = [line for record in row.records if (line := _line(record, table, over, what))]
    if not lines:
        return None
    start, end = max(line[0][0] for line in lines), min(line[0][-1] for line in lines)
    if end <= start:
        return None
    first = lines[0][0]
    x = np.array(first) if len(lines) == 1 else np.linspace(start, end, GRID)
    values = np.array([np.interp(x, *line) for line in lines])
    count = len(lines)
    se = values.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(x), math.nan)
    return Band(x.tolist(), values.mean(0).tolist(), se.tolist())


def frontier_points(table: TaskTable) -> list[tuple[float, float]]:
    """(KL, the most score that it can buy), from the reference on; [] without a ceiling."""
    if table.ceiling is None:
        return []
    points = [(point["KL"], point["score"]) for point in table.ceiling["frontier"]]
    start = (0.0, table.ceiling["J_ref"]["mean"])
    return sorted(point for point in [start, *points] if None not in point)


def spots(table: TaskTable) -> list[Spot]:
    """All rows with a finite KL and score, except random tokens: their KL is so large that it would hide the rest."""
    found = []
    for row in table.rows:
        kl, score = row.metrics.get("kl"), row.metrics.get("score")
        if kl is not None and score is not None and row.agent != "random":
            found.append(Spot(row.agent, kl.value, score.value, row.trained))
    return found


def _line(record: Record, table: TaskTable, over: str, what: str) -> tuple[list[float], list[float]] | None:
    if "curve" not in record:
        return None
    values = (
        curve_shares(record, table.ceiling) if what == "attained" else [point["score"] for point in record["curve"]]
    )
    pairs = [(point[over], value) for point, value in zip(record["curve"], values, strict=True) if value is not None]
    if len(pairs) < 2:
        return None
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
