"""`lm-env`, as a user types it: help, the demo end to end, checks, samples, and errors of one sentence."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys

import pytest
from paths import REPOSITORY
from saved_folders import flip
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.main import get_command
from typer.testing import CliRunner

from agents.sft import supervised_finetune
from lm_env.cli import app, main
from lm_env.cli.demo.before_after import curves_of
from lm_env.errors import (
    CheckpointCorruptError,
    CheckpointWriteError,
    ConfigurationError,
    LMEnvError,
    ModelLoadError,
    RunLockedError,
)
from lm_env.models.loading import load_model, load_tokenizer
from lm_env.objective.options import resolve_reward
from lm_env.runs.folder import RunFolder
from lm_env.runs.judges import make_judge
from lm_env.storage import Checkpointing, FileLock, checkpoints_in, write_folder
from reward_models import LexiconSentiment, RewardModel

COMMANDS = ["demo", "sft", "sample", "check-agent", "check-loss", "envs", "report"]


def invoke(*arguments: object):
    arguments = [str(a) for a in arguments]
    return CliRunner().invoke(app, arguments, terminal_width=200, env={"NO_COLOR": "1", "COLUMNS": "200"})


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def fails(error: type[LMEnvError], words: str, *arguments: object) -> None:
    """The command ends in an error that `main` prints as one sentence."""
    result = invoke(*arguments)
    assert isinstance(result.exception, error), (result.exception, result.output)
    assert re.search(words, str(result.exception)), str(result.exception)
    assert "\n" not in str(result.exception)


# -- help --------------------------------------------------------------------------------------------
def test_help_names_every_command():
    result = invoke("--help")
    assert result.exit_code == 0 and all(name in plain(result.output) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of(command):
    result = invoke(command, "--help")
    text = plain(result.output)
    assert result.exit_code == 0 and len(text.split()) > 8
    options = re.findall(r"--[a-z-]+", text)
    assert "--help" in options
    expected = {
        "demo": "--out",
        "sft": "--epochs",
        "sample": "--temperature",
        "check-agent": "--mdp",
        "check-loss": "--group-size",
        "envs": "--help",
        "report": "--out",
    }[command]
    assert expected in options


def words_of(text: str) -> str:
    """The words of a help page, without its boxes and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", plain(text)).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_word_that_was_written(command):
    """Brackets too, as in E[score]: nothing is taken for markup."""
    shown = words_of(invoke(command, "--help").output)
    written = get_command(app).commands[command]
    assert " ".join(inspect.getdoc(written.callback).split()) in shown
    for parameter in written.params:
        if getattr(parameter, "help", None):
            assert " ".join(parameter.help.split()) in shown
    assert ("E[score] - beta KL" in shown) == (command in ("check-agent", "check-loss"))


def test_no_arguments_show_the_help():
    assert "demo" in plain(invoke().output)


@pytest.mark.parametrize(
    "arguments",
    [
        ["deno"],
        ["demo", "--betta", "1"],
        ["sample", "-n", "0"],
        ["check-agent"],
        ["check-agent", "ppo", "--seeds", "x"],
    ],
)
def test_what_cannot_be_parsed_is_a_usage_error(arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)


# -- envs --------------------------------------------------------------------------------------------
def test_envs_lists_what_is_registered():
    result = invoke("envs")
    assert result.exit_code == 0
    text = plain(result.output)
    assert "lm_env/Sentiment-v0" in text and "lm_env/TokenMDP-v0" in text and "film review" in text


# -- check-agent -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def checked():
    """The cheapest of the checks, once."""
    return invoke("check-agent", "ppo", "--mdp", "t0", "--beta", "1", "--seeds", "1", "--json")


KEYS = {"agent", "mdp", "beta", "J_star", "J", "gap", "R", "KL", "tv", "passed", "objective"}


@pytest.mark.slow
def test_check_agent_prints_one_json_object(checked):
    report = json.loads(checked.stdout)
    assert report.keys() >= KEYS and checked.stdout.count("\n") == 1
    assert checked.stderr == ""  # no progress bar where there is no terminal
    assert (report["agent"], report["mdp"], report["beta"]) == ("ppo", "t0", 1.0)
    assert report["J_star"] == pytest.approx(0.225243, abs=1e-6)
    assert report["gap"] == pytest.approx(report["J_star"] - report["J"], abs=1e-9)
    assert report["passed"] and report["objective"] == "gibbs" and checked.exit_code == 0


def test_check_agent_of_an_unknown_name():
    fails(ConfigurationError, "no agent is called 'pqo': choose from .*ppo", "check-agent", "pqo")


def test_check_agent_of_a_users_own_function(tmp_path):
    """One that puts the exact optimum into the table passes; one that does nothing gets that verdict."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from lm_env import TokenMDP\n"
        "def train(env, seed):\n"
        "    best = TokenMDP.t0().optimum(env.unwrapped.task.kl.beta).policy_logits\n"
        "    env.unwrapped.task.model.table.data.copy_(torch.as_tensor(best))\n"
        "def nothing(env, seed):\n    pass\n"
    )
    result = invoke("check-agent", f"{tmp_path / 'mine.py'}:train", "--seeds", 1, "--json")
    assert result.exit_code == 0 and json.loads(result.output)["passed"], (result.exception, result.output)
    result = invoke("check-agent", f"{tmp_path / 'mine.py'}:nothing", "--seeds", 1)
    assert result.exit_code == 1 and "untrained" in result.output
    fails(
        ConfigurationError,
        "no function absent: one is needed that takes train",
        "check-agent",
        f"{tmp_path / 'mine.py'}:absent",
    )


def test_check_agent_on_an_unknown_mdp():
    fails(ConfigurationError, "'t0', 'random:SEED' or 'dense:SEED', not 't7'", "check-agent", "ppo", "--mdp", "t7")


def test_check_agent_with_a_beta_that_has_no_optimum():
    fails(ConfigurationError, "beta", "check-agent", "ppo", "--beta", "-1")


# -- check-loss --------------------------------------------------------------------------------------
def test_check_loss_of_names_and_of_a_users_own_function(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def loss(batch):\n"
        "    ratio = torch.exp(batch.logprobs - batch.old_logprobs)\n"
        "    credit = batch.rewards.flip(1).cumsum(1).flip(1)\n"
        "    return -(ratio * credit * batch.mask).sum() / len(batch)\n"
        "def half(batch):\n"
        "    return loss(batch) + (batch.logprobs * batch.scores[:, None] * batch.mask).sum() / len(batch)\n"
    )
    result = invoke("check-loss", f"{tmp_path / 'mine.py'}:loss", "--require", "padding,micro_batches,ratio")
    assert result.exit_code == 0 and "PASS: the expected gradient is that of" in result.output
    result = invoke("check-loss", f"{tmp_path / 'mine.py'}:half", "--group-size", 1, "--json")
    report = json.loads(result.output)
    assert result.exit_code == 1 and not report["passed"] and report["causes"]
    result = invoke("check-loss", "reinforce", "--require", "ratio")
    assert result.exit_code == 1 and "no_importance_ratio" in result.output
    fails(ConfigurationError, "no loss is called 'pqo'", "check-loss", "pqo")
    fails(ConfigurationError, "require names 'padd'", "check-loss", "rloo", "--require", "padd")


# -- main: errors without a traceback ----------------------------------------------------------------
def test_an_error_is_one_sentence_and_a_status(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lm-env", "check-agent", "pqo"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("lm-env: no agent is called 'pqo'") and printed.err.count("\n") == 1
    assert printed.out == "" and "Traceback" not in printed.err


# -- sample ------------------------------------------------------------------------------------------
@pytest.fixture
def prompts_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("a good film\na bad film\nthe end of\na story\ngood\nbad\n")
    return tmp_path / "prompts.txt"


@pytest.fixture
def judge_file(tmp_path):
    (tmp_path / "judge.py").write_text(
        "def letters(prompts, responses, **columns):\n"
        "    return [sum(c in 'aeiou' for c in r) / 10 for r in responses]\n"
        "def same(prompts, responses, **columns):\n    return [1.0] * len(responses)\n"
    )
    return tmp_path / "judge.py"


def test_sample_prints_prompts_and_texts(model_folder, prompts_file):
    command = ["sample", "--model", model_folder, "--reference", model_folder, "--prompts", prompts_file]
    command += ["-n", 3, "--new-tokens", 5]
    result = invoke(*command)
    assert result.exit_code == 0, result.exception
    text = plain(result.output)
    lines = prompts_file.read_text().splitlines()
    assert sum(text.count(line) > 0 for line in lines) >= 1
    assert invoke(*command).output == result.output != invoke(*command, "--seed", 1).output


def test_sample_of_no_model(tmp_path):
    fails(ModelLoadError, "cannot load the model", "sample", "--model", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("reward", "error", "words"),
    [
        ("nowhere.py:judge", ConfigurationError, "there is no file nowhere.py"),
        ("json:nothing", ConfigurationError, "json has no function nothing"),
        ("no_such_package:f", ConfigurationError, "cannot be imported"),
        ("no-such/classifier", ModelLoadError, "no-such/classifier"),
    ],
)
def test_rewards_that_cannot_be_had(model_folder, tmp_path, reward, error, words):
    for command in (["sample", "--reference", model_folder], ["demo", "--out", tmp_path / "out"]):
        fails(error, words, *command, "--model", model_folder, "--reward", reward)


def test_a_file_without_that_function(model_folder, judge_file):
    command = ["sample", "--model", model_folder, "--reference", model_folder]
    fails(ConfigurationError, "has no function missing", *command, "--reward", f"{judge_file}:missing")


# -- functions of the user's own -----------------------------------------------------------------------
FAULTY = {
    "raises.py": ("1 / 0\n", r"raises\.py:f cannot be imported \(ZeroDivisionError: division by zero\)"),
    "exits.py": ("import sys\nsys.exit(3)\n", r"exits\.py:f cannot be imported \(SystemExit: 3\)"),
    "typo.py": ("def f(:\n    pass\n", r"typo\.py:f cannot be imported \(SyntaxError: .*line 1"),
    "lines.py": (
        "raise ValueError('a\\nb\\n' + 'c' * 10_000)\n",
        r"lines\.py:f cannot be imported \(ValueError: a b ccc",
    ),
    "missing.py": ("import no_such_package\n", r"missing\.py:f cannot be imported \(ModuleNotFoundError: No module"),
    "empty.py": ("", r"has no function f: one is needed that takes"),
    "number.py": ("f = 3\n", r"has no function f: one is needed that takes"),
    "needs.py": ("class f:\n    def __init__(self, x): pass\n", r"needs\.py:f cannot be made without arguments"),
    "nocall.py": ("class f: pass\n", r"nocall\.py:f is a class whose instances cannot be called"),
    "bytes.py": ("x = '\\0'\n\0", r"bytes\.py:f cannot be imported"),
    "folder.py": (None, r"folder\.py is a folder"),
}


@pytest.mark.parametrize("file", FAULTY)
def test_a_file_that_gives_no_function_is_one_sentence_everywhere(file, tmp_path, capsys, monkeypatch):
    """On the command line, as a reward and as an agent, and in Python: status 1, one line, no traceback."""
    source, words = FAULTY[file]
    path = tmp_path / file
    if source is None:
        path.mkdir()
    else:
        path.write_text(source)
    spec = f"{path}:f"
    before = set(sys.modules)
    for command in (["sample", "--reward", spec], ["check-agent", spec]):
        monkeypatch.setattr("sys.argv", ["lm-env", *command])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr().err
        assert caught.value.code == 1 and printed.startswith("lm-env: ") and printed.count("\n") == 1
        assert re.search(words, printed) and len(printed) < 1000
    with pytest.raises(ConfigurationError, match=words):
        resolve_reward(spec)
    if "cannot be imported" in words:
        assert not [name for name in set(sys.modules) - before if name.endswith(file)]


def test_a_file_and_a_module_mean_the_same_in_python_and_on_the_command_line(tmp_path, judge_file):
    texts = ["audio", "xyz"]
    for load in (resolve_reward, lambda spec: make_judge(spec, device="cpu", download=False)):
        assert load(f"{judge_file}:letters")(texts, texts) == [0.4, 0.0]
        assert load("reward_models:LexiconSentiment") == LexiconSentiment()
        with pytest.raises(ConfigurationError, match=r"write 'package\.module:function' or 'file\.py:function'"):
            load(str(judge_file))


def test_a_file_may_hold_dataclasses_and_the_name_of_a_standard_module(tmp_path):
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Pay:\n    amount: float = 2.0\n"
        "    def __call__(self, prompts, responses):\n        return [self.amount] * len(responses)\n"
    )
    (tmp_path / "random.py").write_text(source)
    assert resolve_reward(f"{tmp_path / 'random.py'}:Pay")(["a"], ["b"]) == [2.0]
    import random

    assert random.__file__ != str(tmp_path / "random.py")


# -- sft ---------------------------------------------------------------------------------------------
def test_sft_makes_a_model_that_answers_as_shown(tmp_path, model_folder):
    rows = [{"prompt": "a good", "response": " film"}, {"prompt": "a bad", "response": " story"}] * 30
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "tuned"
    command = ["sft", tmp_path / "data.jsonl", "--model", model_folder, "--out", out, "--epochs", 30]
    result = invoke(*command, "--learning-rate", 0.01)
    assert result.exit_code == 0, (result.exception, result.output)
    before, after = map(float, re.findall(r"([\d.]+) (?:before|after)", plain(result.output)))
    assert before > 10 > 1.5 > after
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for row in rows[:2]:
        ids = tokenizer(row["prompt"], return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        assert tokenizer.decode(written[0], skip_special_tokens=True) == row["prompt"] + row["response"]


def test_sft_refuses_a_folder_that_is_not_its_own_before_it_trains(tmp_path, model_folder):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "data.txt").write_text("a good film\n" * 20)
    fails(
        CheckpointWriteError,
        "was not saved by this package",
        "sft",
        tmp_path / "data.txt",
        "--model",
        model_folder,
        "--out",
        tmp_path / "mine",
    )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_sft_goes_on_where_it_was_killed(tmp_path, model_folder):
    """The crash happens in the same training, called from Python, whose checkpoints the command then finds."""
    (tmp_path / "data.txt").write_text("\n".join(f"a good film {i}" for i in range(20)) + "\n")
    arguments = ["sft", tmp_path / "data.txt", "--model", model_folder, "--batch-size", 4]
    assert invoke(*arguments, "--out", tmp_path / "whole").exit_code == 0
    model = load_model(model_folder)
    unfinished = tmp_path / "resumed.unfinished"
    model.transformer.register_forward_hook(lambda *_: 1 / 0 if checkpoints_in(unfinished) else None)
    with pytest.raises(ZeroDivisionError):
        supervised_finetune(
            model,
            load_tokenizer(model_folder),
            str(tmp_path / "data.txt"),
            batch_size=4,
            checkpoint=Checkpointing(unfinished, every=1),
        )
    arguments += ["--out", tmp_path / "resumed"]
    fails(ConfigurationError, "pass resume=True", *arguments)
    assert invoke(*arguments, "--resume").exit_code == 0
    assert not unfinished.exists()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]


def test_a_stopped_training_says_how_to_go_on_and_has_its_exit_code():
    code = (
        "import lm_env.cli as cli, typer, sys\n"
        "from lm_env.errors import TrainingInterrupted\n"
        "@cli.app.command()\n"
        "def stop(): raise TrainingInterrupted('it is saved: go on with resume=True')\n"
        "sys.argv = ['lm-env', 'stop']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (75, "lm-env: it is saved: go on with --resume\n")


def test_one_flipped_bit_of_a_saved_model_is_an_error_of_one_sentence(tmp_path, model_folder, prompts_file):
    (tmp_path / "data.txt").write_text("a good film\n" * 20)
    assert invoke("sft", tmp_path / "data.txt", "--model", model_folder, "--out", tmp_path / "x").exit_code == 0
    flip(tmp_path / "x" / "model.safetensors")
    fails(CheckpointCorruptError, r"model\.safetensors is damaged", "sample", "--model", tmp_path / "x")


# -- demo --------------------------------------------------------------------------------------------
def demo(tmp_path, model_folder, prompts_file, judge_file, function="letters", **options):
    arguments = {
        "out": tmp_path / "out",
        "model": model_folder,
        "prompts": prompts_file,
        "reward": f"{judge_file}:{function}",
        "comparisons": 64,
        "timesteps": 600,
        "new-tokens": 4,
        "seed": 3,
        **options,
    }
    return invoke("demo", *(part for key, value in arguments.items() for part in (f"--{key}", value)))


SUMMARY = {
    "rm_accuracy",
    "rm_score_before",
    "rm_score_after",
    "gold_before",
    "gold_after",
    "kl",
    "perplexity_before",
    "perplexity_after",
    "distinct2_before",
    "distinct2_after",
    "seconds",
    "seed",
}


def test_the_demo_end_to_end_on_a_users_own_model(tmp_path, model_folder, prompts_file, judge_file):
    result = demo(tmp_path, model_folder, prompts_file, judge_file)
    assert result.exit_code == 0, (result.exception, result.output)
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() >= SUMMARY
    assert all(isinstance(summary[key], int | float) for key in SUMMARY) and summary["seed"] == 3
    assert 0 <= summary["rm_accuracy"] <= 1 and summary["perplexity_before"] > 1 and summary["kl"] != 0
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") and (out / "curves.png").stat().st_size > 5000
    drawn = curves_of(RunFolder(out)).timesteps
    assert drawn[0] == 0 and drawn == sorted(set(drawn)), "a rollout is drawn at the tokens before it"
    table = (out / "samples.md").read_text()
    assert table.count("\n| ") > 100 and any(line in table for line in prompts_file.read_text().splitlines())
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(out / "policy"),
        AutoTokenizer.from_pretrained(out / "policy"),
    )
    assert model(**tokenizer("a good film", return_tensors="pt")).logits.shape[-1] == model.config.vocab_size
    original = AutoModelForCausalLM.from_pretrained(model_folder)
    assert any((a != b).any() for a, b in zip(model.parameters(), original.parameters(), strict=True))
    text = plain(result.output)
    assert "before" in text and "after" in text and "perplexity" in text
    # What it wrote is what `sample` reads.
    command = ["sample", "--model", out / "policy", "--reference", model_folder, "--prompts", prompts_file]
    shown = invoke(*command, "-n", 1, "--new-tokens", 3)
    assert shown.exit_code == 0, shown.exception
    RewardModel.load(out / "reward_model")
    # It is not begun anew, and what is finished is shown again from what was kept.
    refused = demo(tmp_path, model_folder, prompts_file, judge_file)
    assert isinstance(refused.exception, ConfigurationError) and "holds a demo: go on" in str(refused.exception)
    kept = {p: p.read_bytes() for p in (out / "policy").rglob("*") if p.is_file()}
    again = invoke("demo", "--out", out, "--resume")
    assert again.exit_code == 0, (again.exception, again.output)
    shown = json.loads((out / "summary.json").read_text())
    assert {k: v for k, v in shown.items() if k != "seconds"} == {k: v for k, v in summary.items() if k != "seconds"}
    assert kept == {p: p.read_bytes() for p in (out / "policy").rglob("*") if p.is_file()}
    changed = invoke("demo", "--out", out, "--resume", "--beta", 0.5)
    assert isinstance(changed.exception, ConfigurationError) and "beta is 0.25 in" in str(changed.exception)


@pytest.mark.slow
def test_a_demo_goes_on_at_the_phase_that_was_not_finished(tmp_path, model_folder, prompts_file, judge_file):
    """Whatever it was stopped in, its result is that of a demo that ran through."""
    assert demo(tmp_path, model_folder, prompts_file, judge_file).exit_code == 0
    whole = tmp_path / "out"
    made = ["pairs.jsonl", "comparisons.jsonl", "reward_model", "policy"]  # in this order
    for number in (1, 3):
        first_missing = made[number]
        part = tmp_path / first_missing
        part.mkdir()
        names = ["demo.yaml", *made[:number], *(["reward_model.json"] if "reward_model" in made[:number] else [])]
        for name in names:
            source = whole / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, part / name)
        result = invoke("demo", "--out", part, "--resume")
        assert result.exit_code == 0, (result.exception, result.output)
        assert plain(result.output).replace("\n", "").count("kept:") == number
        assert (part / "policy" / "model.safetensors").read_bytes() == (
            whole / "policy" / "model.safetensors"
        ).read_bytes()
        assert (part / "samples.md").read_text() == (whole / "samples.md").read_text()


def test_an_unwritable_folder_is_told_at_the_start(tmp_path, model_folder, prompts_file, judge_file):
    (tmp_path / "file").write_text("in the way")
    result = demo(tmp_path, model_folder, prompts_file, judge_file, out=tmp_path / "file" / "out")
    assert isinstance(result.exception, CheckpointWriteError) and "choose another folder" in str(result.exception)
    assert "supervised model" not in result.output  # nothing had begun


UNUSABLE = ["policy/thesis.tex", "reward_model/thesis.tex", "policy", "progress.csv", "curves.png/x", "samples.md/x"]


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_written_at_the_end_is_told_at_the_start(tmp_path, model_folder, prompts_file, judge_file, name):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    result = demo(tmp_path, model_folder, prompts_file, judge_file)
    assert isinstance(result.exception, CheckpointWriteError) and "choose another folder" in str(result.exception)
    assert name.split("/")[0] in str(result.exception)
    assert "supervised model" not in result.output  # nothing had begun
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [file], "nothing is left behind"
    assert file.read_text() == "years of work"


def test_two_demos_in_one_folder(tmp_path, model_folder, prompts_file, judge_file):
    (tmp_path / "out").mkdir()
    other = FileLock(tmp_path / "out" / ".lock", tmp_path / "out")
    result = demo(tmp_path, model_folder, prompts_file, judge_file)
    assert isinstance(result.exception, RunLockedError) and "supervised model" not in result.output
    other.release()


@pytest.mark.parametrize("command", ["demo", "sft"])
def test_a_place_where_another_process_saves_is_told_at_the_start(
    tmp_path, model_folder, prompts_file, judge_file, command
):
    place = tmp_path / "out" / "policy"

    def fill(folder) -> None:
        (folder / "a").write_text("")
        if command == "demo":
            result = demo(tmp_path, model_folder, prompts_file, judge_file)
        else:
            result = invoke("sft", prompts_file, "--model", model_folder, "--out", place)
        assert isinstance(result.exception, RunLockedError), result.output
        assert "supervised" not in result.output

    write_folder(place, fill)


def test_a_judge_that_scores_all_alike(tmp_path, model_folder, prompts_file, judge_file):
    result = demo(tmp_path, model_folder, prompts_file, judge_file, function="same")
    assert isinstance(result.exception, ConfigurationError) and "scores most samples alike" in str(result.exception)


def test_too_few_prompts(tmp_path, model_folder, judge_file):
    (tmp_path / "two.txt").write_text("a good film\na bad film\n")
    result = demo(tmp_path, model_folder, tmp_path / "two.txt", judge_file)
    assert isinstance(result.exception, ConfigurationError) and "at least 3" in str(result.exception)


def test_prompts_that_are_not_there(tmp_path, model_folder, judge_file):
    result = demo(tmp_path, model_folder, tmp_path / "none.txt", judge_file)
    assert isinstance(result.exception, LMEnvError) and "none.txt" in str(result.exception)
