"""Label Studio's JSON export: a task with its annotations, by `Pairwise`, `Ranker`, `Rating` or `Choices`, and spans.

The export names the tags of the labelling page and not the fields that they showed, so the responses are found by
their names (response1, answer_a, text2, ..., or a list).  Annotations that were cancelled are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import Format, Row, one_to_one
from reward_models.preferences.formats.choices import chosen_index, ranking_of, texts_of
from reward_models.preferences.records.preference import LabelledSpan, Preference

__all__ = ["LABEL_STUDIO"]


def _matches(row: Row) -> bool:
    return isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list)


def _read(row: Row) -> list[Preference]:
    if not _matches(row):
        raise InvalidPreferenceError("it needs 'data' and a list of 'annotations'")
    data = row["data"]
    prompt, responses, shown = texts_of(data)
    columns = {k: v for k, v in data.items() if k not in shown and v is not None}
    found = []
    for annotation in row["annotations"]:
        if not isinstance(annotation, Mapping) or annotation.get("was_cancelled"):
            continue
        fields = _judgement(annotation.get("result") or [], responses)
        by = annotation.get("completed_by")
        by = by.get("email", by.get("id")) if isinstance(by, Mapping) else by
        annotator = None if by is None else str(by)
        found.append(Preference(prompt, tuple(responses.values()), annotator=annotator, columns=columns, **fields))
    return found


def _judgement(results: Sequence[Any], responses: Mapping[str, str]) -> dict[str, Any]:
    """The ranking, ratings and spans that one annotation holds."""
    names = list(responses)
    fields: dict[str, Any] = {}
    ratings: dict[int, float] = {}
    spans = []
    for result in results:
        kind = result.get("type") if isinstance(result, Mapping) else None
        value = result.get("value", {}) if kind else {}
        if kind == "pairwise":
            selected = value.get("selected")
            fields["ranking"] = ranking_of(chosen_index(selected or "tie", names), len(names))
        elif kind == "choices" and len(names) > 1:
            fields.setdefault("ranking", ranking_of(chosen_index((value.get("choices") or [""])[0], names), len(names)))
        elif kind == "ranker":
            fields["ranking"] = _ranker(value.get("ranker"), names)
        elif kind == "rating":
            at = chosen_index(result.get("to_name"), names) if len(names) > 1 else 0
            ratings[at] = float(value["rating"])
        elif kind in ("labels", "hypertextlabels"):
            at = chosen_index(result.get("to_name"), names) if len(names) > 1 else 0
            for label in value.get("labels") or value.get(kind) or []:
                spans.append(LabelledSpan(at, int(value["start"]), int(value["end"]), str(label)))
    if len(ratings) == len(names):
        fields["ratings"] = tuple(ratings[i] for i in range(len(names)))
    if not fields:
        raise InvalidPreferenceError("an annotation holds no comparison, ranking or rating: finish or cancel it")
    return {**fields, "spans": tuple(spans)}


def _ranker(value: Any, names: Sequence[str]) -> tuple[int | None, ...]:
    order = value.get("rank") if isinstance(value, Mapping) else value
    if not isinstance(order, list):
        raise InvalidPreferenceError(f"a ranker holds {value!r}: it must be a list of ids, the best first")
    places = [chosen_index(str(item), names) for item in order]
    return tuple(places.index(i) if i in places else None for i in range(len(names)))


def _write(record: Preference) -> dict[str, Any]:
    names = [f"response{i + 1}" for i in range(len(record.responses))]
    if not isinstance(record.prompt, str) or record.margin is not None or record.confidence is not None:
        raise InvalidPreferenceError("it has a chat for a prompt, a margin or a confidence, which the export lacks")
    results: list[dict[str, Any]] = []
    if record.ratings is not None:
        for name, rating in zip(names, record.ratings, strict=True):
            results.append(_result("rating", "rating", name, {"rating": rating}))
    elif len(names) == 2:
        selected = "tie" if record.best is None else ("left", "right")[record.best]
        results.append(_result("pairwise", "pairwise", ",".join(names), {"selected": selected}))
    else:
        ranked = sorted((rank, name) for rank, name in zip(record.ranking, names, strict=True) if rank is not None)
        order = {"ranker": {"rank": [name for _, name in ranked]}}
        results.append(_result("ranker", "ranker", "responses", order))
    for span in record.spans:
        value = {"start": span.start, "end": span.end, "labels": [span.kind]}
        results.append(_result("labels", "spans", names[span.response], value))
    annotation: dict[str, Any] = {"result": results, "was_cancelled": False}
    if record.annotator is not None:
        annotation["completed_by"] = record.annotator
    data = {**record.columns, "prompt": record.prompt, **dict(zip(names, record.responses, strict=True))}
    return {"data": data, "annotations": [annotation]}


def _result(kind: str, control: str, shown: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "from_name": control, "to_name": shown, "value": value}


LABEL_STUDIO = Format(
    "label-studio",
    "data: {prompt, response1, response2}, annotations: [...] (Label Studio, JSON export)",
    _matches,
    _read,
    one_to_one(_write),
)
