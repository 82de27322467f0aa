"""Read preferences from wherever they are, in whatever format, and write them in any that can hold them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from lm_env.data.sources import read_rows
from lm_env.data.tables import TABLE_SUFFIXES, cells_of, row_of_cells, table_content, table_rows
from lm_env.errors import CheckpointWriteError, ConfigurationError, InvalidPreferenceError, InvalidPromptError
from lm_env.storage import write_file
from lm_env.validation import check_choice, check_integer
from reward_models.preferences.formats import FORMATS, Format, recognized_format
from reward_models.preferences.formats.base import is_text_column
from reward_models.preferences.records.preference import Preference

__all__ = ["Preferences", "read_preferences", "reading_row", "write_preferences"]

JSON_SUFFIXES = (".jsonl", ".json")
LOOK_AHEAD = 50
"""How many of the first rows are used to recognize the format."""


@contextmanager
def reading_row(where: str, problems: list[str] | None) -> Iterator[None]:
    """A context in which one row is read: a broken one is left out.

    Args:
        where: the file and line, or the number of the row, for messages.
        problems: where a sentence about a broken row is put; None: it is an error.

    Raises:
        InvalidPreferenceError: the row is broken, and `problems` is None.
    """
    try:
        yield
    except InvalidPreferenceError as error:
        if problems is None:
            raise InvalidPreferenceError(
                f"{where}: {error}; correct it, or leave such rows out with skip_bad=True (--skip-bad)"
            ) from error
        problems.append(f"{where}: {error}")


@dataclass(frozen=True)
class Preferences(Sequence[Preference]):
    """Records that were read, with the format and the problems that were found.

    Attributes:
        records: in the order of the rows; a row may give no record or several.
        format: the name of the format.
        rows: how many rows were read, broken ones included.
        problems: a sentence about each broken row that was skipped.
    """

    records: tuple[Preference, ...]
    format: str
    rows: int
    problems: tuple[str, ...] = ()

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """The columns that are no part of a prompt or response, nor of what is known of the judgement."""
        return tuple(dict.fromkeys(name for record in self.records for name in record.columns))

    def description(self, source: str, template: str = "{prompt}") -> str:
        """What was read of a source, in words, and the columns that a template does not show to the model."""
        skipped = f", {len(self.problems)} broken rows skipped" if self.problems else ""
        shown = set(re.findall(r"\{(\w+)", template))
        unseen = [repr(name) for name in self.extra_columns if name not in shown]
        columns = f"; columns that the model is not shown: {', '.join(unseen)}" if unseen else ""
        return f"{len(self):,} records of {source} ({self.format}){skipped}{columns}"

    @overload
    def __getitem__(self, index: int) -> Preference: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Preference, ...]: ...
    def __getitem__(self, index: int | slice) -> Preference | tuple[Preference, ...]:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)


def read_preferences(
    source: Any,
    *,
    format: str | None = None,
    skip_bad: bool = False,
    tokenizer: Any = None,
    download: bool = False,
    limit: int | None = None,
) -> Preferences:
    """Read human preferences.

    Args:
        source: a .jsonl, .json, .csv, .tsv or .parquet file; a list of rows (dicts) or of `Preference`s; a
            `datasets.Dataset`; a hub id, "user/name" or "user/name:split".
        format: a name out of `FORMATS`; default: the first format that at least half of the first 50 rows fit.
        skip_bad: leave broken rows out and note them in `problems`, instead of raising.
        tokenizer: decodes texts that are written as token ids.
        download: allow a hub id to be fetched.
        limit: read only the first `limit` rows.

    Raises:
        InvalidPreferenceError: a row is broken (the message names it), or there are no records.
        ConfigurationError: the source cannot be read, or its format is not known.
    """
    if format is not None:
        check_choice("format", format, FORMATS)
    if limit is not None:
        check_integer("limit", limit)
    problems: list[str] = []
    unreadable: list[str] = []
    note = (lambda error: unreadable.append(str(error))) if skip_bad else None
    try:
        rows = itertools.islice(_rows(source, download, limit, note), limit)
        head = list(itertools.islice(rows, LOOK_AHEAD))
        if not head and not unreadable:
            raise InvalidPreferenceError(f"{_name(source)} holds no rows{_below_header(source)}: give at least one")
        if head and all(isinstance(row, Preference) for _, row in head):
            records = tuple(row for _, row in itertools.chain(head, rows))
            return Preferences(records, "records", len(records))
        kind = FORMATS[format] if format is not None else recognized_format([row for _, row in head])
        found: list[Preference] = []
        count = 0
        for where, row in itertools.chain(head, rows):
            count += 1
            with reading_row(where, problems if skip_bad else None):
                found += _records(kind, row, tokenizer)
    except InvalidPromptError as error:
        remedy = ", or leave such rows out with skip_bad=True (--skip-bad)"
        raise InvalidPreferenceError(f"{error}{remedy}") from error
    if not found:
        first = f"; the first problem: {(*unreadable, *problems)[0]}" if problems or unreadable else ""
        raise InvalidPreferenceError(f"{count} rows hold no preferences as {kind.name!r}: give some{first}")
    return Preferences(tuple(found), kind.name, count + len(unreadable), (*unreadable, *problems))


def _rows(
    source: Any, download: bool, limit: int | None, note: Callable[[Any], None] | None
) -> Iterator[tuple[str, Any]]:
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix.lower() in TABLE_SUFFIXES:
            rows = table_rows(path, note)
            return rows if path.suffix.lower() == ".parquet" else ((where, _filled(row)) for where, row in rows)
        if path.is_file() and path.suffix.lower() not in JSON_SUFFIXES:
            endings = ", ".join((*JSON_SUFFIXES, *TABLE_SUFFIXES))
            raise ConfigurationError(f"{path.name} is no file of preferences: these end in {endings}")
    return read_rows(source, download, limit, noun="row", skip=note)


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of text cells; an empty cell of a prompt or response is a missing value, since it cannot say which."""
    return {name: None if value == "" and is_text_column(name) else value for name, value in row.items()}


def _name(source: Any) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"the {type(source).__name__} given"


def _below_header(source: Any) -> str:
    """Where the rows of a .csv or .tsv file are looked for, if this is one that is not empty."""
    is_table = isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in (".csv", ".tsv")
    return " below the line that names its columns" if is_table else ""


def _records(kind: Format, row: Any, tokenizer: Any) -> list[Preference]:
    if not isinstance(row, Mapping):
        raise InvalidPreferenceError(f"it is of type {type(row).__name__}: it must be an object with named columns")
    if tokenizer is not None:
        row = {name: _decoded(value, tokenizer) for name, value in row.items()}
    try:
        json.dumps(dict(row), ensure_ascii=False, skipkeys=True, default=str).encode("utf-8")
        return kind.read(row)
    except InvalidPreferenceError:
        raise
    except UnicodeEncodeError as error:
        raise InvalidPreferenceError("it holds half of a surrogate pair, which is no character") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InvalidPreferenceError(f"it is no row of {kind.name!r} ({type(error).__name__}: {error})") from error


def _decoded(value: Any, tokenizer: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return tokenizer.decode(value, skip_special_tokens=True)
    return value


# -- writing -------------------------------------------------------------------------------------------
def write_preferences(
    records: Sequence[Preference], path: str | Path, *, format: str = "rankings", replace: bool = True
) -> Path:
    """Write records as .jsonl, .csv or .parquet, and make sure that each reads back as it was.

    All cells of a .csv file are text, and so are then the extra columns of the records that are read from it.

    Args:
        format: a name out of `FORMATS`; "rankings" holds all that a record can hold.
        replace: replace a file that is there, in one step; else one with another content is left as it is.

    Raises:
        ConfigurationError: no such format or ending, nothing to write, or a file is there and not to be replaced.
        InvalidPreferenceError: a record has something that the format cannot hold; nothing was written.
        CheckpointWriteError: the file cannot be written; what was there before still is.
    """
    check_choice("format", format, FORMATS)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv", ".parquet"):
        raise ConfigurationError(f"{path.name} does not end in .jsonl, .csv or .parquet: choose one of these")
    if not records:
        raise ConfigurationError("there are no records to write: give at least one")
    rows = _rows_of(records, format, cells=suffix == ".csv")
    if suffix == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    else:
        content = table_content(rows, suffix)
    place = Path(os.path.realpath(path))  # a link stays, and the file it points to is replaced
    try:
        if not replace and os.path.lexists(place) and place.read_bytes() != content:
            raise ConfigurationError(
                f"{path} is there already and holds something else: choose another name, or replace it with"
                " replace=True (--replace)"
            )
        write_file(place, content)
    except OSError as error:
        raise CheckpointWriteError(f"cannot write {path}: {error}; choose another place") from error
    return path


def _rows_of(records: Sequence[Preference], format: str, *, cells: bool) -> list[dict[str, Any]]:
    """The records as rows of a format, each of which was read once to see that it is the same.

    Args:
        cells: the rows are going to be cells of text.

    Raises:
        InvalidPreferenceError: a record cannot be written.
    """
    kind = FORMATS[format]
    rows, index = [], 0
    try:
        for row in kind.write(records):
            rows.append(row)
            for back in _records(kind, _filled(row_of_cells(cells_of(row))) if cells else row, None):
                same = (
                    _with_text_columns(back) == _with_text_columns(records[index]) if cells else back == records[index]
                )
                if not same:
                    raise InvalidPreferenceError("it would read back as something else")
                index += 1
    except InvalidPreferenceError as error:
        others = [
            *(["'rankings', which holds everything"] if format != "rankings" else []),
            *([".jsonl"] if cells else []),
        ]
        remedy = f"; choose {' or '.join(others)}" if others else ""
        raise InvalidPreferenceError(f"record {index} cannot be written as {format!r}: {error}{remedy}") from error
    return rows


def _with_text_columns(record: Preference) -> Preference:
    """The record with its extra columns as a .csv file holds them."""
    return dataclasses.replace(
        record, columns={name: cell for name, cell in cells_of(record.columns).items() if cell != ""}
    )
