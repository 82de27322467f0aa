"""Every task of the package: sound, its environment steps, and its rewards say what their definitions say."""

from __future__ import annotations

import importlib.util
import math
import re

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import ConfigurationError, InvalidPromptError
from lm_env.objective.options import resolve_reward
from lm_env.tasks import SPLITS, check_task, get_task, task_names
from lm_env.tasks.base.checks import score_rows
from lm_env.tasks.gsm8k import last_number, right
from lm_env.tasks.reasoning_gym import answer_in

OWN = [name for name in task_names() if name.startswith("lm_env/")]
NAMED = ("lm_env/GSM8K-v0", "lm_env/Dialogue-v0", "lm_env/Summarize-v0", "lm_env/StackExchange-v0")
NEEDS = {"lm_env/ReasoningGym-v0": "reasoning_gym"}
OFFLINE = [name for name in OWN if name not in NAMED and name not in NEEDS]
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
