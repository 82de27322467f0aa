"""Rankings of K responses, and this package's own rows, which hold all that a record can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import (
    Format,
    Row,
    chat,
    common_fields,
    first_of,
    items,
    mapping,
    one_to_one,
)
from reward_models.preferences.records.preference import LabelledSpan, Preference

__all__ = ["PROMPT", "RANKINGS", "RANKS", "RATINGS", "RESPONSES"]

PROMPT = ("prompt", "question", "instruction", "query", "input")
RESPONSES = ("responses", "completions", "answers", "outputs")
RANKS = ("ranking", "rankings", "ranks", "rank")
RATINGS = ("ratings", "scores")
INNER_TEXT = ("response", "answer", "text", "content", "completion", "output")
INNER_RATING = ("rating", "overall_score", "score")


def _matches(row: Row) -> bool:
    name = first_of(row, RESPONSES)
    if name is None:
        return False
    try:
        responses = items(row, name)
    except InvalidPreferenceError:
        return False
    if first_of(row, RANKS) or first_of(row, RATINGS):
        return True
    return bool(responses) and all(isinstance(r, Mapping) and _inner(r) for r in responses)


def _inner(response: Mapping[str, Any]) -> bool:
    return bool(first_of(response, INNER_TEXT) and first_of(response, ("rank", *INNER_RATING)))


def _read(row: Row) -> list[Preference]:
    prompt_name, name = first_of(row, PROMPT), first_of(row, RESPONSES)
    if name is None:
        raise InvalidPreferenceError(f"there are no responses: give them in a column named {RESPONSES[0]!r}")
    prompt: Any = "" if prompt_name is None else row[prompt_name]
    if isinstance(prompt, list | tuple):
        prompt = chat(prompt, f"{prompt_name!r}")
    responses = items(row, name)
    used = {prompt_name or "", name}
    if responses and all(isinstance(r, Mapping) for r in responses):
        texts, fields = _read_inner(responses)
    else:
        texts, fields = responses, {}
        for field, names in (("ranking", RANKS), ("ratings", RATINGS)):
            if column := first_of(row, names):
                values = [_plain(v, column) for v in items(row, column)]
                fields[field] = tuple(int(v) if field == "ranking" and v is not None else v for v in values)
                used.add(column)
    if "spans" in row and row["spans"] is not None:
        fields["spans"] = tuple(_span(span) for span in items(row, "spans"))
        used.add("spans")
    columns = mapping(row, "columns")
    if columns is not None:
        rest = common_fields({k: v for k, v in row.items() if k != "columns"}, used)
        rest["columns"] = {**rest["columns"], **{k: v for k, v in columns.items() if v is not None}}
    else:
        rest = common_fields(row, used)
    return [Preference(prompt, tuple(texts), **fields, **rest)]


def _read_inner(responses: list[Mapping[str, Any]]) -> tuple[list[Any], dict[str, Any]]:
    """Responses that carry their rank or rating with them: {answer, rank} as in Nectar, {response, overall_score}."""
    texts, found = [], []
    kind = "rank" if all(r.get("rank") is not None for r in responses) else first_of(responses[0], INNER_RATING)
    if kind is None:
        raise InvalidPreferenceError("the responses have neither a rank nor a rating: add one to each")
    for i, response in enumerate(responses):
        name = first_of(response, INNER_TEXT)
        if name is None or response.get(kind) is None:
            raise InvalidPreferenceError(f"response {i} lacks its text or its {kind}: add it")
        texts.append(response[name])
        found.append(_plain(response[kind], kind))
    if kind == "rank":
        return texts, {"ranking": tuple(None if v is None else int(v) for v in found)}
    return texts, {"ratings": tuple(found)}


def _plain(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidPreferenceError(f"{name!r} holds {value!r}: its entries are numbers")
    if name in ("rank", *RANKS) and value != int(value):
        raise InvalidPreferenceError(f"{name!r} holds {value!r}: ranks are integers, the best one the smallest")
    return float(value)


def _span(span: Any) -> LabelledSpan:
    try:
        return LabelledSpan(**span)
    except TypeError as error:
        raise InvalidPreferenceError(f"a span is {span!r}: it needs response, start, end and kind") from error


def _write(record: Preference) -> dict[str, Any]:
    row = record.as_dict()
    if record.ratings is not None and Preference(record.prompt, record.responses, (), record.ratings) == Preference(
        record.prompt, record.responses, record.ranking, record.ratings
    ):
        del row["ranking"]  # it follows from the ratings
    return row


RANKINGS = Format(
    "rankings",
    "prompt, responses: K texts, ranking: K ranks (0 the best, equal ones tie), or ratings; or responses: a list of"
    " {text, rank} or {text, rating}",
    _matches,
    _read,
    one_to_one(_write),
)
