"""Rows of tables on disk: .csv, .tsv and .parquet files, read, and all but .tsv written."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_env.errors import ConfigurationError, InvalidPromptError

__all__ = ["TABLE_SUFFIXES", "cells_of", "row_of_cells", "table_content", "table_rows"]

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
LONGEST_CELL = 2**25
"""Characters of a cell; Python's own limit of 131,072 is too low for transcripts."""
AS_CSV = "in a .tsv file they are characters like any other, so save it as .csv"
QUOTED = re.compile(r'"(?:[^"]|"")*"')


def table_rows(
    path: Path, skip: Callable[[InvalidPromptError], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(its name in messages, row by column) of each row of a table.

    Cells of .csv and .tsv files are text, except that a list of messages in JSON is read as a chat.  A .csv file quotes
    as spreadsheets do; in a .tsv file a quotation mark is a character like any other, and a cell that looks as if it
    had been quoted, with the quotation marks inside it doubled, is refused.  The first line names the columns.

    Args:
        skip: is given the error about each row that has too many or too few cells, or one that seems to be quoted;
            default: it is raised.

    Raises:
        ConfigurationError: the file is missing, or no such table.
        InvalidPromptError: a row has too many or too few cells, or one that seems to be quoted.
    """
    try:
        yield from _parquet(path) if path.suffix.lower() == ".parquet" else _separated(path, skip)
    except UnicodeDecodeError as error:
        where = f"{path.name}, line {_undecodable_line(path)}"
        raise ConfigurationError(f"{where} cannot be read ({error.reason}): save the file as UTF-8") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error}): check the path") from error


def _separated(path: Path, skip: Callable[[InvalidPromptError], None] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    tabs = path.suffix.lower() == ".tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file, strict=True)
        header: list[str] | None = None
        start = 1
        try:
            for cells in reader:
                where, start = f"{path.name}, line {reader.line_num}", reader.line_num + 1
                if header is None:
                    header = _checked_header(cells, path.name, tabs)
                elif not cells:
                    continue
                elif (problem := _problem_of(cells, header, tabs)) is None:
                    yield where, row_of_cells(dict(zip(header, cells, strict=True)))
                elif skip is None:
                    raise InvalidPromptError(f"{where} {problem}")
                else:
                    skip(InvalidPromptError(f"{where} {problem}"))
        except csv.Error as error:
            raise ConfigurationError(
                f"{path.name} cannot be read from line {start} on ({error}): if a cell there begins with a quotation"
                " mark, it must end with one, and those between must be doubled"
            ) from error
        if header is None:
            _checked_header([], path.name, tabs)


def _checked_header(header: list[str], name: str, tabs: bool) -> list[str]:
    """The names of the columns.

    Raises:
        ConfigurationError: there are none, one stands there twice, or they are separated or quoted in another way.
    """
    if not header or len(set(header)) < len(header):
        raise ConfigurationError(f"{name} names no columns, or one twice: its first line must name each once")
    other = (
        next((mark for mark in (";", "," if tabs else "\t") if mark in header[0]), None) if len(header) == 1 else None
    )
    if other is not None:
        words = {";": "semicolons", "\t": "tabs", ",": "commas"}
        raise ConfigurationError(
            f"{name} has one column, {header[0]!r}: its cells seem to be separated by {words[other]}, and those of a"
            f" {'.tsv' if tabs else '.csv'} file are by {'tabs' if tabs else 'commas'}; save it so"
        )
    if tabs and all(_seems_quoted(cell, doubled=False) for cell in header):
        raise ConfigurationError(f"{name} has the names of its columns in quotation marks: {AS_CSV}")
    return header


def _problem_of(cells: list[str], header: list[str], tabs: bool) -> str | None:
    """What is wrong with a row, if anything is."""
    if len(cells) != len(header):
        remedy = "save it as .csv if cells hold tabs or line breaks" if tabs else "quote cells that hold a separator"
        return f"has {len(cells)} cells and the first line names {len(header)} columns: {remedy}"
    if tabs and (quoted := next((cell for cell in cells if _seems_quoted(cell, doubled=True)), None)) is not None:
        return f"has a cell in quotation marks, with those inside it doubled, {quoted[:60]}: {AS_CSV}"
    return None


def _seems_quoted(cell: str, *, doubled: bool) -> bool:
    """Whether a cell is what a program makes of a text when it quotes it.

    Args:
        doubled: only if there are quotation marks inside, which such a program doubles; else it may be a quotation.
    """
    return QUOTED.fullmatch(cell) is not None and (not doubled or '""' in cell[1:-1])


def _undecodable_line(path: Path) -> int:
    """The first line that is not UTF-8, the first of the file being 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


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


# -- cells ---------------------------------------------------------------------------------------------
def cells_of(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as the text that a .csv file holds: lists and objects as JSON, nothing for None."""
    return {name: _cell(value) for name, value in row.items()}


def _cell(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)


def row_of_cells(cells: Mapping[str, str]) -> dict[str, Any]:
    """Text cells as a row: they are text, but a list of messages in JSON is a chat."""
    return {name: _chat(cell) or cell for name, cell in cells.items()}


def _chat(cell: str) -> list[dict[str, str]] | None:
    """The messages of a cell that holds nothing but a list of them; None for any other text."""
    if not re.match(r"\s*\[\s*\{", cell):
        return None
    try:
        messages = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    proper = all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in messages)
    return messages if proper else None


def table_content(rows: Sequence[Mapping[str, Any]], suffix: str) -> bytes:
    """What a .csv or .parquet file with these rows holds; a row that lacks a column has nothing there.

    Raises:
        ConfigurationError: a column holds values of several types, which a .parquet file cannot.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(names)
        writer.writerows([cells.get(name, "") for name in names] for cells in map(cells_of, rows))
        return text.getvalue().encode("utf-8")
    import pyarrow
    import pyarrow.parquet

    content = io.BytesIO()
    try:
        table = pyarrow.Table.from_pydict({name: [row.get(name) for row in rows] for name in names})
        pyarrow.parquet.write_table(table, content)
    except pyarrow.ArrowException as error:
        raise ConfigurationError(
            f"a column of a .parquet file holds values of one type ({error}): choose .jsonl"
        ) from error
    return content.getvalue()
