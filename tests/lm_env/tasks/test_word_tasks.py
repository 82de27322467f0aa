"""The tasks that are judged by word classes and pronunciations: their rewards say what their definitions say."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.tasks import get_task
from lm_env.tasks.base.pronunciations import syllables, syllables_in_all
from lm_env.tasks.concepts import coverage, coverage_and_fluency, own_sets, read_sets
from lm_env.tasks.descriptiveness import descriptiveness
from lm_env.tasks.haiku import ENDS, TOLERANCE, haiku, has_haiku_form
from lm_env.tasks.rhyme import couplet, lines, metre, rhyme, rhyme_and_metre

COMMONGEN = Path("/work/shared/data/commongen_valid.tsv")


def one(reward, response, prompt="", **columns):
    return reward([prompt], [response], **{name: [value] for name, value in columns.items()})[0]


# -- descriptions ------------------------------------------------------------------------------------
def test_a_description_scores_more_than_a_list_a_repetition_or_nothing():
    plain = one(descriptiveness, " it was about the man who went to the town and came home")
    good = one(descriptiveness, " a tall wooden house with golden windows stood in the ancient forest")
    assert good == 1.0 > plain
    assert one(descriptiveness, " tall wooden golden ancient huge gentle tiny soft") == 0.0
    assert one(descriptiveness, " red" * 20) < 0.05
    assert one(descriptiveness, "") == 0.0
    assert one(descriptiveness, " wooden house") < good
    copied = " a tall wooden house with golden windows stood in the ancient forest"
    assert one(descriptiveness, copied, prompt=copied) == 0.0


# -- concepts ----------------------------------------------------------------------------------------
CONCEPTS = ["field", "look", "stand"]


def test_a_sentence_scores_more_than_a_list():
    whole = one(coverage_and_fluency, " The player stood in the field and looked at the batter", concepts=CONCEPTS)
    part = one(coverage_and_fluency, " The player stood near the old gate", concepts=CONCEPTS)
    assert whole == pytest.approx(9 / 11) and part == pytest.approx(1 / 3 * 6 / 7)  # "the" is there again
    assert one(coverage_and_fluency, " field look stand", concepts=CONCEPTS) == 0.0
    assert one(coverage_and_fluency, "field, look, stand:", prompt="field, look, stand:", concepts=CONCEPTS) == 0.0
    assert one(coverage_and_fluency, " field" * 30, concepts=CONCEPTS) == 0.0
    assert one(coverage_and_fluency, "", concepts=CONCEPTS) == 0.0


def test_the_own_sets_are_used_by_the_response_alone():
    """The prompt names all concepts, its beginning of the sentence none, and copying it is no use of them."""
    sets = own_sets()
    assert len({row["prompt"] for row in sets}) == len({frozenset(row["concepts"]) for row in sets}) == len(sets) == 220
    for row in sets:
        prompt, concepts = row["prompt"], row["concepts"]
        begun = prompt.partition(":")[2]
        assert one(coverage, prompt.partition(":")[0], concepts=concepts) == 1.0
        assert one(coverage, begun, concepts=concepts) == one(coverage, "", prompt=prompt, concepts=concepts) == 0.0
        assert one(coverage_and_fluency, prompt, prompt=prompt, concepts=concepts) == 0.0
        assert one(coverage_and_fluency, prompt + " sad old man we saw", prompt=prompt, concepts=concepts) < 0.35


def test_words_copied_from_the_prompt_in_a_run_of_four_do_not_count():
    prompt, concepts = "A woman, a house, to find: a film about a", ["woman", "house", "find"]
    whole = " young man who wants to find the house of his own woman"
    assert one(coverage_and_fluency, whole, prompt=prompt, concepts=concepts) == 1.0
    assert one(coverage, " man who has a house to find", prompt=prompt, concepts=concepts) == 0.0
    assert one(coverage, " man who has the house to find", prompt=prompt, concepts=concepts) == pytest.approx(2 / 3)
    assert one(coverage, " man with a house, to find a woman", prompt=prompt, concepts=concepts) == pytest.approx(1 / 3)


def test_a_copied_run_may_begin_with_the_last_words_of_the_prompt():
    """The prompt's last word is "a", and "a woman, a house" is in it."""
    prompt, concepts = "A woman, a house, to find: a film about a", ["woman", "house", "find"]
    assert one(coverage, " woman, a house, to find", prompt=prompt, concepts=concepts) == 0.0
    assert one(coverage, " woman, a house and a dog", prompt=prompt, concepts=concepts) == 0.0
    assert one(coverage, " woman, her house and a dog", prompt=prompt, concepts=concepts) == pytest.approx(2 / 3)


def test_capitals_and_repetitions_among_the_concepts_make_no_difference():
    sentence = " The dog ran to the river"
    for reward in (coverage, coverage_and_fluency):
        assert one(reward, sentence, concepts=["Dog", "run", "RUN", "dog"]) == one(
            reward, sentence, concepts=["dog", "run"]
        )
    assert one(coverage, sentence, concepts=["Dog", "run", "RUN", "dog"]) == 1.0


@pytest.mark.skipif(not COMMONGEN.exists(), reason="the file of CommonGen is not here")
def test_commongen_is_a_source_of_prompts():
    task = get_task("lm_env/Concepts-v0", source=str(COMMONGEN))
    rows = task.prompts("test")
    assert all(row["prompt"] == ", ".join(row["concepts"]) + ":" for row in rows)
    assert {len(row["concepts"]) for row in rows} == {3, 4, 5}
    assert task.max_new_tokens > get_task("lm_env/Concepts-v0").max_new_tokens


@pytest.mark.skipif(not COMMONGEN.exists(), reason="the file of CommonGen is not here")
def test_human_sentences_score_high_and_others_low():
    rows = [line.split("\t") for line in COMMONGEN.read_text().splitlines()[:1000]]
    concepts, sentences = [row[0].split() for row in rows], [row[1] for row in rows]
    others = sentences[500:] + sentences[:500]
    lists = [" ".join(words) for words in concepts]
    human, other, bare = (
        np.mean(coverage_and_fluency([""] * 1000, texts, concepts)) for texts in (sentences, others, lists)
    )
    assert human > 0.7 and other < 0.1 and bare == 0.0


def test_the_sets_of_commongen_are_read(tmp_path):
    tsv = tmp_path / "commongen.tsv"
    tsv.write_text("field look stand\tThe player stood.\nfield look stand\tAnother one.\nkid room dance\tA kid.\n")
    assert [row["concepts"] for row in read_sets(tsv)] == [CONCEPTS, ["kid", "room", "dance"]]
    tsv.write_text("field look stand\tThe player\u2028stood.\nkid room dance\tA\x85kid.\n", encoding="utf-8")
    assert [row["concepts"] for row in read_sets(tsv)] == [CONCEPTS, ["kid", "room", "dance"]], "sentences do not count"
    rows = tmp_path / "sets.jsonl"
    rows.write_text('{"concepts": ["cat", "pet"]}\n{"concept_set": "dog#run"}\n')
    assert [row["prompt"] for row in read_sets(rows)] == ["cat, pet:", "dog, run:"]
    rows.write_text('{"concepts": ["Dog", "run", "dog"]}\n{"concepts": ["dog", "run"]}\n')
    assert read_sets(rows) == [{"prompt": "dog, run:", "concepts": ["dog", "run"]}]
    tsv.write_text("Field field LOOK\tThe player looked at the field.\n")
    assert [row["concepts"] for row in read_sets(tsv)] == [["field", "look"]]
    for wrong in (
        '{"other": 1}\n',
        '{"concepts": [1]}\n',
        '{"concepts": ["dog", "ice cream"]}\n',
        '{"concepts": ["well-made"]}\n',
        '{"concepts": ["3d"]}\n',
        '{"concepts": ["dog", ""]}\n',
    ):
        rows.write_text(wrong)
        with pytest.raises(InvalidPromptError, match="concept"):
            read_sets(rows)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_sets(tmp_path / "missing.tsv")


# -- rhymes ------------------------------------------------------------------------------------------
LINE = "This film is all about the night,"  # eight syllables


def test_a_rhyming_line_of_the_same_length_scores_most():
    assert one(rhyme_and_metre, " the hero runs into the light", LINE) == pytest.approx(5 / 6)  # "the" twice
    assert one(rhyme_and_metre, " his sister looks into a light", LINE) == 1.0
    assert one(rhyme, " right", LINE) == 1.0 and one(metre, " right", LINE) == pytest.approx(1 / 8)
    assert one(rhyme, " he is mine", LINE) == 0.1
    assert one(rhyme, " the same old night", LINE) == one(rhyme, " a knight", LINE) * 0 == 0.0
    assert one(rhyme_and_metre, LINE, LINE) == 0.0
    assert one(rhyme_and_metre, " light" * 8, LINE) == pytest.approx(1 / 8)
    assert one(rhyme_and_metre, "", LINE) == 0.0
    assert one(metre, " the zxqv runs into the light", LINE) == 0.0


BEGUN = "This film is all about the tree, and there is nothing left to"  # eight syllables, then seven


def test_the_second_line_begins_in_the_prompt():
    assert couplet(BEGUN, " see")[1] == ["and", "there", "is", "nothing", "left", "to", "see"]
    assert couplet("no comma", " see") == (["no", "comma"], ["see"]) and couplet(", and", "see")[0] == ["and"]
    assert one(rhyme_and_metre, " see", BEGUN) == 1.0
    assert one(rhyme_and_metre, " be like a movie", BEGUN) == pytest.approx(0.5 * (1 - 4 / 8))
    assert one(rhyme, " meet", BEGUN) == 0.1 and one(rhyme, " a tree", BEGUN) == one(rhyme, " do", BEGUN) == 0.0
    assert one(rhyme_and_metre, " see, see, see", BEGUN) == pytest.approx((1 - 2 / 8) * 7 / 9)
    shoe = BEGUN.replace("tree", "shoe")
    assert one(rhyme, "", shoe) == one(rhyme, " ...", shoe) == 0.0 and one(rhyme, " do", shoe) == 1.0


def test_consonants_before_the_last_one_make_a_rhyme():
    for word in ("free", "three", "agree", "degree"):
        assert one(rhyme, f" be {word}", BEGUN) == 1.0
    assert one(rhyme, " find a tree", BEGUN) == one(rhyme, " a family tree", BEGUN) == 0.0


def test_a_first_line_without_a_syllable_has_no_metre():
    assert one(metre, " the hero runs", "Shh,") == one(rhyme_and_metre, " the hero runs", "Shh,") == 0.0


def test_each_line_of_the_task_can_be_completed():
    """One to five syllables are missing from the second line, whose words are all in the dictionary."""
    for prompt in lines():
        first, second = map(syllables_in_all, couplet(prompt, ""))
        assert first and second and 1 <= min(first) - max(second) <= max(first) - min(second) <= 5


# -- haiku -------------------------------------------------------------------------------------------
def test_a_haiku_keeps_the_form():
    words = " my cat on the stairs looking down at all of us says nothing at night"
    assert one(has_haiku_form, words) == 1.0
    assert one(has_haiku_form, " my cat on the stairs\nlooking down at all of us\nsays nothing at night") == 1.0
    assert one(has_haiku_form, " my cat on the stairs looking\ndown at all of us\nsays nothing at night") == 0.0
    assert one(haiku, words) == pytest.approx(14 / 15)  # "at" is there twice
    assert one(has_haiku_form, words + " and day") == 0.0
    assert 0 < one(haiku, words + " and day") < one(haiku, words)
    assert one(haiku, " good" * 17) == pytest.approx(1 / 17)
    assert one(haiku, "") == one(haiku, " zxqv") == 0.0


def enumerated_form(words):
    """The best form of words without line breaks, by enumeration of all pronunciations."""
    best = 0.0
    for counts in itertools.product(*map(syllables, words)):
        ends = np.cumsum(counts)
        form = max(0.0, 1 - abs(ends[-1] - ENDS[-1]) / TOLERANCE) * (1 + len({5, 12} & set(ends.tolist())) / 2) / 2
        best = max(best, form)
    return best


@given(st.lists(st.sampled_from(["family", "every", "fire", "different", "cat", "beautiful"]), min_size=4, max_size=9))
@settings(deadline=None)  # the first example loads the dictionary
@example(["fire", "beautiful", "beautiful", *["fire"] * 7])  # the first word has to have its two syllables
def test_a_haiku_is_found_among_all_pronunciations(words):
    found = one(haiku, " ".join(words)) / (len(set(words)) / len(words))
    assert found == pytest.approx(enumerated_form(words))


def test_repeated_words_count_against_the_reward_and_not_against_the_form():
    assert one(has_haiku_form, " the" * 17) == 1.0 and one(haiku, " the" * 17) == pytest.approx(1 / 17)
