"""The commands that take a task: named by an argument or by `--env`, and outputs that cannot be written."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lm_env.cli import app
from lm_env.errors import CheckpointWriteError, ConfigurationError

COUNTING = """
from lm_env.tasks import TextTask

calls = []

def reward(prompts, responses):
    calls.append(len(responses))
    return [float(len(r)) for r in responses]

def task():
    return TextTask(
        id="me/Counted-v0", summary="its length", source=["a", "good film", "the end", "bad"], reward=reward,
        model={model!r}, max_new_tokens=3,
    )
"""
MDP = "lm_env/TokenMDP-v0"
COMMANDS = {
    "ceiling": ["--samples", "4", "--most", "4"],
    "preflight": ["--samples", "64"],
    "sample": ["-n", "1"],
    "evaluate": ["--model", "walks-0.1m", "--texts", "2", "--prompts", "1", "--no-ceiling"],
    "train": ["--agent", "rloo", "--timesteps", "10", "--rollout-episodes", "8", "--batch-size", "8"],
}


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def counting(tmp_path, model_folder, monkeypatch):
    (tmp_path / "counting.py").write_text(COUNTING.format(model=str(model_folder)))
    return f"{tmp_path}/counting.py:task"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_task_is_an_argument_or_a_flag(command, tmp_path):
    task = "lm_env/RandomWalks-v0" if command in ("evaluate", "sample") else MDP
    out = ["--out", tmp_path / "out"] if command == "train" else []
    named = [task] if command in ("sample", "train") else ["--env", task]  # the other way is in the pages of docs/
    result = call(command, *named, *COMMANDS[command], *out)
    assert result.exit_code == 0, result.output
    out = ["--out", tmp_path / "not"] if command == "train" else []
    result = call(command, task, "--env", "lm_env/Other-v0", *COMMANDS[command], *out)
    assert isinstance(result.exception, ConfigurationError) and "named twice" in str(result.exception)
    assert not (tmp_path / "not").exists()


def test_evaluate_needs_a_task():
    assert "name the task" in str(call("evaluate", "--model", "walks-0.1m").exception)


@pytest.mark.parametrize("place", ["/proc/nothing/x.json", "{folder}"])
@pytest.mark.parametrize("command", ["preflight", "evaluate"])
def test_an_output_that_cannot_be_written_is_said_before_the_first_text(
    command, place, counting, model_folder, tmp_path
):
    model = ["--model", model_folder] if command == "evaluate" else []
    result = call(command, counting, *model, "--out", place.format(folder=tmp_path))
    assert isinstance(result.exception, CheckpointWriteError) and "choose another --out" in str(result.exception)
    assert not calls_of(counting)


def test_a_card_of_anothers_is_said_before_the_first_text(counting, model_folder):
    with open(f"{model_folder}/README.md", "w") as file:
        file.write("mine")
    result = call("evaluate", counting, "--model", model_folder, "--card")
    assert "was not written by this command" in str(result.exception) and not calls_of(counting)


def calls_of(counting):
    """The calls of the reward of a task file, which was loaded under a name of its own."""
    import sys

    file = counting.rpartition(":")[0]
    found = [m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == file]
    return [call for module in found for call in module.calls]


def test_a_model_without_an_end_of_text_is_measured_to_the_cap(counting, text_lm, tokenizer, tmp_path):
    """The task's own model has an EOS, and the one that is measured has none."""
    text_lm("gpt2").save_pretrained(tmp_path / "endless")
    tokenizer.save_pretrained(tmp_path / "endless")
    config = json.loads((tmp_path / "endless" / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (tmp_path / "endless" / "tokenizer_config.json").write_text(json.dumps(config))
    command = ["evaluate", counting, "--model", tmp_path / "endless", "--texts", "8", "--no-ceiling"]
    assert "--eos-token-id ID" in str(call(*command).exception)
    assert "takes the ids of tokens" in str(call(*command, "--eos-token-id", "x").exception)
    found = {}
    for ends in (["none"], ["5", "7"]):
        out = tmp_path / f"{ends[0]}.jsonl"
        result = call(*command, *[w for end in ends for w in ("--eos-token-id", end)], "--out", out)
        assert result.exit_code == 0, result.output
        found[ends[0]] = json.loads(out.read_text())
    assert found["none"]["metrics"]["truncated"]["mean"] == 1 and found["none"]["metrics"]["length"]["mean"] == 3
    assert found["none"]["task_options"] == {"eos_token_id": []} and found["5"]["task_options"] == {
        "eos_token_id": [5, 7]
    }


def test_what_is_left_out_without_a_reference_is_said(counting, make_lm, tokenizer, tmp_path):
    make_lm("gpt2", vocab_size=len(tokenizer) + 64).save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    result = call("evaluate", counting, "--model", tmp_path / "padded", "--texts", "4")
    assert result.exit_code == 0, result.output
    assert "KL, J and perplexity are left out" in " ".join(result.output.split())
