"""Texts of a sampler with other probabilities than the model under training: exact expected updates of real agents.

Every text of T0 is in the rollout, and weighs as much as the sampler writes it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import GRPO, PPO, RLOO, Updating
from lm_env import TokenMDP
from lm_env.data.episodes import Episodes
from lm_env.errors import ConfigurationError
from lm_env.generation import Generation
from lm_env.theory.credit import Credits
from lm_env.theory.prefix_tree import logsumexp
from lm_env.theory.token_env import make_token_env

BETA = 0.5
T0 = TokenMDP.t0()
TEXTS, LENGTHS = T0.trajectories()
BY_SAMPLER = Updating(logprobs_of="sampler")
SMALL = {"rollout_episodes": len(TEXTS), "slots": 8, "batch_size": len(TEXTS), "n_epochs": 1, "max_grad_norm": 1e9}


def normalized(logits: np.ndarray) -> np.ndarray:
    return logits - logsumexp(logits)[:, None]


def noisy(seed: int) -> np.ndarray:
    """Logprobs (S, V) near T0's reference."""
    noise = np.random.default_rng(seed).normal(scale=0.5, size=T0.reference_logits.shape)
    return normalized(T0.reference_logits + noise)


class AllOfT0:
    """A backend that writes every text of T0 once, with the logprobs (S, V) of another sampler."""

    def __init__(self, sampled: np.ndarray, rounded: bool = True) -> None:
        self.logprobs = Credits(T0, sampled, BETA).logprobs
        self.rounded = rounded

    def generate(self, prompts, sampling, *, progress=None) -> Generation:
        start = np.full((len(TEXTS), 1), T0.start_token)
        ids = np.concatenate([start, TEXTS], axis=1)
        episodes = Episodes(ids, np.ones(len(ids), dtype=np.int64), LENGTHS + 1, prompts, self.logprobs)
        return Generation(episodes, None, 0, rounded=self.rounded)


def agent_on_t0(cls, policy: np.ndarray, sampled: np.ndarray, updating: Updating | None, **options):
    model = T0.policy_model(torch.float64)
    with torch.no_grad():
        model.table.copy_(torch.from_numpy(policy))
    env = make_token_env(T0, model=model, reference=T0.reference_model(torch.float64), beta=BETA)
    groups = {"group_size": len(TEXTS)} if cls is not PPO else {"critic": "none"}
    agent = cls(env, updating=updating, **{**SMALL, **groups, **options})
    agent.backend = AllOfT0(sampled)
    return agent


def ascent(cls, policy: np.ndarray, sampled: np.ndarray, updating: Updating | None = None, **options) -> np.ndarray:
    """Minus the expected gradient (S, V) of the agent's loss over the sampler's texts; its baseline is their mean."""
    agent = agent_on_t0(cls, policy, sampled, updating, **options)
    rollout = agent.collect_rollout()
    share = np.exp(Credits(T0, sampled, BETA).logprobs.sum(1))
    in_loss = options.get("kl_in", "reward") != "reward"
    returns = rollout.scored.scores if in_loss else rollout.scored.rewards.sum(1)
    agent.updater.optimizer.step = lambda *_: None
    with agent.updater.step(rollout, weights=share) as step:
        for batch in step.micro_batches():
            step.backward(agent.loss(step.evaluate(batch), batch, returns - share @ returns))
    return -agent.env.task.model.table.grad.numpy()


@pytest.mark.parametrize("temperature", [0.7, 1.4])
@pytest.mark.parametrize(("cls", "options"), [(RLOO, {}), (GRPO, {"kl_in": "reward", "scale_by_std": False})])
def test_with_k1_in_the_reward_the_optimum_is_at_rest_on_texts_of_any_sampler(cls, options, temperature):
    best = normalized(T0.optimum(BETA).policy_logits)
    sampled = normalized(best / temperature)
    assert np.abs(ascent(cls, best, sampled, **options)).max() < 1e-6  # the logprobs of a rollout are in fp32
    assert np.abs(ascent(cls, best, sampled, BY_SAMPLER, **options)).max() > 1e-3


@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_with_the_samplers_logprobs_the_sampler_is_at_rest_where_it_is_optimal(temperature):
    best = normalized(T0.optimum(BETA).policy_logits)
    policy = normalized(best * temperature)
    assert np.abs(ascent(RLOO, policy, best, BY_SAMPLER)).max() < 1e-6
    assert np.abs(ascent(RLOO, policy, best)).max() > 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_score_and_kl_in_the_loss_weigh_alike(seed):
    """GRPO's expected update is that of (A - beta (1 - ref / pi)) log pi over the sampler's texts, with no ratio."""
    policy, sampled = noisy(seed), noisy(seed + 10)
    credits = Credits(T0, policy, BETA, behavior=sampled)
    advantage = np.where(credits.real, (T0.scores() - credits.probabilities @ T0.scores())[:, None], 0.0)
    slope = np.where(credits.real, -np.expm1(-credits.log_ratio), 0.0)
    expected = credits.gradient(advantage - BETA * slope)
    np.testing.assert_allclose(ascent(GRPO, policy, sampled, kl_in="loss"), expected, atol=1e-6)

    ratio = np.exp(credits.logprobs - credits.old_logprobs)
    cut = np.where(advantage > 0, ratio > 1.2, ratio < 0.8)
    one_sided = credits.gradient(np.where(cut, 0.0, ratio) * advantage - BETA * slope)
    np.testing.assert_allclose(ascent(GRPO, policy, sampled, BY_SAMPLER, kl_in="loss"), one_sided, atol=1e-6)
    assert np.abs(one_sided - expected).max() > 1e-2


@pytest.mark.parametrize("cls", [PPO, RLOO, GRPO])
def test_all_ratios_begin_at_one_and_none_is_clipped(cls):
    policy, sampled = noisy(2), noisy(3)
    own = Credits(T0, policy, BETA).logprobs
    agent = agent_on_t0(cls, policy, sampled, None)
    rollout = agent.collect_rollout()
    np.testing.assert_allclose(rollout.scored.logprobs, own, atol=1e-6)
    off = np.abs(own - agent.backend.logprobs)[rollout.mask]
    np.testing.assert_allclose(rollout.mismatch, off, atol=1e-6)
    metrics = agent.update(rollout)
    assert metrics["first_log_ratio"] < 1e-6 and metrics["clip_fraction"] == 0
    agent = agent_on_t0(cls, policy, sampled, BY_SAMPLER)
    rollout = agent.collect_rollout()
    np.testing.assert_array_equal(rollout.scored.logprobs, agent.backend.logprobs)
    metrics = agent.update(rollout)
    assert metrics["first_log_ratio"] > 0.1 and metrics["clip_fraction"] > 0


@pytest.mark.parametrize("updating", [None, BY_SAMPLER, Updating(ratio_limit=2.0)])
def test_the_logprobs_of_the_model_itself_are_kept_as_they_are(updating):
    policy = noisy(4)
    agent = agent_on_t0(RLOO, policy, policy, updating)
    agent.backend = AllOfT0(policy, rounded=False)
    rollout = agent.collect_rollout()
    assert rollout.mismatch is None and rollout.ratios is None
    np.testing.assert_array_equal(rollout.scored.logprobs, agent.backend.logprobs)


def test_ratios_need_the_policys_own_logprobs():
    with pytest.raises(ConfigurationError, match="logprobs_of"):
        Updating(ratio_limit=2.0, logprobs_of="sampler")
    with pytest.raises(ConfigurationError, match="logprobs_of"):
        replace(Updating(), logprobs_of="server")
