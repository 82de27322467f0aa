"""Two responses side by side, and a word that says which is better: the commonest table of human comparisons.

Sources: LMSYS, Chatbot Arena ("model_a", "model_b", "tie", "tie (bothbad)"; or a column for each of the three with a 1
in one of them); PKU-SafeRLHF (response_0, response_1, better_response_id).
"""

from __future__ import annotations

import json
import re
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import (
    Format,
    Row,
    chat,
    common_fields,
    first_of,
    number,
    one_to_one,
    prompt_column,
    put_common,
    text,
)
from reward_models.preferences.formats.choices import TIE_WORDS, TIED, WORDS, ranking_of
from reward_models.preferences.records.preference import Preference

__all__ = ["VERDICTS"]

VERDICT = ("winner", "preference", "preferred", "label", "choice", "verdict", "better", "better_response_id")
ONE_OF_THREE = ("winner_model_a", "winner_model_b", "winner_tie")
RESPONSE = re.compile(
    r"(?:response|answer|completion|text|output|summary|option|candidate|reply)[ _-]?([ab]|\d+)", re.I
)
BOTH = re.compile(r"(tie|both)[ _-]?\(?(both)?[ _-]?(bad|good)\)?")
NAMED = re.compile(r"(?:(?:model|response|answer|assistant|completion|output)[ _-]?)?([a-z]|\d+)")


def _names(row: Row) -> list[str]:
    """The columns of the responses, in order."""
    return sorted(name for name in row if isinstance(name, str) and RESPONSE.fullmatch(name))


def _matches(row: Row) -> bool:
    judged = first_of(row, VERDICT) is not None or all(row.get(name) is not None for name in ONE_OF_THREE)
    return judged and len(_names(row)) == 2


def _read(row: Row) -> list[Preference]:
    names = _names(row)
    if len(names) != 2:
        raise InvalidPreferenceError("it has no two responses: give them in columns 'response_a' and 'response_b'")
    name = prompt_column(row)
    prompt: Any = row[name]
    prompt = chat(prompt, f"{name!r}") if isinstance(prompt, list | tuple) else _one_turn(row, name)
    responses = tuple(_one_turn(row, each) for each in names)
    column = first_of(row, VERDICT)
    best = _one_of_three(row) if column is None else _verdict(row[column], column, names)
    used = (name, *names, *(ONE_OF_THREE if column is None else (column,)))
    return [Preference(prompt, responses, ranking_of(best, 2), **common_fields(row, used))]


def _one_turn(row: Row, name: str) -> str:
    """A text; Chatbot Arena's cells are a list of the turns in JSON, of which there must be one.

    Raises:
        InvalidPreferenceError: there are several turns, or no text.
    """
    given = text(row, name)
    if not given.startswith('["'):
        return given
    try:
        turns = json.loads(given)
    except ValueError:
        return given
    if not all(isinstance(turn, str) for turn in turns):
        return given
    if len(turns) != 1:
        raise InvalidPreferenceError(f"{name!r} holds {len(turns)} turns in JSON: give one, or the turns as a chat")
    return str(turns[0])


def _one_of_three(row: Row) -> int:
    if not any(name in row for name in ONE_OF_THREE):
        raise InvalidPreferenceError(f"it does not say which response is better: give a column {VERDICT[0]!r}")
    given = [number(row, name) for name in ONE_OF_THREE]
    if sorted(given, key=bool) != [0, 0, 1]:
        raise InvalidPreferenceError(f"of {', '.join(map(repr, ONE_OF_THREE))} one must be 1 and the others 0")
    return (0, 1, TIED)[given.index(1)]


def _verdict(value: Any, column: str, names: list[str]) -> int:
    """The index of the better response, or `TIED`.

    A number is taken only where the responses are numbered: elsewhere it may count from 0 or from 1.
    """
    word = str(value).strip().lower().removesuffix(".0")
    if word in TIE_WORDS or BOTH.fullmatch(word):
        return TIED
    if word in WORDS:
        return WORDS[word]
    match = NAMED.fullmatch(word)
    ends = [_ending(name) for name in names]
    if match and not isinstance(value, bool) and match[1] in (*ends, *(("a", "b") if ends[0].isdigit() else ())):
        return ends.index(match[1]) if match[1] in ends else "ab".index(match[1])
    allowed = ", ".join(map(repr, (*ends, "tie")))
    counts = " (a number may count from 0 or from 1)" if word.isdigit() else ""
    raise InvalidPreferenceError(f"{column!r} is {value!r}{counts}: it must say which response is better, {allowed}")


def _ending(name: str) -> str:
    match = RESPONSE.fullmatch(name)
    assert match is not None
    return match[1].lower()


def _write(record: Preference) -> dict[str, Any]:
    if len(record.responses) != 2 or None in record.ranking:
        raise InvalidPreferenceError("it is not two responses of which one is better, or which tie")
    prompt = record.prompt if isinstance(record.prompt, str) else list(record.prompt)
    winner = "tie" if record.best is None else "ab"[record.best]
    first, second = record.responses
    return put_common(record, {"prompt": prompt, "response_a": first, "response_b": second, "winner": winner})


VERDICTS = Format(
    "verdicts",
    "prompt, response_a, response_b, winner (or preference, label, choice): a, b or tie; or winner_model_a,"
    " winner_model_b, winner_tie (Chatbot Arena); or response_0, response_1, better_response_id",
    _matches,
    _read,
    one_to_one(_write),
)
