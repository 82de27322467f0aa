"""Results over all tasks: interquartile means, probabilities of improvement, and performance profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_env.benchmark.results.tables import TaskTable, attained_share
from lm_env.benchmark.statistics import (
    Interval,
    bootstrap,
    mean_over_tasks,
    performance_profile,
    probability_of_improvement,
)

__all__ = ["Aggregate", "aggregate"]

PROFILE = tuple(np.round(np.linspace(-0.25, 1.0, 26), 3).tolist())


@dataclass(frozen=True)
class Aggregate:
    """All agents over all tasks; the numbers are computed from the attained share of each run."""

    tasks: list[str]
    """The tasks on which every agent has runs, and on which the optimum is better than the reference."""
    iqm: dict[str, Interval]
    mean: dict[str, Interval]
    improvement: dict[tuple[str, str], Interval]
    """(a, b) -> probability that a run of a beats one of b."""
    thresholds: Sequence[float]
    profiles: dict[str, list[Interval]]


def aggregate(tables: Sequence[TaskTable]) -> Aggregate | None:
    """Over the tasks on which every trained agent has runs."""
    agents = list(dict.fromkeys(row.agent for table in tables for row in table.rows if row.trained))
    shares: dict[str, list[np.ndarray]] = {agent: [] for agent in agents}
    tasks = []
    for table in tables:
        found = {}
        for agent in agents:
            row = table.row(agent)
            parts = [] if row is None else [attained_share(table.ceiling, r["by_prompt"]["J"]) for r in row.records]
            if parts and all(part is not None for part in parts):
                found[agent] = np.array([part.mean for part in parts if part is not None])
        if agents and len(found) == len(agents):
            tasks.append(table.task)
            for agent in agents:
                shares[agent].append(found[agent])
    if not tasks:
        return None
    return Aggregate(
        tasks=tasks,
        iqm={agent: bootstrap(None, runs) for agent, runs in shares.items()},
        mean={agent: bootstrap(mean_over_tasks, runs) for agent, runs in shares.items()},
        improvement={
            (a, b): probability_of_improvement(shares[a], shares[b]) for a in agents for b in agents if a != b
        },
        thresholds=PROFILE,
        profiles={agent: performance_profile(runs, PROFILE) for agent, runs in shares.items()},
    )
