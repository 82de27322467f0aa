"""summarize-from-feedback: a post, two summaries and a choice.

Source: Stiennon et al. 2020 (arXiv:2009.01325), openai/summarize_from_feedback, "comparisons".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import Format, Row, common_fields, items, number, one_to_one, text
from reward_models.preferences.records.preference import Preference

__all__ = ["SUMMARIES"]

USED = ("info", "summaries", "choice")
PARTS = ("post", "article")


def _matches(row: Row) -> bool:
    return isinstance(row.get("info"), Mapping) and "summaries" in row and "choice" in row


def _read(row: Row) -> list[Preference]:
    info = row.get("info")
    part = next((p for p in PARTS if isinstance(info, Mapping) and isinstance(info.get(p), str)), None)
    if part is None:
        raise InvalidPreferenceError("'info' has neither a post nor an article: it must hold the text to be summarized")
    summaries = items(row, "summaries")
    choice = number(row, "choice")
    if len(summaries) != 2 or choice not in (0.0, 1.0):
        raise InvalidPreferenceError(f"{len(summaries)} summaries and choice {row.get('choice')!r}: two, and 0 or 1")
    texts = tuple(text(s if isinstance(s, Mapping) else {}, "text") for s in summaries)
    extra = row.get("extra")
    fields = common_fields(row, (*USED, "extra"))
    if isinstance(extra, Mapping) and "confidence" not in fields:
        if (confidence := number(extra, "confidence")) is not None:
            fields["confidence"] = confidence
        extra = {k: v for k, v in extra.items() if k != "confidence" and v is not None}
    left = {"info": {k: v for k, v in info.items() if k != part and v is not None}} if isinstance(info, Mapping) else {}
    notes = [{k: v for k, v in s.items() if k != "text" and v is not None} for s in summaries]
    for name, value in (("info", left.get("info")), ("summaries", notes), ("extra", extra)):
        if value and any(value):
            fields["columns"][name] = value
    if part == "article":
        fields["columns"]["part"] = part
    return [Preference(info[part], texts, (0, 1) if choice == 0 else (1, 0), **fields)]  # type: ignore[index]


def _write(record: Preference) -> dict[str, Any]:
    if len(record.responses) != 2 or record.best is None:
        raise InvalidPreferenceError("it is not two summaries of which one is better")
    if record.margin is not None:
        raise InvalidPreferenceError("it has a margin, which this format does not hold")
    columns = dict(record.columns)
    part = columns.pop("part", "post")
    info = {part: record.prompt, **columns.pop("info", {})}
    notes = columns.pop("summaries", [{}, {}])
    summaries = [{"text": t, **note} for t, note in zip(record.responses, notes, strict=True)]
    extra = dict(columns.pop("extra", {}))
    if record.confidence is not None:
        extra["confidence"] = record.confidence
    row = {**columns, "info": info, "summaries": summaries, "choice": record.best}
    if extra:
        row["extra"] = extra
    return row if record.annotator is None else {**row, "worker": record.annotator}


SUMMARIES = Format(
    "summaries",
    "info: {post}, summaries: [{text}, {text}], choice: 0 or 1, extra: {confidence} (summarize-from-feedback)",
    _matches,
    _read,
    one_to_one(_write),
)
