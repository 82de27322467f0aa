"""What goes wrong in a benchmark: settings, damaged records, agents that fail, tasks without a ceiling."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tiny_bench import TINY
from typer.testing import CliRunner

from lm_env.benchmark import BenchSettings, read_settings, run_bench
from lm_env.benchmark.cells import read_cell, run_cell
from lm_env.benchmark.results import merge_records, summarize_records
from lm_env.benchmark.settings import Cell
from lm_env.benchmark.trained_elsewhere import evaluate_model
from lm_env.cli import app
from lm_env.errors import CheckpointCorruptError, ConfigurationError, RewardValueError
from lm_env.runs import console
from lm_env.storage import write_folder
from lm_env.tasks import TextTask, get_task

TASK = "lm_env/TokenMDP-v0"
SMALL = {"rollout_episodes": 8, "batch_size": 8}
BROKEN = """
import sys
from pathlib import Path

class Learn:
    def __init__(self, env, seed, rate=0.1): pass
    def learn(self, timesteps): self.deep()
    def deep(self): raise RuntimeError("somewhere deep")

class Exit(Learn):
    def deep(self): sys.exit(5)

class NoSeed:
    def __init__(self, env): pass
    def learn(self, timesteps): pass

class Spoils(Learn):
    # With its own rate it spoils the model; with a larger one it does not, but fails as long as there is a file.
    def __init__(self, env, seed, learning_rate=0.1):
        self.model, self.rate = env.unwrapped.task.model, learning_rate
    def learn(self, timesteps):
        if self.rate > 0.2 and Path(__file__).with_name("fails").exists():
            raise RuntimeError("out of memory")
        for p in self.model.parameters():
            p.data.mul_(50.0 if self.rate < 0.2 else 1.0)

def train(env, timesteps, seed): pass
def no_seed(env, timesteps): pass
"""


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    return str(path)


def bench(tmp_path, *agents, **more):
    return run_bench(BenchSettings.of({**TINY, "agents": list(agents), **more}), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: 4}, "no option 3"),
        ({"download": "no"}, "download must be True or False"),
        ({"keep_policies": 1}, "keep_policies must be True or False"),
        ({"model": ["m"]}, "model must be text or None"),
        ({"device": "no-such-device"}, "device 'no-such-device' cannot be used"),
        *(
            ({"agents": [{"agent": "rloo", "label": label}]}, "a label is a text")
            for label in (None, "", " ", [1], True)
        ),
        ({"agents": [{"agent": "rloo", "label": "x" * 300}]}, "at most 200 bytes"),
        ({"tasks": [{"task": TASK, "label": "x" * 300}]}, "at most 200 bytes"),
        ({"agents": [{"agent": "rloo", "label": "reference"}]}, "no agent can be called reference"),
        ({"agents": [{"agent": "rloo", "label": "best-of-4"}]}, "no agent can be called best-of-4"),
        ({"agents": [{"agent": "ppo", "n_epochs": -1}]}, "n_epochs must be"),
        ({"agents": [{"agent": "BROKEN:Learn", "rat": 1}]}, "'rat'.*a parameter for each of its options"),
        ({"agents": [{"agent": "BROKEN:NoSeed"}]}, "unexpected keyword argument 'seed'"),
        ({"agents": [{"agent": "BROKEN:no_seed"}]}, "unexpected keyword argument 'seed'"),
    ],
)
def test_it_is_said_before_anything_runs(change, message, broken, tmp_path):
    agents = [
        {**agent, "agent": agent["agent"].replace("BROKEN", broken)}
        for agent in change.get("agents", [{"agent": "rloo"}])
    ]
    with pytest.raises(ConfigurationError, match=message):
        run_bench(BenchSettings.of({**TINY, **change, "agents": agents}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_agent_that_fails_leaves_its_traceback_and_stops_no_other(broken, tmp_path):
    """`sys.exit()` within an agent is a failure like any other; the next attempt removes the traceback."""
    found = bench(tmp_path, f"{broken}:Exit", f"{broken}:Learn", f"{broken}:train")
    assert {failed.cell.agent for failed in found.failed} == {"Exit", "Learn"}
    assert [r["agent"] for r in found.records if r["kind"] == "run"] == ["train"]
    file = tmp_path / "out" / Cell("TokenMDP-v0", "Learn").path / "error.txt"
    assert "in deep" in file.read_text() and any(str(file) in failed.error for failed in found.failed)
    (tmp_path / "broken.py").write_text(BROKEN.replace("self.deep()", "pass"))
    assert not bench(tmp_path, f"{broken}:Learn").failed and not file.exists()


def test_a_trial_that_is_done_later_changes_the_runs_that_took_another_rate(broken, tmp_path):
    """Trial 1 fails at first, so the run takes the rate of trial 0; in the second call it turns out to be better."""
    (tmp_path / "fails").touch()
    agents = [{"agent": f"{broken}:Spoils", "label": "spoils"}]

    def rates(found):
        return {(r["kind"], r["trial"]): r["learning_rate"] for r in found.records if r["kind"] in ("run", "trial")}

    first = bench(tmp_path, *agents, tune=2)
    assert [failure.cell.trial for failure in first.failed] == [1]
    assert rates(first) == {("trial", 0): 0.1, ("run", None): 0.1}
    still = bench(tmp_path, *agents, tune=2)
    assert rates(still) == rates(first) and still.records == first.records and len(still.failed) == 1
    (tmp_path / "fails").unlink()
    said = []
    second = run_bench(first.settings, tmp_path / "out", say=said.append)
    assert not second.failed and said[-1].startswith("[4/4]")
    best = pytest.approx(0.3)
    assert rates(second) == {("trial", 0): 0.1, ("trial", 1): best, ("run", None): best}
    trials = [r["metrics"]["J"]["mean"] for r in second.records if r["kind"] == "trial"]
    assert trials[0] < trials[1]
    assert bench(tmp_path, *agents, tune=2).records == second.records


def test_a_run_that_began_without_a_trial_begins_again(tmp_path):
    settings = BenchSettings.of({**TINY, "agents": [{"agent": "rloo", **SMALL}, "reinforce"], "tune": 1})
    cells = [Cell(settings.tasks[0].label, agent) for agent in ("rloo", "reinforce")]
    begun = [tmp_path / cell.path / "checkpoints" / "000000008" for cell in cells]
    for folder in begun:
        write_folder(folder, lambda new: (new / "weights").write_text("of another rate"))
    run_cell(settings, replace(cells[0], trial=0), tmp_path)
    assert not begun[0].exists() and begun[1].exists()


def test_a_label_that_no_task_has_is_named(tmp_path):
    settings = BenchSettings.of({**TINY, "agents": [{"agent": "rloo", **SMALL}]})
    with pytest.raises(ConfigurationError, match=r"no task is called 'Other': .*TokenMDP-v0"):
        run_bench(settings, tmp_path / "out", only=["Other"])
    assert not (tmp_path / "out" / "bench.yaml").exists()


def test_records_of_another_commit_are_told(broken, tmp_path):
    agent = f"{broken}:Learn"
    (tmp_path / "broken.py").write_text(BROKEN.replace("self.deep()", "pass"))
    found = bench(tmp_path, agent)
    said = []
    run_bench(found.settings, tmp_path / "out", say=said.append)
    assert not any("comparable" in line for line in said)
    path = tmp_path / "out" / Cell(found.settings.tasks[0].label, "Learn").path / "record.json"
    content = json.loads(path.read_text())
    content["records"][0]["commit"] = "0123456789abcdef"
    path.write_text(json.dumps(content))
    run_bench(found.settings, tmp_path / "out", say=said.append)
    assert any("commit 0123456789ab: runs of one agent" in line for line in said)


def test_options_may_change_until_the_agent_has_begun(broken, tmp_path):
    bench(tmp_path, {"agent": f"{broken}:Learn", "rate": 0.5})
    found = bench(tmp_path, {"agent": f"{broken}:Learn", "rate": 0.7}, {"agent": "rloo", **SMALL})
    assert found.settings.agent("Learn").options == {"rate": 0.7}
    assert read_settings(tmp_path / "out" / "bench.yaml") == found.settings
    with pytest.raises(ConfigurationError, match="the agent rloo has other options"):
        bench(tmp_path, {"agent": "rloo", **SMALL, "learning_rate": 0.5})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "no records"),
        ('{"records": 3}', "no records"),
        ('{"records": []}', "no records"),
        ('{"records": [3]}', "no JSON object"),
        ('{"records": [{"schema": 1}]}', "kind is None"),
        ('{"records": [NaN]}', "NaN is no JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_record_of_a_cell_is_named(text, reason, tmp_path):
    cell = Cell("TokenMDP-v0", "rloo")
    path = tmp_path / cell.path / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(CheckpointCorruptError, match=f"{reason}.*remove it, and the cell is run again"):
        read_cell(tmp_path, cell)


def test_the_record_of_another_cell_is_not_taken(tmp_path):
    """A folder that was copied to the place of another seed."""
    bench(tmp_path, {"agent": "rloo", **SMALL})
    first, second = (tmp_path / "out" / Cell("TokenMDP-v0", "rloo", seed).path for seed in (0, 1))
    second.mkdir()
    (second / "record.json").write_text((first / "record.json").read_text())
    with pytest.raises(CheckpointCorruptError, match="another cell"):
        bench(tmp_path, {"agent": "rloo", **SMALL}, seeds=2)


def test_a_task_without_a_kl_penalty_has_baselines_and_no_ceiling(tmp_path, model_folder):
    (tmp_path / "free.py").write_text(
        "from lm_env.tasks import TextTask\n"
        "def task():\n"
        "    return TextTask(id='me/Free-v0', summary='s', source=['a b', 'b c', 'c d', 'd e'], beta=0.0,\n"
        f"        reward=lambda prompts, responses: [len(r) for r in responses], model={str(model_folder)!r},"
        " max_new_tokens=4)\n"
    )
    found = bench(tmp_path, {"agent": "rloo", **SMALL}, tasks=[{"task": f"{tmp_path / 'free.py'}:task", "label": "f"}])
    assert not found.failed
    (table,) = summarize_records(found.records).tables
    assert table.ceiling is None and [row.agent for row in table.rows][-1] == "rloo" and len(table.rows) == 5
    assert table.row("rloo").metrics["J"] == table.row("rloo").metrics["score"]


def test_a_model_of_ones_own_task_stands_beside_its_agents(tmp_path, model_folder):
    """`lm-env bench` and `lm-env evaluate` give a task that is a function in a file the same name, its id."""
    (tmp_path / "own.py").write_text(
        "from lm_env.tasks import TextTask\n"
        "def task():\n"
        "    return TextTask(id='me/Own-v0', summary='s', source=['a b', 'b c', 'c d', 'd e'], max_new_tokens=4,\n"
        f"        reward=lambda prompts, responses: [len(r) / 9 for r in responses], model={str(model_folder)!r})\n"
    )
    name = f"{tmp_path / 'own.py'}:task"
    records = bench(tmp_path, {"agent": "rloo", **SMALL}, tasks=[name]).records
    elsewhere = evaluate_model(name, model_folder, label="mine", prompts=128, texts=8, ceiling_samples=None)
    (table,) = summarize_records(merge_records([("a", records), ("b", elsewhere)])).tables
    assert table.task == "me/Own-v0" and table.row("mine") is not None and table.row("rloo") is not None


def test_a_model_is_not_called_like_a_baseline(tmp_path):
    done = CliRunner().invoke(app, ["evaluate", TASK, "--model", "reviews-3m", "--label", "reference"])
    assert isinstance(done.exception, ConfigurationError) and "--label" in str(done.exception)


@pytest.mark.parametrize("name", ["score", "kl", "J", "distinct_1", "length"])
def test_a_metric_of_a_task_takes_no_others_name(name):
    with pytest.raises(ConfigurationError, match=f"{name} is measured of every task"):
        TextTask(id="me/M-v0", summary="s", source=["a"], reward=None, metrics={name: len})


def test_a_metric_that_fails_is_named():
    """It is called like a reward function, and is none."""
    text_task = TextTask(
        id="me/M-v0", summary="s", source=["a b"], reward=None, metrics={"mine": lambda prompts, responses: [1.0]}
    )
    prompts = list(get_task(TASK).task("test").prompts)
    with pytest.raises(RewardValueError, match=r"the metric mine of me/M-v0.* 2 responses"):
        text_task.measure(prompts * 2, ["x", "y"])


def test_a_name_between_colons_is_no_emoji(capsys):
    console.say("", "file.py:star: ceiling and baselines")
    assert "file.py:star:" in capsys.readouterr().out
