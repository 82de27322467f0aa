"""What exports of annotation tools have in common: where prompt and responses are, and which one a choice names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lm_env.errors import InvalidPreferenceError
from reward_models.preferences.formats.base import Row, chat, first_of, items

__all__ = ["TIED", "chosen_index", "ranking_of", "texts_of"]

PROMPT = ("prompt", "question", "instruction", "query", "context", "input", "post")
LISTS = ("responses", "answers", "completions", "items", "options", "candidates", "outputs")
NUMBERED = re.compile(
    r"(response|answer|completion|text|output|summary|option|candidate|reply)s?[ _-]?(\d+|[a-z])", re.I
)
INNER = ("body", "text", "content", "response", "answer")

TIED = -1
TIE_WORDS = frozenset({"tie", "tied", "equal", "same", "both", "neither", "no preference", "none", "draw", "center"})
WORDS = {"left": 0, "right": 1, "first": 0, "second": 1}


def texts_of(data: Row) -> tuple[Any, dict[str, str], set[str]]:
    """(the prompt, "" if there is none; the responses by name, in order; the fields they are in) of a task as shown.

    Raises:
        InvalidPreferenceError: the responses cannot be told from the other fields.
    """
    name = first_of(data, PROMPT)
    prompt: Any = "" if name is None else data[name]
    if isinstance(prompt, list | tuple):
        prompt = chat(prompt, f"{name!r}")
    listed = first_of(data, LISTS)
    if listed is not None and not isinstance(data[listed], Mapping):
        return prompt, _listed(items(data, listed)), {listed, name or listed}
    numbered = sorted(
        (n for n, v in data.items() if isinstance(n, str) and NUMBERED.fullmatch(n) and isinstance(v, str)), key=_order
    )
    if len(numbered) < 2 and isinstance(data.get("chosen"), str) and isinstance(data.get("rejected"), str):
        numbered = ["chosen", "rejected"]
    if not numbered and isinstance(data.get("response"), str):
        numbered = ["response"]
    if not numbered:
        raise InvalidPreferenceError(
            "the responses are not to be found among its fields"
            f" ({', '.join(map(repr, data))}): name them response1, response2, ..., or give a list named 'responses'"
        )
    return prompt, {n: data[n] for n in numbered}, {*numbered, name or numbered[0]}


def _listed(responses: list[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for i, response in enumerate(responses):
        if isinstance(response, Mapping):
            inner = first_of(response, INNER)
            key = str(response.get("id", i))
            response = None if inner is None else response[inner]
        else:
            key = str(i)
        if not isinstance(response, str) or key in found:
            raise InvalidPreferenceError(f"response {i} is no text, or has the id of another one: correct it")
        found[key] = response
    return found


def _order(name: str) -> tuple[int, str]:
    match = NUMBERED.fullmatch(name)
    suffix = match[2] if match else ""
    return (int(suffix), "") if suffix.isdigit() else (0, suffix.lower())


def chosen_index(choice: Any, names: Sequence[str]) -> int:
    """The response that a choice names, or `TIED`: by its field, its letter or number, "left" or "right".

    Raises:
        InvalidPreferenceError: it names none.
    """
    if choice in names:
        return names.index(choice)
    word = str(choice).strip().lower()
    if word in TIE_WORDS:
        return TIED
    if word in WORDS and len(names) == 2:
        return WORDS[word]
    match = re.fullmatch(r"(?:[a-z]+[ _-]?)?(\d+|[a-z])", word)
    if match:
        suffixes = [n.lower()[len(n) - len(match[1]) :] for n in names]
        if suffixes.count(match[1]) == 1:
            return suffixes.index(match[1])
        position = int(match[1]) - 1 if match[1].isdigit() else ord(match[1]) - ord("a")
        if 0 <= position < len(names):
            return position
    raise InvalidPreferenceError(f"the choice {choice!r} is none of the responses ({', '.join(names)}), and no tie")


def ranking_of(choice: int, count: int) -> tuple[int | None, ...]:
    """The ranking that the choice of one response, or of none (`TIED`), stands for."""
    if choice == TIED:
        return (0,) * count
    if count == 2:
        return (0, 1) if choice == 0 else (1, 0)
    return tuple(0 if i == choice else None for i in range(count))
