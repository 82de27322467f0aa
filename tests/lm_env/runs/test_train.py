"""`lm_env.train` and `lm-env train`: any agent on any task into a folder, the same way from Python and from flags."""

from __future__ import annotations

import json
import os
import re
import signal

import gymnasium
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import lm_env
from agents import PPO
from lm_env.cli import app
from lm_env.errors import (
    CheckpointMismatchError,
    CheckpointWriteError,
    ConfigurationError,
    RunLockedError,
    TrainingInterrupted,
)
from lm_env.models.adapters import add_lora
from lm_env.models.logprobs import token_logprobs
from lm_env.runs import RunFolder, RunSettings, TaskSettings
from lm_env.runs.agents import agent_names
from lm_env.runs.task import further_metrics, held_out_prompts, make_env
from lm_env.storage import FileLock
from lm_env.tasks import TextTask, register_task
from lm_env.tasks.sentiment import openings

TINY = {"env": "lm_env/TokenMDP-v0", "timesteps": 100, "eval_texts": 8, "learning_rate": 0.02}
SMALL = {
    **{name: {"rollout_episodes": 16} for name in agent_names()},
    "trpo": {"n_steps": 4, "num_envs": 4, "batch_size": 16, "cg_max_steps": 2},
    "sb3-ppo": {"n_steps": 4, "num_envs": 4, "batch_size": 16},
    "sb3-a2c": {"n_steps": 4, "num_envs": 4},
    "maskable-ppo": {"n_steps": 4, "num_envs": 4, "batch_size": 16},
}


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["train", *map(str, arguments)], env={"NO_COLOR": "1", "COLUMNS": "200"})


@pytest.fixture
def own_task(tmp_path, model_folder):
    """A model, prompts and a reward of one's own, as options."""
    rows = [{"prompt": prompt, "wanted": prompt[-1]} for prompt in ("a good film", "a bad", "the end of", "story")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "score.py").write_text(
        "import os, signal\n"
        "def wanted(prompts, responses, wanted):\n"
        "    return [r.count(w) / 4 for r, w in zip(responses, wanted)]\n"
        "calls = []\n"
        "def stopping(prompts, responses, wanted):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 4 and not os.path.exists({str(tmp_path / 'go on')!r}):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return [r.count(w) / 4 for r, w in zip(responses, wanted)]\n"
    )
    return {
        "model": model_folder,
        "prompts": str(tmp_path / "prompts.jsonl"),
        "reward": f"{tmp_path / 'score.py'}:wanted",
        "max_new_tokens": 5,
        "agent": "rloo",
        "timesteps": 200,
        "rollout_episodes": 8,
        "learning_rate": 1e-3,
        "eval_texts": 4,
    }


def as_flags(options):
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]


def weights(out):
    return (out / "policy" / "model.safetensors").read_bytes()


# -- every agent ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", agent_names())
def test_every_agent_trains_on_a_registered_task(name, tmp_path):
    texts = {"texts": str(tmp_path / "texts.jsonl")} if name == "ppo-ptx" else {}
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": [1, 2, 0]}) + "\n")
    run = lm_env.train(tmp_path / "out", agent=name, **TINY, **SMALL[name], **texts)
    folder = RunFolder(tmp_path / "out")
    found = folder.evaluations()
    assert found[0]["timesteps"] == 0 and found[-1]["timesteps"] >= 100
    assert found[0]["kl"] == pytest.approx(0, abs=1e-9) and found[-1]["kl"] > 0, "nothing was learned"
    assert (folder.policy / "agent" / "state.json").exists() and not list(tmp_path.glob("out/.*lock"))
    assert run.settings.options()["agent"] == name
    rows = [json.loads(line) for line in folder.samples.read_text().splitlines()]
    assert all(row.keys() >= {"timesteps", "prompt", "response", "score", "kl"} for row in rows)


def test_an_agent_that_needs_something_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match="ppo-ptx needs texts"):
        lm_env.train(tmp_path / "out", agent="ppo-ptx", **TINY)
    assert not (tmp_path / "out").exists()


# -- one code ------------------------------------------------------------------------------------------
def test_python_flags_and_files_are_the_same_run(tmp_path, own_task):
    one = lm_env.train(tmp_path / "python", **own_task)
    result = invoke(*as_flags(own_task), "--out", tmp_path / "flags")
    assert result.exit_code == 0, (result.exception, result.output)
    again = invoke("--config", tmp_path / "flags" / "run.yaml", "--out", tmp_path / "file")
    assert again.exit_code == 0, (again.exception, again.output)
    other = invoke("--config", tmp_path / "flags" / "run.yaml", "--seed", 1, "--out", tmp_path / "other")
    assert other.exit_code == 0
    made = [weights(tmp_path / name) for name in ("python", "flags", "file")]
    assert made[0] == made[1] == made[2] != weights(tmp_path / "other")
    assert one.settings.options() == lm_env.runs.TrainSettings.of(tmp_path / "file" / "run.yaml").options()
    assert "score" in result.output and "after" in result.output and str(tmp_path / "flags" / "policy") in result.output
    AutoModelForCausalLM.from_pretrained(tmp_path / "flags" / "policy")
    wrong_class = pytest.raises(CheckpointMismatchError, match="RLOO")
    with wrong_class:
        PPO.load(tmp_path / "flags" / "policy", one.agent.env)


def test_the_file_of_a_run_holds_what_was_not_given_too(tmp_path):
    lm_env.train(tmp_path / "out", agent="rloo", **TINY, rollout_episodes=16)
    text = (tmp_path / "out" / "run.yaml").read_text()
    for line in ("beta: 0.5", "group_size: 4", "learning_rate: 0.02", "seed: 0", "temperature: 1.0", "torch:"):
        assert line in text, line
    assert str(tmp_path) not in text.partition("about:")[0]


# -- the folder ----------------------------------------------------------------------------------------
def test_another_runs_folder_is_refused_and_nothing_changes(tmp_path):
    lm_env.train(tmp_path / "out", **TINY, rollout_episodes=16)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(ConfigurationError, match="holds a finished run: go on with it by resume=True, or choose"):
        lm_env.train(tmp_path / "out", **TINY)
    with pytest.raises(ConfigurationError, match=r"seed is 0 in .* and 1 here"):
        lm_env.train(tmp_path / "out", resume=True, seed=1)
    with pytest.raises(ConfigurationError, match=r"agent is 'ppo' in .* and 'rloo' here"):  # which has no gamma
        lm_env.train(tmp_path / "out", resume=True, agent="rloo", group_size=4)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["progress.csv", "policy", "samples.jsonl"])
def test_files_of_somebody_else_are_not_replaced(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("years of work")
    with pytest.raises(CheckpointWriteError, match=name):
        lm_env.train(tmp_path / "out", **TINY)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


def test_a_folder_that_another_run_writes_to(tmp_path):
    (tmp_path / "out").mkdir()
    other = FileLock(tmp_path / "out" / ".lock", tmp_path / "out")
    with pytest.raises(RunLockedError):
        lm_env.train(tmp_path / "out", **TINY)
    other.release()


def test_a_task_that_cannot_be_made_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigurationError, match="lm_env/None-v0 cannot be made"):
        lm_env.train(tmp_path / "out", env="lm_env/None-v0")
    with pytest.raises(ConfigurationError, match="did you mean 'lm_env/Sentiment-v0'"):
        lm_env.train(tmp_path / "out", env="Sentiment-v0")
    assert not (tmp_path / "out").exists()


def test_a_tasks_own_metrics_are_measured_and_its_texts_can_be_sampled(tmp_path):
    flags = ["--timesteps", 120, "--eval-texts", 8, "--eval-every", 0, "--rollout-episodes", 16, "--slots", 16]
    result = invoke("--env", "lm_env/Arithmetic-v0", "--env-option", "level=3", *flags, "--out", tmp_path / "out")
    assert result.exit_code == 0, (result.exception, result.output)
    first, last = (RunFolder(tmp_path / "out").evaluations()[i] for i in (0, -1))
    assert 0 <= first["is_a_number"] <= 1 and "is_a_number" in last and "is a number" in result.output
    assert "sample --env lm_env/Arithmetic-v0 --env-option level=3 --model" in result.output


def test_prompts_of_ones_own_are_not_measured_by_a_tasks_metrics():
    task = TaskSettings(env="lm_env/Concepts-v0")
    assert further_metrics(RunSettings(), task) is not None
    assert further_metrics(RunSettings(eval_prompts="p.txt"), task) is None
    assert further_metrics(RunSettings(), TaskSettings(env="lm_env/Concepts-v0", prompts="p.txt")) is None
    assert further_metrics(RunSettings(), TaskSettings(env="lm_env/Sentiment-v0")) is None


OWN_AGENT = """
from dataclasses import dataclass
from agents import RLOO
from agents.base import AgentConfig

@dataclass(frozen=True)
class MineConfig(RLOO.Config):
    width: int = 3
    \"\"\"What it is.\"\"\"

class Mine(RLOO):
    Config = MineConfig

def train(env, timesteps, seed):
    pass
"""


def test_an_agent_of_ones_own_is_trained_as_any_other(tmp_path):
    """It takes the steps of the agent that it derives from, has its options and one more, and goes on."""
    (tmp_path / "mine.py").write_text(OWN_AGENT)
    name = f"{tmp_path}/mine.py:Mine"
    small = {**TINY, "rollout_episodes": 16}
    own = lm_env.train(tmp_path / "own", agent=name, width=5, **small)
    assert own.agent.config.width == 5 and "width: 5" in (tmp_path / "own" / "run.yaml").read_text()
    other = lm_env.train(tmp_path / "rloo", agent="rloo", **small)
    pairs = zip(own.agent.policy.parameters(), other.agent.policy.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    longer = invoke("--out", tmp_path / "own", "--resume", "--timesteps", 150)
    assert longer.exit_code == 0, (longer.exception, longer.output)
    shown = invoke("--agent", name, "--help")
    assert "--width" in shown.output and "What it is." in shown.output


@pytest.mark.parametrize(
    ("named", "words"),
    [("mine.py:train", "is no class derived from agents.base.BatchedAgent"), ("mine.py:None", "has no function None")],
)
def test_what_is_no_agent_is_told(tmp_path, named, words):
    (tmp_path / "mine.py").write_text(OWN_AGENT)
    with pytest.raises(ConfigurationError, match=words):
        lm_env.train(tmp_path / "out", agent=f"{tmp_path}/{named}", **TINY)


# -- going on ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lora", [{"eval_every": 0}, {"lora": 2}], ids=["whole", "lora"])
def test_a_run_that_a_signal_stops_goes_on_to_the_same_weights(tmp_path, own_task, lora):
    options = {**own_task, **lora, "reward": own_task["reward"].replace("wanted", "stopping")}
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="go on with resume=True"):
        lm_env.train(tmp_path / "out", **options)
    assert not (tmp_path / "out" / "policy").exists() and signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "out" / "report.html").exists(), "the page of a run that was stopped"
    (tmp_path / "go on").touch()
    lm_env.train(tmp_path / "out", resume=True)
    lm_env.train(tmp_path / "whole", **options)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    times = [[row["timesteps"] for row in RunFolder(tmp_path / n).evaluations()] for n in ("out", "whole")]
    assert times[0] == times[1]
    assert (tmp_path / "out" / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    assert (tmp_path / "out" / "run.yaml").read_text().count("command:") == 2


def test_the_command_ends_with_a_code_of_its_own_and_goes_on(tmp_path, own_task):
    options = {**own_task, "reward": own_task["reward"].replace("wanted", "stopping")}
    result = invoke(*as_flags(options), "--out", tmp_path / "out")
    assert result.exit_code == TrainingInterrupted.EXIT_CODE
    (tmp_path / "go on").touch()
    result = invoke("--out", tmp_path / "out", "--resume")  # no other flag: the agent is that of the run
    assert result.exit_code == 0, (result.exception, result.output)
    assert "going on from" in result.output and (tmp_path / "out" / "policy").exists()


def test_resume_where_nothing_is_begins(tmp_path):
    lm_env.train(tmp_path / "out", resume=True, **TINY, rollout_episodes=16)
    assert RunFolder(tmp_path / "out").is_finished


def test_a_run_of_a_registered_task_generates_its_budget_and_goes_on_with_that_number(tmp_path, own_task):
    """Even if the task has another budget by then."""

    def register(budget: int) -> None:
        def task() -> TextTask:
            rows = [{"prompt": p, "wanted": "a"} for p in ("a good film", "a bad", "the end of", "story")]
            return TextTask(
                id="own/Task-v0",
                summary="",
                source=rows,
                reward=own_task["reward"].replace("wanted", "stopping"),
                model=str(own_task["model"]),
                max_new_tokens=6,
                budget=budget,
            )

        register_task("own/Task-v0", task)

    small = {name: own_task[name] for name in ("rollout_episodes", "agent") if name in own_task}
    try:
        register(230)
        with pytest.raises(TrainingInterrupted):
            lm_env.train(tmp_path / "out", env="own/Task-v0", eval_texts=4, **small)
        assert "timesteps: 230" in (tmp_path / "out" / "run.yaml").read_text()
        (tmp_path / "go on").touch()
        register(10_000)
        run = lm_env.train(tmp_path / "out", resume=True)
    finally:
        gymnasium.registry.pop("own/Task-v0", None)
    assert run.settings.timesteps == 230 <= run.agent.num_timesteps < 400
    assert "timesteps: 230" in (tmp_path / "out" / "run.yaml").read_text()


def test_a_finished_run_can_be_made_longer(tmp_path):
    lm_env.train(tmp_path / "out", **TINY, rollout_episodes=16)
    longer = lm_env.train(tmp_path / "out", resume=True, timesteps=200)
    assert longer.agent.num_timesteps >= 200
    assert "timesteps: 200" in (tmp_path / "out" / "run.yaml").read_text()


@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-a2c"])
def test_an_agent_of_stable_baselines3_goes_on_with_its_weights_and_counters(tmp_path, own_task, name):
    """Stopped in a rollout: what was learned before it is kept, and the rest of the tokens is trained."""
    kept = {k: v for k, v in own_task.items() if k not in ("rollout_episodes", "agent")}
    options = {**kept, **SMALL[name], "agent": name, "reward": own_task["reward"].replace("wanted", "stopping")}
    with pytest.raises(TrainingInterrupted, match="ended the training at timestep") as stopped:
        lm_env.train(tmp_path / "out", **options)
    assert stopped.value.code == 75
    (saved,) = (tmp_path / "out" / "checkpoints").iterdir()
    learned = int(re.search(r"timestep (\d+) of 200", str(stopped.value))[1])
    assert saved.name == f"{learned:09d}" and learned % 16 == 0 < learned < 200
    assert json.loads((saved / "agent" / "state.json").read_text())["num_timesteps"] == learned
    assert (tmp_path / "out" / "report.html").exists(), "the page of a run that was stopped"
    (tmp_path / "go on").touch()
    run = lm_env.train(tmp_path / "out", resume=True)
    assert 200 <= run.agent.num_timesteps < 216 and run.agent._n_updates > 0
    steps = [row["timesteps"] for row in RunFolder(tmp_path / "out").evaluations()]
    assert steps == sorted(steps) and steps[0] == 0


# -- adapters ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(make_lm, kind):
    plain, adapted = make_lm(kind), add_lora(make_lm(kind), rank=2)
    ids = torch.arange(6)[None]
    assert torch.equal(
        token_logprobs(plain(input_ids=ids).logits, ids), token_logprobs(adapted(input_ids=ids).logits, ids)
    )
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)


def test_adapters_on_what_has_no_such_layers(make_lm):
    with pytest.raises(ConfigurationError, match="targets='nothing'"):
        add_lora(make_lm("gpt2"), rank=2, targets="nothing")
    with pytest.raises(ConfigurationError, match="TableLM is none of transformers"):
        add_lora(make_lm("table"), rank=2)


def test_lora_trains_adapters_of_the_registered_tasks_own_model(tmp_path):
    task = TaskSettings(env="lm_env/Sentiment-v0")
    env = make_env(task, lm_env.runs.LoraSettings(lora=2))
    trained = [p for p in env.unwrapped.task.model.parameters() if p.requires_grad]
    assert env.unwrapped.task.adapter is not None
    assert 0 < sum(p.numel() for p in trained) < 0.05 * sum(p.numel() for p in env.unwrapped.task.model.parameters())


def test_the_policy_of_a_lora_run_is_the_base_with_the_adapter_merged_in(tmp_path, own_task, model_folder):
    run = lm_env.train(tmp_path / "out", **own_task, lora=2)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "policy")
    ids = torch.arange(6)[None]
    here = run.agent.task.model(input_ids=ids).logits
    assert torch.allclose(merged(input_ids=ids).logits, here, atol=1e-5)
    assert not torch.allclose(AutoModelForCausalLM.from_pretrained(model_folder)(input_ids=ids).logits, here, atol=1e-5)
    base = load_file(model_folder + "/model.safetensors")
    assert any(name.endswith("wte.weight") for name in base)


# -- prompts that are held out -------------------------------------------------------------------------
def test_a_share_of_the_prompts_is_kept_for_evaluation(tmp_path, own_task):
    task = TaskSettings(model=own_task["model"], prompts=own_task["prompts"], reward=own_task["reward"])
    env = make_env(task, lm_env.runs.LoraSettings())
    everything = {p.text: p.columns["wanted"] for p in env.unwrapped.task.prompts}
    kept = held_out_prompts(RunSettings(eval_fraction=0.25), task, env)
    left = env.unwrapped.task.prompts
    assert len(kept) == 1 and len(left) == 3 and [p.index for p in left] == [0, 1, 2]
    assert {p.text: p.columns["wanted"] for p in [*kept, *left]} == everything
    with pytest.raises(ConfigurationError, match="leaves none"):
        held_out_prompts(RunSettings(eval_fraction=0.1), task, env)


def test_a_registered_task_is_evaluated_on_its_test_split():
    task = TaskSettings(env="lm_env/Sentiment-v0")
    env = gymnasium.make("lm_env/Sentiment-v0")
    assert [p.text for p in held_out_prompts(RunSettings(), task, env)] == openings("test")
    other = gymnasium.make("lm_env/TokenMDP-v0")  # whose only prompt is that of all splits
    found = held_out_prompts(RunSettings(), TaskSettings(env="lm_env/TokenMDP-v0"), other)
    assert [p.ids.tolist() for p in found] == [p.ids.tolist() for p in other.unwrapped.task.prompts]


# -- the command ---------------------------------------------------------------------------------------
def shown(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.exception
    return " ".join(re.sub("[│╭╮╰╯─]", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output)).split())


@pytest.mark.parametrize("name", agent_names())
def test_help_shows_every_option_of_the_agent_with_its_text(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    result = CliRunner().invoke(app, ["train", "--agent", name, "--help"], env={"NO_COLOR": "1"}, terminal_width=400)
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output)).split())
    for option in lm_env.runs.agents.agent_kind(name).options.values():
        assert option.flag in text or option.flag.replace("--", "--no-", 1) in text
        assert " ".join(option.text.replace("`", "").split())[:40] in text, option
    assert ("--clip-range-vf" in text) == ("clip_range_vf" in lm_env.runs.agents.agent_kind(name).options)


def test_the_agent_of_a_file_decides_on_the_flags(tmp_path):
    (tmp_path / "a.yaml").write_text("agent: grpo\n")
    assert "--kl-in" in shown("--config", tmp_path / "a.yaml", "--help") and "--kl-in" not in shown("--help")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning-rat", "1"], "No such option: --learning-rat"),
        (["--timesteps", "abc"], "timesteps must be an integer, not 'abc'"),
        (["--kl-in", "loss"], "No such option: --kl-in"),
    ],
)
def test_flags_that_cannot_be_parsed_are_usage_errors(flags, words, tmp_path):
    result = invoke("--out", tmp_path / "x", *flags)
    assert result.exit_code == 2 and words in re.sub(r"\s+", " ", result.output + result.stderr)
    assert os.listdir(tmp_path) == []


def test_a_switch_of_a_file_is_turned_off_by_its_flag(tmp_path):
    (tmp_path / "a.yaml").write_text("env: lm_env/TokenMDP-v0\nagent: ppo\nbf16: true\nnormalize_advantage: true\n")
    options = ["--timesteps", 50, "--eval-texts", 4, "--rollout-episodes", 8]
    result = invoke(
        "--config", tmp_path / "a.yaml", "--no-bf16", "--no-normalize-advantage", *options, "--out", tmp_path / "x"
    )
    assert result.exit_code == 0, (result.exception, result.output)
    text = (tmp_path / "x" / "run.yaml").read_text()
    assert "bf16: false" in text and "normalize_advantage: false" in text
