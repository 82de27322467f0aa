"""Single responses with a rating each, and texts with a score: 1 to 5 stars, means over raters."""

from __future__ import annotations

from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import (
    Format,
    Row,
    common_fields,
    first_of,
    number,
    one_to_one,
    put_common,
    text,
)
from reward_models.preferences.records.preference import Preference

__all__ = ["RATINGS", "SCORED_TEXTS"]

PROMPT = ("prompt", "question", "instruction", "query", "input")
RESPONSE = ("response", "completion", "answer", "output")
RATING = ("rating", "score", "mean_rating", "stars", "label", "overall")


def _rated(row: Row) -> str | None:
    """The column with the rating, if it holds a number."""
    for name in RATING:
        try:
            if row.get(name) is not None and number(row, name) is not None:
                return name
        except InvalidPreferenceError:
            continue
    return None


def _read_rating(row: Row) -> list[Preference]:
    prompt, response = first_of(row, PROMPT), first_of(row, RESPONSE)
    if prompt is None or response is None:
        raise InvalidPreferenceError(f"it needs a {PROMPT[0]!r} and a {RESPONSE[0]!r}")
    return [_single(row, text(row, prompt), response, (prompt, response))]


def _read_scored(row: Row) -> list[Preference]:
    return [_single(row, "", "text", ("text",))]


def _single(row: Row, prompt: str, response: str, used: tuple[str, ...]) -> Preference:
    name = _rated(row)
    if name is None and (broken := first_of(row, RATING)) is not None:
        number(row, broken)
    if name is None:
        raise InvalidPreferenceError(f"it has no rating: a number in a column named {', '.join(map(repr, RATING))}")
    rating = number(row, name)
    assert rating is not None
    return Preference(prompt, (text(row, response),), ratings=(rating,), **common_fields(row, (*used, name)))


def _write(record: Preference, scored: bool) -> dict[str, Any]:
    if len(record.responses) != 1 or record.ratings is None:
        raise InvalidPreferenceError("it is not one response with a rating")
    if scored and record.prompt != "":
        raise InvalidPreferenceError("it has a prompt, and a scored text has none")
    texts = {"text": record.responses[0]} if scored else {"prompt": record.prompt, "response": record.responses[0]}
    return put_common(record, {**texts, "rating": record.ratings[0]})


RATINGS = Format(
    "ratings",
    "prompt, response, rating: a number (or score, stars, label)",
    lambda row: bool(first_of(row, PROMPT) and first_of(row, RESPONSE) and _rated(row)),
    _read_rating,
    one_to_one(lambda record: _write(record, scored=False)),
)
SCORED_TEXTS = Format(
    "scored-texts",
    "text, rating: a number (or score, mean_rating, stars, label)",
    lambda row: isinstance(row.get("text"), str) and _rated(row) is not None,
    _read_scored,
    one_to_one(lambda record: _write(record, scored=True)),
)
