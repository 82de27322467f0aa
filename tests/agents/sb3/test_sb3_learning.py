"""Unmodified agents of stable-baselines3 and sb3-contrib reach the closed-form optimum."""

from __future__ import annotations

import pytest
import torch
from sb3_contrib import TRPO
from sb3_helpers import make_agent
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.utils import LinearSchedule
from transformers import GPT2Config, GPT2LMHeadModel

from agents.sb3 import EpisodeRolloutBuffer, TextVecEnv
from lm_env import TokenMDP

T0 = TokenMDP.t0()


def trained(cls, beta, steps, num_envs, model=None, **kwargs):
    """The evaluation on T0 of an agent after `steps` steps."""
    options = {} if model is None else {"model": model}
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", num_envs, beta=beta, **options)
    make_agent(cls, env, **kwargs).learn(steps)
    return T0.evaluate(env.task.model, beta)


@pytest.mark.parametrize(("beta", "buffer"), [(1.0, EpisodeRolloutBuffer), (0.5, None)])
def test_ppo_reaches_the_optimum(beta, buffer):
    end = trained(
        PPO,
        beta,
        120_000,
        256,
        n_steps=8,
        batch_size=256,
        n_epochs=2,
        learning_rate=LinearSchedule(0.03, 0.0, 1.0),
        buffer=buffer,
    )
    assert end.gap <= 5e-4 and end.tv <= 0.005


def test_a2c_reaches_the_optimum():
    end = trained(
        A2C,
        0.5,
        100_000,
        64,
        n_steps=6,
        gae_lambda=0.95,
        use_rms_prop=False,
        learning_rate=LinearSchedule(0.05, 0.0, 1.0),
    )
    assert end.gap <= 3e-3 and end.tv <= 0.02


def test_trpo_reaches_the_optimum():
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", 256, beta=1.0)
    agent = make_agent(TRPO, env, n_steps=6, batch_size=512, learning_rate=0.03)
    # The trust region never gets smaller by itself.
    for target_kl, steps in ((0.03, 40_000), (0.003, 50_000), (0.0005, 50_000)):
        agent.target_kl = target_kl
        agent.learn(steps, reset_num_timesteps=False)
    end = T0.evaluate(env.task.model, 1.0)
    assert end.gap <= 3e-3 and end.tv <= 0.02


def two_layers(attention="sdpa"):
    config = GPT2Config(vocab_size=4, n_embd=32, n_layer=2, n_head=2, n_positions=8, bos_token_id=3, eos_token_id=3)
    torch.manual_seed(0)
    return GPT2LMHeadModel._from_config(config, attn_implementation=attention).eval()


@pytest.mark.slow
def test_ppo_brings_a_transformer_to_the_optimum():
    beta = 0.5
    end = trained(
        PPO,
        beta,
        150_000,
        256,
        two_layers(),
        n_steps=8,
        batch_size=512,
        n_epochs=2,
        learning_rate=LinearSchedule(0.004, 0.0, 1.0),
    )
    best = T0.optimum(beta)
    assert end.gap <= 5e-3 and end.tv <= 0.03
    assert abs(end.R - best.R) <= 0.03 and abs(end.KL - best.KL) <= 0.05


def test_trpo_improves_a_transformer_with_eager_attention():
    model = two_layers("eager")
    before = T0.evaluate(model, 1.0)
    after = trained(TRPO, 1.0, 800, 64, model, n_steps=6, cg_max_steps=5, n_critic_updates=2)
    assert after.gap < before.gap - 0.1
