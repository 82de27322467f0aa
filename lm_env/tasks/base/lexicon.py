"""Words and their classes: what a text's words are, and which lemmas and parts of speech the lexicon gives them.

The lexicon is that of the package lemminflect, which holds the words of the NIH's SPECIALIST lexicon.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lm_env.errors import MissingDependencyError

__all__ = ["distinct_share", "is_adjective", "lemmas", "words_of"]

NUMERALS = "one two three four five six seven eight nine ten first second third last next"
DETERMINERS = "other own same such certain several many much more most few less least able due"
NOT_DESCRIPTIVE = frozenset((NUMERALS + " " + DETERMINERS).split())
"""Numerals and determiners, some of which the lexicon calls adjectives."""


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation; an apostrophe between letters belongs to a word."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower().replace("\u2019", "'"))


def distinct_share(words: list[str]) -> float:
    """The share of words that are not repetitions of an earlier one, 0 to 1; 0 of no words."""
    return len(set(words)) / len(words) if words else 0.0


@lru_cache(maxsize=50_000)
def lemmas(word: str) -> dict[str, tuple[str, ...]]:
    """Part of speech (NOUN, VERB, ADJ, ADV, AUX, ...) -> lemmas of a word in lower case; {} of an unknown one.

    Raises:
        MissingDependencyError: lemminflect is not installed.
    """
    try:
        from lemminflect import getAllLemmas
    except ImportError as error:
        raise MissingDependencyError(
            "the lexicon of word classes is in a package of its own: pip install 'lm-env[words]'"
        ) from error
    return getAllLemmas(word)


def is_adjective(word: str) -> bool:
    """Whether a word can be an adjective and neither a verb nor an adverb; numerals and determiners are none.

    So "red", "old" and "wooden" are, and "house" (to house), "well" and "boring" (to bore) are not.
    """
    found = lemmas(word)
    return "ADJ" in found and not {"VERB", "ADV", "AUX"} & set(found) and word not in NOT_DESCRIPTIVE
