"""Weights & Biases and MLflow as outputs of the log: what is sent, and that nothing of them ends a training."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
from stable_baselines3.common.logger import KVWriter

from agents import PPO
from agents.run.trackers import MLflowWriter, WandbWriter, flat, mlflow_name
from lm_env.errors import ConfigurationError, MissingDependencyError, RunLockedError
from lm_env.tasks.token_mdp import make

SMALL = {"rollout_episodes": 16, "slots": 8, "batch_size": 8, "n_epochs": 1}


class WandbRun:
    """As much of a run of wandb as is used."""

    def __init__(self, down: bool = False) -> None:
        self.rows: list[dict] = []
        self.settings: dict = {}
        self.summary: dict = {}
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.settings.update(values))
        self.ended = 0
        self.down = down

    def define_metric(self, *names, **options) -> None:
        pass

    def log(self, values) -> None:
        if self.down:
            raise ConnectionError("the service is down")
        self.rows.append(values)

    def finish(self) -> None:
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch):
    module = ModuleType("wandb")
    module.run = None
    module.made = WandbRun()
    module.init = lambda **options: module.made
    module.Table = lambda columns, data: (columns, data)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_numbers_settings_and_texts(wandb):
    agent = PPO(make(), log_to="wandb", seed=4, **SMALL).learn(100)
    agent.logger.close()
    rows = [row for row in wandb.made.rows if "rollout/score" in row]
    assert [row["time/total_timesteps"] for row in rows][-1] == agent.num_timesteps
    assert len(rows) == agent.num_rollouts and all(isinstance(v, float | int) for row in rows for v in row.values())
    assert wandb.made.settings["config"]["seed"] == 4
    columns, data = next(row["samples"] for row in wandb.made.rows if "samples" in row)
    assert columns[:3] == ["timesteps", "prompt", "response"] and data[0][0] == 0
    assert wandb.made.ended == 1


def test_a_run_that_is_under_way_is_used_and_not_ended(wandb):
    wandb.run = WandbRun()
    PPO(make(), log_to=("wandb",), **SMALL).learn(20).logger.close()
    assert wandb.run.rows and not wandb.made.rows and wandb.run.ended == 0


def test_a_service_that_is_down_does_not_end_the_training(wandb, caplog):
    wandb.made.down = True
    with caplog.at_level(logging.WARNING):
        agent = PPO(make(), log_to="wandb", **SMALL).learn(100)
    assert agent.num_timesteps >= 100
    told = [r.getMessage() for r in caplog.records if "did not take" in r.getMessage()]
    assert len(told) == 1 and "the service is down" in told[0]


def test_a_run_that_cannot_begin_is_an_error_at_once(wandb):
    def refuse(**options):
        raise RuntimeError("no API key configured")

    wandb.init = refuse
    with pytest.raises(ConfigurationError, match=r"no API key configured.*WANDB_MODE=offline"):
        WandbWriter(project="mine")


def test_no_run_begins_where_another_agent_writes_its_log(wandb, tmp_path):
    """An open run would be taken for one that is under way by the next agent, and never end."""
    first = PPO(make(), log_dir=tmp_path, **SMALL)
    begun = []
    wandb.init = lambda **options: begun.append(1)
    with pytest.raises(RunLockedError):
        PPO(make(), log_dir=tmp_path, log_to="wandb", **SMALL)
    assert not begun
    first.logger.close()


def test_a_tracker_that_cannot_begin_ends_what_has_begun_before_it(wandb, tmp_path):
    own = KVWriter()
    own.close = lambda: pytest.fail("an output of one's own is not closed")
    with pytest.raises(ConfigurationError, match="log_to takes") as caught:
        PPO(make(), log_dir=tmp_path, log_to=[own, "wandb", "tensorbored"], **SMALL)
    assert wandb.made.ended == 1
    PPO(make(), log_dir=tmp_path, **SMALL).logger.close()  # the folder is free, though the error is still held
    del caught


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_the_remedy(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'lm-env\[{name}\]'"):
        PPO(make(), log_to=name, **SMALL)


def test_an_unknown_tracker():
    with pytest.raises(ConfigurationError, match="log_to takes 'wandb', 'mlflow' or outputs"):
        PPO(make(), log_to="tensorbored", **SMALL)


def test_an_output_of_ones_own_gets_the_log():
    class Mine(KVWriter):
        rows: list[dict] = []  # noqa: RUF012

        def write(self, key_values, key_excluded, step=0):
            self.rows.append(dict(key_values))

        def close(self):
            pass

    agent = PPO(make(), log_to=Mine(), **SMALL).learn(60)
    assert [row["time/total_timesteps"] for row in Mine.rows][-1] == agent.num_timesteps


def test_mlflow_gets_numbers_settings_and_texts(monkeypatch):
    sent: dict[str, list] = {"metrics": [], "params": [], "texts": []}
    module = ModuleType("mlflow")
    module.active_run = lambda: None
    module.start_run = lambda **options: SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    module.end_run = lambda: sent.update(ended=True)
    module.get_run = lambda run_id: SimpleNamespace(data=SimpleNamespace(params={"seed": "7"}))
    module.log_metrics = lambda values, step, run_id: sent["metrics"].append((step, values))
    module.log_params = lambda values, run_id: sent["params"].append(values)
    module.log_text = lambda text, name, run_id: sent["texts"].append(name)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    agent = PPO(make(), log_to=[MLflowWriter(run_name="mine")], **SMALL).learn(60)
    agent.logger.close()
    assert sent["metrics"][-1][0] == agent.num_timesteps and "rollout/score" in sent["metrics"][-1][1]
    assert sent["params"][0]["config.batch_size"] == "8" and "seed" not in sent["params"][0]  # it is there already
    assert {"run.json", "samples/000000000000.jsonl"} <= set(sent["texts"]) and sent["ended"]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("rollout/score", "rollout/score"),
        ("rollout/score/Length", "rollout/score.Length"),
        ("rollout/score/<lambda>", "rollout/score._lambda_"),
        ("plain", "plain"),
    ],
)
def test_names_as_mlflow_takes_them(name, taken):
    assert mlflow_name(name) == taken


def test_nested_settings_become_flat():
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}
