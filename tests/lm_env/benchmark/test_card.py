"""The model card of a model that is measured: its task, its score and KL, its seeds, and the ceiling."""

from __future__ import annotations

import html
import json
import re
from collections import Counter

import gymnasium
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from agents import RLOO
from lm_env import load_model, load_tokenizer
from lm_env.benchmark.results import card_text, write_card
from lm_env.benchmark.trained_elsewhere import NEEDS_REFERENCE, evaluate_model
from lm_env.errors import ConfigurationError
from lm_env.report.texts import visible

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


@pytest.fixture(scope="module")
def measured_record():
    """(records of a model that was not trained here, with its ceiling)."""
    return evaluate_model(TASK, "walks-0.1m", prompts=2, texts=4, ceiling_texts=64)


def shown(records, **changes):
    """(the front matter, the page) of a record with changes."""
    *others, record = records
    record = {**record, **changes}
    _, front, body = card_text(record, [*others, record]).split("---\n", 2)
    return yaml.safe_load(front), MarkdownIt("commonmark").enable("table").render(body)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30)
MARKED = st.lists(
    st.sampled_from(["#", "- ", "1. ", "~~~", "\n", "\n\n", "`", "*", "<b>", "[a](b)", "&lt;", "==", "x", " "])
)


@settings(max_examples=20, deadline=None)
@given(agent=NAMES, prompt=MARKED.map("".join), response=st.one_of(NAMES, MARKED.map("".join)))
def test_no_name_and_no_text_is_read_as_markup(measured_record, agent, prompt, response):
    sample = {"prompt": prompt, "response": response, "score": 1.0}
    front, page = shown(measured_record, agent=agent, samples=[sample])
    assert front["model-index"][0]["name"] == f"{agent} on RandomWalks-v0"
    tags = Counter(re.findall(r"<([a-z0-9]+)", page))
    assert tags["h1"] == tags["h2"] == tags["blockquote"] == 1
    assert set(tags) <= {"h1", "h2", "p", "blockquote", "strong", "code", "table", "thead", "tbody", "tr", "th", "td"}
    (heading,) = re.findall(r"<h1>(.*)</h1>", page)
    assert words(heading) == visible(" ".join(f"{agent} on RandomWalks-v0".split()))
    (quoted,) = re.findall(r"<blockquote>(.*)</blockquote>", page, re.DOTALL)
    assert words(quoted).split() == f"{visible(prompt.strip())} {visible(response.strip())}".split()


def words(page):
    return html.unescape(re.sub(r"</?(p|strong)>", "", page)).strip()


def test_the_base_model_is_one_of_the_hub_or_none(measured_record, tmp_path, monkeypatch):
    """The hub refuses cards that name a folder; and of a model that was not trained here no base is known."""
    settings = {"agent": "rloo", "budget": 10}
    trained = {"settings": settings, "tokens": 12, "seconds": 1.0, "curve": [], "curve_prompts": 1, "kind": "run"}
    for model, base in (("me/model", "me/model"), ("/a/b", None), ("a/b/c", None), ("walks-0.1m", None)):
        records = [{**record, "model": model} for record in measured_record]
        assert shown(records, **trained)[0].get("base_model") == base
        assert "base_model" not in shown(records)[0]
    (tmp_path / "me" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in shown([{**record, "model": "me/model"} for record in measured_record], **trained)[0]


def test_one_prompt_is_no_prompts_and_what_is_left_out_is_said(measured_record):
    *_, record = measured_record
    metrics = {name: value for name, value in record["metrics"].items() if name not in NEEDS_REFERENCE}
    one = {"prompts": 1, "texts": 1, "metrics": metrics, "by_prompt": {"score": [1.0], "J": [None]}}
    front, page = shown([record], **one)
    assert "On 1 test prompt, 1 text, sampled" in page and "all seeds" not in page
    assert "KL, J and perplexity need a reference with the same vocabulary" in page
    assert {metric["type"] for metric in front["model-index"][0]["results"][0]["metrics"]} == {"score"}
    assert "On 2 test prompts, 4 texts, sampled" in shown(measured_record)[1]


def test_the_options_of_the_task_are_part_of_its_name(measured_record):
    records = [{**record, "task_options": {"level": 3}} for record in measured_record]
    front, page = shown(records)
    assert front["model-index"][0]["results"][0]["dataset"] == {
        "name": "RandomWalks-v0 (level 3)",
        "type": "RandomWalks-v0",
    }
    assert "RandomWalks-v0 (level 3)</h1>" in page
