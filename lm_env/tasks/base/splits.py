"""Splits of prompts: train, validation and test, with no prompt in two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.validation import check_choice

__all__ = ["SPLITS", "Split", "prompt_of", "split_rows"]

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

SHARES: Mapping[Split, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}


def split_rows(rows: Sequence[Any], split: Split, column: str | None = None) -> list[Any]:
    """The rows of one split: four fifths of the distinct prompts for training, a tenth each for validation and test.

    A prompt's place is decided by a digest of the prompt itself, so it depends neither on the order of the rows nor on
    a random generator, and few prompts change places when rows are added.  The rows of a split are in the order of
    the digests, so that its first rows are a sample of it even where the given rows are sorted.  Of rows with the same
    prompt the first is kept.

    Args:
        rows: prompts, or mappings that hold one.
        column: the column with the prompt, see `lm_env.load_prompts`.

    Raises:
        ConfigurationError: there is no such split, or there are fewer than three distinct prompts.
    """
    check_choice("split", split, SPLITS)
    distinct: dict[str, Any] = {}
    for row in rows:
        distinct.setdefault(_digest(prompt_of(row, column)), row)
    if len(distinct) < 3:
        raise ConfigurationError(
            f"{len(distinct)} distinct prompts cannot be split into {', '.join(SPLITS)}: give at least three, or give"
            " the splits by name"
        )
    order = sorted(distinct)
    held_out = {name: max(1, round(SHARES[name] * len(order))) for name in SPLITS[1:]}
    first = len(order) - sum(held_out.values())
    edges = {"train": (0, first), "validation": (first, first + held_out["validation"])}
    low, high = edges.get(split, (first + held_out["validation"], len(order)))
    return [distinct[digest] for digest in order[low:high]]


def prompt_of(row: Any, column: str | None = None) -> Any:
    """The prompt in a row: the row itself, or the column that `lm_env.load_prompts` would read.

    Raises:
        InvalidPromptError: it has no such column.
    """
    from lm_env.data.prompts import PROMPT_COLUMNS

    if not isinstance(row, Mapping):
        return row
    name = column or next((known for known in PROMPT_COLUMNS if known in row), None)
    if name is None or name not in row:
        raise InvalidPromptError(
            f"a row with the columns {', '.join(map(str, row))} has no prompt: name its column with prompt_column"
        )
    return row[name]


def _digest(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
