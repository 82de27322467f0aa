"""An agent of stable-baselines3 that is moved to another environment goes on training its own language model there."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from sb3_helpers import PROMPTS, KLCheck, V, make_agent, next_logprob, text_options
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecCheckNan, VecEnvWrapper, VecMonitor, VecNormalize

import agents.sb3
from agents.sb3 import TextVecEnv
from lm_env import AdaptiveKL, TextGenerationEnv
from lm_env.errors import ConfigurationError


@pytest.fixture
def options(make_lm):
    return text_options(make_lm)


@pytest.fixture
def elsewhere(options, make_lm):
    """Options of an environment with a model object, prompts, a reward and a beta of its own."""
    return {
        **options,
        "model": make_lm("gpt2", seed=7),
        "prompts": PROMPTS[::-1],
        "reward": lambda prompts, responses, response_ids: [float(len(r)) for r in response_ids],
        "beta": 0.5,
    }


def unwrapped(env):
    return env


def without_normalization(env):
    return VecNormalize(env, norm_obs=False, norm_reward=False)


@pytest.mark.parametrize("wrap", [unwrapped, VecMonitor, VecCheckNan, without_normalization])
def test_after_set_env_the_kl_is_that_of_the_acting_policy(options, elsewhere, wrap):
    first = TextVecEnv(3, **options)
    second = TextVecEnv(3, **elsewhere)
    agent = make_agent(PPO, wrap(first), n_steps=8, n_epochs=2, learning_rate=0.01)
    agent.learn(24, KLCheck(first))
    language_model = agent.policy.network.lm
    weights = language_model.lm_head.weight.clone()
    agent.set_env(wrap(second))
    check = KLCheck(second)
    agent.learn(48, check)
    assert check.steps == 16
    assert agent.policy.network.lm is language_model is first.task.model
    assert not torch.equal(language_model.lm_head.weight, weights)


def test_the_kl_is_right_where_both_environments_show_the_same_texts(options, elsewhere):
    same = {"prompts": [[3, 4]], "eos_token_id": (), "max_new_tokens": 4}
    first = TextVecEnv(2, **{**options, **same})
    second = TextVecEnv(2, **{**elsewhere, **same})
    agent = make_agent(PPO, first, n_steps=4, n_epochs=1)
    agent.learn(8)
    np.testing.assert_array_equal(first.mdp.input_ids, second.reset()["input_ids"])
    agent.set_env(second)
    agent.learn(16, KLCheck(second))


def test_the_first_environment_may_be_gone(options, elsewhere):
    first = TextVecEnv(2, **options)
    agent = make_agent(PPO, first, n_steps=4, n_epochs=1)
    second = TextVecEnv(2, **elsewhere)
    agent.set_env(second)
    del first
    gc.collect()
    agent.learn(16, KLCheck(second))


def test_what_is_saved_after_set_env_is_the_trained_model_and_the_new_environments_kl(options, elsewhere, tmp_path):
    """The first environment may be gone by then."""
    first = TextVecEnv(3, **options)
    agent = make_agent(PPO, first, n_steps=8, n_epochs=1)
    second = TextVecEnv(3, **{**elsewhere, "beta": AdaptiveKL(0.7, target=1.0)})
    agent.set_env(second)
    del first
    gc.collect()
    agent.learn(24)
    saved = agents.sb3.save(agent, tmp_path / "agent")
    again = agents.sb3.load(PPO, saved, TextVecEnv(3, **{**elsewhere, "beta": AdaptiveKL(0.1, target=1.0)}))
    for name, tensor in agent.policy.state_dict().items():
        assert torch.equal(tensor, again.policy.state_dict()[name]), name
    assert again.get_env().task.kl.beta == second.task.kl.beta


def test_back_in_the_first_environment(options, elsewhere):
    first = TextVecEnv(2, **options)
    second = TextVecEnv(2, **elsewhere)
    agent = make_agent(PPO, first, n_steps=4, n_epochs=1)
    for env in (second, first):
        agent.set_env(env)
        agent.learn(16, KLCheck(env))


@pytest.fixture
def zip_of_sb3(options, tmp_path):
    """(agent, the file that its own `save` has written)."""
    agent = make_agent(PPO, TextVecEnv(2, **options), n_steps=4, n_epochs=1)
    agent.learn(8)
    agent.save(tmp_path / "agent.zip")
    return agent, tmp_path / "agent.zip"


def test_a_zip_of_sb3_loaded_for_another_environment_trains_its_model(zip_of_sb3, elsewhere):
    """Also after it is moved once more."""
    agent, path = zip_of_sb3
    second = TextVecEnv(2, **elsewhere)
    third = TextVecEnv(2, **{**elsewhere, "model": agent.policy.network.lm})
    again = PPO.load(path, env=second, observation_space=second.observation_space)
    again.set_logger(configure(None, []))
    assert again.policy.network.lm is second.task.model
    assert torch.equal(second.task.model.lm_head.weight, agent.policy.network.lm.lm_head.weight)
    again.learn(16, KLCheck(second))
    again.set_env(third)
    again.learn(16, KLCheck(third))


def test_a_zip_of_sb3_loaded_with_a_model_of_its_own_trains_that_one(zip_of_sb3, elsewhere, make_lm):
    """The saved space knows no environment, and the policy needs none."""
    _, path = zip_of_sb3
    second = TextVecEnv(2, **elsewhere)
    trained = make_lm("gpt2", seed=5)
    again = PPO.load(path, env=second, custom_objects={"policy_kwargs": {"model": trained}})
    again.set_logger(configure(None, []))
    assert again.policy.network.lm is trained
    again.learn(16, KLCheck(second))


def test_actions_that_were_not_sampled_get_the_logprobs_of_the_policy_that_acts(options, elsewhere):
    """The other model is bound to the environment, and unbound when a policy with the environment's own acts."""
    first = TextVecEnv(2, **options)
    second = TextVecEnv(2, **elsewhere)
    visitor = make_agent(PPO, first, n_steps=4, n_epochs=1, learning_rate=0.01)
    visitor.set_env(second)
    visitor.learn(8)
    resident = make_agent(PPO, second, n_steps=4, n_epochs=1, learning_rate=0.01)
    for agent, source in ((visitor, "logprob_fn"), (resident, "model")):
        agent.set_env(second)
        agent.learn(8)
        observation = second.reset()
        _, _, _, infos = second.step(np.array([20, 30]))
        for slot, info in enumerate(infos):
            ids = observation["input_ids"][slot]
            wanted = next_logprob(agent.policy.network.lm, ids, observation["length"][slot, 0], (20, 30)[slot])
            assert info["logprob"] == pytest.approx(wanted, abs=1e-5)
            assert info["logprob_source"] == source


def test_two_agents_in_environments_that_show_the_same_texts_do_not_mix(options, elsewhere):
    same = {"prompts": [[3, 4]], "eos_token_id": (), "max_new_tokens": 4}
    agents = []
    for changes in (options, elsewhere):
        env = TextVecEnv(2, **{**changes, **same})
        agent = make_agent(PPO, env, n_steps=4)
        agents.append((env, agent, env.reset()))
    steps = [(env, agent.policy(obs_as_tensor(observation, "cpu"))) for env, agent, observation in agents]
    for env, (tokens, _, logprobs) in steps:
        _, _, _, infos = env.step(tokens.cpu().numpy())
        assert [info["logprob"] for info in infos] == pytest.approx(logprobs.tolist(), abs=1e-6)


def test_an_environment_of_another_temperature_is_refused(options, elsewhere):
    agent = make_agent(PPO, TextVecEnv(2, **options), n_steps=4)
    cool = TextVecEnv(2, **{**elsewhere, "temperature": 0.7})
    agent.set_env(cool)
    with pytest.raises(ConfigurationError, match=r"temperature 1, and this environment has 0\.7"):
        agent.learn(8)
    assert cool.mdp.prompt_lengths.tolist() == cool.mdp.lengths.tolist()
    chosen = make_agent(PPO, TextVecEnv(2, **options), n_steps=4, n_epochs=1, policy_kwargs={"temperature": 1.0})
    chosen.set_env(cool)
    chosen.learn(8)


def test_an_environment_that_masks_tokens_is_refused(options, elsewhere):
    agent = make_agent(PPO, TextVecEnv(2, **options), n_steps=4)
    agent.set_env(TextVecEnv(2, **elsewhere, action_mask=lambda prompt, response: np.arange(V) > 3))
    with pytest.raises(ConfigurationError, match="MaskablePPO"):
        agent.learn(8)


def test_an_environment_that_the_logprobs_do_not_reach_is_refused(options, elsewhere):
    """stable-baselines3 wraps a Gymnasium environment in a DummyVecEnv, which takes the actions apart."""
    agent = make_agent(PPO, TextVecEnv(1, **{**options, "eos_token_id": ()}), n_steps=4, n_epochs=1)
    agent.set_env(TextGenerationEnv(**{**elsewhere, "eos_token_id": ()}))
    with pytest.raises(ConfigurationError, match=r"TextVecEnv\.from_env"):
        agent.learn(8)
    second = TextVecEnv.from_env(TextGenerationEnv(**elsewhere))
    agent.set_env(second)
    agent.learn(8, KLCheck(second))


class CopiesActions(VecEnvWrapper):
    """A wrapper that hands on other arrays of the same actions."""

    def reset(self):
        return self.venv.reset()

    def step_async(self, actions):
        self.venv.step_async(np.array(actions))

    def step_wait(self):
        return self.venv.step_wait()


def test_a_wrapper_that_copies_actions_is_fine_around_the_first_environment_only(options, elsewhere):
    same_length = {"eos_token_id": ()}
    env = TextVecEnv(2, **{**options, **same_length})
    agent = make_agent(PPO, CopiesActions(env), n_steps=4, n_epochs=1)
    agent.learn(16)
    agent.set_env(CopiesActions(TextVecEnv(2, **{**elsewhere, **same_length})))
    with pytest.raises(ConfigurationError, match="pass the actions on as they are"):
        agent.learn(16)


def test_normalized_observations_are_refused(options):
    env = TextVecEnv(2, **options)
    with pytest.raises(ConfigurationError, match="norm_obs=False"):
        make_agent(PPO, VecNormalize(env), n_steps=4).learn(8)


def test_predicted_actions_have_the_logprobs_of_the_policy_that_predicted_them(options, elsewhere):
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, env, n_steps=4)
    second = TextVecEnv(2, **elsewhere)
    observation = second.reset()
    lm = agent.policy.network.lm
    for _ in range(5):
        actions, _ = agent.predict(observation)
        ids = observation["input_ids"]
        lengths = observation["length"][:, 0]
        observation, _, _, infos = second.step(actions)
        for slot, info in enumerate(infos):
            wanted = next_logprob(lm, ids[slot], lengths[slot], actions[slot])
            assert info["logprob"] == pytest.approx(wanted, abs=1e-5)
