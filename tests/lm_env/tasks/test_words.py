"""Pronunciations, rhymes, syllables and word classes: hand-made cases from their definitions, and any text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_env.tasks.base.lexicon import distinct_share, is_adjective, lemmas, words_of
from lm_env.tasks.base.pronunciations import (
    half_rhymes,
    nearly_rhymes,
    pronunciations,
    rhymes,
    syllables,
    syllables_in_all,
)
from lm_env.tasks.base.wordlists import CONCEPT_NOUNS, NOUNS, RHYME_WORDS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[("light", "night"), ("day", "away"), ("nation", "station"), ("me", "sea"), ("afford", "board")],
        ("eye", "sky"),
        # The onsets end in the same consonant.
        *[("tree", "free"), ("tree", "three"), ("light", "flight"), ("street", "treat"), ("crew", "true")],
        *[("screen", "green"), ("ring", "bring"), ("few", "view"), ("kit", "skit")],
    ],
)
def test_perfect_rhymes(one, other):
    assert rhymes(one, other) and rhymes(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("night", "night"),
        ("night", "knight"),  # the same sounds from the onset on
        ("night", "midnight"),  # the D is in the syllable before
        ("state", "estate"),
        ("due", "do"),  # one of two pronunciations is the same
        ("new", "renew"),
        ("light", "time"),  # the vowel alone
        ("love", "move"),  # to the eye
        ("movie", "groovy".upper()),  # words are in lower case
        ("zxqv", "night"),
        ("", ""),
    ],
)
def test_no_rhymes(one, other):
    assert not rhymes(one, other) and not rhymes(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tree", "movie"),  # one of the syllables is unstressed
        ("king", "boring"),
        ("time", "line"),  # two nasals
        ("hit", "stick"),  # two plosives
        ("hand", "lamp"),  # a nasal and a plosive each
        ("tree", "story"),  # the onsets are T R and R
    ],
)
def test_near_rhymes(one, other):
    assert nearly_rhymes(one, other) and nearly_rhymes(other, one) and not rhymes(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tree", "tree"),
        ("key", "rocky"),  # the same onset
        ("light", "night"),  # a perfect rhyme
        ("light", "time"),  # a plosive and a nasal
        ("day", "date"),  # one consonant more
        ("light", "that"),  # another vowel
        ("gun", "person"),  # a schwa
        ("movie", "funny"),  # both unstressed
        ("zxqv", "tree"),
        ("", ""),
    ],
)
def test_no_near_rhymes(one, other):
    assert not nearly_rhymes(one, other) and not nearly_rhymes(other, one)


def test_the_same_vowel_or_last_consonant_is_half_a_rhyme():
    assert half_rhymes("light", "time") and half_rhymes("light", "that") and half_rhymes("that", "lost")
    assert not half_rhymes("light", "lit") and not half_rhymes("light", "gun") and not half_rhymes("key", "two")
    assert not half_rhymes("zxqv", "light")


WORDS = st.sampled_from([*NOUNS, *RHYME_WORDS, *CONCEPT_NOUNS, "movie", "funny", "seen", "again", "fire", "the"])


@given(WORDS, WORDS)
def test_rhymes_of_any_kind_are_symmetric_and_never_of_a_word_with_itself(one, other):
    for kind in (rhymes, nearly_rhymes, half_rhymes):
        assert kind(one, other) == kind(other, one)
        assert not kind(one, one)
    if len(pronunciations(one)) == len(pronunciations(other)) == 1 and rhymes(one, other):
        assert not nearly_rhymes(one, other)


@pytest.mark.parametrize("word", ["new", "knew", "due", "duty", "news", "the", "a", "when", "either", "tuesday"])
def test_no_word_of_several_pronunciations_rhymes_with_itself(word):
    assert len(pronunciations(word)) > 1
    assert not rhymes(word, word) and not nearly_rhymes(word, word) and not half_rhymes(word, word)


def test_syllables_are_the_vowels_of_each_pronunciation():
    assert syllables("cat") == {1} and syllables("beautiful") == {3} and syllables("zxqv") == frozenset()
    assert len(pronunciations("fire")) > 1 and syllables("fire") == {1, 2}
    assert syllables_in_all(["cat", "fire", "cat"]) == {3, 4}
    assert syllables_in_all([]) == {0} and syllables_in_all(["cat", "zxqv"]) == frozenset()


@given(st.lists(st.sampled_from(["cat", "fire", "family", "every", "beautiful", "shh"]), max_size=8))
def test_syllables_of_several_words_are_all_sums(words):
    choices = itertools.product(*map(syllables, words))
    assert syllables_in_all(words) == {sum(counts) for counts in choices}


@given(st.text(max_size=80))
def test_words_are_found_in_any_text(text):
    words = words_of(text)
    assert all(words)
    assert words_of(" ".join(words)) == words
    assert 0 <= distinct_share(words) <= 1
    syllables_in_all(words)


def test_words_keep_their_apostrophes_and_lose_all_else():
    assert words_of("Don't \u201cstop\u201d, it\u2019s 5 o'clock -- well-made!") == [
        "don't", "stop", "it's", "o'clock", "well", "made"
    ]  # fmt: skip


def test_adjectives_are_no_verbs_adverbs_or_numerals():
    assert all(map(is_adjective, ["red", "old", "wooden", "beautiful", "dark"]))
    assert not any(map(is_adjective, ["house", "well", "boring", "very", "one", "other", "film", "zxqv", ""]))
    assert "dance" in lemmas("dances")["VERB"] and lemmas("zxqv") == {}


def test_the_words_that_prompts_are_made_of():
    for words in (NOUNS, RHYME_WORDS, CONCEPT_NOUNS):
        assert len(set(words)) == len(words)
    assert all(pronunciations(word) for word in (*NOUNS, *RHYME_WORDS))
    assert all(syllables(word) == {1} for word in RHYME_WORDS)
    assert all("NOUN" in lemmas(word) for word in (*NOUNS, *CONCEPT_NOUNS))


def test_no_word_is_a_form_of_two_concepts():
    lemminflect = pytest.importorskip("lemminflect")
    forms = [
        {form for several in lemminflect.getAllInflections(word).values() for form in several} | {word}
        for word in CONCEPT_NOUNS
    ]
    assert sum(map(len, forms)) == len(set().union(*forms))
