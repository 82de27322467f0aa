"""From the records of a benchmark to a table for each task: its agents, its baselines and its ceiling.

A table has only rows that were measured in the same way, with the same prompts, texts per prompt and beta.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_env.benchmark.measures.baselines import BASELINE_NAMES
from lm_env.benchmark.records import Record, options_in_words
from lm_env.benchmark.statistics import Interval, Paired, bootstrap, holm, mean_over_tasks, paired_difference
from lm_env.errors import ConfigurationError
from lm_env.theory.ceilings import Estimate

__all__ = ["THRESHOLD", "Reached", "Row", "TaskTable", "attained_share", "curve_shares", "task_table"]

THRESHOLD = 0.5
"""The attained share of the ceiling that tokens and seconds are counted to."""
RIVALS = ("reference", "best-of-4")
"""The baselines that each agent is compared with, prompt by prompt."""
CEILING_PROMPTS = ("J_by_prompt", "J_ref_by_prompt")
"""Keys of a ceiling: the optimum, and the reference, on each prompt."""


@dataclass(frozen=True)
class Reached:
    """When runs first attained a share of the ceiling."""

    runs: int
    """How many did."""
    of: int
    median: float | None
    """Over all runs, where one that never did counts as infinite; None if fewer than half did."""

    def __str__(self) -> str:
        return f"{self.runs} of {self.of}"


@dataclass(frozen=True)
class Row:
    """An agent, or a baseline, on a task."""

    agent: str
    trained: bool
    records: list[Record]
    """One for each seed."""
    metrics: dict[str, Interval]
    """Means over seeds with 95% intervals; of a single run, over its prompts where an error is known."""
    attained: Interval | None
    """None if the optimum is no better than the reference."""
    tokens_to: Reached | None = None
    seconds_to: Reached | None = None
    score_at_kl: Interval | None = None
    """At the task's `matched_kl`, over the runs whose KL has reached it."""
    against: dict[str, Paired] = field(default_factory=dict)
    """Rival -> difference of J on the same prompts, p corrected by Holm for all tests of the task."""
    success: tuple[float, float, float] | None = None
    """Share over all seeds' texts with Wilson's interval, of a single run; the mean over seeds with their spread."""

    @property
    def seeds(self) -> int:
        """The number of runs."""
        return len(self.records)


@dataclass(frozen=True)
class TaskTable:
    """A task: its rows, and its ceiling."""

    task: str
    ceiling: Record | None
    rows: list[Row]
    matched_kl: float | None
    """The KL at which scores are compared: half of the optimum's."""

    def row(self, agent: str) -> Row | None:
        """The row of an agent."""
        return next((row for row in self.rows if row.agent == agent), None)


def attained_share(ceiling: Record | None, by_prompt: Sequence[float | None]) -> Estimate | None:
    """(J - J_ref) / (J* - J_ref) with its standard error over prompts; None if J* is no larger than J_ref.

    Args:
        by_prompt: J on each of the ceiling's first prompts.
    """
    if ceiling is None or any(value is None for value in by_prompt):
        return None
    count = len(by_prompt)
    best, reference = (np.array(ceiling[name][:count], dtype=float) for name in CEILING_PROMPTS)
    if len(best) != count:
        raise ConfigurationError(
            f"a run on {ceiling['task']} was measured on {count} prompts and the ceiling on {len(best)}: run them with"
            " the same settings"
        )
    if not (best - reference).mean() > 1e-9 * ceiling["beta"]:  # also where a number is not finite
        return None
    return Estimate.ratio(np.array(by_prompt, dtype=float) - reference, best - reference)


def task_table(task: str, records: list[Record]) -> TaskTable:
    """The table of a task from its records.

    Raises:
        ConfigurationError: they were not measured alike.
    """
    ceiling = next((record for record in records if record["kind"] == "ceiling"), None)
    kl = None if ceiling is None or ceiling["KL"]["mean"] is None else ceiling["KL"]["mean"] / 2
    kl = kl if kl is not None and kl > 1e-6 else None
    agents = dict.fromkeys(record["agent"] for record in records if record["kind"] != "ceiling")
    rows = [_row(agent, [r for r in records if r.get("agent") == agent], ceiling, kl) for agent in agents]
    _check_alike(task, rows)
    baselines = [row for name in BASELINE_NAMES for row in rows if row.agent == name]
    trained = [row for row in rows if row.trained]
    others = [row for row in rows if not row.trained and row not in baselines]
    return TaskTable(task, ceiling, _with_tests([*baselines, *others, *trained]), kl)


def _row(agent: str, records: list[Record], ceiling: Record | None, kl: float | None) -> Row:
    names = dict.fromkeys(name for record in records for name in record["metrics"])
    metrics = {name: _over_seeds([record["metrics"].get(name) for record in records]) for name in names}
    shares = [attained_share(ceiling, record["by_prompt"]["J"]) for record in records]
    if len(kinds := sorted({record["kind"] for record in records})) > 1:
        raise ConfigurationError(
            f"{agent} names a {kinds[0]} and a {kinds[1]} on {records[0]['task']}: lm-env leaderboard tells them apart"
        )
    trained = kinds == ["run"]
    attained = _over_seeds([None if share is None else {"mean": share.mean, "se": share.se} for share in shares])
    return Row(
        agent=agent,
        trained=trained,
        records=records,
        metrics={name: interval for name, interval in metrics.items() if interval is not None},
        attained=attained,
        tokens_to=_reached(records, ceiling, "tokens") if trained and attained else None,
        seconds_to=_reached(records, ceiling, "seconds") if trained and attained else None,
        score_at_kl=_matched(records, kl) if trained and kl is not None else None,
        success=_success(records),
    )


def _over_seeds(found: Sequence[Any]) -> Interval | None:
    """The mean over seeds by the bootstrap; of one seed, two standard errors over prompts.

    None if a number of any seed is missing or not finite: a mean without the runs that diverged would be too good.
    """
    known = [part for part in found if part is not None and part["mean"] is not None]
    if not known or len(known) < len(found):
        return None
    means = np.array([part["mean"] for part in known])
    if len(means) > 1:
        return bootstrap(mean_over_tasks, [means])
    se = known[0].get("se")
    half = math.nan if se is None or not math.isfinite(se) else 1.96 * se
    return Interval(float(means[0]), float(means[0]) - half, float(means[0]) + half)


def _reached(records: list[Record], ceiling: Record | None, unit: str) -> Reached:
    """The first point of each learning curve at or above the threshold; nothing is interpolated."""
    found = []
    for record in records:
        shares = curve_shares(record, ceiling)
        reached = [p[unit] for p, share in zip(record["curve"], shares, strict=True) if (share or 0.0) >= THRESHOLD]
        found.append(float(reached[0]) if reached else math.inf)
    half = len(found) // 2
    lower, upper = sorted(found)[(len(found) - 1) // 2], sorted(found)[half]
    return Reached(sum(map(math.isfinite, found)), len(found), (lower + upper) / 2 if math.isfinite(upper) else None)


def curve_shares(record: Record, ceiling: Record | None) -> list[float | None]:
    """The attained share at each point of a learning curve, by the prompts of the curve."""
    if ceiling is None:
        return [None] * len(record["curve"])
    count = record["curve_prompts"]
    best, reference = (float(np.mean(np.array(ceiling[name][:count], dtype=float))) for name in CEILING_PROMPTS)
    gain = best - reference
    return [
        (point["J"] - reference) / gain if point["J"] is not None and gain > 0 else None for point in record["curve"]
    ]


def _matched(records: list[Record], kl: float) -> Interval | None:
    """The score at a KL, between the two points of each learning curve where the KL first passes it."""
    found = []
    for record in records:
        points = [(p["kl"], p["score"]) for p in record["curve"] if p["kl"] is not None and p["score"] is not None]
        for (low, before), (high, after) in itertools.pairwise(points):
            if low < kl <= high:
                found.append(before + (after - before) * (kl - low) / (high - low))
                break
    return _over_seeds([{"mean": value} for value in found])


def _success(records: list[Record]) -> tuple[float, float, float] | None:
    shares = [record["success"] for record in records if record.get("success")]
    if len(shares) == 1:
        return shares[0]["mean"], shares[0]["low"], shares[0]["high"]
    interval = _over_seeds(shares)
    return None if interval is None else (interval.value, interval.low, interval.high)


def _check_alike(task: str, rows: list[Row]) -> None:
    """Raise ConfigurationError where rows of a task were not measured alike."""
    for key in ("beta", "prompts", "texts", "model"):
        found = {record.get(key) for row in rows for record in row.records}
        if len(found) > 1:
            raise ConfigurationError(
                f"the records of {task} differ in {key} ({', '.join(sorted(map(str, found)))}), and cannot stand in"
                " one table: give only those that were made with the same settings"
            )
    if len(found := {options_in_words(record) for row in rows for record in row.records}) > 1:
        named = "; ".join(sorted(words or "none" for words in found))
        raise ConfigurationError(
            f"the records of {task} differ in the task's options ({named}), and so are of different tasks: lm-env"
            " leaderboard puts them into different tables"
        )


def _with_tests(rows: list[Row]) -> list[Row]:
    """The trained rows with their paired tests against the rivals, corrected together."""
    by_name = {row.agent: row for row in rows}
    tests: list[tuple[Row, str, Paired]] = []
    for row in rows:
        for rival in RIVALS:
            if row.trained and rival in by_name:
                a, b = _J_by_prompt(row), _J_by_prompt(by_name[rival])
                if a is not None and b is not None and len(a) == len(b) > 1:
                    tests.append((row, rival, paired_difference(a, b)))
    for (row, rival, test), p in zip(tests, holm([test.p for _, _, test in tests]), strict=True):
        row.against[rival] = Paired(test.difference, test.low, test.high, p, test.prompts)
    return rows


def _J_by_prompt(row: Row) -> np.ndarray | None:
    """The mean over seeds of J of each prompt."""
    found = [record["by_prompt"]["J"] for record in row.records]
    if any(value is None for part in found for value in part):
        return None
    return np.mean(np.array(found, dtype=float), axis=0)
