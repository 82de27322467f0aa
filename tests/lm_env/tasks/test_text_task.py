"""A task as a declaration: its splits, what is refused, and the names under which it is found and made."""

from __future__ import annotations

import dataclasses
import itertools

import gymnasium
import numpy as np
import pytest
from character_model import make_model, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from lm_env.errors import ConfigurationError, InvalidPromptError, RewardError
from lm_env.tasks import (
    SPLITS,
    TextTask,
    check_task,
    get_task,
    make_named,
    register_task,
    split_rows,
    task_names,
    task_parameters,
    task_problems,
)

TOKENIZER = make_tokenizer("abc")


def model():
    return make_model(len(TOKENIZER), layers=1, dim=32, positions=16)


def letters(prompts, responses, wanted, **columns):
    return [float(response.count(letter)) for response, letter in zip(responses, wanted, strict=True)]


def task(cap: int = 3, **changes) -> TextTask:
    """A task that a test registers."""
    fields = {
        "id": "test/Letters-v0",
        "summary": "write letters",
        "source": [{"prompt": a + b, "wanted": a} for a, b in itertools.product("abc", repeat=2)],
        "reward": letters,
        "metrics": {"letters": lambda prompts, responses: [float(len(response)) for response in responses]},
        "model": model,
        "max_new_tokens": cap,
        "options": {"tokenizer": TOKENIZER},
        **changes,
    }
    return TextTask(**fields)


@pytest.fixture
def registered():
    register_task("test/Letters-v0", task)
    yield "test/Letters-v0"
    gymnasium.registry.pop("test/Letters-v0", None)


# -- splits ------------------------------------------------------------------------------------------
@given(st.lists(st.text(min_size=1, max_size=5), min_size=3, max_size=60), st.randoms(use_true_random=False))
def test_the_splits_are_apart_and_hold_every_prompt_once_in_any_order(prompts, random):
    if len(set(prompts)) < 3:
        with pytest.raises(ConfigurationError, match="at least three"):
            split_rows(prompts, "train")
        return
    found = {split: split_rows(prompts, split) for split in SPLITS}
    assert sorted(prompt for split in found.values() for prompt in split) == sorted(set(prompts))
    assert all(found.values())
    random.shuffle(prompts)
    assert {split: split_rows(prompts, split) for split in SPLITS} == found


def test_a_tenth_each_is_held_out():
    rows = [{"question": f"{i}", "n": i} for i in range(1000)]
    sizes = [len(split_rows(rows, split)) for split in SPLITS]
    assert sizes == [800, 100, 100]
    assert split_rows(rows, "test")[0]["question"] == str(split_rows(rows, "test")[0]["n"])


def test_the_first_rows_of_a_split_are_a_sample_of_it_even_where_the_rows_are_sorted():
    numbers = [row["n"] for row in split_rows([{"question": f"{i}", "n": i} for i in range(10_000)], "test")]
    mean, deviation = sum(numbers) / len(numbers), 10_000 / 12**0.5
    assert abs(sum(numbers[:100]) / 100 - mean) < 4 * deviation / 100**0.5


def test_rows_with_the_same_prompt_stay_together():
    rows = [{"prompt": f"{i % 10}", "copy": i // 10} for i in range(30)]
    kept = [row for split in SPLITS for row in split_rows(rows, split)]
    assert len(kept) == 10 and all(row["copy"] == 0 for row in kept)


def test_a_row_without_a_prompt_is_named():
    with pytest.raises(InvalidPromptError, match="columns n, m has no prompt"):
        split_rows([{"n": 1, "m": 2}] * 3, "train")
    assert split_rows([{"n": i} for i in "abc"], "test", "n")


def test_prompts_come_from_a_list_a_file_a_mapping_or_a_function(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(20)))
    from_list, from_file = (
        task(source=source).prompts("test") for source in (path.read_text().splitlines(), str(path))
    )
    assert from_list == from_file and len(from_list) == 2
    by_name = {split: [split] for split in SPLITS}
    assert task(source=by_name).prompts("validation") == ["validation"]
    assert task(source=lambda split: [split, split]).prompts("test") == ["test", "test"]
    with pytest.raises(ConfigurationError, match="split must be one of"):
        task().prompts("dev")


# -- what is refused ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"id": "module:me/X-v0"}, "without a colon"),
        ({"id": ""}, "the id of a task"),
        ({"beta": -1}, "beta must be"),
        ({"temperature": 0}, "temperature must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"budget": 1.5}, "budget must be"),
        ({"success": float("nan")}, "success must be"),
        ({"source": {"train": ["a"], "test": ["b"]}}, "no split 'validation'"),
    ],
)
def test_a_wrong_declaration_is_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        task(**wrong)


def test_a_task_without_a_reward_says_what_to_name():
    with pytest.raises(ConfigurationError, match="lm-env rm train"):
        task(reward=None).make()
    assert task(reward=None).make(reward=letters).task.reward is letters


# -- names -------------------------------------------------------------------------------------------
def test_a_registered_task_is_found_and_made(registered):
    assert registered in task_names() and task_parameters(registered) == ("cap", "changes")
    assert get_task(registered).id == registered
    env = gymnasium.make(registered, split="test", cap=2, beta=0.5)
    assert [p.text for p in env.unwrapped.task.prompts] == [row["prompt"] for row in task().prompts("test")]
    assert env.unwrapped.task.max_new_tokens == 2 and env.unwrapped.task.kl.beta == 0.5
    vector = gymnasium.make_vec(registered, num_envs=3, split="validation", cap=2)
    assert vector.num_envs == 3 and vector.unwrapped.task.max_new_tokens == 2


def test_each_environment_has_a_model_of_its_own(registered):
    one, two = (make_named(registered).unwrapped.task.model for _ in range(2))
    assert one is not two


def test_a_file_names_a_task_and_a_module_an_id(tmp_path, monkeypatch):
    text = (
        "from lm_env.tasks import TextTask, register_task\n"
        "def task():\n"
        "    return TextTask(id='test/Filed-v0', summary='', source=list('abcd'), reward=len)\n"
        "register_task('test/Filed-v0', task)\n"
    )
    (tmp_path / "filed_task.py").write_text(text)
    try:
        assert get_task(f"{tmp_path / 'filed_task.py'}:task").id == "test/Filed-v0"
        gymnasium.registry.pop("test/Filed-v0")
        monkeypatch.syspath_prepend(tmp_path)
        assert get_task("filed_task:test/Filed-v0").id == "test/Filed-v0"
        assert get_task("filed_task:task").id == "test/Filed-v0"
        register_task("Filed-v10", f"{tmp_path / 'filed_task.py'}:task")
        assert get_task("filed_task:Filed-v10").id == "test/Filed-v0"  # an id without a namespace, of two digits
    finally:
        gymnasium.registry.pop("test/Filed-v0", None)
        gymnasium.registry.pop("Filed-v10", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lm_env/Sentimental-v0", "no task of this name; did you mean 'lm_env/Sentiment-v0'"),
        ("Arithmetic", "did you mean 'lm_env/Arithmetic-v0'"),
        ("me/Zzz", "no task of this name: choose from lm_env/TokenMDP-v0"),
        ("CartPole-v1", "this environment is no text task"),
        ("no_such_module:me/X-v0", "module no_such_module cannot be imported"),
        ("no_such_file.py:task", "there is no file"),
        ("os:getcwd", "must be a function that returns a TextTask, not str"),
    ],
)
def test_a_wrong_name_is_an_error_that_names_it(name, message):
    with pytest.raises(ConfigurationError, match=message):
        get_task(name)


def capped(cap: int = 3) -> TextTask:
    return task(cap)


def test_options_of_its_own_are_checked():
    register_task("test/Capped-v0", capped)
    try:
        with pytest.raises(ConfigurationError, match="has no option 'caps'; did you mean 'cap'"):
            get_task("test/Capped-v0", caps=1)
    finally:
        gymnasium.registry.pop("test/Capped-v0")
    with pytest.raises(ConfigurationError, match="no options of its own"):
        get_task("lm_env/Sentiment-v0", level=3)


def test_an_id_of_another_environment_is_not_taken():
    with pytest.raises(ConfigurationError, match="another environment's id"):
        register_task("CartPole-v1", task)
    assert gymnasium.spec("CartPole-v1").entry_point != "lm_env.tasks:make_env"
    with pytest.raises(ConfigurationError, match="is no id"):
        register_task("no version or sl/a/sh", task)


# -- metrics and the check ---------------------------------------------------------------------------
def test_metrics_see_prompts_responses_and_columns():
    declared = task(metrics={"letters": letters, "half": "statistics_of_tests:no"})
    one = dataclasses.replace(declared, metrics={"letters": letters})
    prompts = one.task("train").prompts
    found = one.measure(prompts[:3], ["aab", "", "cab"])
    assert found["letters"].dtype == np.float64
    expected = [text.count(p.columns["wanted"]) for p, text in zip(prompts[:3], ["aab", "", "cab"], strict=True)]
    assert found["letters"].tolist() == expected
    with pytest.raises(ConfigurationError, match="statistics_of_tests"):
        declared.measure(prompts[:1], ["a"])
    with pytest.raises(RewardError):
        dataclasses.replace(one, metrics={"bad": lambda prompts, responses: [float("nan")]}).measure(prompts[:1], ["a"])


def test_a_sound_task_has_no_problems():
    assert task_problems(task()) == []
    check_task(task())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"source": {"train": ["a", "b"], "validation": ["c"], "test": ["b"]}}, "in both train and test"),
        ({"source": {"train": ["a"], "validation": ["b"], "test": []}}, "cannot be read"),
        ({"reward": lambda prompts, responses, **columns: [1 / len(r) for r in responses]}, "fails for an empty text"),
        (
            {"reward": lambda prompts, responses, **columns: [float(len(r)) for r in responses], "highest": 100.0},
            "more than",
        ),
        ({"metrics": {"bad": lambda prompts, responses: [float("inf")] * len(responses)}}, "the metric bad fails"),
    ],
)
def test_the_check_finds_what_is_wrong(fault, message):
    with pytest.raises(ConfigurationError, match=message):
        check_task(task(**fault))
