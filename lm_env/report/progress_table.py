"""progress.csv as columns of numbers, each row at the tokens of training that its texts were written after."""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lm_env.errors import LogReadError

__all__ = ["TIMESTEPS", "Curve", "ProgressTable", "read_progress"]

TIMESTEPS = "time/total_timesteps"
LARGEST = 2**53
"""Timesteps beyond this are not exact, and no run has them."""


@dataclass(frozen=True)
class Curve:
    """One column over the rows in which it has a number."""

    name: str
    x: list[float]
    """Tokens of training."""
    y: list[float]
    se: list[float] | None = None
    """Standard errors; None where the log has none."""

    def __bool__(self) -> bool:
        return bool(self.y)


@dataclass(frozen=True)
class ProgressTable:
    """The rows of a log that count: what an interrupted run wrote and then did again is there once."""

    ends: list[float] = field(default_factory=list)
    """Tokens of training when the row was written."""
    starts: list[float] = field(default_factory=list)
    """Tokens of training that the rollout of the row was written after: 0 for the first, which shows the reference."""
    columns: dict[str, list[float]] = field(default_factory=dict)
    """Name -> one number per row, NaN where the cell is empty."""

    def __len__(self) -> int:
        return len(self.ends)

    def curve(self, *names: str) -> Curve:
        """The first of the columns that has numbers; empty if none has.

        What a rollout measured belongs to its start: the update that the row also tells of came after it.  An
        evaluation measured the policy as it was when the row was written.
        """
        name = next((n for n in names if any(math.isfinite(y) for y in self.columns.get(n, []))), names[0])
        values = self.columns.get(name, [])
        at = self.starts if name.startswith("rollout/") else self.ends
        kept = [row for row, value in enumerate(values) if math.isfinite(value)]
        errors = self.columns.get(f"{name}_se")
        se = None if errors is None else [errors[row] for row in kept]
        return Curve(name, [at[row] for row in kept], [values[row] for row in kept], se)

    def names(self, prefix: str) -> list[str]:
        """The columns with numbers whose names begin so."""
        return [n for n in self.columns if n.startswith(prefix) and any(math.isfinite(y) for y in self.columns[n])]


def read_progress(path: Path) -> ProgressTable:
    """Read a log of this package or of stable-baselines3; an empty table where there is no file.

    A line with fewer cells than the first was cut off when its run was killed: it is left out.

    Raises:
        LogReadError: it is no such log, or a cell that should be a number is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return ProgressTable()
    except (OSError, ValueError) as error:
        raise LogReadError(f"{path} cannot be read ({error}): repair it, or move it away") from error
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise LogReadError(f"{path} is no CSV ({error}): repair it, or move it away") from error
    if not rows:
        return ProgressTable()
    header = rows[0]
    if TIMESTEPS not in header:
        raise LogReadError(f"{path} has no column {TIMESTEPS}, so it is no log of a run: move it away")
    lines = [(number, row) for number, row in enumerate(rows[1:], 2) if len(row) >= len(header)]
    for number, row in lines:
        if len(row) > len(header):
            raise LogReadError(
                f"{path}, line {number}, has {len(row)} cells for {len(header)} columns: repair or remove the line"
            )
    columns = {name: _numbers(path, name, [(n, row[i]) for n, row in lines]) for i, name in enumerate(header)}
    return _in_order(path, columns, [number for number, _ in lines])


def _numbers(path: Path, name: str, cells: Sequence[tuple[int, str]]) -> list[float]:
    """The cells as numbers, NaN where one is empty; a column of words is all NaN."""
    numbers: list[float] = []
    words = [(line, cell) for line, cell in cells if cell and _number(cell) is None]
    told = {"time", "rollout", "train", "eval"}
    if words and (name.partition("/")[0] in told) and len(words) < sum(bool(cell) for _, cell in cells):
        line, cell = words[0]
        raise LogReadError(
            f"{path}, line {line}: {name} is {cell[:40]!r}, which is no number: repair or remove the line"
        )
    for _, cell in cells:
        number = _number(cell) if cell else None
        numbers.append(math.nan if number is None else number)
    return numbers


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _in_order(path: Path, columns: dict[str, list[float]], lines: list[int]) -> ProgressTable:
    """The rows that count, with the tokens at their ends and starts.

    Where the tokens fall back to those of a first rollout, a second training of the same agent counted from 0
    again: it goes on from the end of the first.  Where they fall back to anything else, the run was resumed from there,
    and the rows beyond were written again.
    """
    tokens = _tokens_of_rollouts(columns)
    ends: list[float] = []
    starts: list[float] = []
    rows: list[int] = []
    offset = 0.0
    for row, (line, total) in enumerate(zip(lines, columns[TIMESTEPS], strict=True)):
        if math.isnan(total):  # a row of a callback that knows no timesteps
            continue
        if not 0 <= total <= LARGEST:
            raise LogReadError(f"{path}, line {line}: {TIMESTEPS} is {total:g}: repair or remove the line")
        end = offset + total
        written = tokens[row]
        if ends and end < ends[-1]:
            begun_again = total <= (columns[TIMESTEPS][rows[0]] if written is None else written)
            if begun_again:
                offset = ends[-1]
                end = offset + total
            else:
                kept = bisect_left(ends, end)
                del ends[kept:], starts[kept:], rows[kept:]
        earlier = bisect_left(ends, end)
        previous = ends[earlier - 1] if earlier else offset
        starts.append(max(previous if written is None else end - written, 0.0))
        ends.append(end)
        rows.append(row)
    return ProgressTable(ends, starts, {name: [values[row] for row in rows] for name, values in columns.items()})


def _tokens_of_rollouts(columns: dict[str, list[float]]) -> list[float | None]:
    """The tokens of each row's rollout, from its time and speed; None where the log does not tell."""
    names = ("time/tokens_per_s", "time/rollout_s", "time/update_s")
    if not all(name in columns for name in names):
        return [None] * len(columns[TIMESTEPS])
    speeds, rollouts, updates = (columns[name] for name in names)
    products = [speed * (r + u) for speed, r, u in zip(speeds, rollouts, updates, strict=True)]
    return [round(product) if math.isfinite(product) else None for product in products]
