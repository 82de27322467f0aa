"""From answers to records of preferences, which `lm-env rm train` reads."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lm_env.errors import ConfigurationError
from reward_models.labelling.answers import StoredAnswer
from reward_models.labelling.items import Item
from reward_models.labelling.posterior import Judgement, Votes, fit_annotators, votes_of
from reward_models.labelling.posterior.votes import FIRST, TIE
from reward_models.labelling.store import LabelStore
from reward_models.preferences.reading import write_preferences
from reward_models.preferences.records.preference import LabelledSpan, Preference

__all__ = ["export_labels", "merged_records", "records_of", "stored_votes"]


def export_labels(
    store: LabelStore, path: str | Path, *, format: str = "rankings", merge: bool = False, annotator: str | None = None
) -> int:
    """Write the answers as a file of preferences; return how many records it holds.

    Args:
        format: as in `write_preferences`; "rankings" holds everything.
        merge: one record for each pair of responses instead of one for each answer, see `merged_records`.
        annotator: only the answers of this one.

    Raises:
        ConfigurationError: there are no answers except skips.
        InvalidPreferenceError: a record does not fit into the format.
        CheckpointWriteError: the file cannot be written.
    """
    answers = [a for a in store.answers() if annotator in (None, a.annotator)]
    items = store.items()
    records = merged_records(answers, items) if merge else records_of(answers, items)
    if not records:
        whose = "" if annotator is None else f" of {annotator!r}"
        raise ConfigurationError(f"{store.path} holds no answers{whose} but skips: label something first")
    write_preferences(records, path, format=format)
    return len(records)


def records_of(answers: Iterable[StoredAnswer], items: dict[int, Item]) -> list[Preference]:
    """One record for each answer that is not a skip.

    "Both bad" is a tie, and `label_choice` in the columns tells the two apart.  `label_seconds`, `label_time` (UTC) and
    `label_shown` (indexes of the record's responses in the order in which they were shown) stand beside it.
    """
    found = []
    for answer in answers:
        if answer.choice == "skip":
            continue
        item = items[answer.item]
        columns = {
            **item.columns,
            "label_choice": answer.choice,
            "label_seconds": round(answer.seconds, 3),
            "label_time": datetime.fromtimestamp(answer.answered_at, UTC).isoformat(timespec="seconds"),
            "label_shown": list(answer.shown),
        }
        responses = tuple(item.responses[i] for i in answer.responses)
        found.append(
            Preference(
                item.prompt,
                responses,
                answer.ranking,
                annotator=answer.annotator,
                columns=columns,
                spans=answer.spans,
            )
        )
    return found


def stored_votes(answers: Iterable[StoredAnswer]) -> Votes:
    """The votes of the answers that are not skips; their units name items by number."""
    return votes_of(Judgement(a.item, a.responses, a.ranking, a.annotator) for a in answers if a.choice != "skip")


def merged_records(answers: Iterable[StoredAnswer], items: dict[int, Item]) -> list[Preference]:
    """One record for each pair of responses: its most probable judgement, given all annotators and their reliability.

    `confidence` is its probability under `fit_annotators`.  What anybody has marked in the two responses is kept, with
    the share of the annotators of the pair who marked it as the weight.
    """
    valid = [answer for answer in answers if answer.choice != "skip"]
    if not valid:
        return []
    votes = stored_votes(valid)
    truth = fit_annotators(votes).truth
    marks = _marks(valid)
    judges = np.bincount(votes.unit, minlength=len(votes.units))
    found = []
    for unit, probabilities, count in zip(votes.units, truth, judges.tolist(), strict=True):
        number, best = int(str(unit.item)), int(probabilities.argmax())
        item = items[number]
        ranking = (0, 0) if best == TIE else (0, 1) if best == FIRST else (1, 0)
        spans = [
            LabelledSpan(place, start, end, kind, min(1.0, times / count))
            for place, response in enumerate((unit.first, unit.second))
            for (start, end, kind), times in marks.get((number, response), {}).items()
        ]
        found.append(
            Preference(
                item.prompt,
                (item.responses[unit.first], item.responses[unit.second]),
                ranking,
                confidence=float(probabilities[best]),
                columns={**item.columns, "label_annotators": count},
                spans=tuple(spans),
            )
        )
    return found


def _marks(answers: Iterable[StoredAnswer]) -> dict[tuple[int, int], dict[tuple[int, int, str], int]]:
    """How many annotators marked each span of each response of each item."""
    who: dict[tuple[int, int], dict[tuple[int, int, str], set[str]]] = {}
    for answer in answers:
        for span in answer.spans:
            of_response = who.setdefault((answer.item, answer.responses[span.response]), {})
            of_response.setdefault((span.start, span.end, span.kind), set()).add(answer.annotator)
    return {place: {span: len(names) for span, names in spans.items()} for place, spans in who.items()}
