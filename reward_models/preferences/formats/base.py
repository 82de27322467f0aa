"""What a format is, and what reading any of them needs: texts, numbers, lists, and the columns left over."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.records.preference import Preference

__all__ = [
    "Format",
    "Row",
    "chat",
    "common_fields",
    "first_of",
    "has_text",
    "is_metadata",
    "is_text_column",
    "items",
    "mapping",
    "number",
    "one_to_one",
    "prompt_column",
    "prompts_in",
    "put_common",
    "text",
]

Row: TypeAlias = Mapping[str, Any]

ANNOTATOR = ("annotator", "worker", "annotator_id", "worker_id", "labeler", "user_id", "user")
CONFIDENCE = ("confidence",)
MARGIN = ("margin",)
PROMPT = ("prompt", "question", "instruction", "query", "input", "text", "messages")
TEXT_COLUMN = re.compile(
    r"prompt|question|instruction|query|input|text|chosen|rejected"
    r"|(response|answer|completion|output|summary|sample|option|candidate|reply|text)s?[ _-]?(\d+|[a-z])?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Format:
    """One way in which preferences lie in files.

    Attributes:
        name: what `--format` calls it.
        columns: what a row looks like, for people.
        matches: whether a row is of this format.
        read: a row -> its records.
        write: records -> rows; it may refuse a record, and `write_preferences` checks that each reads back as it was.
    """

    name: str
    columns: str
    matches: Callable[[Row], bool]
    read: Callable[[Row], list[Preference]]
    write: Callable[[Sequence[Preference]], Iterable[dict[str, Any]]]


def one_to_one(write: Callable[[Preference], dict[str, Any]]) -> Callable[[Sequence[Preference]], Iterable[dict]]:
    """The writer of a format in which a record is a row."""
    return lambda records: (write(record) for record in records)


def first_of(row: Row, names: Iterable[str]) -> str | None:
    """The first of these columns that the row has, with something in it."""
    return next((name for name in names if row.get(name) is not None), None)


def has_text(row: Row, *names: str) -> bool:
    """Whether all of these columns are there and hold text."""
    return all(isinstance(row.get(name), str) for name in names)


def is_metadata(name: str) -> bool:
    """Whether a column of this name says who judged, or how surely, in every format."""
    return name in (*ANNOTATOR, *CONFIDENCE, *MARGIN)


def is_text_column(name: str) -> bool:
    """Whether a column of this name holds a prompt or a response in some format."""
    return TEXT_COLUMN.fullmatch(name) is not None


def prompts_in(row: Row) -> list[str]:
    """The columns that may hold the prompt and are not empty."""
    return [name for name in PROMPT if row.get(name) is not None and row[name] != ""]


def prompt_column(row: Row) -> str:
    """The column that holds the prompt.

    Raises:
        InvalidPreferenceError: there is none, or it is not clear which one does.
    """
    if row.get("prompt") is not None:
        return "prompt"
    found = prompts_in(row)
    if not found:
        raise InvalidPreferenceError("'prompt' is missing: it must be text, or a list of messages")
    if len(found) > 1:
        raise InvalidPreferenceError(
            f"the prompt may be in {' or '.join(map(repr, found))}: put all of it into one column named 'prompt'"
        )
    return found[0]


def text(row: Row, name: str) -> str:
    """The text in a column.

    Raises:
        InvalidPreferenceError: there is none.
    """
    value = row.get(name)
    if not isinstance(value, str):
        kind = "missing" if value is None else reprlib.repr(value)
        raise InvalidPreferenceError(f"{name!r} is {kind}: it must be text")
    return value


def number(row: Row, name: str) -> float | None:
    """The number in a column, also one that is written as text, as all of a CSV file is; None for an empty cell.

    Raises:
        InvalidPreferenceError: it is no finite number.
    """
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise InvalidPreferenceError(f"{name!r} is {value!r}: it must be a finite number")
    return found


def items(row: Row, name: str) -> list[Any]:
    """The list in a column; in a CSV file it is written as JSON.

    Raises:
        InvalidPreferenceError: it is no list.
    """
    value: Any = row.get(name)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidPreferenceError(f"{name!r} is no JSON list ({error}): correct it") from error
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise InvalidPreferenceError(f"{name!r} is of type {type(value).__name__}: it must be a list")
    return list(value)


def mapping(row: Row, name: str) -> Mapping[str, Any] | None:
    """The object in a column, which in a CSV file is written as JSON; None if anything else is there."""
    value = row.get(name)
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, Mapping) else None


def chat(messages: Any, what: str) -> tuple[dict[str, str], ...]:
    """A list of messages as records hold it.

    Raises:
        InvalidPreferenceError: a message without role or text.
    """
    for message in messages:
        proper = isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))
        if not proper:
            raise InvalidPreferenceError(f"{what} holds {message!r}: each message needs a role and a content of text")
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def common_fields(row: Row, used: Collection[str]) -> dict[str, Any]:
    """Annotator, confidence and margin where columns of these names hold them, and all columns that are left."""
    rest = {name: value for name, value in row.items() if name not in used and value is not None}
    fields: dict[str, Any] = {}
    if (name := first_of(rest, ANNOTATOR)) and isinstance(rest[name], str | int) and rest[name] != "":
        fields["annotator"] = str(rest.pop(name))
    for field, names in (("confidence", CONFIDENCE), ("margin", MARGIN)):
        if (name := first_of(rest, names)) and (value := number(rest, name)) is not None:
            fields[field] = value
            del rest[name]
    return {**fields, "columns": rest}


def put_common(record: Preference, row: dict[str, Any]) -> dict[str, Any]:
    """The row with annotator, confidence, margin and the extra columns of the record added."""
    fields = {"annotator": record.annotator, "confidence": record.confidence, "margin": record.margin}
    given = {name: value for name, value in fields.items() if value is not None}
    return {**record.columns, **row, **given}
