"""stable-baselines3's own callbacks on the batched agents, and the moment at which they are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)

from agents import GRPO, PPO
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import ConfigurationError
from lm_env.tasks.token_mdp import make

SMALL = {"rollout_episodes": 16, "slots": 8}


def small_agent(seed: int = 0, **options) -> PPO:
    return PPO(make(), batch_size=8, n_epochs=2, learning_rate=0.02, seed=seed, **{**SMALL, **options})


def same_weights(a: PPO, b: PPO) -> bool:
    return all(torch.equal(v, b.policy.state_dict()[k]) for k, v in a.policy.state_dict().items())


def test_a_checkpoint_saved_by_a_callback_in_mid_run_resumes_exactly(tmp_path):
    """CheckpointCallback saves after the update: going on from there gives the uninterrupted run's weights."""
    whole = small_agent(lr_schedule="constant")
    whole.learn(200, CheckpointCallback(save_freq=2, save_path=str(tmp_path)))
    saved = sorted(tmp_path.iterdir(), key=lambda path: int(path.name.split("_")[2]))
    assert len(saved) >= 2 and all(path.is_dir() and path.suffix == "" for path in saved)
    resumed = PPO.load(saved[0], make())
    assert 0 < resumed.num_timesteps < whole.num_timesteps
    while resumed.num_timesteps < whole.num_timesteps:
        resumed.learn(1, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps
    assert same_weights(whole, resumed)


def test_a_path_that_ends_in_zip_names_the_folder_without_it(tmp_path):
    agent = small_agent().learn(20)
    assert agent.save(tmp_path / "policy.zip") == tmp_path / "policy"
    assert same_weights(agent, PPO.load(tmp_path / "policy.zip", make()))


def test_on_step_comes_after_the_update_and_before_the_next_rollout():
    agent = small_agent()

    class Order(BaseCallback):
        tables: list[torch.Tensor] = []  # noqa: RUF012

        def note(self) -> None:
            self.tables.append(agent.task.model.table.detach().clone())

        def _on_rollout_start(self) -> None:
            self.note()

        def _on_rollout_end(self) -> None:
            self.note()

        def _on_step(self) -> bool:
            self.note()
            assert self.locals["dones"].tolist() == [True] * 16
            return False

    agent.learn(1000, Order())
    before, after_rollout, after_update = Order.tables
    assert torch.equal(before, after_rollout) and not torch.equal(before, after_update)


@pytest.mark.parametrize("cls", [PPO, GRPO])
def test_evaluation_in_an_environment_of_its_own(cls, tmp_path):
    """EvalCallback warns, as it does for any two kinds of environments, and evaluates at the asked rate."""
    evaluation = EvalCallback(
        make(),
        n_eval_episodes=4,
        eval_freq=2,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
        warn=False,
    )
    agent = cls(make(), **SMALL)
    with pytest.warns(UserWarning, match="not of the same type"):
        agent.learn(150, evaluation)
    written = np.load(tmp_path / "evaluations.npz")
    assert written["results"].shape == (agent.num_rollouts // 2, 4)
    assert written["timesteps"][-1] <= agent.num_timesteps
    assert same_weights(cls.load(tmp_path / "best_model", make()), cls.load(tmp_path / "best_model", make()))


def test_training_stops_at_a_reward_threshold():
    stop = StopTrainingOnRewardThreshold(reward_threshold=-100.0)
    agent = small_agent()
    with pytest.warns(UserWarning, match="not of the same type"):
        agent.learn(10**6, EvalCallback(make(), stop, n_eval_episodes=2, eval_freq=3, verbose=0, warn=False))
    assert agent.num_rollouts == 3


def test_training_stops_after_so_many_episodes():
    agent = small_agent().learn(10**6, StopTrainingOnMaxEpisodes(max_episodes=40))
    assert agent.num_rollouts == 3  # of 16 episodes each


def test_the_progress_bar_of_stable_baselines3_counts_tokens(capsys):
    agent = small_agent()
    bar = ProgressBarCallback()
    agent.learn(100, [bar])
    shown = capsys.readouterr()
    assert f"{agent.num_timesteps}/100" in shown.out + shown.err


def test_the_log_can_be_written_every_so_many_tokens(tmp_path):
    agent = small_agent(log_dir=tmp_path)
    agent.learn(200, LogEveryNTimesteps(n_steps=60))
    agent.logger.close()
    rows = (Path(tmp_path) / "progress.csv").read_text().splitlines()
    assert len(rows) == 1 + agent.num_rollouts, "each rollout is written once"


def test_a_subclass_of_the_progress_bar_keeps_its_own_methods(id_task):
    class Stop(ProgressBarCallback):
        def _on_step(self) -> bool:
            return False

    agent = PPO(TextGenerationEnv(**id_task()), rollout_episodes=8, batch_size=8)
    agent.learn(10_000, callback=(Stop(),))
    assert agent.num_rollouts == 1


@pytest.mark.parametrize("callback", [3, "log"])
def test_what_is_no_callback(callback, id_task):
    agent = PPO(TextGenerationEnv(**id_task()), rollout_episodes=8, batch_size=8)
    with pytest.raises(ConfigurationError, match="callback must be"):
        agent.learn(100, callback=callback)


@pytest.mark.parametrize("total", ["x", None, float("nan"), -1])
def test_the_length_of_a_training_is_a_number(total, id_task):
    with pytest.raises(ConfigurationError, match="total_timesteps"):
        PPO(TextGenerationEnv(**id_task())).learn(total)
