"""The runner: the same results however the work is cut, killed and spread over processes; baselines and tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lm_env.benchmark import BenchSettings, comparable, quick_settings, read_records, read_settings, run_bench
from lm_env.benchmark.measures.baselines import ceiling_of, exact_optimum, random_texts, without_training
from lm_env.benchmark.measures.measuring import measure
from lm_env.benchmark.results import summarize_records
from lm_env.benchmark.settings import Cell
from lm_env.benchmark.trained_elsewhere import evaluate_model
from lm_env.cli import app
from lm_env.envs import TextGenerationEnv
from lm_env.errors import ConfigurationError, LogReadError, RunLockedError
from lm_env.generation import LocalBackend
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import measure_episodes
from lm_env.storage import FileLock, checkpoints_in
from lm_env.tasks import get_task
from lm_env.theory import TokenMDP

TINY = {
    "tokens": 120,
    "seeds": 2,
    "evaluations": 3,
    "curve_texts": 6,
    "prompts": 4,
    "texts": 8,
    "ceiling_samples": 16,
    "ceiling_most": 16,
}
SMALL_STEPS = {"rollout_episodes": 8, "batch_size": 8, "learning_rate": 1e-3}

TASK = '''
"""A task of one's own whose reward ends its process once, at the call that the file `kill` names."""
import os, signal
from pathlib import Path
from lm_env.tasks import TextTask

HERE = Path(__file__).parent
calls = []

def vowels(prompts, responses):
    calls.append(1)
    mark = HERE / "kill"
    if mark.exists() and len(calls) == int(mark.read_text()):
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return [sum(c in "aeiou" for c in r) / (1 + len(r)) for r in responses]

def task():
    prompts = [f"{{word}} {{n}}" for word in ("good", "film", "story") for n in range(6)]
    return TextTask(
        id="me/Vowels-v0", summary="write vowels", source=prompts, reward=vowels, model={model!r}, max_new_tokens=5,
        beta=0.05, metrics={{"words": lambda prompts, responses: [len(r.split()) for r in responses]}},
    )
'''


@pytest.fixture
def own_task(tmp_path, model_folder):
    path = tmp_path / "vowels.py"
    path.write_text(TASK.format(model=str(model_folder)))
    return f"{path}:task"


@pytest.fixture
def settings(own_task):
    return BenchSettings.of(
        {
            "tasks": [{"task": own_task, "label": "vowels"}],
            "agents": [
                {"agent": "rloo", **SMALL_STEPS},
                {"agent": "sb3-ppo", "n_steps": 4, "num_envs": 4, "batch_size": 16},
            ],
            **TINY,
        }
    )


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(settings, tmp_path):
    """Two processes, one of them killed in the middle of a training, give what one untouched process gives."""
    whole = run_bench(settings, tmp_path / "whole")
    assert not whole.failed
    (tmp_path / "kill").write_text("12")
    broken = run_bench(settings, tmp_path / "killed", processes=2)
    assert len(broken.failed) == 1 and not (tmp_path / "kill").exists()
    cell = broken.failed[0].cell
    assert "killed" in broken.failed[0].error
    assert (tmp_path / "killed" / cell.path).is_dir() or cell.agent == "baselines"
    mended = run_bench(settings, tmp_path / "killed")
    assert not mended.failed
    assert comparable(mended.records) == comparable(whole.records) == comparable(read_records(whole.results))
    assert [r["kind"] for r in whole.records] == ["ceiling"] + ["baseline"] * 4 + ["run"] * 4


def test_a_killed_training_goes_on_from_its_checkpoint(settings, tmp_path):
    """A killed run leaves a checkpoint in the middle, and what goes on from it has the same curve."""
    from lm_env.benchmark.cells import run_cell

    cell = Cell("vowels", "rloo", 1)
    whole = run_cell(settings, cell, tmp_path / "whole")

    class Killed(BaseException):
        pass

    from lm_env.benchmark.measures.curve import LearningCurve

    looked = LearningCurve.add_point

    def look(self, tokens):
        if tokens > 60:
            raise Killed
        looked(self, tokens)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(LearningCurve, "add_point", look)
        run_cell(settings, cell, tmp_path / "killed")
    left = checkpoints_in(tmp_path / "killed" / cell.path / "checkpoints")
    assert left and not (tmp_path / "killed" / cell.path / "record.json").exists()
    resumed = run_cell(settings, cell, tmp_path / "killed")
    assert comparable(resumed) == comparable(whole)
    assert [point["tokens"] for point in resumed[0]["curve"]] == sorted({p["tokens"] for p in whole[0]["curve"]})


def test_what_is_done_is_not_done_again_and_more_may_be_added(settings, tmp_path):
    one = BenchSettings.of({**settings.as_options(), "agents": settings.as_options()["agents"][:1], "seeds": 1})
    first = run_bench(one, tmp_path / "out")
    times = {r["agent"]: r["finished"] for r in first.records if r["kind"] == "run"}
    record = tmp_path / "out" / Cell("vowels", "rloo", 0).path / "record.json"
    stamp = record.stat().st_mtime_ns
    more = run_bench(settings, tmp_path / "out")
    assert record.stat().st_mtime_ns == stamp and times.keys() == {"rloo"}
    assert [(r["agent"], r["seed"]) for r in more.records if r["kind"] == "run"] == [
        ("rloo", 0),
        ("rloo", 1),
        ("sb3-ppo", 0),
        ("sb3-ppo", 1),
    ]
    with pytest.raises(ConfigurationError, match=r"tokens is 120 .* and 130 here"):
        run_bench(BenchSettings.of({**settings.as_options(), "tokens": 130}), tmp_path / "out")
    lock = FileLock(tmp_path / "out" / ".lock", tmp_path / "out")
    with pytest.raises(RunLockedError):
        run_bench(settings, tmp_path / "out")
    lock.release()


def test_only_the_tasks_that_are_named_are_run(settings, tmp_path, model_folder):
    """Those of an earlier call stay in the folder, and what is not done of them waits."""
    (tmp_path / "other.py").write_text(TASK.format(model=str(model_folder)).replace("me/Vowels", "me/Other"))
    content = {**settings.as_options(), "agents": settings.as_options()["agents"][:1], "seeds": 1}
    earlier = BenchSettings.of(content)
    other = BenchSettings.of({**content, "tasks": [{"task": f"{tmp_path / 'other.py'}:task", "label": "other"}]})
    out = tmp_path / "out"
    begun = run_bench(earlier, out, only=[])
    assert not begun.records, "nothing of the first task is done yet"
    said: list[str] = []
    found = run_bench(other, out, only=["other"], say=said.append)
    assert {record["task"] for record in found.records} == {"other"}
    assert [task.label for task in found.settings.tasks] == ["vowels", "other"], "it still belongs to the benchmark"
    assert said[0].startswith("2 cells, 0 of them done")


def test_a_task_may_have_a_number_of_seeds_of_its_own(settings, own_task, tmp_path):
    """It counts for that task alone, goes through the file of settings, and may grow like the seeds of all."""

    def cells(of):
        runs = [(cell.task, cell.seed) for cell in of.cells() if cell.agent == "rloo"]
        return {task: sorted(seed for t, seed in runs if t == task) for task, _ in runs}

    base = {**settings.as_options(), "agents": settings.as_options()["agents"][:1], "seeds": 1, "tokens": 8}
    two = [{"task": own_task, "label": "vowels"}, {"task": own_task, "label": "more", "seeds": 2}]
    first = run_bench(BenchSettings.of({**base, "tasks": two[:1]}), tmp_path / "out")
    assert cells(first.settings) == {"vowels": [0]}
    both = run_bench(BenchSettings.of({**base, "tasks": two}), tmp_path / "out")
    assert not both.failed and cells(read_settings(tmp_path / "out" / "bench.yaml")) == {"vowels": [0], "more": [0, 1]}
    grown = BenchSettings.of({**base, "tasks": [{**two[0], "seeds": 2}], "seeds": 1})
    assert cells(run_bench(grown, tmp_path / "out").settings) == {"vowels": [0, 1], "more": [0, 1]}
    assert quick_settings(grown).tasks[0].seeds is None
    from lm_env.benchmark.commands import repeat_command, task_command

    assert "--config" in repeat_command(both.settings, "out")  # one task under two labels can only be told in a file
    assert "--only more" in task_command(both.settings, "more", "out")


def test_tuning_takes_the_rate_that_does_best_on_the_validation_prompts(settings, tmp_path):
    own = {**settings.as_options(), "agents": settings.as_options()["agents"][:1], "seeds": 1, "tune": 2}
    found = run_bench(BenchSettings.of(own), tmp_path / "out")
    trials = [r for r in found.records if r["kind"] == "trial"]
    assert [r["learning_rate"] for r in trials] == [1e-3, pytest.approx(3e-3)]
    best = max(trials, key=lambda r: r["metrics"]["J"]["mean"])
    (run,) = [r for r in found.records if r["kind"] == "run"]
    assert run["learning_rate"] == best["learning_rate"]
    shown = {sample["prompt"] for r in trials for sample in r["samples"]}
    assert shown == set(get_task(own["tasks"][0]["task"]).prompts("validation"))
    assert not shown & {sample["prompt"] for sample in run["samples"]}


def test_own_agents_take_part(settings, tmp_path):
    """A class with `learn`, a function, and a subclass of BatchedAgent."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from agents import RLOO\n"
        "class Batched(RLOO):\n    '''One of our own.'''\n"
        "class Plain:\n"
        "    def __init__(self, env, seed, learning_rate=0.1):\n        self.env, self.num_timesteps = env, 0\n"
        "    def learn(self, timesteps):\n"
        "        self.num_timesteps = timesteps\n"
        "        with torch.no_grad():\n"
        "            for p in self.env.unwrapped.task.model.parameters(): p.mul_(1.01)\n"
        "def train(env, timesteps, seed):\n"
        "    assert env.num_envs == 32\n"
    )
    names = ("Batched", "Plain", "train")
    agents = [{"agent": f"{tmp_path / 'mine.py'}:{name}"} for name in names]
    agents[0] |= SMALL_STEPS
    own = BenchSettings.of({**settings.as_options(), "agents": agents, "seeds": 1})
    found = run_bench(own, tmp_path / "out")
    assert not found.failed
    runs = {r["agent"]: r for r in found.records if r["kind"] == "run"}
    assert set(runs) == set(names)
    assert runs["Batched"]["exact_resume"] and not runs["Plain"]["exact_resume"]
    assert len(runs["Batched"]["curve"]) > 2 and [p["tokens"] for p in runs["Plain"]["curve"]] == [0, 120]
    assert runs["Plain"]["metrics"]["kl"]["mean"] > 0 and abs(runs["train"]["metrics"]["kl"]["mean"]) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agents": ["no-such-agent"]}, "there is no agent 'no-such-agent'.*choose from a2c"),
        ({"agents": ["rlo"]}, "did you mean 'rloo'"),
        ({"agents": [{"agent": "rloo", "no_option": 1}]}, "no_option"),
        ({"agents": ["rloo", "rloo"]}, "two agents are called rloo"),
        ({"tasks": ["lm_env/Nothing-v0"]}, "Nothing"),
        ({"tune": 99}, "tune must be at most"),
        ({"no_setting": 1}, "no_setting"),
        ({"agents": [{"agent": "rloo", "seed": 3}]}, "seed"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(change, message, settings, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        run_bench(BenchSettings.of({**settings.as_options(), **change}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_go_through_their_file(settings, tmp_path):
    run_bench(BenchSettings.of({**settings.as_options(), "seeds": 1, "tokens": 8}), tmp_path / "out")
    again = read_settings(tmp_path / "out" / "bench.yaml")
    assert again == BenchSettings.of({**settings.as_options(), "seeds": 1, "tokens": 8})
    assert quick_settings(again).seeds == 1
    (tmp_path / "bad.yaml").write_text("tasks: 3")
    with pytest.raises(ConfigurationError, match="tasks must be a list"):
        read_settings(tmp_path / "bad.yaml")


# -- what is measured ---------------------------------------------------------------------------------
def test_the_baselines_of_an_enumerable_task_are_its_closed_forms():
    """Reference, best-of-4 and random tokens on T0 within four standard errors of what the enumeration says."""
    mdp, task = TokenMDP.t0(), get_task("lm_env/TokenMDP-v0").task("test")
    rows = without_training(task, list(task.prompts), 600, seed=0)
    logprobs = mdp.trajectory_logprobs(mdp.reference_model())
    probs, scores = np.exp(logprobs), mdp.scores()
    levels = np.unique(scores)
    below = np.array([probs[scores <= level].sum() for level in levels])
    best = levels @ np.diff(np.concatenate([[0.0], below**4]))
    for name, exact in (("reference", probs @ scores), ("best-of-4", best)):
        found = rows[name]["metrics"]["score"]
        assert abs(found["mean"] - exact) < 4 * found["se"], name
    uniform = torch.zeros(mdp.vocab_size)
    steps = np.log(torch.softmax(uniform, 0).numpy()[0])
    lengths = mdp.trajectories()[1]
    weights = np.exp(steps * lengths)
    assert weights.sum() == pytest.approx(1)
    found = rows["random"]["metrics"]
    assert abs(found["score"]["mean"] - weights @ scores) < 4 * found["score"]["se"]
    exact_kl = float(weights @ (steps * lengths - logprobs))
    assert abs(found["kl"]["mean"] - exact_kl) < 4 * found["kl"]["se"]
    assert rows["best-of-16"]["inference_tokens"] == pytest.approx(16 * rows["reference"]["inference_tokens"], rel=0.1)


def test_the_ceiling_of_an_enumerable_task_is_its_optimum():
    text_task = get_task("lm_env/TokenMDP-v0")
    task = text_task.task("test")
    exact = TokenMDP.t0().optimum(task.kl.beta)
    options = {"samples": 4096, "seed": 0, "highest": None}
    estimated = ceiling_of(task, list(task.prompts), **options)
    assert estimated["J"]["mean"] == pytest.approx(exact.J, abs=0.04) and not estimated["exact"]
    assert estimated["KL"]["mean"] == pytest.approx(exact.KL, abs=0.1)
    found = ceiling_of(task, list(task.prompts), **options, optimum=exact_optimum(text_task, 5))
    assert found["J"]["mean"] == pytest.approx(exact.J, rel=1e-6) and found["exact"] and not found["doubts"]


def test_measures_are_those_of_their_definitions(own_task):
    text_task = get_task(own_task)
    task = text_task.task("test")
    with torch.no_grad():
        for p in task.model.parameters():
            p.mul_(1.05)
    prompts = list(task.prompts)[:2]
    found = measure(task, LocalBackend(task), prompts, 3, seed=1)
    metrics = found["metrics"]
    from lm_env.benchmark.measures.measuring import sample_texts

    episodes = sample_texts(task, LocalBackend(task), prompts, 3, seed=1).episodes
    full = measure_episodes(task, episodes)
    assert metrics["kl"]["mean"] == pytest.approx(full["full"].mean(), rel=1e-5)
    assert metrics["kl_k1"]["mean"] == pytest.approx(full["k1"].mean(), rel=1e-4)
    lengths = episodes.response_lengths
    assert metrics["kl_per_token"]["mean"] == pytest.approx(full["full"].sum() / lengths.sum(), rel=1e-5)
    assert metrics["J"]["mean"] == pytest.approx(metrics["score"]["mean"] - 0.05 * metrics["kl"]["mean"], abs=1e-6)
    assert np.mean(found["by_prompt"]["J"]) == pytest.approx(metrics["J"]["mean"], abs=1e-6)
    assert found["texts"] == 6 and len(found["samples"]) == 2


def test_random_tokens_end_where_the_task_says(own_task):
    task = get_task(own_task).task("test")
    written = random_texts(task, list(task.prompts)[:2], 40, seed=0)
    ended, capped = task.ends(written.episodes.input_ids, written.episodes.prompt_lengths, written.episodes.lengths)
    assert (ended | capped).all()
    assert math.isfinite(written.kl.mean())


def test_random_tokens_are_those_that_the_task_allows(id_task):
    """Three tokens may come first and five later; the k1 estimate is of the policy that draws among these."""

    def allowed(prompt, response):
        return np.arange(61) < (3 if len(response) == 0 else 5)

    task = TextGenerationEnv(**id_task(action_mask=allowed, max_new_tokens=4)).task
    written = random_texts(task, list(task.prompts)[:1], 60, seed=0)
    responses = written.episodes.responses()
    assert {r[0] for r in responses} == {0, 1, 2} and {i for r in responses for i in r[1:]} == {0, 1, 2, 3, 4}
    assert all(0 not in r[:-1] and (len(r) == 4 or r[-1] == 0) for r in responses)
    drawn = np.array([-math.log(3) - math.log(5) * (len(r) - 1) for r in responses])
    reference = response_logprobs(task.reference, written.episodes, task.temperature)
    expected = drawn - np.where(written.episodes.response_mask(), reference, 0).sum(1)
    np.testing.assert_allclose(written.k1, expected, rtol=1e-5)


# -- the commands -----------------------------------------------------------------------------------------
def invoke(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"NO_COLOR": "1", "COLUMNS": "200"})


def test_the_commands_from_a_benchmark_to_a_leaderboard(settings, tmp_path):
    """A kept policy, measured from its folder, gives the very numbers of its run."""
    import yaml

    own = settings.as_options()
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump({**own, "agents": own["agents"][:1]}))
    out = tmp_path / "out"
    done = invoke("bench", "--config", tmp_path / "bench.yaml", "--out", out, "--processes", 1, "--keep-policies")
    assert done.exit_code == 0, done.output
    assert all((out / f"results.{kind}").stat().st_size > 1000 for kind in ("jsonl", "md", "png", "html"))
    page = (out / "results.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert "Attained share over seconds" in page and "Score over KL" in page and "lm-env bench" in page
    policy = out / Cell("vowels", "rloo", 0).path / "policy"
    run = next(r for r in read_records(out / "results.jsonl") if r["kind"] == "run" and r["seed"] == 0)
    assert "model-index" in (policy / "README.md").read_text()
    elsewhere = evaluate_model(own["tasks"][0]["task"], policy, label="again", prompts=4, texts=8, ceiling_samples=None)
    assert elsewhere[-1]["metrics"]["score"] == run["metrics"]["score"]
    assert elsewhere[-1]["metrics"]["kl"]["mean"] == pytest.approx(run["metrics"]["kl"]["mean"], rel=1e-4)
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps({**r, "task": "vowels", "model": run["model"]}) + "\n" for r in elsewhere)
    )
    board = invoke("leaderboard", out, tmp_path / "more.jsonl")
    assert board.exit_code == 0 and "| again |" in board.output and "**rloo**" in board.output


def test_a_leaderboard_keeps_apart_what_was_measured_differently(settings, tmp_path):
    from lm_env.benchmark.results import merge_records

    base = BenchSettings.of({**settings.as_options(), "agents": settings.as_options()["agents"][:1], "seeds": 1})
    records = run_bench(base, tmp_path / "a").records
    other = [{**r, "texts": 16} if "texts" in r else r for r in records]
    assert merge_records([("a", records), ("b", records)]) == merge_records([("a", records)])
    tables = summarize_records(merge_records([("a", records), ("b", other)])).tables
    assert len(tables) == 2 and all(table.ceiling is not None for table in tables)
    changed = [{**r, "tokens": 1} if r["kind"] == "run" else r for r in records]
    (table,) = summarize_records(merge_records([("a", records), ("b", changed)])).tables
    assert [row.agent for row in table.rows if row.trained] == ["rloo", "rloo (b)"]


def test_a_damaged_file_of_records_is_named(tmp_path):
    path = Path(tmp_path / "x.jsonl")
    path.write_text('\n{"sch')
    with pytest.raises(LogReadError, match="line 2"):
        read_records(path)
    path.write_text('{"schema": 99}\n')
    with pytest.raises(LogReadError, match="line 1"):
        read_records(path)
