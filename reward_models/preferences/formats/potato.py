"""Potato's exports: one annotated item of one user in a row, judged by a pairwise or a best-worst scheme.

Potato keeps the items apart from the answers.  A row must hold both: the fields of the item (a list `responses`, or
response_a and response_b), and what the user chose, in `label_annotations` or in a column of the scheme's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import Format, Row, one_to_one
from reward_models.preferences.formats.choices import TIED, chosen_index, ranking_of, texts_of
from reward_models.preferences.records.preference import Preference

__all__ = ["POTATO"]

OWN = frozenset({"instance_id", "id", "user_id", "user", "displayed_text", "label_annotations", "span_annotations"})
ENDINGS = (".selection", ".scale_value", ":::selection", ":::scale_value")


def _schemes(row: Row) -> dict[str, Mapping[str, Any]]:
    """What was answered, by scheme: {"selection": "A"}, {"scale_value": "-2"}, {"best": "A", "worst": "C"}."""
    nested = row.get("label_annotations")
    if isinstance(nested, Mapping):
        return {name: value for name, value in nested.items() if isinstance(value, Mapping)}
    found: dict[str, dict[str, Any]] = {}
    for column, value in row.items():
        for ending in ENDINGS:
            if isinstance(column, str) and column.endswith(ending) and value not in (None, ""):
                found.setdefault(column.removesuffix(ending), {})[ending.strip(".:")] = value
    return dict(found)


def _matches(row: Row) -> bool:
    return ("instance_id" in row or "id" in row) and bool(_schemes(row))


def _read(row: Row) -> list[Preference]:
    schemes = _schemes(row)
    if not schemes:
        raise InvalidPreferenceError("it holds no answer: 'label_annotations', or a column SCHEME.selection")
    fields = {k: v for k, v in row.items() if k not in OWN and not k.endswith(ENDINGS)}
    prompt, responses, shown = texts_of(fields)
    user = row.get("user_id", row.get("user"))
    columns = {k: v for k, v in fields.items() if k not in shown and v is not None}
    judged = _judgement(schemes, list(responses))
    annotator = None if user in (None, "") else str(user)
    return [Preference(prompt, tuple(responses.values()), annotator=annotator, columns=columns, **judged)]


def _judgement(schemes: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    for value in schemes.values():
        if "selection" in value:
            return {"ranking": ranking_of(_choice(value["selection"], names), len(names))}
        if "scale_value" in value and len(names) == 2:
            scale = float(value["scale_value"])  # below 0 the left one is preferred
            choice = TIED if scale == 0 else 0 if scale < 0 else 1
            margin = {} if scale == 0 else {"margin": abs(scale)}
            return {"ranking": ranking_of(choice, 2), **margin}
        if "best" in value and "worst" in value:
            best, worst = _choice(value["best"], names), _choice(value["worst"], names)
            return {"ranking": tuple(0 if i == best else 2 if i == worst else 1 for i in range(len(names)))}
    raise InvalidPreferenceError(f"its answers {dict(schemes)!r} are of no pairwise or best-worst scheme")


def _choice(value: Any, names: Sequence[str]) -> int:
    """Potato calls the items A, B, C, ... in the order shown, whatever the fields are called."""
    word = str(value).strip().lower()
    if len(word) == 1 and word.isalpha() and ord(word) - ord("a") < len(names):
        return ord(word) - ord("a")
    return chosen_index(value, names)


def _write(record: Preference) -> dict[str, Any]:
    if not isinstance(record.prompt, str) or len(record.responses) != 2 or record.confidence is not None:
        raise InvalidPreferenceError("it is not a text prompt with two responses and without a confidence")
    if record.margin is not None and record.best is not None:
        scale = {"scale_value": str(-record.margin if record.best == 0 else record.margin)}
    else:
        scale = {"selection": "tie" if record.best is None else "AB"[record.best]}
    row = {
        **record.columns,
        "instance_id": "0",
        "prompt": record.prompt,
        "responses": list(record.responses),
        "label_annotations": {"preference": scale},
    }
    return row if record.annotator is None else {**row, "user_id": record.annotator}


POTATO = Format(
    "potato",
    "instance_id, user_id, prompt, responses, label_annotations: {SCHEME: {selection: A, B or tie}} (Potato)",
    _matches,
    _read,
    one_to_one(_write),
)
