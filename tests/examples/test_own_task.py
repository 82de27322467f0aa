"""The day with a task of one's own, in its short form: tuned, trained, stopped twice, gone on with, read by others."""

from __future__ import annotations

import own_task
import pytest

from lm_env.runs import RunFolder


def test_the_reward_checks_the_sum(tmp_path):
    own_task.write_task(tmp_path, shown=3)
    names: dict = {}
    exec(own_task.REWARD, names)
    assert names["right"](["", "", ""], [" 12", "12.", "no 3, 12"], answer=[12, 12, 12]) == [1.0, 1.0, 0.0]
    assert len((tmp_path / "sums.jsonl").read_text().splitlines()) == 100
    assert len((tmp_path / "demonstrations.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_the_day_in_its_short_form(tmp_path, model_folder, monkeypatch):
    found = own_task.day(model_folder, tmp_path / "day", 0, timesteps=6000, epochs=1, episodes=32, held_out=0.2)
    run = RunFolder(tmp_path / "day" / "run")
    assert found[0]["timesteps"] == 0 and found[-1]["timesteps"] >= 6000 and found[-1]["kl"] > 0
    steps = [float(row["time/total_timesteps"]) for row in run.log_rows() if row["rollout/score"]]
    assert steps == sorted(set(steps)), "each rollout is in the log once, though the run was stopped twice"
    assert run.config.read_text().count("command:") == 3
