"""Every task of the package: sound, its environment steps, and its rewards say what their definitions say."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.objective.options import resolve_reward
from lm_env.tasks import SPLITS, check_task, get_task, task_names
from lm_env.tasks.base.checks import score_rows
from lm_env.tasks.concepts import coverage_and_fluency, read_sets
from lm_env.tasks.descriptiveness import descriptiveness
from lm_env.tasks.gsm8k import last_number, right
from lm_env.tasks.haiku import haiku, is_haiku
from lm_env.tasks.reasoning_gym import answer_in
from lm_env.tasks.rhyme import metre, rhyme, rhyme_and_metre

OWN = [name for name in task_names() if name.startswith("lm_env/")]
NAMED = ("lm_env/GSM8K-v0", "lm_env/Dialogue-v0", "lm_env/Summarize-v0", "lm_env/StackExchange-v0")
NEEDS = {"lm_env/ReasoningGym-v0": "reasoning_gym"}
OFFLINE = [name for name in OWN if name not in NAMED and name not in NEEDS]
COMMONGEN = Path("/work/shared/data/commongen_valid.tsv")
EXACT = ("lm_env/TokenMDP-v0", "lm_env/RandomWalks-v0")
"""Their prompts are the whole task, and those of all splits."""
needs_reasoning_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="pip install 'lm-env[reasoning]'"
)


def test_all_tasks_are_there():
    assert len(OWN) == 13 and set(OFFLINE) >= set(EXACT)


@pytest.mark.parametrize("name", [*OFFLINE, pytest.param("lm_env/ReasoningGym-v0", marks=needs_reasoning_gym)])
def test_the_task_is_sound(name):
    task = get_task(name)
    assert task.id == name and task.summary and task.ceiling
    if name != "lm_env/TokenMDP-v0":  # which reads token ids
        check_task(task)
    sizes = [len(task.prompts(split)) for split in SPLITS]
    assert min(sizes) >= (1 if name in EXACT else 20)
    if name in EXACT:
        assert task.prompts("train") == task.prompts("test")


@pytest.mark.parametrize("name", OFFLINE)
def test_its_environment_steps_to_the_end(name):
    env = gymnasium.make(name, split="test")
    env.reset(seed=0)
    for _ in range(env.unwrapped.task.max_new_tokens):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            break
    assert terminated and math.isfinite(info["score"])


@pytest.mark.parametrize("name", NAMED)
def test_a_task_of_the_users_own_material_says_what_to_name(name):
    task = get_task(name)
    with pytest.raises(ConfigurationError, match="source="):
        task.prompts("train")


@pytest.mark.parametrize("name", [name for name in OFFLINE if name != "lm_env/TokenMDP-v0"])
def test_any_text_has_a_finite_score_below_the_highest(name):
    task = get_task(name)
    validation = task.prompts("validation")
    reward = resolve_reward(task.reward)

    @settings(max_examples=40, deadline=None)
    @given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=4))
    def check(texts):
        scores = score_rows(reward, validation[: len(texts)], texts)
        assert (scores <= task.highest).all()
        assert (scores >= (-1 if name == "lm_env/Sentiment-v0" else 0)).all()

    check()


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
    rows = tmp_path / "sets.jsonl"
    rows.write_text('{"concepts": ["cat", "pet"]}\n{"concept_set": "dog#run"}\n')
    assert [row["prompt"] for row in read_sets(rows)] == ["cat, pet:", "dog, run:"]
    for wrong in ('{"other": 1}\n', '{"concepts": [1]}\n'):
        rows.write_text(wrong)
        with pytest.raises(InvalidPromptError, match="concepts"):
            read_sets(rows)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_sets(tmp_path / "missing.tsv")


# -- rhymes ------------------------------------------------------------------------------------------
LINE = "This film is all about the night,"  # eight syllables


def test_a_rhyming_line_of_the_same_length_scores_most():
    assert one(rhyme_and_metre, " the hero runs into the light", LINE) == pytest.approx(5 / 6)  # "the" twice
    assert one(rhyme_and_metre, " his sister looks into a light", LINE) == 1.0
    assert one(rhyme, " right", LINE) == 1.0 and one(metre, " right", LINE) == pytest.approx(1 / 8)
    assert one(rhyme, " he is mine", LINE) == 0.2
    assert one(rhyme, " the same old night", LINE) == one(rhyme, " a knight", LINE) * 0 == 0.0
    assert one(rhyme_and_metre, LINE, LINE) == 0.0
    assert one(rhyme_and_metre, " light" * 8, LINE) == pytest.approx(1 / 8)
    assert one(rhyme_and_metre, "", LINE) == 0.0
    assert one(metre, " the zxqv runs into the light", LINE) == 0.0


# -- haiku -------------------------------------------------------------------------------------------
def test_a_haiku_keeps_the_form():
    words = " my cat on the stairs looking down at all of us says nothing at night"
    assert one(is_haiku, words) == 1.0
    assert one(is_haiku, " my cat on the stairs\nlooking down at all of us\nsays nothing at night") == 1.0
    assert one(is_haiku, " my cat on the stairs looking\ndown at all of us\nsays nothing at night") == 0.0
    assert one(haiku, words) == pytest.approx(14 / 15)  # "at" is there twice
    assert one(is_haiku, words + " and day") == 0.0
    assert 0 < one(haiku, words + " and day") < one(haiku, words)
    assert one(haiku, " good" * 17) == pytest.approx(1 / 17)
    assert one(haiku, "") == one(haiku, " zxqv") == 0.0


# -- numbers -----------------------------------------------------------------------------------------
NUMBERS = {
    "#### 72": 72,
    "so 1,234.50 dollars.": 1234.5,
    "$5.": 5,
    "-3": -3,
    "\u22123": -3,
    "3-5": 5,
    "2 + 2 = 4, not 5": 5,
    "no number": None,
    "": None,
    "9" * 50: None,
    "007": 7,
    "1,2": 2,
    "12,345": 12345,
}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_the_last_number(text, number):
    assert last_number(text) == number


def test_the_last_number_has_to_be_right():
    assert one(right, "48 + 24 = 72", answer="48+24 = <<48+24=72>>72 clips\n#### 72") == 1.0
    assert one(right, "72.0", answer="72") == 1.0
    assert one(right, "72 or 73", answer="72") == one(right, "", answer="72") == one(right, "7 2", answer="72") == 0.0


@given(st.text(max_size=200))
def test_a_number_is_found_in_any_text(text):
    found = last_number(text)
    assert found is None or found.is_finite()


def test_a_file_of_problems_is_read(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(f'{{"question": "{i} + 1?", "answer": "#### {i + 1}"}}\n' for i in range(10)))
    task = get_task("lm_env/GSM8K-v0", source=str(path))
    check_task(task)
    row = task.prompts("test")[0]
    assert row["prompt"].startswith("Question: ") and row["prompt"].endswith("\nAnswer:")
    path.write_text('{"question": "one?", "answer": "many"}\n' * 3)
    with pytest.raises(ConfigurationError, match="line 1 has no number"):
        task.prompts("train")
    path.write_text('{"prompt": "one?"}\n' * 3)
    with pytest.raises(InvalidPromptError, match="question and answer"):
        task.prompts("train")


# -- reasoning-gym -----------------------------------------------------------------------------------
@needs_reasoning_gym
def test_how_hard_the_problems_of_reasoning_gym_are_can_be_said():
    """Sums of two numbers of one digit, where the default has up to six of four digits."""
    easy = get_task("lm_env/ReasoningGym-v0", size=40, config="min_terms=2, max_terms=2,max_digits=1").prompts("train")
    assert all(re.search(r": \d [+-] \d =\nAnswer:$", row["prompt"]) for row in easy)
    assert not all(
        len(row["prompt"]) == len(easy[0]["prompt"])
        for row in get_task("lm_env/ReasoningGym-v0", size=40).prompts("train")
    )
    with pytest.raises(ConfigurationError, match="chain_sum cannot be made with terms=2"):
        get_task("lm_env/ReasoningGym-v0", config="terms=2").prompts("train")


@pytest.mark.parametrize("config", ["max_terms", "=2", "max terms=2", "max_terms="])
def test_the_settings_of_a_data_set_are_names_and_values(config):
    with pytest.raises(ConfigurationError, match="NAME=VALUE,NAME=VALUE"):
        get_task("lm_env/ReasoningGym-v0", config=config)


def test_the_answer_is_the_tagged_one_or_the_first_line():
    assert answer_in("think <answer>1</answer> no: <answer> 2\n</answer> done") == "2"
    assert answer_in("\n  4 \nbecause") == "4"
    assert answer_in(" \n") == ""


@needs_reasoning_gym
def test_the_right_answer_of_a_data_set_scores_the_most():
    task = get_task("lm_env/ReasoningGym-v0", dataset="chain_sum", size=40)
    rows = task.prompts("test")
    answers = {"right": [row["answer"] for row in rows], "none": [""] * len(rows)}
    answers["wrong"] = [answer + "1" for answer in answers["right"]]
    scores = {name: score_rows(task.reward, rows, texts) for name, texts in answers.items()}
    assert (scores["right"] == 1).all() and (scores["wrong"] < 1).all() and (scores["none"] == 0).all()
    with pytest.raises(ConfigurationError, match="no data set 'chain_sums'"):
        get_task("lm_env/ReasoningGym-v0", dataset="chain_sums").prompts("train")
