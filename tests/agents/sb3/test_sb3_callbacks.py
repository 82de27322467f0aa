"""stable-baselines3's own callbacks and `evaluate_policy` work with agents on a TextVecEnv."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_maskable_policy
from sb3_helpers import KLCheck, V, make_agent, text_options
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

import agents.sb3
from agents.sb3 import TextVecEnv
from lm_env import Episodes
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import score_episodes


@pytest.fixture
def options(make_lm):
    return text_options(make_lm)


def evaluation_env(options, **changes):
    return VecMonitor(TextVecEnv(2, **{**options, **changes}, kl_update_episodes=None))


def return_by_scoring(lm, task, terminal_observation, allowed_tokens=None):
    """What the text of an ended episode pays when it is scored whole, with the logprobs of `lm`."""
    length = int(terminal_observation["length"][0])
    ids = terminal_observation["input_ids"][:length]
    prompt = next(p for p in task.prompts if ids[: len(p.ids)].tolist() == p.ids.tolist())
    episodes = Episodes(ids[None], np.array([len(prompt.ids)]), np.array([length]), [prompt])
    allowed = None
    if allowed_tokens is not None:
        allowed = np.stack(
            [allowed_tokens(prompt.ids, ids[len(prompt.ids) : t]) for t in range(len(prompt.ids), length)]
        )
    logprobs = response_logprobs(lm, episodes, task.temperature, allowed)
    return float(score_episodes(task, dataclasses.replace(episodes, logprobs=logprobs)).rewards.sum())


class EndedEpisodes:
    """A callback of `evaluate_policy` that keeps the last observation and the return of each episode."""

    def __init__(self):
        self.episodes = []

    def __call__(self, local_variables, global_variables):
        if local_variables["done"]:
            info = local_variables["info"]
            self.episodes.append((info["terminal_observation"], info["episode"]["r"]))


class WeightsOfSteps(BaseCallback):
    """The weights of the language model at each step."""

    def _on_training_start(self):
        self.weights = []

    def _on_step(self):
        self.weights.append(self.model.policy.network.lm.lm_head.weight.detach().clone())
        return True


# -- evaluation ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("same_model", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluate_policy_pays_the_kl_of_the_policy_under_evaluation(options, make_lm, same_model, deterministic):
    """Also in an environment that has loaded a model of its own."""
    agent = make_agent(PPO, TextVecEnv(3, **options), n_steps=8, n_epochs=1, learning_rate=0.01)
    agent.learn(24)
    lm = agent.policy.network.lm
    env = evaluation_env(options, model=lm if same_model else make_lm("gpt2", seed=9))
    ended = EndedEpisodes()
    mean, _ = evaluate_policy(agent, env, n_eval_episodes=6, deterministic=deterministic, callback=ended)
    assert len(ended.episodes) >= 6
    for terminal_observation, episode_return in ended.episodes:
        wanted = return_by_scoring(lm, env.unwrapped.task, terminal_observation)
        assert episode_return == pytest.approx(wanted, abs=1e-4)
    assert np.isfinite(mean)


@pytest.mark.parametrize("same_model", [True, False])
def test_eval_callback_leaves_the_training_alone(options, make_lm, tmp_path, same_model):
    """It evaluates in the middle of the rollouts; the best model is saved and loads."""
    env = TextVecEnv(3, **options)
    agent = make_agent(PPO, VecMonitor(env), n_steps=8, n_epochs=1, learning_rate=0.01)
    other = evaluation_env(options, model=env.task.model if same_model else make_lm("gpt2", seed=9))
    evaluation = EvalCallback(
        other, n_eval_episodes=4, eval_freq=3, log_path=tmp_path, best_model_save_path=str(tmp_path), verbose=0
    )
    beta = env.task.kl.beta
    check = KLCheck(env)
    agent.learn(48, [evaluation, check])
    assert check.steps == 16 and env.task.kl.beta == beta
    results = np.load(tmp_path / "evaluations.npz")
    assert results["timesteps"].tolist() == [9, 18, 27, 36, 45] and np.isfinite(results["results"]).all()
    assert evaluation.best_mean_reward == pytest.approx(results["results"].mean(1).max())
    PPO.load(tmp_path / "best_model.zip", env=env, observation_space=env.observation_space)


def test_an_evaluation_does_not_change_what_is_trained(options, make_lm):
    """Without sampling in the evaluation, the weights after training are those of a run without it."""
    weights = []
    for callback in (None, EvalCallback(evaluation_env(options), n_eval_episodes=4, eval_freq=3, verbose=0)):
        torch.manual_seed(0)
        env = TextVecEnv(3, **{**options, "model": make_lm("gpt2")})
        agent = make_agent(PPO, VecMonitor(env), n_steps=8, n_epochs=1, learning_rate=0.01)
        agent.learn(48, callback)
        weights.append(env.task.model.lm_head.weight)
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)


def test_eval_callback_with_normalized_rewards(options):
    env = VecNormalize(VecMonitor(TextVecEnv(2, **options)), norm_obs=False)
    other = VecNormalize(evaluation_env(options), norm_obs=False, norm_reward=False, training=False)
    agent = make_agent(PPO, env, n_steps=8, n_epochs=1)
    agent.learn(32, EvalCallback(other, n_eval_episodes=2, eval_freq=5, verbose=0))
    assert other.ret_rms.mean != 0  # synchronized from the training environment by the callback


def two_thirds_allowed(prompt, response):
    return np.arange(V) % 3 != len(response) % 3


def test_evaluation_of_a_masked_policy(options):
    env = TextVecEnv(2, **options, action_mask=two_thirds_allowed)
    agent = make_agent(
        MaskablePPO,
        VecMonitor(env),
        n_steps=8,
        n_epochs=1,
        buffer=agents.sb3.MaskableEpisodeRolloutBuffer,
        policy=agents.sb3.MaskableCausalLMPolicy,
    )
    other = evaluation_env(options, action_mask=two_thirds_allowed)
    evaluation = MaskableEvalCallback(other, n_eval_episodes=4, eval_freq=5, verbose=0)
    agent.learn(32, evaluation)
    ended = EndedEpisodes()
    evaluate_maskable_policy(agent, other, n_eval_episodes=4, callback=ended)
    for terminal_observation, episode_return in ended.episodes:
        wanted = return_by_scoring(env.task.model, env.task, terminal_observation, two_thirds_allowed)
        assert episode_return == pytest.approx(wanted, abs=1e-4)
    assert len(ended.episodes) >= 4 and np.isfinite(evaluation.last_mean_reward)


# -- checkpoints --------------------------------------------------------------------------------------
def test_checkpoint_callback_saves_the_policy_of_its_step(options, make_lm, tmp_path):
    """And the training continues from there."""
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, VecMonitor(env), n_steps=4, n_epochs=1, learning_rate=0.01)
    steps = WeightsOfSteps()
    agent.learn(24, [CheckpointCallback(save_freq=5, save_path=str(tmp_path)), steps])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rl_model_10_steps.zip", "rl_model_20_steps.zip"]
    for timesteps, step in ((10, 4), (20, 9)):
        other = TextVecEnv(2, **{**options, "model": make_lm("gpt2", seed=8)})
        again = PPO.load(
            tmp_path / f"rl_model_{timesteps}_steps.zip", env=other, observation_space=other.observation_space
        )
        assert torch.equal(again.policy.network.lm.lm_head.weight, steps.weights[step])
        assert again.num_timesteps == timesteps
        again.set_logger(configure(None, []))
        again.learn(16, KLCheck(other), reset_num_timesteps=False)
    assert not torch.equal(steps.weights[4], steps.weights[9])


class SafeCheckpoint(BaseCallback):
    """What saves without pickle, triggered by an `EventCallback` of stable-baselines3."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def _on_step(self):
        agents.sb3.save(self.model, self.folder / str(self.num_timesteps))
        return True


def test_save_in_the_middle_of_a_run(options, text_lm, tokenizer, tmp_path):
    texts = {"tokenizer": tokenizer, "prompts": ["a good", "the end"], "eos_token_id": None}
    options |= {**texts, "reference": text_lm(seed=1)}
    env = TextVecEnv(2, **{**options, "model": text_lm()})
    agent = make_agent(A2C, env, n_steps=4)
    steps = WeightsOfSteps()
    agent.learn(24, [EveryNTimesteps(10, SafeCheckpoint(tmp_path)), steps])
    again = agents.sb3.load(A2C, tmp_path / "10", TextVecEnv(2, **{**options, "model": text_lm(seed=5)}))
    assert torch.equal(again.policy.network.lm.lm_head.weight, steps.weights[4])


# -- the others ---------------------------------------------------------------------------------------
def test_training_stops_after_a_number_of_episodes(options):
    env = VecMonitor(TextVecEnv(2, **{**options, "eos_token_id": ()}))
    agent = make_agent(PPO, env, n_steps=16, n_epochs=1)
    agent.learn(10_000, StopTrainingOnMaxEpisodes(max_episodes=3))
    assert agent.num_timesteps == 2 * 3 * 6  # three episodes of six tokens in each environment


def test_training_stops_at_a_reward_or_without_improvement(options):
    env = VecMonitor(TextVecEnv(2, **options))
    for stop in (
        {"callback_on_new_best": StopTrainingOnRewardThreshold(reward_threshold=-1e9)},
        {"callback_after_eval": StopTrainingOnNoModelImprovement(max_no_improvement_evals=1)},
    ):
        agent = make_agent(PPO, env, n_steps=8, n_epochs=1, learning_rate=0.0)
        agent.learn(2_000, EvalCallback(evaluation_env(options), n_eval_episodes=2, eval_freq=4, verbose=0, **stop))
        assert agent.num_timesteps < 2_000


def test_progress_bar_and_log_callbacks(options, tmp_path):
    agent = make_agent(PPO, VecMonitor(TextVecEnv(2, **options)), n_steps=8, n_epochs=1)
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(32, [ProgressBarCallback(), LogEveryNTimesteps(8)])
    agent.logger.close()
    rows = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True)
    assert {8, 16, 24, 32} <= set(rows["timetotal_timesteps"].tolist())
