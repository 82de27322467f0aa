"""Stack Exchange: pairs of answers, or a question with all its answers and their votes.

Source of the scores: Askell et al. 2021 (arXiv:2112.00861): round(log2(1 + votes)), one more for the accepted
answer, -1 for negative votes; answers of equal score tie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import (
    Format,
    Row,
    common_fields,
    first_of,
    has_text,
    items,
    number,
    one_to_one,
    put_common,
    text,
)
from reward_models.preferences.records.preference import Preference

__all__ = ["ANSWER_PAIRS", "VOTES", "vote_score"]

PAIR = ("question", "response_j", "response_k")
TEXT = ("text", "answer", "body", "content")
VOTE = ("votes", "score")
ACCEPTED = ("accepted", "is_accepted", "selected")


def vote_score(votes: float, accepted: bool = False) -> int:
    """round(log2(1 + votes)), and 1 for the accepted answer; -1 where there are more votes against it than for it."""
    if votes < 0:
        return -1
    return round(math.log2(1 + votes)) + int(accepted)


# -- pairs ---------------------------------------------------------------------------------------------
def _read_pair(row: Row) -> list[Preference]:
    question, better, worse = (text(row, name) for name in PAIR)
    return [Preference.pair(question, better, worse, **common_fields(row, PAIR))]


def _write_pair(record: Preference) -> dict[str, Any]:
    if len(record.responses) != 2 or record.ranking != (0, 1):
        raise InvalidPreferenceError("it is not two responses, the first of them better")
    return put_common(record, dict(zip(PAIR, (record.prompt, *record.responses), strict=True)))


ANSWER_PAIRS = Format(
    "stack-exchange-pairs",
    "question, response_j (the better one), response_k",
    lambda row: has_text(row, *PAIR),
    _read_pair,
    one_to_one(_write_pair),
)


# -- votes ---------------------------------------------------------------------------------------------
def _matches(row: Row) -> bool:
    if not isinstance(row.get("question"), str):
        return False
    try:
        answers = items(row, "answers")
    except InvalidPreferenceError:
        return False
    return bool(answers) and all(isinstance(a, Mapping) and first_of(a, (*VOTE, "pm_score")) for a in answers)


def _read_votes(row: Row) -> list[Preference]:
    answers = items(row, "answers")
    if not answers:
        raise InvalidPreferenceError("the question has no answers: remove the row")
    texts, scores = [], []
    for i, answer in enumerate(answers):
        name = first_of(answer, TEXT) if isinstance(answer, Mapping) else None
        if name is None:
            raise InvalidPreferenceError(f"answer {i} has no text: give it in a field named 'text'")
        texts.append(text(answer, name))
        scores.append(_score(answer, i))
    fields = common_fields(row, ("question", "answers"))
    return [Preference(text(row, "question"), tuple(texts), ratings=tuple(scores), **fields)]


def _score(answer: Mapping[str, Any], i: int) -> float:
    if (ready := number(answer, "pm_score")) is not None:  # HuggingFaceH4/stack-exchange-preferences has computed it
        return ready
    name = first_of(answer, VOTE)
    votes = None if name is None else number(answer, name)
    if votes is None:
        raise InvalidPreferenceError(f"answer {i} has no votes: give them in a field named 'votes'")
    accepted = first_of(answer, ACCEPTED)
    return float(vote_score(votes, accepted is not None and answer[accepted] in (True, 1, "true", "True", "1")))


def _write_votes(record: Preference) -> dict[str, Any]:
    if record.ratings is None:
        raise InvalidPreferenceError("its responses have no ratings, which stand for votes here")
    answers = [{"text": t, "pm_score": r} for t, r in zip(record.responses, record.ratings, strict=True)]
    return put_common(record, {"question": record.prompt, "answers": answers})


VOTES = Format(
    "stack-exchange",
    "question, answers: a list of {text, votes, accepted}, or of {text, pm_score}",
    _matches,
    _read_votes,
    one_to_one(_write_votes),
)
