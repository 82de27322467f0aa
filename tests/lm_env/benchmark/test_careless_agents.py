"""Agents of a user's own that change more than the weights of the model: no other cell is changed by them."""

from __future__ import annotations

import os
import sys
import warnings

import numpy as np
import pytest
import torch
from tiny_bench import TINY

from lm_env.benchmark import BenchSettings, run_bench
from lm_env.benchmark.process_settings import keep_process_settings
from lm_env.benchmark.records import comparable
from lm_env.errors import ConfigurationError

RLOO = {"agent": "rloo", "rollout_episodes": 8, "batch_size": 8}
CARELESS = """
import os, sys, warnings
import numpy as np
import torch

torch.set_default_dtype(torch.float64)
torch.set_num_threads(3)

class Agent:
    def __init__(self, env, seed):
        self.task = env.unwrapped.task
        torch.use_deterministic_algorithms(True)

class Process(Agent):
    def learn(self, timesteps):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        torch.set_num_threads(2)
        warnings.simplefilter("error")
        np.seterr(all="raise")
        os.chdir("/")
        sys.stdout = None

class Reference(Agent):
    def learn(self, timesteps):
        with torch.no_grad():
            for weights in self.task.reference.parameters():
                weights += 0.1

class Beta(Agent):
    def learn(self, timesteps):
        self.task.kl.beta = 0.0

class Reward(Agent):
    def learn(self, timesteps):
        self.task.reward = lambda prompts, responses: [1.0] * len(responses)

class Temperature(Agent):
    def learn(self, timesteps):
        self.task.temperature = 0.1

class Replaced(Agent):
    def learn(self, timesteps):
        import copy
        self.task.model = copy.deepcopy(self.task.model)

class Negative(Agent):
    num_timesteps = -1
    def learn(self, timesteps): pass

class Uncountable(Agent):
    num_timesteps = float("nan")
    def learn(self, timesteps): pass

class Generator(Agent):
    def learn(self, timesteps): yield

class Coroutine(Agent):
    async def learn(self, timesteps): pass

class NoTokens(Agent):
    def learn(self): pass

def generator(env, timesteps, seed): yield
"""


@pytest.fixture
def careless(tmp_path):
    path = tmp_path / "careless.py"
    path.write_text(CARELESS)
    return str(path)


def bench(folder, *agents):
    return run_bench(BenchSettings.of({**TINY, "agents": list(agents)}), folder)


def settings_of_the_process():
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_float32_matmul_precision(),
        np.geterr(),
        list(warnings.filters),
        os.getcwd(),
        sys.stdout,
    )


def test_the_next_agent_ends_as_it_would_have_without_the_careless_one(careless, tmp_path):
    before = settings_of_the_process()
    alone = bench(tmp_path / "alone", RLOO)
    after = bench(tmp_path / "after", f"{careless}:Process", RLOO)
    assert not after.failed and settings_of_the_process() == before
    own = [
        next(r for r in found.records if r.get("agent") == "rloo" and r["kind"] == "run") for found in (alone, after)
    ]
    assert comparable(own[0]) == comparable(own[1])


@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_device("meta"),
        lambda: torch.set_num_threads(3),
        lambda: torch.set_grad_enabled(False),
        lambda: torch.autograd.set_detect_anomaly(True),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: np.seterr(all="raise"),
        lambda: warnings.simplefilter("ignore"),
        lambda: warnings.resetwarnings(),
        lambda: os.chdir("/"),
        lambda: setattr(sys, "stdout", None),
    ],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_each_setting_is_put_back_also_after_an_error(change):
    before = settings_of_the_process()
    with pytest.raises(KeyError), keep_process_settings():
        change()
        changed = settings_of_the_process()
        raise KeyError
    assert settings_of_the_process() == before
    assert changed != before


@pytest.mark.parametrize("name", ["Reference", "Beta", "Reward", "Temperature"])
def test_an_agent_that_changes_its_task_has_no_results(name, careless, tmp_path):
    found = bench(tmp_path / "out", f"{careless}:{name}")
    (failed,) = found.failed
    assert f"{name} has changed {name.lower()} of its task" in failed.error
    assert all(record["kind"] != "run" for record in found.records)


def test_a_model_that_was_put_in_place_of_the_tasks_own_is_measured(careless, tmp_path):
    found = bench(tmp_path / "out", f"{careless}:Replaced")
    assert not found.failed and found.records[-1]["metrics"]["kl"]["mean"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("name", "counted"), [("Negative", "-1"), ("Uncountable", "nan")])
def test_tokens_that_are_no_number_fail_their_cell_alone(name, counted, careless, tmp_path):
    found = bench(tmp_path / "out", f"{careless}:{name}")
    assert f"{name} is {counted}, and counts tokens" in found.failed[0].error
    again = bench(tmp_path / "out", f"{careless}:{name}")  # nothing that is there cannot be read
    assert len(again.failed) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Generator", "Generator.learn has a yield or an async"),
        ("Coroutine", "Coroutine.learn has a yield or an async"),
        ("generator", "careless.py:generator has a yield or an async"),
        ("NoTokens", "NoTokens.learn cannot be called with a number of tokens"),
    ],
)
def test_what_would_train_nothing_is_said_before_anything_runs(name, message, careless, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        bench(tmp_path / "out", f"{careless}:{name}")
    assert not (tmp_path / "out").exists()
