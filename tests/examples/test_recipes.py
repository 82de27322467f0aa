"""The recipes and the example of a task: all their options exist, and a small version of each runs."""

from __future__ import annotations

import json
import math

import gymnasium
import pytest
from paths import REPOSITORY

import lm_env
from lm_env.runs import TrainSettings
from lm_env.tasks import check_task, get_task

RECIPES = sorted((REPOSITORY / "examples" / "recipes").glob("*.yaml"))
SMALL = {
    "timesteps": 40,
    "rollout_episodes": 4,
    "slots": 4,
    "batch_size": 4,
    "max_new_tokens": 4,
    "eval_texts": 2,
    "eval_every": 0,
}
OF_PREFERENCE = ("stackllama", "trlx_tldr", "deepspeed_chat")


def test_all_five_are_there():
    assert {path.stem for path in RECIPES} == {*OF_PREFERENCE, "trlx_sentiments", "trlx_randomwalks"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_small_version_runs(path, tmp_path):
    settings = TrainSettings.of(path)
    assert settings.task.env in gymnasium.registry
    options = dict(SMALL)
    if path.stem != "trlx_randomwalks":
        options |= {"model": "reviews-3m", "max_prompt_tokens": 40}
    if path.stem in OF_PREFERENCE:
        source = tmp_path / "prompts.jsonl"
        source.write_text("".join(json.dumps({"prompt": f"What is {i}?"}) + "\n" for i in range(12)))
        options["env_option"] = [f"source={source}", "reward_model=reward_models:LexiconSentiment"]
    run = lm_env.train(tmp_path / "run", path, **options)
    kept = run.settings.options()
    assert kept["gae_lambda"] == 0.95 and kept["env"] == settings.task.env
    log = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    names = log[0].split(",")
    scores = [float(row.split(",")[names.index("rollout/score")] or "nan") for row in log[1:]]
    assert any(math.isfinite(score) for score in scores)


def test_the_example_of_a_task_is_short_sound_and_trained_by_its_name(tmp_path):
    path = REPOSITORY / "examples" / "my_task.py"
    assert len(path.read_text().splitlines()) < 40
    task = get_task(f"{path}:task")
    check_task(task)
    assert task.reward([""] * 4, [" red", " a dark red", " dark", ""]) == [1.0, 0.8, 0.0, 0.0]
    run = lm_env.train(tmp_path / "run", env="my_task:my/Colors-v0", **SMALL)
    assert run.agent.task.prompts[0].text in task.prompts("train")
    assert gymnasium.registry.pop("my/Colors-v0", None) is not None
