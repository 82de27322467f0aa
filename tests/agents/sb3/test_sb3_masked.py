"""MaskablePPO on an environment with an action mask."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_helpers import V, full_logits, make_agent, rollout, text_options
from stable_baselines3.common.utils import LinearSchedule

import agents.sb3
from agents.sb3 import TextVecEnv
from lm_env import TokenMDP

T0 = TokenMDP.t0()


@pytest.fixture
def options(make_lm):
    return text_options(make_lm)


def no_b(prompt, response):
    """B may not follow A."""
    return np.array([True, not (len(response) and response[-1] == 0), True, True])


def masked_optimum(beta):
    """The allowed texts, tilted by the reward: (probabilities of all trajectories)."""
    tokens, lengths = T0.trajectories()
    allowed = np.array(
        [
            not any(a == 0 and b == 1 for a, b in itertools.pairwise(row[:n]))
            for row, n in zip(tokens, lengths, strict=True)
        ]
    )
    weights = np.exp(T0.trajectory_logprobs(T0.reference_logits) + T0.scores() / beta) * allowed
    return weights / weights.sum()


@pytest.mark.parametrize("stock", [False, True])
def test_maskable_ppo_reaches_the_masked_optimum(stock):
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", 256, beta=0.5, action_mask=no_b)
    buffer = None if stock else agents.sb3.MaskableEpisodeRolloutBuffer
    schedule = LinearSchedule(0.03, 0.0, 1.0)
    agent = make_agent(
        MaskablePPO,
        env,
        n_steps=8,
        batch_size=256,
        n_epochs=2,
        learning_rate=schedule,
        buffer=buffer,
        policy=agents.sb3.MaskableCausalLMPolicy,
    )
    agent.learn(100_000)  # the environment refuses masked tokens: none was drawn
    tokens, lengths = T0.trajectories()
    mass = np.zeros(len(tokens))
    with torch.no_grad():
        for i, (row, n) in enumerate(zip(tokens, lengths, strict=True)):
            ids, logprobs = np.concatenate([[3], row[:n]]), 0.0
            for t in range(n):
                logits = full_logits(env.task.model, ids, t + 1).double()
                logits[torch.from_numpy(~no_b(None, row[:t]))] = -np.inf
                logprobs += float(torch.log_softmax(logits, -1)[row[t]])
            mass[i] = np.exp(logprobs)
    assert mass.sum() == pytest.approx(1)
    assert np.abs(mass - masked_optimum(0.5)).sum() / 2 <= 0.01
    observation = env.reset()
    observation["input_ids"][:, 1], observation["length"][:] = 0, 2
    actions, _ = agent.predict(observation, action_masks=np.tile(no_b(None, [0]), (256, 1)))
    assert 1 not in actions


def test_masked_minibatches_equal_the_stock_buffers(options):
    env = TextVecEnv(3, **options, action_mask=lambda p, r: np.arange(V) % 3 != len(r) % 3)
    agent = make_agent(
        MaskablePPO,
        env,
        buffer=agents.sb3.MaskableEpisodeRolloutBuffer,
        policy=agents.sb3.MaskableCausalLMPolicy,
        ent_coef=0.1,
    )
    buffer = rollout(agent)
    assert buffer.action_masks.dtype == np.bool_ and not buffer.action_masks.all()
    sample = next(buffer.get(None))
    _, logprobs, entropy = agent.policy.evaluate_actions(
        sample.observations, sample.actions.flatten(), action_masks=sample.action_masks
    )
    torch.testing.assert_close(logprobs, sample.old_log_prob, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        entropy, agent.policy.get_distribution(sample.observations, sample.action_masks).entropy(), atol=1e-5, rtol=1e-5
    )
    agent.train()
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())
