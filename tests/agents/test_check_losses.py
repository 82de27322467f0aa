"""What the losses of this package and of others optimize, by the exact gradient of their own code."""

from __future__ import annotations

import builtins
import importlib.util

import numpy as np
import pytest
import torch

from agents import GRPO
from agents.check_losses import LOSSES, UNGROUPED, batched_loss, named_loss, sb3_loss, torchrl_loss
from lm_env.errors import ConfigurationError, MissingDependencyError
from lm_env.theory.loss import INVARIANCES, check_loss

OURS = [name for name in LOSSES if not name.startswith(("sb3", "torchrl", "trl"))]
CAUSES = {
    "dr-grpo": ("k3_loss", "mean_with_itself"),
    "dr-grpo-with-ratio": ("k3_loss_with_ratio", "mean_with_itself"),
    "grpo": ("score_divided_by_group_std", "k3_loss", "length_normalization"),
    "online-dpo": ("preference_loss",),
    "grpo-with-ratio": ("score_divided_by_group_std", "k3_loss_with_ratio"),
}
ONE_STEP = {"a2c", "reinforce", "reinforce-value"}
"""Agents that take one step per rollout, and need no ratio."""


@pytest.mark.parametrize("name", OURS)
def test_our_own(name):
    check = check_loss(named_loss(name), name=name)
    assert check.causes == CAUSES.get(name, ()) and check.passed == (name not in CAUSES)
    assert not check.passed or check.orthogonal < 1e-12
    assert {kind for kind in INVARIANCES if not check.holds[kind]} == ({"ratio"} if name in ONE_STEP else set())


@pytest.mark.parametrize(
    ("options", "numbers"),
    [({"gamma": 0.9}, {"gamma": 0.9}), ({"ent_coef": 0.01}, {"entropy_coef": 0.01})],
    ids=["gamma", "entropy bonus"],
)
def test_options_of_our_own_that_move_the_optimum(options, numbers):
    check = check_loss(batched_loss("a2c", **options), group_size=1)
    assert not check.passed and check.numbers == pytest.approx(numbers, rel=1e-3)


@pytest.mark.parametrize("name", ["PPO", "A2C"])
def test_stable_baselines3(name):
    check = check_loss(sb3_loss(name), group_size=1)
    assert check.passed and check.orthogonal < 1e-6  # its buffer is in float32
    assert check.ratio == {"PPO": "token", "A2C": "none"}[name]
    assert check_loss(sb3_loss(name, gamma=0.9), group_size=1).causes == ("gamma",)


@pytest.mark.skipif(importlib.util.find_spec("torchrl") is None, reason="torchrl is not installed")
def test_torchrl():
    check = check_loss(torchrl_loss(), group_size=1)
    assert check.passed and check.orthogonal < 1e-6 and check.ratio == "token"
    entropy = check_loss(torchrl_loss(entropy_bonus=True, entropy_coeff=0.01, normalize_advantage=False), group_size=1)
    assert entropy.causes == ("entropy_bonus",)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
@pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own deprecations
@pytest.mark.parametrize(
    ("name", "causes"), [("trl-rloo", ()), ("trl-grpo", ("score_divided_by_group_std", "k3_loss_with_ratio"))]
)
def test_trl(name, causes):
    assert check_loss(named_loss(name)).causes == causes


def test_a_library_that_is_not_there_is_named(monkeypatch):
    find = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] in ("trl", "torchrl", "tensordict"):
            raise ImportError(name)
        return find(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in ("trl-grpo", "trl-rloo", "torchrl-ppo"):
        with pytest.raises(MissingDependencyError, match="pip install"):
            named_loss(name)


def test_an_unknown_name():
    with pytest.raises(ConfigurationError, match=r"no loss is called 'pqo': choose from .*trl-grpo"):
        named_loss("pqo")
    assert set(UNGROUPED) <= set(LOSSES)


def test_the_weights_of_a_checked_policy_stay(id_task):
    """The gradient is taken from a real update, whose step is none."""
    from lm_env.theory.loss.problem import make_problems

    batch = make_problems(0.5, 2, 0)[0][1].sampled_batch(8, seed=0)
    before = batch.model.table.detach().clone()
    named_loss("rloo")(batch)
    assert torch.equal(batch.model.table, before) and batch.model.table.grad is not None


def test_grpo_multiplies_k3_by_the_ratio(id_task):
    """Away from the policy that sampled the two penalties differ by exactly the ratio."""
    losses = {}
    for kl_in in ("loss", "loss_with_ratio"):
        options = {"scale_by_std": False, "length_normalization": "constant", "kl_in": kl_in}
        agent = GRPO(_env(id_task), group_size=2, rollout_episodes=4, slots=4, **options)
        rollout = agent.collect_rollout()
        with agent.updater.step(rollout) as step:
            for batch in step.micro_batches():
                evaluation = step.evaluate(batch)
                moved = evaluation._replace(logprobs=evaluation.logprobs + 0.05)
                zero = agent.loss(moved, batch, np.zeros(4))
                losses[kl_in] = zero.detach() / agent.task.kl.beta
                step.backward(zero)
    assert torch.allclose(losses["loss_with_ratio"], losses["loss"] * np.exp(0.05), rtol=1e-4)
    assert float(losses["loss"].abs().max()) > 1e-3


def _env(id_task):
    from lm_env.envs.env import TextGenerationEnv

    return TextGenerationEnv(**id_task())
