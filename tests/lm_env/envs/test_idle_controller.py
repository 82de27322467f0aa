"""The warning that an AdaptiveKL never adapts: to loops that do not update it, and to nobody else."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from agents import RLOO
from agents.sb3 import TextVecEnv
from lm_env.envs import idle_controller
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.objective.kl import AdaptiveKL
from lm_env.theory.token_env import token_task_options
from lm_env.theory.token_mdp import TokenMDP

SLOTS = 64
ENOUGH = 2 * idle_controller.EPISODES


def vector_env(beta) -> TextGenerationVectorEnv:
    return TextGenerationVectorEnv(SLOTS, autoreset_mode="SameStep", **token_task_options(TokenMDP.t0(), beta=beta))


def run(env: TextGenerationVectorEnv, episodes: int, update: bool = False) -> None:
    """A loop of a user's own over so many episodes, which updates the controller or not."""
    env.reset(seed=0)
    env.action_space.seed(0)
    ended = 0
    kl = np.zeros(SLOTS)
    while ended < episodes:
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        done = terminated | truncated
        kl += info["kl"]
        if done.any():
            kl[done] += info["final_info"]["kl"][done]
        if update and done.any():
            env.task.kl.update(float(kl[done].mean()), int(done.sum()))
        kl[done] = 0.0
        ended += int(done.sum())


def test_a_loop_that_never_updates_it_is_warned_once_and_told_the_call():
    env = vector_env(AdaptiveKL(0.3, target=0.2, horizon=500))
    with pytest.warns(UserWarning, match=r"env\.task\.kl\.update") as caught:
        run(env, ENOUGH)
    assert len(caught) == 1 and caught[0].filename == __file__ and "0.3" in str(caught[0].message)
    run(env, ENOUGH)  # said once; another warning would be an error


def test_the_single_environment_warns_as_well():
    env = TextGenerationEnv(**token_task_options(TokenMDP.t0(), beta=AdaptiveKL()))
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="nothing updates the AdaptiveKL"):
        for _ in range(idle_controller.EPISODES):
            env.reset()
            while not env.step(rng.integers(3))[2]:
                pass


def test_a_loop_that_updates_it_is_not_warned_and_beta_moves():
    env = vector_env(AdaptiveKL(0.3, target=0.2, horizon=500))
    run(env, ENOUGH, update=True)
    assert env.task.kl.beta != 0.3


def test_a_constant_beta_is_not_meant():
    run(vector_env(0.3), ENOUGH)


def test_stepping_through_the_environment_of_an_agent_that_updated_it_is_not_warned():
    env = vector_env(AdaptiveKL(0.3, target=0.2))
    RLOO(env, rollout_episodes=16).learn(40)
    run(env, ENOUGH)


@pytest.mark.parametrize("every", [None, 10**6, 100])
def test_the_environment_of_stable_baselines3_updates_it_or_leaves_it_alone_on_purpose(every):
    task = vector_env(AdaptiveKL(0.3, target=0.2)).task
    env = TextVecEnv.from_env(task, SLOTS, kl_update_episodes=every)
    env.reset()
    env.action_space.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(ENOUGH * 3 // SLOTS):
            env.step(np.array([env.action_space.sample() for _ in range(SLOTS)]))
    assert (task.kl.beta != 0.3) == (every == 100)
