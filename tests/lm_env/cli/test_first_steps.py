"""The first steps on the command line: columns, adapters, what a model was trained from, rewards by their folder."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from agents import PPO
from lm_env import TextGenerationEnv, load_model, load_tokenizer
from lm_env.cli import app
from lm_env.cli.rewards.rm import _sentence
from lm_env.errors import CheckpointCorruptError, ConfigurationError, ModelLoadError
from lm_env.models import base_of
from lm_env.objective.options import resolve_reward
from lm_env.runs.judges import make_judge
from reward_models import LexiconSentiment, RewardModel

ROWS = [{"id": i, "question": "a good", "answer": " film"} for i in range(30)]


def invoke(*arguments: object):
    arguments = [str(a) for a in arguments]
    return CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "300"})


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path / "data.jsonl"


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a good film\nbad\nthe end\n")
    return tmp_path / "prompts.txt"


# -- sft ---------------------------------------------------------------------------------------------
def test_sft_says_what_it_learns_and_learns_it(data, model_folder, tmp_path):
    command = ["sft", data, "--model", model_folder, "--out", tmp_path / "out", "--epochs", 20]
    result = invoke(*command, "--learning-rate", 0.01, "--patience", 3, "--packing")
    assert result.exit_code == 0, (result.exception, result.output)
    before_training, _, after = result.output.partition("steps; the weights kept")
    assert "column 'answer' is learned, given 'question'" in before_training and after
    assert "learned:  ' film<|end|>'" in before_training and "not read: 'id'" in before_training
    model, tokenizer = load_model(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    written = model.generate(**tokenizer("a good", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0]) == "a good film<|end|>"


def test_sft_refuses_columns_that_it_does_not_know(tmp_path, model_folder):
    (tmp_path / "data.jsonl").write_text('{"question": "q", "solution": "s"}\n' * 20)
    command = ["sft", tmp_path / "data.jsonl", "--model", model_folder, "--out", tmp_path / "out"]
    result = invoke(*command)
    assert isinstance(result.exception, ConfigurationError) and "--response-column" in str(result.exception)
    assert not (tmp_path / "out").exists()
    named = invoke(*command, "--response-column", "solution", "--separator", "\\n")
    assert named.exit_code == 0 and r"given:   'q\n'" in named.output


@pytest.mark.parametrize("merge", [False, True])
def test_sft_of_adapters(data, model_folder, tmp_path, merge):
    out = tmp_path / "out"
    command = ["sft", data, "--model", model_folder, "--out", out, "--lora", 4, "--learning-rate", 0.01]
    result = invoke(*command, *(["--merge"] if merge else []))
    assert result.exit_code == 0, (result.exception, result.output)
    assert (out / "adapter_config.json").exists() != merge and (out / "config.json").exists() == merge
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    changed = [a for a, b in zip(load_model(out).parameters(), base.parameters(), strict=True) if (a != b).any()]
    assert changed and base_of(out) == model_folder
    assert ("the adapter is in" in result.output) != merge


def test_merge_without_adapters(data, tmp_path):
    result = invoke("sft", data, "--out", tmp_path / "out", "--merge")
    assert isinstance(result.exception, ConfigurationError) and "--lora" in str(result.exception)


# -- sample ------------------------------------------------------------------------------------------
def test_sample_compares_with_what_the_model_was_trained_from(data, model_folder, prompts, tmp_path):
    """Not with the embedded model, whose vocabulary is another one."""
    out = tmp_path / "out"
    tuned = invoke("sft", data, "--model", model_folder, "--out", out, "--learning-rate", 0.01)
    assert tuned.exit_code == 0, tuned.output
    command = ["sample", "--model", out, "--prompts", prompts, "-n", 2, "--new-tokens", 4]
    by_default, with_base, with_itself = (
        invoke(*command, *reference) for reference in ([], ["--reference", model_folder], ["--reference", out])
    )
    assert by_default.exit_code == 0, by_default.exception
    assert by_default.output == with_base.output
    assert invoke("sample", "--model", model_folder, "--prompts", prompts, "-n", 1).exit_code == 0
    assert with_itself.exit_code == 0


def test_sample_writes_for_a_task():
    """Its prompts, its reward, its length and its end; what is given replaces them."""
    shown = invoke("sample", "--env", "lm_env/Arithmetic-v0", "-n", 3, "--env-option", "level=4")
    assert shown.exit_code == 0, shown.exception
    assert len(re.findall(r"^\d+\*\d+=", re.sub(r"\x1b\[[0-9;]*m", "", shown.output), re.M)) == 3
    assert set(re.findall(r"score ([+-][\d.]+)", shown.output)) <= {"+0.000", "+1.000"}
    longer = invoke("sample", "--env", "lm_env/Sentiment-v0", "-n", 1, "--new-tokens", 3, "--temperature", 0.1)
    assert "over 3 tokens" in longer.output
    alone = invoke("sample", "--env-option", "level=4")
    assert isinstance(alone.exception, ConfigurationError) and "--env" in str(alone.exception)


def test_the_folder_of_a_run_is_told_from_a_model(model_folder, tmp_path):
    load_model(model_folder).save_pretrained(tmp_path / "run" / "policy")
    with pytest.raises(ModelLoadError, match=r"the folder of a run -- give .*run/policy"):
        load_model(tmp_path / "run")


def test_a_base_that_is_gone_is_told(model_folder, prompts, tmp_path):
    out = tmp_path / "out"
    load_model(model_folder).save_pretrained(out)
    load_tokenizer(model_folder).save_pretrained(out)
    (out / "base_model.json").write_text(json.dumps({"base_model": "/no/such/model"}))
    result = invoke("sample", "--model", out, "--prompts", prompts)
    assert isinstance(result.exception, ModelLoadError)
    assert re.search("was trained from /no/such/model, which cannot be loaded: .*--reference", str(result.exception))


# -- rewards by their folder -------------------------------------------------------------------------
@pytest.fixture
def saved_reward(model_folder, tmp_path):
    return RewardModel.from_causal_lm(model_folder).save(tmp_path / "rm")


TEXTS = (["a good", "bad"], [" film", " end"])


def test_a_saved_reward_model_is_a_reward_by_its_folder(saved_reward, model_folder, prompts):
    expected = RewardModel.load(saved_reward)(*TEXTS).tolist()
    for found in (
        make_judge(str(saved_reward), device="cpu", download=False),
        resolve_reward(saved_reward),
        resolve_reward(str(saved_reward)),
        TextGenerationEnv(model=model_folder, prompts=["a"], reward=str(saved_reward)).task.reward,
    ):
        assert isinstance(found, RewardModel) and found(*TEXTS).tolist() == expected
    command = ["sample", "--model", model_folder, "--prompts", prompts, "-n", 1, "--new-tokens", 3]
    assert invoke(*command, "--reward", saved_reward).exit_code == 0


def test_an_agent_learns_from_a_reward_by_its_folder(saved_reward, model_folder):
    env = TextGenerationEnv(model=model_folder, prompts=["a"], reward=saved_reward, max_new_tokens=3)
    agent = PPO(env, rollout_episodes=4, slots=4, batch_size=4).learn(12)
    assert agent.num_timesteps >= 12


def test_other_rewards_by_name(tmp_path):
    assert resolve_reward("lexicon") == LexiconSentiment() == make_judge("lexicon", device="cpu", download=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="empty holds no reward"):
        resolve_reward(tmp_path / "empty")


def test_a_damaged_reward_model_is_told_as_one(saved_reward):
    (saved_reward / "head.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointCorruptError, match=r"head\.safetensors"):
        resolve_reward(saved_reward)


# -- names -------------------------------------------------------------------------------------------
def test_a_reward_model_is_made_from_every_name_that_a_model_has(model_folder, tmp_path):
    for name in ("reviews-3m", model_folder):
        found = RewardModel.from_causal_lm(name)
        assert found.network.trunk.config.vocab_size == load_model(name).config.vocab_size
    with pytest.raises(ModelLoadError, match="no folder of this name"):
        RewardModel.from_causal_lm("no-such-model")


def test_a_finished_result_is_not_replaced(tmp_path, model_folder):
    """Neither by fine-tuning nor by a reward model: hours of training may be in it."""
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    out = tmp_path / "out"
    command = ["sft", tmp_path / "data.jsonl", "--model", model_folder, "--out", out, "--held-out-fraction", 0]
    assert invoke(*command).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for refused in (command, [*command, "--resume"], ["rm", "train", tmp_path / "data.jsonl", "--out", out]):
        result = invoke(*refused)
        assert isinstance(result.exception, ConfigurationError), result.output
        assert "choose another --out" in str(result.exception)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_reward_model_of_few_updates_says_so():
    def sentence(updates):
        return _sentence(
            SimpleNamespace(
                losses=[0.7] * updates, objective="pairwise", train_accuracy=0.5, held_out_loss=None, history=[]
            )
        )

    assert sentence(1).startswith("1 update of pairwise (few: more --epochs or a smaller --batch-size make more)")
    assert sentence(10).startswith("10 updates of pairwise; accuracy")
