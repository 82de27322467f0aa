"""Runs that are finished, or cannot begin: what is said of them, and that nothing changes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lm_env
from lm_env.cli import app
from lm_env.errors import ConfigurationError
from lm_env.runs import RunFolder
from reward_models import load_reward

TINY = {"env": "lm_env/TokenMDP-v0", "timesteps": 100, "eval_texts": 8, "agent": "rloo", "rollout_episodes": 16}


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], env={"NO_COLOR": "1", "COLUMNS": "200"})


@pytest.fixture
def finished(tmp_path) -> Path:
    lm_env.train(tmp_path / "out", **TINY)
    return tmp_path / "out"


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_that_is_resumed_says_that_nothing_is_left(finished):
    before = content(finished)
    result = invoke("train", "--out", finished, "--resume")
    assert result.exit_code == 0 and "so nothing is left to do" in result.output and "%" not in result.output
    assert content(finished) == before


def test_fewer_tokens_than_are_trained_are_refused(finished):
    trained = RunFolder(finished).trained_timesteps
    assert trained >= 100
    before = content(finished)
    with pytest.raises(
        ConfigurationError, match=f"timesteps is 50 here, and the run in .* has trained {trained} already"
    ):
        lm_env.train(finished, resume=True, timesteps=50)
    assert content(finished) == before


def test_a_run_or_its_policy_is_no_reward(finished):
    with pytest.raises(ConfigurationError, match="holds no reward: it is a training run, whose result is a language"):
        load_reward(finished)
    (finished / "reward_model").mkdir()  # as in the folder of a demo
    with pytest.raises(ConfigurationError, match=r"its reward model is in .*reward_model"):
        load_reward(finished)
    with pytest.raises(ConfigurationError, match=r"holds no reward: there is no config\.json in it"):
        load_reward(finished / "policy")


def test_a_file_of_options_does_not_say_where_to_write(tmp_path):
    (tmp_path / "a.yaml").write_text("env: lm_env/TokenMDP-v0\nout: elsewhere\n")
    with pytest.raises(ConfigurationError, match="a file of options cannot say where to write: leave `out` away there"):
        lm_env.train(tmp_path / "run", tmp_path / "a.yaml")
    assert os.listdir(tmp_path) == ["a.yaml"]


def test_a_refusal_is_not_announced_as_a_training(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a"}))
    result = invoke("train", "--prompts", tmp_path / "p.jsonl", "--reward", "nowhere:f", "--out", tmp_path / "run")
    assert isinstance(result.exception, ConfigurationError) and "training" not in result.output


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "--prompts", "p.jsonl", "--reward", "stopping.py:reward", "--out", "run"], True),
        (["sample", "--reward", "stopping.py:reward"], False),
    ],
    ids=["train", "sample"],
)
def test_ctrl_c_before_anything_is_trained_is_a_sentence(words, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lm-env", *words])
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a"}))
    (tmp_path / "stopping.py").write_text("raise KeyboardInterrupt\n")
    result = invoke(*words)
    assert result.exit_code == 130 and "lm-env: interrupted" in result.stderr
    assert ("--resume goes on from what is saved, or begins anew if nothing is" in result.stderr) == hint
    assert sorted(os.listdir(tmp_path)) == ["p.jsonl", "stopping.py"]
