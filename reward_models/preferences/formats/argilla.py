"""Argilla's exports: records with fields and responses, nested (`to_json`) or flat (`to_datasets`), and those of 1.x.

Of each submitted response of a user one question is read: a ranking of fields, the name of the better one, or a
rating for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import Format, Row, one_to_one
from reward_models.preferences.formats.choices import chosen_index, ranking_of, texts_of
from reward_models.preferences.records.preference import Preference

__all__ = ["ARGILLA"]

ENDING = ".responses"


def _questions(row: Row) -> list[str]:
    """The questions of a flat export, by its columns QUESTION.responses."""
    return [n.removesuffix(ENDING) for n in row if isinstance(n, str) and n.endswith(ENDING)]


def _matches(row: Row) -> bool:
    nested = isinstance(row.get("fields"), Mapping) and isinstance(row.get("responses"), Mapping | list)
    return nested or bool(_questions(row))


def _read(row: Row) -> list[Preference]:
    if not _matches(row):
        raise InvalidPreferenceError("it needs 'fields' and 'responses', or columns that end in '.responses'")
    nested = isinstance(row.get("fields"), Mapping)
    fields = row["fields"] if nested else {k: v for k, v in row.items() if "." not in k}
    prompt, responses, _ = texts_of(fields)
    metadata = row.get("metadata")
    columns = dict(metadata) if nested and isinstance(metadata, Mapping) else {}
    found: dict[str, dict[str, Any]] = {}
    for user, question, value in _answers(row):
        found.setdefault(user, {})[question] = value
    records = []
    for user, answers in found.items():
        judged = _judgement(answers, list(responses))
        records.append(Preference(prompt, tuple(responses.values()), annotator=user or None, columns=columns, **judged))
    return records


def _answers(row: Row) -> Iterator[tuple[str, str, Any]]:
    """(user, question, value) of all that was submitted."""
    responses = row.get("responses")
    if not isinstance(row.get("fields"), Mapping):
        for question in _questions(row):
            values = row[question + ENDING] or []
            users = row.get(f"{question}{ENDING}.users") or [""] * len(values)
            states = row.get(f"{question}{ENDING}.status") or ["submitted"] * len(values)
            for value, user, state in zip(values, users, states, strict=True):
                if state in (None, "submitted"):
                    yield str(user), question, value
    elif isinstance(responses, Mapping):  # 2.x: question -> [{value, user_id, status}]
        for question, given in responses.items():
            for one in given or []:
                if one.get("status") in (None, "submitted"):
                    yield str(one.get("user_id") or ""), question, one.get("value")
    else:  # 1.x: [{user_id, status, values: {question: {value}}}]
        for one in responses or []:
            if one.get("status") in (None, "submitted"):
                for question, value in (one.get("values") or {}).items():
                    yield str(one.get("user_id") or ""), question, value.get("value")


def _judgement(answers: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    ratings: dict[int, float] = {}
    for question, value in answers.items():
        if isinstance(value, list) and value:
            return {"ranking": _ranked(value, names)}
        if isinstance(value, str) and len(names) > 1:
            return {"ranking": ranking_of(chosen_index(value, names), len(names))}
        if isinstance(value, int | float) and not isinstance(value, bool):
            ratings[0 if len(names) == 1 else chosen_index(question, names)] = float(value)
    if len(ratings) == len(names):
        return {"ratings": tuple(ratings[i] for i in range(len(names)))}
    raise InvalidPreferenceError(f"the answers {dict(answers)!r} hold no ranking, choice or rating of each response")


def _ranked(value: Sequence[Any], names: Sequence[str]) -> tuple[int | None, ...]:
    """Ranks from a list of names, the best first, or of {value, rank}, in which equal ranks tie."""
    ranks: list[int | None] = [None] * len(names)
    for place, item in enumerate(value):
        name = item.get("value") if isinstance(item, Mapping) else item
        rank = item.get("rank", place) if isinstance(item, Mapping) else place
        ranks[chosen_index(name, names)] = place if rank is None else int(rank)
    return tuple(ranks)


def _write(record: Preference) -> dict[str, Any]:
    if not isinstance(record.prompt, str) or record.margin is not None or record.confidence is not None:
        raise InvalidPreferenceError("it has a chat for a prompt, a margin or a confidence, which the export lacks")
    names = [f"response{i + 1}" for i in range(len(record.responses))]
    user = {} if record.annotator is None else {"user_id": record.annotator}

    def answer(value: Any) -> list[dict[str, Any]]:
        return [{"value": value, "status": "submitted", **user}]

    if record.ratings is not None:
        responses = {f"rating_{i + 1}": answer(rating) for i, rating in enumerate(record.ratings)}
    else:
        ranked = [{"value": n, "rank": r} for n, r in zip(names, record.ranking, strict=True) if r is not None]
        responses = {"ranking": answer(ranked)}
    fields = {"prompt": record.prompt, **dict(zip(names, record.responses, strict=True))}
    return {"fields": fields, "metadata": dict(record.columns), "suggestions": {}, "responses": responses}


ARGILLA = Format(
    "argilla",
    "fields: {prompt, response1, response2}, responses: {...}; or columns QUESTION.responses (Argilla)",
    _matches,
    _read,
    one_to_one(_write),
)
