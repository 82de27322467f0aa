"""A2C takes the steps of PPO with one epoch, one minibatch, and nothing that clips."""

from __future__ import annotations

import pytest
import torch

from agents import A2C, PPO
from lm_env import TokenMDP
from lm_env.tasks.token_mdp import make

T0 = TokenMDP.t0()
SHARED = {"rollout_episodes": 32, "slots": 32, "learning_rate": 0.02, "gae_lambda": 1.0, "seed": 3}


def trained(cls, updates: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """(table, value weights) after some updates, in float64."""
    env = make(mdp=T0, model=T0.policy_model(torch.float64), reference=T0.reference_model(torch.float64), beta=0.5)
    agent = cls(env, **{**SHARED, **options})
    agent.updater.schedule(1.0, rollouts=0)
    for _ in range(updates):
        agent.update(agent.collect_rollout())
    return agent.task.model.table.detach(), agent.policy.value_head.weight.detach()


AS_A2C = {"n_epochs": 1, "batch_size": 32, "normalize_advantage": False, "clip_range_vf": None, "vf_coef": 0.5}


def test_a2c_equals_ppo_with_one_epoch_and_full_batch():
    a2c, ppo = trained(A2C, 100), trained(PPO, 100, **AS_A2C)
    for ours, theirs in zip(a2c, ppo, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10  # of 100 updates in float64
    assert (a2c[0] - torch.tensor(T0.reference_logits)).abs().max() > 0.1  # it did learn


@pytest.mark.parametrize(
    "change", [{"n_epochs": 2}, {"batch_size": 16}, {"normalize_advantage": True}, {"vf_coef": 0.1}]
)
def test_each_part_of_that_matters(change):
    a2c, ppo = trained(A2C, 5), trained(PPO, 5, **{**AS_A2C, **change})
    assert max((ours - theirs).abs().max() for ours, theirs in zip(a2c, ppo, strict=True)) > 1e-8  # Adam hides a factor


def test_the_one_step_is_the_plain_policy_gradient():
    """The gradient is that of -A log pi by autograd, and of the value loss."""
    env = make(mdp=T0, model=T0.policy_model(torch.float64), reference=T0.reference_model(torch.float64), beta=0.5)
    agent = A2C(env, **SHARED, max_grad_norm=1e9)
    rollout = agent.collect_rollout()
    metrics = agent.update(rollout)
    scored, mask = rollout.scored, rollout.mask
    to_go = torch.tensor(scored.rewards[:, ::-1].cumsum(1)[:, ::-1].copy())  # lambda 1 and V = 0: rewards to go
    table = torch.tensor(T0.reference_logits, requires_grad=True)
    tokens = torch.tensor(rollout.episodes.input_ids[:, 1:])
    states = T0.reference_model().states(torch.tensor(rollout.episodes.input_ids))[:, : tokens.shape[1]]
    logprobs = table.log_softmax(-1)[states, tokens]
    real = torch.tensor(mask)
    (-(to_go * logprobs)[real].sum() / real.sum()).backward()
    value = torch.zeros(T0.reference_logits.shape[0], dtype=torch.float64)
    value.index_add_(0, states[real], to_go[real])
    value_grad = torch.cat([value, value.sum()[None]]) * 0.5 / real.sum()  # of vf_coef (V - return)^2 / 2, and the bias
    expected = torch.cat([table.grad.flatten(), value_grad]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(expected), rel=1e-9)
    assert metrics["first_log_ratio"] <= 1e-12
