"""The model card of a model that is measured: its task, its score and KL, its seeds, and the ceiling."""

from __future__ import annotations

import json

import gymnasium
import pytest
import yaml

from agents import RLOO
from lm_env import load_model, load_tokenizer
from lm_env.benchmark.results import write_card
from lm_env.benchmark.trained_elsewhere import evaluate_model
from lm_env.errors import ConfigurationError

TASK = "lm_env/RandomWalks-v0"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A folder that an agent has written, after a few tokens."""
    folder = tmp_path_factory.mktemp("trained") / "policy"
    agent = RLOO(gymnasium.make(TASK), rollout_episodes=8, slots=8, batch_size=8, group_size=4, seed=41)
    agent.learn(60).save(folder)
    return folder, agent.num_timesteps


def test_a_card_names_task_score_kl_seeds_and_ceiling(policy):
    folder, tokens = policy
    records = evaluate_model(TASK, folder, prompts=4, texts=16, seed=17)
    ceiling, record = records
    text = write_card(folder, record, records).read_text()
    front = yaml.safe_load(text.split("---")[1])
    (result,) = front["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert result["dataset"]["name"] == "RandomWalks-v0"
    assert values["score"] == record["metrics"]["score"]["mean"] and values["kl"] == record["metrics"]["kl"]["mean"]
    assert f"Trained by `RLOO` of lm-env for {tokens:,} tokens, seed 41." in text
    assert "16 texts, sampled with the seed 17, at beta 0.02" in text
    assert f"The best that any policy can attain at this beta: J about {ceiling['J']['mean']:.3f}" in text
    written = text.splitlines()
    (score,) = [line for line in written if line.startswith("| score:")]
    (kl,) = [line for line in written if line.startswith("| KL: ")]
    assert f"{values['score']:.2f}" in score and "nats per response" in kl


def test_a_model_of_elsewhere_has_the_seed_of_its_texts_alone(tmp_path):
    load_model("walks-0.1m").save_pretrained(tmp_path)
    load_tokenizer("walks-0.1m").save_pretrained(tmp_path)
    records = evaluate_model(TASK, tmp_path, prompts=2, texts=4, ceiling_samples=None, seed=3)
    text = write_card(tmp_path, records[-1], records).read_text()
    assert "Trained by" not in text and "sampled with the seed 3" in text and "The best that any" not in text
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigurationError, match="was not written by this command"):
        write_card(tmp_path, records[-1], records)


@pytest.mark.parametrize("damaged", [{"config": 3}, {"config": {"seed": "x"}}, {"num_timesteps": None}, {"agent": 1}])
def test_a_training_that_is_not_told_is_left_out(tmp_path, damaged):
    load_model("walks-0.1m").save_pretrained(tmp_path)
    load_tokenizer("walks-0.1m").save_pretrained(tmp_path)
    (tmp_path / "agent").mkdir()
    told = {"agent": "PPO", "config": {"seed": 1}, "num_timesteps": 60, **damaged}
    (tmp_path / "agent" / "state.json").write_text(json.dumps(told))
    (record,) = evaluate_model(TASK, tmp_path, prompts=1, texts=1, ceiling_samples=None)
    assert record["trained"] is None
