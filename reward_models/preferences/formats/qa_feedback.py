"""qa_feedback: a question, four answers, the six comparisons among them, and marked errors.

Source: Wu et al. 2023, "Fine-grained human feedback" (arXiv:2306.01693).  People compared each two of the four
answers by themselves, so that the six choices need not fit a ranking: where they do, a row becomes one record of
four ranked answers, else six records of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import Format, Row, common_fields, items, text
from reward_models.preferences.records.preference import LabelledSpan, Preference

__all__ = ["QA_FEEDBACK"]

PAIRS = tuple(combinations(range(4), 2))
ANSWERS = tuple(f"prediction {i}" for i in range(1, 5))
ERRORS = "errors_of_prediction_1"
RANKINGS = {
    tuple(0 if r[a] == r[b] else 1 if r[a] < r[b] else 2 for a, b in PAIRS): r for r in product(range(4), repeat=4)
}
"""For each of the consistent choices a ranking that gives them."""


def _matches(row: Row) -> bool:
    return "question" in row and ("predictions" in row or set(ANSWERS) <= row.keys()) and "preference" in row


def _read(row: Row) -> list[Preference]:
    question = text(row, "question")
    used = ["question", "predictions", "preference", *ANSWERS]
    answers = items(row, "predictions") if "predictions" in row else [text(row, name) for name in ANSWERS]
    choices = items(row, "preference")
    if len(answers) != 4 or not all(isinstance(a, str) for a in answers):
        raise InvalidPreferenceError(f"'predictions' holds {len(answers)} entries: it must be four texts")
    if len(choices) != 6 or any(c not in (0, 1, 2) for c in choices):
        raise InvalidPreferenceError(
            f"'preference' is {choices}: six of 0 (no preference), 1 (the first one) and 2, for the answers 1-2, 1-3,"
            " 1-4, 2-3, 2-4, 3-4"
        )
    spans: tuple[LabelledSpan, ...] = ()
    if isinstance(row.get(ERRORS), list):
        spans = tuple(_span(error, answers[0]) for error in row[ERRORS])
        used.append(ERRORS)
    fields = common_fields(row, used)
    ranking = RANKINGS.get(tuple(int(c) for c in choices))
    if ranking is not None:
        return [Preference(question, tuple(answers), ranking, spans=spans, **fields)]
    found = []
    for (a, b), choice in zip(PAIRS, choices, strict=True):
        inside = tuple(span for span in spans if a == 0)
        ranks = {0: (0, 0), 1: (0, 1), 2: (1, 0)}[int(choice)]
        found.append(Preference(question, (answers[a], answers[b]), ranks, spans=inside, **fields))
    return found


def _span(error: Any, answer: str) -> LabelledSpan:
    try:
        kind, start, end = str(error["error type"]), int(error["start"]), int(error["end"])
    except (KeyError, TypeError, ValueError) as problem:
        raise InvalidPreferenceError(f"an error is {error!r}: it needs start, end and 'error type'") from problem
    return LabelledSpan(0, max(start, 0), min(end, len(answer)), kind)


def _write(records: Sequence[Preference]) -> Iterable[dict[str, Any]]:
    start = 0
    while start < len(records):
        first = records[start]
        if len(first.responses) == 4 and None not in first.ranking:
            ranks: Any = first.ranking
            choices = [0 if ranks[a] == ranks[b] else 1 if ranks[a] < ranks[b] else 2 for a, b in PAIRS]
            yield _row(first, list(first.responses), choices)
            start += 1
            continue
        six = records[start : start + 6]
        if len(six) < 6 or any(len(r.responses) != 2 for r in six):
            raise InvalidPreferenceError("it is neither four ranked answers nor the first of six compared pairs")
        answers = [six[0].responses[0], *(six[i].responses[1] for i in range(3))]
        choices = [0 if r.ranking == (0, 0) else 1 if r.ranking == (0, 1) else 2 for r in six]
        yield _row(first, answers, choices)
        start += 6


def _row(record: Preference, answers: list[str], choices: list[int]) -> dict[str, Any]:
    row: dict[str, Any] = {**record.columns, "question": record.prompt, "predictions": answers, "preference": choices}
    for name in ("annotator", "confidence", "margin"):
        if (value := getattr(record, name)) is not None:
            row[name] = value
    if record.spans:
        row[ERRORS] = [{"error type": s.kind, "start": s.start, "end": s.end} for s in record.spans]
    return row


QA_FEEDBACK = Format(
    "qa-feedback",
    "question, predictions: four answers, preference: six of 0, 1, 2 for 1-2, 1-3, 1-4, 2-3, 2-4, 3-4",
    _matches,
    _read,
    _write,
)
