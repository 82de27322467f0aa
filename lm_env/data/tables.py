"""Rows of tables on disk: .csv, .tsv and .parquet files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lm_env.errors import ConfigurationError, InvalidPromptError

__all__ = ["TABLE_SUFFIXES", "table_rows"]

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
LONGEST_CELL = 2**25
"""Characters of a cell; Python's own limit of 131,072 is too low for transcripts."""


def table_rows(
    path: Path, skip: Callable[[InvalidPromptError], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(its name in messages, row by column) of each row of a table.

    Cells of .csv and .tsv files are text.  A .csv file quotes as spreadsheets do; in a .tsv file a quotation mark is
    a character like any other.  The first line names the columns.

    Args:
        skip: is given the error about each row that has too many or too few cells; default: it is raised.

    Raises:
        ConfigurationError: the file is missing, or no such table.
        InvalidPromptError: a row has too many or too few cells.
    """
    try:
        yield from _parquet(path) if path.suffix.lower() == ".parquet" else _separated(path, skip)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}): check the path, and save it as UTF-8") from error


def _separated(path: Path, skip: Callable[[InvalidPromptError], None] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".tsv":
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(file, strict=True)
        header = next(reader, None)
        if header is None or len(set(header)) < len(header):
            raise ConfigurationError(f"{path.name} names no columns, or one twice: its first line must name each once")
        for cells in reader:
            if not cells:
                continue
            where = f"{path.name}, line {reader.line_num}"
            if len(cells) == len(header):
                yield where, dict(zip(header, cells, strict=True))
                continue
            error = InvalidPromptError(
                f"{where} has {len(cells)} cells and the first line names {len(header)} columns: quote cells that hold"
                " a separator"
            )
            if skip is None:
                raise error
            skip(error)


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield f"{path.name}, row {number}", row
                number += 1
    except pyarrow.ArrowException as error:
        raise ConfigurationError(f"{path} is no readable Parquet file ({error}): write it again") from error
