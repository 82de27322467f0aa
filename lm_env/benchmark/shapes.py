"""What a record of a benchmark must hold, checked wherever records are read: files may come from anybody.

A shape is a function that tells whether a value fits, a list with the shape of all items, a mapping with the shapes of
keys (a key with `?` at its end may be missing), or `Each(shape)` for a mapping with any keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SCHEMA", "record_problem"]

SCHEMA = 1
"""The version of the records' layout."""
LARGEST = 1.7e308


@dataclass(frozen=True)
class Each:
    """A mapping from any text to values of one shape."""

    shape: Any


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def fits_or_is_none(value: Any) -> bool:
        return value is None or fits(value)

    fits_or_is_none.__name__ = f"{fits.__name__}_or_none"
    return fits_or_is_none


NUMBER = _or_none(_is_number)
"""A number that was not finite is null in the file."""
ESTIMATE = {"mean": NUMBER, "se?": NUMBER}
COMMON = {
    "task": _is_text,
    "model": _or_none(_is_text),
    "beta": _is_number,
    "versions": Each(_is_text),
    "hardware": {
        "cpu": _is_text,
        "cores": _or_none(_is_integer),
        "threads": _is_integer,
        "device": _is_text,
        "gpu?": _is_text,
    },
    "commit": _or_none(_is_text),
}
CEILING = {
    **COMMON,
    **dict.fromkeys(("J", "J_ref", "score", "KL"), ESTIMATE),
    "J_by_prompt": [NUMBER],
    "J_ref_by_prompt": [NUMBER],
    "doubts": [_is_text],
    "frontier": [{"KL": NUMBER, "score": NUMBER}],
}
MEASURED = {
    **COMMON,
    "agent": _is_text,
    "seed": _is_integer,
    "prompts": _is_count,
    "texts": _is_count,
    "metrics": Each(ESTIMATE),
    "by_prompt": {"score?": [NUMBER], "J": [NUMBER]},
    "samples": [{"prompt": _is_text, "response": _is_text, "score": NUMBER}],
    "success?": {"mean": _is_number, "low": _is_number, "high": _is_number},
    "inference_tokens?": NUMBER,
}
RUN = {
    **MEASURED,
    "settings": {"agent": _is_text, "budget": _is_integer},
    "tokens": _is_integer,
    "seconds": _is_number,
    "tokens_per_second?": NUMBER,
    "learning_rate?": NUMBER,
    "curve": [{"tokens": _is_number, "seconds": _is_number, "score": NUMBER, "kl": NUMBER, "J": NUMBER}],
    "curve_prompts": _is_count,
}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "ceiling": CEILING,
    "baseline": MEASURED,
    "model": MEASURED,
    "run": RUN,
    "trial": {**RUN, "trial": _is_integer},
}
WORDS = {
    "_is_text": "a text",
    "_is_number": "a finite number",
    "_is_integer": "an integer of at least 0",
    "_is_count": "an integer of at least 1",
}


def record_problem(record: Any) -> str | None:
    """What is wrong with a record, in a few words that name the key; None if it can be read.

    Args:
        record: anything that a JSON file can hold.
    """
    if not isinstance(record, dict):
        return "it is no JSON object"
    schema, kind = record.get("schema"), record.get("kind")
    if type(schema) is not int or schema != SCHEMA:
        return f"its schema is {_in_short(schema)}, and this version reads schema {SCHEMA}"
    if not isinstance(kind, str) or kind not in KINDS:
        return f"its kind is {_in_short(kind)}, and not one of {', '.join(KINDS)}"
    return _problem(record, KINDS[kind], "") or _contradiction(record)


def _problem(value: Any, shape: Any, place: str) -> str | None:
    if callable(shape):
        return None if shape(value) else f"{place} is {_in_short(value)}, and not {_words(shape.__name__)}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is {_in_short(value)}, and no list"
        return next((found for item in value if (found := _problem(item, shape[0], f"an item of {place}"))), None)
    if not isinstance(value, dict):
        return f"{place} is {_in_short(value)}, and no JSON object"
    if isinstance(shape, Each):
        problems = (_problem(part, shape.shape, _below(place, name)) for name, part in value.items())
        return next((problem for problem in problems if problem), None)
    for name, part in shape.items():
        key = name.removesuffix("?")
        if key not in value:
            if key == name:
                return f"{_below(place, key)} is missing"
        elif problem := _problem(value[key], part, _below(place, key)):
            return problem
    return None


def _contradiction(record: dict[str, Any]) -> str | None:
    if record["kind"] == "ceiling":
        if not len(record["J_by_prompt"]) == len(record["J_ref_by_prompt"]) > 0:
            return "J_by_prompt and J_ref_by_prompt have different lengths, or none"
    elif len(record["by_prompt"]["J"]) != record["prompts"]:
        return f"by_prompt.J has {len(record['by_prompt']['J'])} numbers for {record['prompts']} prompts"
    return None


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _words(name: str) -> str:
    return WORDS[name.removesuffix("_or_none")] + (" or null" if name.endswith("_or_none") else "")


def _in_short(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
