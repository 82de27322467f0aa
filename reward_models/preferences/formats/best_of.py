"""lm-human-preferences: a query, four samples, and which of them is the best.

Source: Ziegler et al. 2019 (arXiv:1909.08593), openai/lm-human-preferences.  Their files hold token ids, which
`read_preferences(..., tokenizer=...)` decodes.
"""

from __future__ import annotations

import re
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import Format, Row, common_fields, number, one_to_one, put_common
from reward_models.preferences.records.preference import Preference

__all__ = ["BEST_OF"]

SAMPLE = re.compile(r"sample_?\d+")


def _samples(row: Row) -> list[str]:
    return sorted((name for name in row if SAMPLE.fullmatch(name)), key=lambda n: int(re.sub(r"\D", "", n)))


def _read(row: Row) -> list[Preference]:
    names = _samples(row)
    for name in ("query", *names):
        value = row.get(name)
        if not isinstance(value, str):
            ids = isinstance(value, list) and all(isinstance(i, int) for i in value)
            remedy = "pass the tokenizer that decodes them" if ids else "it must be text"
            raise InvalidPreferenceError(f"{name!r} {'holds token ids' if ids else f'is {value!r}'}: {remedy}")
    best = number(row, "best")
    if best is None or best != int(best):
        raise InvalidPreferenceError(f"'best' is {row.get('best')!r}: it must be the number of the best sample")
    fields = common_fields(row, ("query", "best", *names))
    return [Preference.best_of(row["query"], [row[name] for name in names], int(best), **fields)]


def _write(record: Preference) -> dict[str, Any]:
    if record.best is None or any(rank not in (0, None) for rank in record.ranking):
        raise InvalidPreferenceError("it is more than the choice of a best response, which is all that this holds")
    samples = {f"sample{i}": response for i, response in enumerate(record.responses)}
    return put_common(record, {"query": record.prompt, **samples, "best": record.best})


BEST_OF = Format(
    "best-of",
    "query, sample0, sample1, ..., best: the number of the best sample (lm-human-preferences)",
    lambda row: "best" in row and "query" in row and len(_samples(row)) >= 2,
    _read,
    one_to_one(_write),
)
