"""What is shown to an annotator and what they answer, the checks of an answer, and both as columns of the file."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.labelling.items import Item
from reward_models.preferences.records.preference import LabelledSpan, PromptText

__all__ = [
    "CHOICES",
    "Answer",
    "Presentation",
    "StoredAnswer",
    "by_response",
    "check_answer",
    "check_spans",
    "item_row",
    "random_order",
    "read_prompt",
    "read_spans",
    "stored_answer",
]

CHOICES = ("ranked", "tie", "bad", "skip")
MOST_SPANS = 500
LONGEST_NAME = 100


@dataclass(frozen=True)
class Presentation:
    """A question as one annotator sees it.

    Attributes:
        id: of this presentation.
        question: the number of the question.
        prompt, columns: of the item.
        responses: texts, in the order in which they are shown.
        spans: what was marked so far; their `response` is the place at which the response is shown.
    """

    id: str
    question: int
    prompt: PromptText
    responses: tuple[str, ...]
    columns: dict[str, Any]
    spans: tuple[LabelledSpan, ...]


@dataclass(frozen=True)
class Answer:
    """What an annotator says of a presentation.

    Attributes:
        id: chosen by whoever sends it: an answer that arrives again under the same id is taken once.
        presentation: the id of what was shown.
        choice: "ranked"; "tie" (equally good); "bad" (none is acceptable); "skip" (no judgement).
        ranking: for "ranked", the rank of the response at each place; smaller is better, None is not ranked.
        spans: what was marked; their `response` is the place at which the response is shown.
        seconds: from being shown to being answered, without the time in which the page was hidden.
    """

    id: str
    presentation: str
    choice: str
    ranking: tuple[int | None, ...] = ()
    spans: tuple[LabelledSpan, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class StoredAnswer:
    """A valid answer as it is in the file.

    Attributes:
        responses: indexes of the item's responses that were shown, in the item's order.
        shown: places in `responses`, in the order in which they were shown.
        ranking: of the responses in `responses`.
        spans: their `response` is a place in `responses`.
        answered_at: seconds since 1970.
    """

    id: str
    item: int
    question: int
    annotator: str
    choice: str
    responses: tuple[int, ...]
    shown: tuple[int, ...]
    ranking: tuple[int | None, ...]
    spans: tuple[LabelledSpan, ...]
    seconds: float
    answered_at: float


def check_answer(shown: Presentation, answer: Answer) -> None:
    """Raise InvalidPreferenceError unless the answer is one to what was shown."""
    for name in ("id", "presentation"):
        if not 0 < len(getattr(answer, name)) <= LONGEST_NAME:
            raise InvalidPreferenceError(f"the {name} of an answer has 1 to {LONGEST_NAME} characters")
    if answer.choice not in CHOICES:
        raise InvalidPreferenceError(f"the choice must be one of {', '.join(CHOICES)}, not {answer.choice!r:.60}")
    if not math.isfinite(answer.seconds) or answer.seconds < 0:
        raise InvalidPreferenceError(
            f"the seconds of an answer must be finite and not negative, not {answer.seconds!r}"
        )
    count = len(shown.responses)
    ranks = answer.ranking
    proper = all(rank is None or (type(rank) is int and 0 <= rank < count) for rank in ranks)
    if answer.choice == "ranked" and (len(ranks) != count or not proper or all(rank is None for rank in ranks)):
        raise InvalidPreferenceError(
            f"a ranking of {count} responses needs a rank from 0 to {count - 1}, or none, for each, and at least one"
        )
    if answer.choice == "ranked" and count == 2 and ranks[0] == ranks[1]:
        raise InvalidPreferenceError("two responses of equal rank tie: send the choice 'tie' instead of 'ranked'")
    check_spans(shown, answer.spans)


def check_spans(shown: Presentation, spans: Sequence[LabelledSpan]) -> None:
    """Raise InvalidPreferenceError unless each span lies inside a response that was shown."""
    if len(spans) > MOST_SPANS:
        raise InvalidPreferenceError(f"{len(spans)} spans are marked: at most {MOST_SPANS} are taken")
    for span in spans:
        proper = all(type(value) is int for value in (span.response, span.start, span.end))
        inside = (
            proper
            and 0 <= span.response < len(shown.responses)
            and 0 <= span.start < span.end <= len(shown.responses[span.response])
        )
        named = isinstance(span.kind, str) and 0 < len(span.kind) <= LONGEST_NAME
        if not inside or not named or type(span.weight) not in (int, float) or not math.isfinite(span.weight):
            raise InvalidPreferenceError(
                "a span needs a response that is shown, a start and an end in its text, a kind, and a finite weight"
            )


def stored_answer(row: Sequence[Any]) -> StoredAnswer:
    """An answer from the columns of the file, in the order of the fields."""
    responses, shown, ranking = (tuple(json.loads(text)) for text in row[5:8])
    name, item, question, annotator, choice = row[:5]
    spans, seconds, answered_at = read_spans(row[8]), *row[9:]
    return StoredAnswer(name, item, question, annotator, choice, responses, shown, ranking, spans, seconds, answered_at)


def read_spans(text: str) -> tuple[LabelledSpan, ...]:
    """The spans in a column of the file."""
    return tuple(LabelledSpan(**span) for span in json.loads(text))


def read_prompt(text: str) -> PromptText:
    """The prompt in a column of the file."""
    prompt = json.loads(text)
    return prompt if isinstance(prompt, str) else tuple(prompt)


def random_order(size: int) -> list[int]:
    """Which response is shown at each place."""
    return random.SystemRandom().sample(range(size), size)


def by_response(answer: Answer, places: Sequence[int]) -> list[int | None]:
    """The ranks by place as ranks by response; all tie where nothing was ranked."""
    ranking: list[int | None] = [0] * len(places)
    if answer.choice == "ranked":
        for rank, place in zip(answer.ranking, places, strict=True):
            ranking[place] = rank
    return ranking


def item_row(item: Item) -> tuple[str, str, str, str]:
    """An item as columns of the file: key, prompt, responses, and those of its columns that JSON can hold."""
    prompt = item.prompt if isinstance(item.prompt, str) else [dict(message) for message in item.prompt]
    columns = {name: value for name, value in item.columns.items() if _is_json(value)}
    return item.key, json.dumps(prompt), json.dumps(item.responses), json.dumps(columns)


def _is_json(value: Any) -> bool:
    """Whether a value can be kept as JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
