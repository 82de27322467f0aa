"""What is to be judged: prompts with K responses each, from any file of preferences or of unjudged responses."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_env.data.sources import read_rows
from lm_env.data.tables import TABLE_SUFFIXES, table_rows
from lm_env.errors import InvalidPreferenceError, InvalidPromptError
from reward_models.preferences.formats.base import chat, first_of, items
from reward_models.preferences.formats.rankings import PROMPT, RANKS, RATINGS, RESPONSES
from reward_models.preferences.reading import read_preferences, reading_row
from reward_models.preferences.records.preference import Preference, PromptText, prompt_key

__all__ = ["Item", "Items", "items_from_preferences", "read_items"]

NUMBERED = (("response_a", "response_b"), ("response_1", "response_2"), ("response_0", "response_1"))


@dataclass(frozen=True)
class Item:
    """A prompt with K >= 2 different responses, without any judgement of them.

    Attributes:
        prompt: text or a chat, as in `Preference`.
        responses: K texts.
        columns: extra columns, kept with the judgements.
    """

    prompt: PromptText
    responses: tuple[str, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Equal for the same prompt with the same responses in any order."""
        return hashlib.sha256(json.dumps([prompt_key(self.prompt), sorted(self.responses)]).encode()).hexdigest()


@dataclass(frozen=True)
class Items:
    """Items that were read.

    Attributes:
        items: each once.
        repeated: records that hold the prompt and responses of an earlier one.
        too_few: records left out because they have fewer than two different responses.
        problems: a sentence about each broken row that was skipped.
    """

    items: tuple[Item, ...]
    repeated: int = 0
    too_few: int = 0
    problems: tuple[str, ...] = ()


def read_items(
    source: Any, *, format: str | None = None, skip_bad: bool = False, download: bool = False, limit: int | None = None
) -> Items:
    """Read what is to be judged.

    Args:
        source: whatever `read_preferences` takes, in any of its formats, whose judgements are ignored; or rows without
            a judgement: a prompt with `responses` (a list of texts), or with `response_a` and `response_b`.
        format, skip_bad, download: as in `read_preferences`.
        limit: read only the first `limit` rows.

    Raises:
        InvalidPreferenceError: a row is broken (the message names it), or no record has two different responses.
        ConfigurationError: the source cannot be read, or its format is not known.
    """
    if format is None and _is_unjudged(source, download):
        records, problems = _unjudged(source, skip_bad, download, limit)
    else:
        read = read_preferences(source, format=format, skip_bad=skip_bad, download=download, limit=limit)
        records, problems = list(read), list(read.problems)
    found = items_from_preferences(records)
    if not found.items:
        raise InvalidPreferenceError(
            f"none of {len(records)} records has two different responses to its prompt: give two or more to each"
        )
    return Items(found.items, found.repeated, found.too_few, tuple(problems))


def items_from_preferences(records: Iterable[Preference]) -> Items:
    """The prompts and responses of records, each once; equal responses to a prompt count as one."""
    found: dict[str, Item] = {}
    repeated = too_few = 0
    for record in records:
        item = Item(record.prompt, tuple(dict.fromkeys(record.responses)), record.columns)
        if len(item.responses) < 2:
            too_few += 1
        elif item.key in found:
            repeated += 1
        else:
            found[item.key] = item
    return Items(tuple(found.values()), repeated, too_few)


# -- rows without a judgement --------------------------------------------------------------------------
def _is_unjudged(source: Any, download: bool) -> bool:
    """Whether the first row has responses and nothing that says which is better."""
    if not isinstance(source, str | os.PathLike | Sequence):
        return False
    first = next((row for _, row in itertools.islice(_rows(source, download, 1), 1)), None)
    if not isinstance(first, Mapping) or first_of(first, (*RANKS, *RATINGS)):
        return False
    name = first_of(first, RESPONSES)
    if name is None:
        return any(all(isinstance(first.get(n), str) for n in pair) for pair in NUMBERED)
    try:
        return all(isinstance(response, str) for response in items(first, name))
    except InvalidPreferenceError:
        return False


def _unjudged(source: Any, skip_bad: bool, download: bool, limit: int | None) -> tuple[list[Preference], list[str]]:
    records: list[Preference] = []
    problems: list[str] = []
    note = (lambda error: problems.append(str(error))) if skip_bad else None
    try:
        for where, row in itertools.islice(_rows(source, download, limit, note), limit):
            with reading_row(where, problems if skip_bad else None):
                records.append(_record(row))
    except InvalidPromptError as error:
        raise InvalidPreferenceError(f"{error}; or leave such rows out with skip_bad=True (--skip-bad)") from error
    return records, problems


def _rows(source: Any, download: bool, limit: int | None, note: Any = None) -> Iterable[tuple[str, Any]]:
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in TABLE_SUFFIXES:
        return table_rows(Path(source), note)
    return read_rows(source, download, limit, noun="row", skip=note)


def _record(row: Any) -> Preference:
    """A row as a record; its ranking, in which all responses tie, is ignored like any other."""
    if not isinstance(row, Mapping):
        raise InvalidPreferenceError(f"it is of type {type(row).__name__}: it must be an object with named columns")
    name = first_of(row, RESPONSES)
    pair = next((pair for pair in NUMBERED if all(isinstance(row.get(n), str) for n in pair)), None)
    if name is not None:
        responses, used = tuple(items(row, name)), {name}
    elif pair is not None:
        responses, used = tuple(row[n] for n in pair), set(pair)
    else:
        raise InvalidPreferenceError(f"there are no responses: give them in a column named {RESPONSES[0]!r}")
    prompt_name = first_of(row, PROMPT)
    prompt: Any = "" if prompt_name is None else row[prompt_name]
    if isinstance(prompt, list | tuple):
        prompt = chat(prompt, f"{prompt_name!r}")
    columns = {k: v for k, v in row.items() if k not in used and k != prompt_name and v is not None}
    return Preference(prompt, responses, (0,) * len(responses), columns=columns)
