"""Wrappers that would be dropped are refused, those that change nothing pass; their classes decide."""

from __future__ import annotations

import gymnasium
import pytest
from gymnasium import wrappers
from gymnasium.wrappers import vector
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor, VecNormalize

from agents import PPO, BestOfN
from agents.sb3 import TextVecEnv
from lm_env.errors import ConfigurationError

T0 = "lm_env/TokenMDP-v0"


class PaysMore(gymnasium.Wrapper):
    """A user's own, which changes the reward in `step`."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + 100, *rest


class OfRewards(gymnasium.RewardWrapper):
    def reward(self, reward):
        return -reward


class RecordsAndPays(wrappers.RecordEpisodeStatistics):
    """A child of a harmless one, which is not harmless itself."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, -reward, *rest


class Notes(gymnasium.Wrapper):
    """A user's own, which changes nothing."""

    note = "mine"

    def render(self):
        return self.note


def negated(reward):
    return -reward


def same(action):
    return action


CHANGING = {
    "TransformReward": lambda env: wrappers.TransformReward(env, negated),
    "ClipReward": lambda env: wrappers.ClipReward(env, 0, 1),
    "NormalizeReward": wrappers.NormalizeReward,
    "TransformAction": lambda env: wrappers.TransformAction(env, same, env.action_space),
    "FlattenObservation": wrappers.FlattenObservation,
    "PaysMore": PaysMore,
    "OfRewards": OfRewards,
    "RecordsAndPays": RecordsAndPays,
}
HARMLESS = {
    "Autoreset": wrappers.Autoreset,
    "OrderEnforcing": wrappers.OrderEnforcing,
    "PassiveEnvChecker": wrappers.PassiveEnvChecker,
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "RenderCollection": wrappers.RenderCollection,
    "Monitor": Monitor,
    "Notes": Notes,
}


@pytest.mark.parametrize("take", [PPO, BestOfN, TextVecEnv.from_env], ids=["PPO", "BestOfN", "from_env"])
@pytest.mark.parametrize("name", CHANGING)
def test_a_wrapper_that_would_be_dropped_is_refused(take, name):
    env = CHANGING[name](gymnasium.make(T0))
    with pytest.raises(ConfigurationError, match=rf"the wrapper {name} has a `\w+` of its own.*env\.unwrapped"):
        take(env)
    with pytest.raises(ConfigurationError, match=f"the wrapper {name} "):
        take(wrappers.RecordEpisodeStatistics(env))  # also below a harmless one
    take(env.unwrapped)  # the remedy


@pytest.mark.parametrize("name", HARMLESS)
def test_a_wrapper_that_changes_nothing_passes(name):
    env = HARMLESS[name](gymnasium.make(T0, render_mode="ansi"))
    assert PPO(env).task is env.unwrapped.task
    assert TextVecEnv.from_env(env).task is env.unwrapped.task


def test_what_make_adds_by_itself_passes():
    id = "tests/PlainlyRegistered-v0"
    gymnasium.register(id, entry_point="lm_env.tasks.token_mdp:make")
    try:
        env = gymnasium.make(id)
    finally:
        del gymnasium.registry[id]
    assert isinstance(env, wrappers.OrderEnforcing) and isinstance(env.env, wrappers.PassiveEnvChecker)
    assert PPO(env).task is env.unwrapped.task


def test_a_time_limit_passes_unless_it_cuts_texts():
    """Texts of this task have up to three tokens."""
    for limit in (3, 100):
        PPO(gymnasium.make(T0, max_episode_steps=limit))
    for take in (PPO, TextVecEnv.from_env):
        with pytest.raises(ConfigurationError, match=r"TimeLimit \(max_episode_steps=2\).*max_new_tokens=2"):
            take(gymnasium.make(T0, max_episode_steps=2))


def test_wrappers_of_vector_environments_are_judged_alike():
    def make():
        return gymnasium.make_vec(T0, num_envs=2, autoreset_mode="Disabled")

    PPO(vector.RecordEpisodeStatistics(make()))
    for changing in (vector.TransformReward(make(), negated), vector.NormalizeReward(make())):
        for take in (PPO, TextVecEnv.from_env):
            with pytest.raises(ConfigurationError, match=f"the wrapper {type(changing).__name__} has a "):
                take(changing)


def test_wrappers_of_stable_baselines3_are_judged_alike():
    env = TextVecEnv.from_env(T0, 2)
    assert TextVecEnv.from_env(VecCheckNan(VecMonitor(env))).task is env.task
    with pytest.raises(ConfigurationError, match="the wrapper VecNormalize has a `step_wait` of its own"):
        TextVecEnv.from_env(VecMonitor(VecNormalize(env, norm_obs=False)))
