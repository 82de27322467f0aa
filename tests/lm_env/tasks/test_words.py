"""Pronunciations, rhymes, syllables and word classes: hand-made cases from their definitions, and any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_env.tasks.base.lexicon import distinct_share, is_adjective, lemmas, words_of
from lm_env.tasks.base.pronunciations import assonates, pronunciations, rhymes, scansions, syllables
from lm_env.tasks.base.wordlists import CONCEPT_NOUNS, CONCEPT_VERBS, NOUNS, RHYME_WORDS


@pytest.mark.parametrize(
    ("one", "other"),
    [("light", "night"), ("day", "away"), ("nation", "station"), ("me", "sea"), ("afford", "board"), ("eye", "sky")],
)
def test_perfect_rhymes(one, other):
    assert rhymes(one, other) and rhymes(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("night", "night"),
        ("night", "knight"),  # the same sound before the vowel
        ("light", "time"),  # the vowel alone
        ("love", "move"),  # to the eye
        ("movie", "groovy".upper()),  # words are in lower case
        ("zxqv", "night"),
        ("", ""),
    ],
)
def test_no_rhymes(one, other):
    assert not rhymes(one, other) and not rhymes(other, one)


def test_the_same_vowel_is_half_a_rhyme():
    assert assonates("light", "time") and not assonates("light", "lit") and not assonates("light", "light")
    assert not assonates("zxqv", "light")


def test_syllables_are_the_vowels_of_each_pronunciation():
    assert syllables("cat") == {1} and syllables("beautiful") == {3} and syllables("zxqv") == frozenset()
    assert len(pronunciations("fire")) > 1 and syllables("fire") == {1, 2}
    assert scansions(["cat", "fire", "cat"]) == {(1, 2, 3), (1, 3, 4)}
    assert scansions([]) == {()} and scansions(["cat", "zxqv"]) is None
    assert len(scansions(["fire"] * 30) or ()) <= 64


@given(st.text(max_size=80))
def test_words_are_found_in_any_text(text):
    words = words_of(text)
    assert all(words)
    assert words_of(" ".join(words)) == words
    assert 0 <= distinct_share(words) <= 1
    scansions(words)


def test_words_keep_their_apostrophes_and_lose_all_else():
    assert words_of("Don't \u201cstop\u201d, it\u2019s 5 o'clock -- well-made!") == [
        "don't", "stop", "it's", "o'clock", "well", "made"
    ]  # fmt: skip


def test_adjectives_are_no_verbs_adverbs_or_numerals():
    assert all(map(is_adjective, ["red", "old", "wooden", "beautiful", "dark"]))
    assert not any(map(is_adjective, ["house", "well", "boring", "very", "one", "other", "film", "zxqv", ""]))
    assert "dance" in lemmas("dances")["VERB"] and lemmas("zxqv") == {}


def test_the_words_that_prompts_are_made_of():
    for words in (NOUNS, RHYME_WORDS, CONCEPT_NOUNS, CONCEPT_VERBS):
        assert len(set(words)) == len(words)
    assert all(pronunciations(word) for word in (*NOUNS, *RHYME_WORDS))
    assert all(syllables(word) == {1} for word in RHYME_WORDS)
    assert all("NOUN" in lemmas(word) for word in (*NOUNS, *CONCEPT_NOUNS))
    assert all("VERB" in lemmas(word) for word in CONCEPT_VERBS)
