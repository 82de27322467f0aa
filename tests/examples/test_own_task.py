"""The day with a task of one's own, in its short form: tuned, trained, stopped twice, gone on with, read by others."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import own_task
import pytest
from commands import Command

from lm_env.runs import RunFolder

PLAN = own_task.PLANS["reviews-3m"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("plan", own_task.PLANS.values(), ids=own_task.PLANS)
def test_sequences_are_continued_and_none_held_out_is_shown(plan, tmp_path):
    own_task.write_task(tmp_path, plan)
    problems, held_out = (rows_of(tmp_path / f"{name}.jsonl") for name in ("problems", "held_out"))
    steps = set()
    for row in [*problems, *held_out]:
        numbers = [*map(int, row["prompt"].removesuffix(",").split(", ")), row["answer"]]
        (step,) = {b - a for a, b in itertools.pairwise(numbers)}
        steps.add(step)
    assert steps == set(range(1, plan.largest_step + 1))
    texts, kept = ({row["prompt"] for row in part} for part in (problems, held_out))
    assert not texts & kept and len(kept) > 60
    demonstrations = rows_of(tmp_path / "demonstrations.jsonl")
    answers = {row["prompt"]: row["answer"] for row in problems}
    assert len(demonstrations) == plan.shown
    assert all(row["response"] == f" {answers[row['prompt']]}," for row in demonstrations)


def test_the_reward_checks_the_number(tmp_path):
    names: dict = {}
    exec(own_task.REWARD, names)
    responses = [" 12", "12", " 12 ", " 123", " 12 and", " 1 2", ""]
    assert names["right"]([""] * 7, responses, answer=[12] * 7) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_day_in_its_short_form(tmp_path, model_folder, monkeypatch):
    """Every step of the day, with a model that is too small to learn anything of it."""
    monkeypatch.setattr(own_task, "lm_env", Command)
    plan = replace(PLAN, terms=(4,), shown=16, epochs=1, lora=2, episodes=16, timesteps=1000)
    found = own_task.run_all(model_folder, tmp_path / "day", 0, plan)
    run = RunFolder(tmp_path / "day" / "run")
    assert found["fine-tuned"].count == found["trained"].count == 24
    evaluations = run.evaluations()
    assert evaluations[0]["timesteps"] == 0 and evaluations[-1]["timesteps"] >= 1000 and evaluations[-1]["kl"] > 0
    steps = [float(row["time/total_timesteps"]) for row in run.log_rows() if row["rollout/score"]]
    assert steps == sorted(set(steps)), "each rollout is in the log once, though the run was stopped twice"
    assert run.config.read_text().count("command:") == 3 and run.report.exists()
