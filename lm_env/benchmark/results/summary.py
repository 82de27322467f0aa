"""A benchmark in numbers: a table for each task, and what holds over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lm_env.benchmark.records import Record
from lm_env.benchmark.results.aggregate import Aggregate, aggregate
from lm_env.benchmark.results.tables import TaskTable, task_table
from lm_env.errors import ConfigurationError

__all__ = ["Summary", "summarize_records"]


@dataclass(frozen=True)
class Summary:
    """A benchmark in numbers."""

    tables: list[TaskTable]
    aggregate: Aggregate | None
    """None for fewer than one common task."""
    records: list[Record]

    @property
    def agents(self) -> list[str]:
        """The trained agents, in the order of the records."""
        return list(dict.fromkeys(row.agent for table in self.tables for row in table.rows if row.trained))


def summarize_records(records: Sequence[Record]) -> Summary:
    """The tables of a benchmark.

    Raises:
        ConfigurationError: there are no records of runs or baselines; or two runs of one agent on a task were
            measured differently.
    """
    shown = [record for record in records if record["kind"] in ("run", "baseline", "model", "ceiling")]
    if not any(record["kind"] != "ceiling" for record in shown):
        raise ConfigurationError("there are no runs in these records: run lm-env bench to its end first")
    tasks = dict.fromkeys(record["task"] for record in shown)
    tables = [task_table(task, [record for record in shown if record["task"] == task]) for task in tasks]
    return Summary(tables, aggregate(tables), list(records))
