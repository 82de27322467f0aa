"""Agents of a user's own that change more than the weights of the model: no other cell is changed by them."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import warnings

import numpy as np
import pytest
import torch
from tiny_bench import TINY

from lm_env.benchmark import BenchSettings, run_bench
from lm_env.benchmark.entrants import entrant
from lm_env.benchmark.process_settings import keep_process_settings
from lm_env.benchmark.records import comparable
from lm_env.benchmark.settings import AgentSpec
from lm_env.errors import ConfigurationError

RLOO = {"agent": "rloo", "rollout_episodes": 8, "batch_size": 8}
CARELESS = """
import os, sys, warnings
import numpy as np
import torch
from agents import RLOO

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

class Batched(RLOO):
    def learn(self, timesteps, **how):
        super().learn(timesteps, **how)
        torch.set_default_dtype(torch.float64)

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


PRECISIONS = (
    torch.backends,
    torch.backends.cuda.matmul,
    torch.backends.cudnn,
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
    torch.backends.mkldnn,
    torch.backends.mkldnn.matmul,
    torch.backends.mkldnn.conv,
    torch.backends.mkldnn.rnn,
)


def settings_of_the_process():
    """All of them; a precision that cannot be asked for, being set in PyTorch's older and newer ways, is an error."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_float32_matmul_precision(),
        *(backend.fp32_precision for backend in PRECISIONS),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
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


def test_what_is_measured_after_a_careless_batched_agent_is_measured_as_always(careless, tmp_path):
    before = settings_of_the_process()
    options = {name: value for name, value in RLOO.items() if name != "agent"}
    careful = bench(tmp_path / "careful", RLOO).records[-1]
    found = bench(tmp_path / "careless", {"agent": f"{careless}:Batched", **options})
    assert [failed.error for failed in found.failed] == [] and settings_of_the_process() == before
    assert found.records[-1]["metrics"] == careful["metrics"]


def test_a_function_that_does_not_tell_its_parameters_can_be_an_agent():
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(min)
    assert entrant(AgentSpec.of("builtins:min")).learning_rate is None


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
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: setattr(torch.backends.cudnn, "deterministic", True),
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


@pytest.mark.parametrize("backend", PRECISIONS, ids=lambda backend: getattr(backend, "__name__", "operation"))
def test_a_precision_in_pytorchs_newer_way_is_put_back_and_hides_no_error(backend):
    """With some of these PyTorch refuses to tell the precision in its older way."""
    before = settings_of_the_process()
    for value in ("tf32", "bf16"):
        with pytest.raises(KeyError), keep_process_settings():
            torch.set_default_dtype(torch.float64)
            with contextlib.suppress(RuntimeError):  # not every library has bf16
                backend.fp32_precision = value
            raise KeyError
        assert settings_of_the_process() == before


def test_the_block_can_begin_while_a_precision_cannot_be_asked_for():
    before = settings_of_the_process()
    with keep_process_settings():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        with keep_process_settings():
            torch.set_default_dtype(torch.float64)
            torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.get_default_dtype() == torch.float32
    assert settings_of_the_process() == before


def test_a_setting_that_cannot_be_put_back_is_told_and_the_others_are_put_back(tmp_path, monkeypatch, caplog):
    before = settings_of_the_process()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    with pytest.raises(KeyError), keep_process_settings():
        os.chdir(before[-2])
        gone.rmdir()
        torch.set_default_dtype(torch.float64)
        sys.stdout = None
        raise KeyError
    assert settings_of_the_process() == before
    assert "the working directory cannot be put back" in caplog.text


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
