"""The formats in which preferences lie in files: one file, one family."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lm_env.errors import ConfigurationError, InvalidPreferenceError
from reward_models.preferences.formats.argilla import ARGILLA
from reward_models.preferences.formats.base import Format, Row
from reward_models.preferences.formats.best_of import BEST_OF
from reward_models.preferences.formats.label_studio import LABEL_STUDIO
from reward_models.preferences.formats.pairs import CONVERSATIONS, PAIRS, TRANSCRIPTS, without_prompt
from reward_models.preferences.formats.potato import POTATO
from reward_models.preferences.formats.qa_feedback import QA_FEEDBACK
from reward_models.preferences.formats.rankings import RANKINGS
from reward_models.preferences.formats.ratings import RATINGS, SCORED_TEXTS
from reward_models.preferences.formats.summaries import SUMMARIES
from reward_models.preferences.formats.verdicts import VERDICTS
from reward_models.preferences.formats.votes import ANSWER_PAIRS, VOTES, vote_score

__all__ = ["FORMATS", "Format", "Row", "recognized_format", "vote_score"]

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        LABEL_STUDIO,
        ARGILLA,
        POTATO,
        QA_FEEDBACK,
        SUMMARIES,
        BEST_OF,
        ANSWER_PAIRS,
        VOTES,
        VERDICTS,
        CONVERSATIONS,
        PAIRS,
        TRANSCRIPTS,
        RANKINGS,
        RATINGS,
        SCORED_TEXTS,
    )
}
"""By name, in the order in which they are tried: the more particular ones first."""


def recognized_format(rows: Sequence[Any]) -> Format:
    """The first format that at least half of the rows fit.

    If there is none, but the columns of the first row are those of a format, it is that one: reading tells what is
    wrong with the values.

    Raises:
        ConfigurationError: the columns are those of no format; the message says which to rename, where that is known.
    """
    for kind in FORMATS.values():
        fitting = sum(isinstance(row, Mapping) and _fits(kind, row) for row in rows)
        if rows and 2 * fitting >= len(rows):
            return kind
    first = next((row for row in rows if isinstance(row, Mapping)), None)
    if first is None:
        what = f"the first row is a {type(rows[0]).__name__}" if rows else "no line of the file can be read"
        raise ConfigurationError(f"preferences are rows with named columns, and {what}: give such rows")
    if problem := _other_names(first) or without_prompt(first):
        raise ConfigurationError(problem)
    known = next((kind for kind in FORMATS.values() if _fits(kind, dict.fromkeys(first, "1"))), None)
    if known is not None:
        return known
    columns = ", ".join(map(repr, itertools.islice(first, 12)))
    raise ConfigurationError(
        f"no format of preferences has the columns {columns}: name one with format= (--format), of "
        + "; ".join(f"{kind.name} ({kind.columns})" for kind in FORMATS.values())
    )


def _other_names(row: Mapping[Any, Any]) -> str | None:
    """What to rename, if the columns are those of a format but for capital letters and spaces."""
    names = {name: str(name).strip().lower() for name in row}
    changed = [f"{old!r} to {new!r}" for old, new in names.items() if old != new]
    plain = {names[old]: value for old, value in row.items()}
    if not changed or not any(_fits(kind, plain) for kind in FORMATS.values()):
        return None
    return f"the columns are named as in no format, but nearly so: rename {', '.join(changed)}"


def _fits(kind: Format, row: Mapping[str, Any]) -> bool:
    try:
        return kind.matches(row)
    except InvalidPreferenceError:
        return False
