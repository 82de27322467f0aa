"""progress.csv is never truncated, goes on with a resumed run, and has one writer at a time."""

from __future__ import annotations

import csv
import os

import pytest

from agents import PPO
from agents.run.training_log import ProgressFile, make_logger
from lm_env.errors import CheckpointWriteError, RunLockedError
from lm_env.report.progress_table import read_progress
from lm_env.tasks.token_mdp import make

SMALL = {"rollout_episodes": 16, "slots": 8, "batch_size": 8, "n_epochs": 1}


def steps_in(file) -> list[int]:
    return [int(float(row["time/total_timesteps"])) for row in csv.DictReader(file.read_text().splitlines())]


def trained(log_dir, agent=None) -> PPO:
    agent = agent or PPO(make(), log_dir=log_dir, **SMALL)
    agent.learn(60, reset_num_timesteps=False)
    agent.logger.close()
    return agent


def test_the_log_of_a_resumed_run_goes_on(tmp_path):
    agent = trained(tmp_path / "log")
    before = (tmp_path / "log" / "progress.csv").read_text()
    again = PPO.load(agent.save(tmp_path / "agent"), make(), log_dir=tmp_path / "log")
    trained(tmp_path / "log", again)
    after = (tmp_path / "log" / "progress.csv").read_text()
    assert after.startswith(before) and len(after) > len(before)
    steps = steps_in(tmp_path / "log" / "progress.csv")
    assert steps == sorted(set(steps)) and steps[-1] == again.num_timesteps
    assert not [name for name in os.listdir(tmp_path / "log") if name.startswith("progress.1")]


def test_a_new_run_puts_the_log_of_another_aside(tmp_path):
    texts = []
    for _ in range(3):
        trained(tmp_path)
        texts.append((tmp_path / "progress.csv").read_text())
    kept = [(tmp_path / name).read_text() for name in ("progress.1.csv", "progress.2.csv", "progress.csv")]
    assert kept == texts


def test_an_agent_that_does_not_train_changes_nothing(tmp_path):
    trained(tmp_path)
    before = (tmp_path / "progress.csv").read_text()
    PPO(make(), log_dir=tmp_path, **SMALL).logger.close()
    assert (tmp_path / "progress.csv").read_text() == before


def test_a_file_that_is_no_log_is_put_aside(tmp_path):
    (tmp_path / "progress.csv").write_text("my,own\n1,2\n")
    log = ProgressFile(tmp_path)
    log.write({"time/total_timesteps": 3.0}, {"time/total_timesteps": ()})
    log.close()
    assert (tmp_path / "progress.1.csv").read_text() == "my,own\n1,2\n"
    assert steps_in(tmp_path / "progress.csv") == [3]


def test_new_columns_are_empty_in_the_lines_before(tmp_path):
    for values in ({"time/total_timesteps": 1.0, "b": 0.1}, {"time/total_timesteps": 2.0, "a": 'x,"y"'}):
        log = ProgressFile(tmp_path)
        log.write(values, {name: () for name in values})
        log.close()
    rows = list(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))
    assert [row["time/total_timesteps"] for row in rows] == ["1.0", "2.0"]
    assert [row["b"] for row in rows] == ["0.1", ""] and [row["a"] for row in rows] == ["", 'x,"y"']
    assert os.listdir(tmp_path) == ["progress.csv"]


def test_a_line_that_was_cut_off_ends_before_the_next_one(tmp_path):
    (tmp_path / "progress.csv").write_text("time/total_timesteps,a\n1,5\n2")
    log = ProgressFile(tmp_path)
    log.write({"time/total_timesteps": 3.0, "a": 7.0}, {"time/total_timesteps": (), "a": ()})
    log.close()
    assert (tmp_path / "progress.csv").read_text() == "time/total_timesteps,a\n1,5\n2\n3.0,7.0\n"


def test_a_log_whose_columns_have_odd_names_is_resumed_and_read(tmp_path):
    """A part of a reward may have any name; these characters end a line to `str.splitlines`, and not to a CSV file."""
    names = ["rollout/score/a\u2028b", "rollout/score/\x85", "time/total_timesteps"]
    for step in (1.0, 2.0):
        log = ProgressFile(tmp_path)
        log.write(dict.fromkeys(names, step), {name: () for name in names})
        log.close()
    assert os.listdir(tmp_path) == ["progress.csv"]
    found = read_progress(tmp_path / "progress.csv")
    assert {name: found.columns[name] for name in names} == {name: [1.0, 2.0] for name in names}


def test_two_writers_at_one_log(tmp_path):
    first = PPO(make(), log_dir=tmp_path, **SMALL)
    with pytest.raises(RunLockedError, match=r"agent\.logger\.close\(\)"):
        PPO(make(), log_dir=tmp_path, **SMALL)
    first.logger.close()
    second = PPO(make(), log_dir=tmp_path, **SMALL)
    del second  # nobody holds it: its log is free
    PPO(make(), log_dir=tmp_path, **SMALL).logger.close()


def test_a_training_that_failed_lets_others_write_its_log_and_takes_it_again(tmp_path):
    agent = PPO(make(), log_dir=tmp_path, **SMALL)
    with pytest.raises(ZeroDivisionError):
        agent.learn(60, lambda local, outside: 1 / 0)
    other = PPO(make(), log_dir=tmp_path, **SMALL)  # in a notebook the traceback still holds the first one
    with pytest.raises(RunLockedError):
        agent.learn(60)
    other.logger.close()
    trained(tmp_path, agent)
    assert steps_in(tmp_path / "progress.csv")[-1] == agent.num_timesteps


def test_tensorboards_files_of_another_run_are_put_aside_as_a_run_of_their_own(tmp_path):
    pytest.importorskip("tensorboard")
    trained(tmp_path)
    (first,) = [path.name for path in tmp_path.glob("events.out.*")]
    trained(tmp_path)
    assert [path.name for path in (tmp_path / "tensorboard.1").iterdir()] == [first]
    assert len(list(tmp_path.glob("events.out.*"))) == 1 and not (tmp_path / first).exists()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    (tmp_path / ".progress.lock").write_text("lock of lm_env, process 1 on elsewhere\n")
    make_logger(0, tmp_path).close()
    assert ".progress.lock" not in os.listdir(tmp_path)


def test_a_log_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match=r"cannot write the log to .*choose another log_dir"):
        PPO(make(), log_dir=tmp_path / "file" / "log", **SMALL)
