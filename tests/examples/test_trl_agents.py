"""TRL's trainers as agents of the benchmark: where the weights end, what is counted, and which options arrive."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
from paths import REPOSITORY

from agents.run.evaluation import evaluate_texts
from lm_env import TextGenerationEnv
from lm_env.benchmark import BenchSettings, run_bench
from lm_env.benchmark.defaults import AGENTS
from lm_env.benchmark.entrants import EXAMPLES, entrant
from lm_env.benchmark.settings import AgentSpec
from lm_env.errors import ConfigurationError, MissingDependencyError
from lm_env.generation import LocalBackend

FILE = REPOSITORY / "examples" / "trl_agents.py"
SMALL = {"generation_batch_size": 16}
NAMES = ("RLOOFromTRL", "GRPOFromTRL")


def loaded():
    """The module of the example."""
    spec = importlib.util.spec_from_file_location("example_trl_agents", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def module():
    pytest.importorskip("trl")
    return loaded()


@pytest.fixture
def make_agent(module, text_task):
    """`make_agent(name, task options, **agent's options)`: an agent on a tiny task of three prompts."""

    def make(name="RLOOFromTRL", changes=None, **options):
        env = TextGenerationEnv(**text_task(**{"max_new_tokens": 4, **(changes or {})}))
        return getattr(module, name)(env, **{**SMALL, **options})

    return make


def weights(agent):
    return torch.cat([p.detach().ravel() for p in agent.task.model.parameters()]).clone()


class RecordingReward:
    """A reward function that records the responses of each call; it pays the share of tokens with ids below 100."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, responses, response_ids):
        self.calls.append([list(ids) for ids in response_ids])
        return [float(np.mean(np.asarray(ids) < 100)) for ids in response_ids]

    @property
    def tokens(self):
        """The tokens of each call, and so of each rollout."""
        return [sum(map(len, call)) for call in self.calls]


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_spent_to_the_token_and_ends_with_a_rollout(name, make_agent):
    reward = RecordingReward()
    agent = make_agent(name, {"reward": reward})
    agent.learn(200)
    assert agent.num_timesteps == sum(reward.tokens)
    assert sum(reward.tokens[:-1]) < 200 <= sum(reward.tokens)
    assert agent.num_updates == len(reward.calls) >= 3
    assert {len(call) for call in reward.calls} == {16}
    before = agent.num_timesteps
    agent.learn(1)
    assert agent.num_timesteps - before == reward.tokens[-1] and len(reward.calls) == agent.num_updates


def test_a_rollout_of_several_steps_is_used_to_its_end(make_agent):
    """Two passes over two minibatches: a budget that the first rollout spends still gives four steps."""
    reward = RecordingReward()
    agent = make_agent(changes={"reward": reward}, num_iterations=2, per_device_train_batch_size=8).learn(1)
    assert len(reward.calls) == 1 and agent.num_updates == 4
    agent.learn(reward.tokens[0] + 1)
    assert agent.num_updates == 4 * len(reward.calls) == 12


@pytest.mark.parametrize(("name", "rate"), [("RLOOFromTRL", 1e-3), ("GRPOFromTRL", 1e-5)])
def test_the_learning_rate_arrives_and_the_weights_end_in_the_tasks_model(name, rate, make_agent):
    """Adam's first step moves each weight by the learning rate, where its gradient is not 0."""
    agent = make_agent(name, {"reward": RecordingReward()}, learning_rate=rate)
    model, tokenizer, before = agent.task.model, agent.task.tokenizer, weights(agent)
    layout = {key: value.shape for key, value in model.state_dict().items()}
    forward = type(model).forward
    agent.learn(1)
    assert agent.num_updates == 1 and agent.task.model is model
    assert float((weights(agent) - before).abs().max()) == pytest.approx(rate, rel=0.02)
    assert {key: value.shape for key, value in model.state_dict().items()} == layout
    assert model.forward.__func__ is forward and agent.task.tokenizer is tokenizer


def test_the_learning_rate_falls_with_the_tokens_that_are_spent(module, make_agent):
    """At each step it is the initial one times the share of the budget that was left before the rollout."""
    rates = []

    class Seen(module.TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer, **kwargs):
            rates.append(optimizer.param_groups[0]["lr"])

    reward = RecordingReward()
    make_agent(changes={"reward": reward}, learning_rate=1e-3).learn(200, callbacks=[Seen()])
    spent = np.cumsum([0, *reward.tokens[:-1]])
    np.testing.assert_allclose(rates, 1e-3 * (1 - spent / 200), rtol=1e-6)
    rates.clear()
    make_agent(learning_rate=1e-3, lr_scheduler_type="constant").learn(200, callbacks=[Seen()])
    assert set(rates) == {1e-3} and len(rates) > 1


def test_the_seed_decides(make_agent):
    found = [weights(make_agent(seed=seed, learning_rate=1e-3).learn(60)) for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_score_rises_and_the_penalty_is_that_against_the_tasks_reference(make_agent):
    """Without a score there is the penalty alone, which pulls the model to a reference that it did not begin as."""
    agent = make_agent(changes={"reward": RecordingReward(), "beta": 0.01}, learning_rate=1e-2)
    before = evaluate_texts(agent.task, LocalBackend(agent.task)).score
    after = evaluate_texts(agent.learn(1500).task, LocalBackend(agent.task)).score
    assert after.mean > before.mean + 0.1 > before.mean + 5 * (before.se + after.se)
    penalized = make_agent(changes={"reward": lambda prompts, responses: [0.0] * len(responses)}, learning_rate=1e-2)
    before = evaluate_texts(penalized.task, LocalBackend(penalized.task)).kl.mean
    penalized.learn(1500)
    assert evaluate_texts(penalized.task, LocalBackend(penalized.task)).kl.mean < 0.9 * before


def test_what_the_task_decides_is_the_tasks(make_agent):
    agent = make_agent("GRPOFromTRL", {"beta": 0.07, "temperature": 0.7})
    known = {"beta": 0.07, "temperature": 0.7, "max_completion_length": 4, "num_generations": 8, "top_k": 0}
    assert known.items() <= agent.options.items()
    assert len(agent.prompts) == 3 and len(make_agent(num_generations=2).prompts) == 9
    assert make_agent(beta=0.5).options["beta"] == 0.5


def test_it_is_an_entrant_with_a_learning_rate_to_tune(module):
    assert module.RLOOConfig.learning_rate == module.GRPOConfig.learning_rate == 1e-6
    for name in ("trl-rloo", "trl-grpo"):
        found = entrant(AgentSpec.of(name))
        assert (found.kind, found.learning_rate, found.resumes) == ("class", 1e-6, False)
        assert entrant(AgentSpec.of({"agent": name, "learning_rate": 1e-3})).learning_rate == 1e-3
        assert name not in AGENTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 1.0}, "RLOOFromTRL has no option 'learning_rat'"),
        ({"push_to_hub": True}, "has no option 'push_to_hub'"),
        ({"loss_type": "dapo"}, "has no option 'loss_type'"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type"),
        ({"num_generations": 0}, "num_generations"),
    ],
)
def test_a_bad_option_is_refused(options, message, make_agent):
    with pytest.raises(ConfigurationError, match=message):
        make_agent(**options)


@pytest.mark.parametrize("size", [3, 32])
def test_what_trl_refuses_is_an_error_that_changes_nothing(size, make_agent):
    agent = make_agent(num_generations=size)
    before = weights(agent)
    with pytest.raises(ConfigurationError, match=r"TRL refuses the options of RLOOFromTRL: .*num_generations"):
        agent.learn(10)
    assert torch.equal(weights(agent), before) and agent.num_timesteps == 0


def test_a_task_that_trl_cannot_take_fails_in_its_own_cell(module, tmp_path, model_folder):
    (tmp_path / "letters.py").write_text(
        "from lm_env.tasks import TextTask\n"
        "def reward(prompts, responses):\n    return [r.count('e') / 4 for r in responses]\n"
        "def task():\n"
        "    return TextTask(id='me/Letters-v0', summary='write e', source=['good', 'film', 'story', 'bad'],\n"
        f"        reward=reward, model={model_folder!r}, max_new_tokens=4)\n"
    )
    settings = BenchSettings.of(
        {
            "tasks": ["lm_env/TokenMDP-v0", {"task": f"{tmp_path / 'letters.py'}:task", "label": "letters"}],
            "agents": [{"agent": "trl-rloo", "learning_rate": 1e-3, **SMALL}],
            "seeds": 1,
            "tokens": 100,
            "texts": 8,
            "curve_texts": 4,
            "ceiling_samples": 16,
            "ceiling_most": 16,
        }
    )
    found = run_bench(settings, tmp_path / "out")
    (failed,) = found.failed
    assert failed.cell.task == "TokenMDP-v0" and "TRL needs a tokenizer of transformers" in failed.error
    (run,) = [record for record in found.records if record["kind"] == "run"]
    assert run["task"] == "letters" and 100 <= run["tokens"] < 100 + 16 * 4
    assert run["metrics"]["kl"]["mean"] > 1e-6


def test_a_missing_library_is_named(monkeypatch):
    for name in [m for m in sys.modules if m.partition(".")[0] == "trl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl", None)  # what the import system takes for "not there"
    with pytest.raises(MissingDependencyError, match=r"pip install 'lm-env\[trl\]'"):
        loaded()
    with pytest.raises(MissingDependencyError, match="trl-rloo needs trl"):
        entrant(AgentSpec.of("trl-rloo"))
    assert EXAMPLES["trl-rloo"].library == "trl"
