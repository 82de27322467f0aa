"""What a record of a benchmark must hold, checked wherever records are read: files may come from anybody.

A shape is a `Leaf` for a value that is checked as a whole, a list with the shape of all items, a mapping with the
shapes of keys (a key with `?` at its end may be missing), or `Each(shape)` for a mapping with any keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SCHEMA", "record_problem"]

SCHEMA = 1
"""The version of the records' layout."""
LARGEST = 1.7e308
"""Just below the largest float.  Numbers are compared with it because `math.isfinite` fails for an integer above it."""
INTEGERS_BELOW = 2**62
"""Integers of a file end here, so that sums of a few still fit an int64."""


@dataclass(frozen=True)
class Leaf:
    """A value that is checked as a whole."""

    fits: Callable[[Any], bool]
    words: str
    """What it must be, for messages."""

    def or_none(self) -> Leaf:
        """The same, or null."""
        return Leaf(lambda value: value is None or self.fits(value), f"{self.words} or null")


@dataclass(frozen=True)
class Each:
    """A mapping from any text to values of one shape."""

    shape: Any
    needed: tuple[str, ...] = ()
    """Keys that have to be there."""


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _integer_from(low: int) -> Leaf:
    return Leaf(
        lambda value: type(value) is int and low <= value < INTEGERS_BELOW, f"an integer from {low} to 2^62 - 1"
    )


TEXT = Leaf(lambda value: isinstance(value, str), "a text")
FINITE = Leaf(_is_finite, "a finite number")
NONNEGATIVE = _integer_from(0)
COUNT = _integer_from(1)
NUMBER = FINITE.or_none()
"""A number that was not finite is null in the file."""
ESTIMATE = {"mean": NUMBER, "se?": NUMBER}
COMMON = {
    "task": TEXT,
    "model": TEXT.or_none(),
    "beta": FINITE,
    "versions": Each(TEXT),
    "hardware": {
        "cpu": TEXT,
        "cores": NONNEGATIVE.or_none(),
        "threads": NONNEGATIVE,
        "device": TEXT,
        "gpu?": TEXT,
    },
    "commit": TEXT.or_none(),
    "task_options?": Each(Leaf(lambda value: True, "anything")),
}
CEILING = {
    **COMMON,
    **dict.fromkeys(("J", "J_ref", "score", "KL"), ESTIMATE),
    "J_by_prompt": [NUMBER],
    "J_ref_by_prompt": [NUMBER],
    "doubts": [TEXT],
    "frontier": [{"KL": NUMBER, "score": NUMBER}],
}
MEASURED = {
    **COMMON,
    "agent": TEXT,
    "seed": NONNEGATIVE,
    "prompts": COUNT,
    "texts": COUNT,
    "metrics": Each(ESTIMATE),
    "by_prompt": {"score?": [NUMBER], "J": [NUMBER]},
    "samples": [{"prompt": TEXT, "response": TEXT, "score": NUMBER}],
    "success?": {"mean": FINITE, "low": FINITE, "high": FINITE},
    "inference_tokens?": NUMBER,
}
COMPARED = {**MEASURED, "metrics": Each(ESTIMATE, needed=("J",))}
"""What is measured against the reference: only a model without one has no J."""
RUN = {
    **COMPARED,
    "settings": {"agent": TEXT, "budget": NONNEGATIVE},
    "tokens": NONNEGATIVE,
    "seconds": FINITE,
    "tokens_per_second?": NUMBER,
    "learning_rate?": NUMBER,
    "curve": [{"tokens": FINITE, "seconds": FINITE, "score": NUMBER, "kl": NUMBER, "J": NUMBER}],
    "curve_prompts": COUNT,
}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "ceiling": CEILING,
    "baseline": COMPARED,
    "model": MEASURED,
    "run": RUN,
    "trial": {**RUN, "trial": NONNEGATIVE, "learning_rate": NUMBER},
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
    if isinstance(shape, Leaf):
        return None if shape.fits(value) else f"{place} is {_in_short(value)}, and not {shape.words}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is {_in_short(value)}, and no list"
        problems = (_problem(item, shape[0], f"{place}[{i}]") for i, item in enumerate(value))
        return next((problem for problem in problems if problem), None)
    if not isinstance(value, dict):
        return f"{place} is {_in_short(value)}, and no JSON object"
    if isinstance(shape, Each):
        if missing := next((name for name in shape.needed if name not in value), None):
            return f"{_below(place, missing)} is missing"
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
            return "J_by_prompt and J_ref_by_prompt have different lengths, or are empty"
        return None
    for name, values in record["by_prompt"].items():
        if name in ("score", "J") and len(values) != record["prompts"]:
            return f"by_prompt.{name} has {len(values)} numbers for {record['prompts']} prompts"
    return None


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _in_short(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
