"""The critic that regresses returns on the score of the text so far: its fit by hand, its optimum, its way to disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from agents import A2C, GRPO, PPO
from agents.learning.score_critic import FEATURES, ScoreCritic, prefix_scores
from lm_env import TextGenerationEnv, TokenMDP
from lm_env.errors import ConfigurationError, LMEnvError
from lm_env.tasks.token_mdp import make

T0 = TokenMDP.t0()
SMALL = {"rollout_episodes": 64, "slots": 64}


@pytest.fixture
def agent(id_task) -> PPO:
    return PPO(TextGenerationEnv(**id_task()), critic="score", **SMALL)


def test_the_score_of_each_beginning_is_the_reward_functions(agent):
    rollout = agent.collect_rollout()
    scores = prefix_scores(agent.task, rollout)
    for row, response in enumerate(rollout.episodes.responses()):
        for step in range(len(response)):
            expected = agent.task.reward([""], [""], response_ids=[response[:step]])[0]
            assert scores[row, step] == pytest.approx(expected)


def test_the_values_are_those_of_a_weighted_ridge_regression(agent):
    """Three rollouts: the values of the third are fitted to the first two, the first of which counts .9."""
    critic = ScoreCritic(decay=0.9, ridge=2.0)
    rollouts = [agent.collect_rollout() for _ in range(3)]
    values = [critic.values(agent.task, rollout) for rollout in rollouts]
    longest = agent.task.max_new_tokens
    scale = prefix_scores(agent.task, rollouts[0])[rollouts[0].mask].std()

    def rows(rollout) -> tuple[np.ndarray, np.ndarray]:
        p = prefix_scores(agent.task, rollout)[rollout.mask] / scale
        tau = np.nonzero(rollout.mask)[1] / longest
        to_go = np.where(rollout.mask, rollout.scored.rewards, 0)[:, ::-1].cumsum(1)[:, ::-1][rollout.mask]
        return np.stack([np.ones_like(p), tau, tau**2, p, p * tau, p * tau**2, p**2, p**3], 1), to_go

    (x1, y1), (x2, y2), (x3, _) = map(rows, rollouts)
    weight = np.sqrt(0.9)
    x = np.concatenate([weight * x1, x2, np.sqrt(2.0) * np.eye(FEATURES)])
    y = np.concatenate([weight * y1, y2, np.zeros(FEATURES)])
    expected = x3 @ np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(values[2][rollouts[2].mask], expected, rtol=0, atol=1e-8)
    assert not values[2][~rollouts[2].mask].any()


def test_a_return_that_is_linear_in_the_features_is_found(agent):
    critic = ScoreCritic(ridge=1e-9)
    for _ in range(3):
        rollout = agent.collect_rollout()
        p = prefix_scores(agent.task, rollout)
        value = np.where(rollout.mask, 2 * p - 1, 0.0)  # rewards whose sum from each token on is 2 p - 1
        rewards = value - np.where(rollout.mask, np.pad(value, ((0, 0), (0, 1)))[:, 1:], 0.0)
        rollout = replace(rollout, scored=replace(rollout.scored, rewards=rewards))
        found = critic.values(agent.task, rollout)
    np.testing.assert_allclose(found, value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "tokens", "options"),
    [(PPO, 100_000, {"learning_rate": 0.05, "batch_size": 512, "n_epochs": 2}), (A2C, 200_000, {"learning_rate": 0.1})],
)
def test_with_lambda_1_the_optimum_is_the_exact_one(cls, tokens, options):
    """A value is only a baseline then, whatever it says."""
    env = make(mdp=T0, beta=0.5)
    sizes = {"rollout_episodes": 1024, "slots": 1024, "max_grad_norm": 100.0}
    cls(env, critic="score", gae_lambda=1.0, **sizes, **options).learn(tokens)
    found = T0.evaluate(env.task.model, 0.5)
    assert found.gap < 5e-3 and found.tv < 0.02


def test_no_value_loss_is_trained_or_logged(agent):
    metrics = agent.update(agent.collect_rollout())
    assert metrics["value_loss"] == 0
    assert agent.policy.value_head is None
    second = agent.update(agent.collect_rollout())
    assert second["explained_variance"] > -0.5


def test_what_it_has_learned_is_saved_with_the_agent(agent, id_task, tmp_path):
    agent.learn(500)
    again = PPO.load(agent.save(tmp_path / "agent"), TextGenerationEnv(**id_task()))
    assert again.score_critic.state() == agent.score_critic.state()
    rollout = agent.collect_rollout()
    np.testing.assert_array_equal(
        agent.score_critic.values(agent.task, rollout), again.score_critic.values(agent.task, rollout)
    )


@pytest.mark.parametrize("damage", [{}, {"gram": [[1]]}, {"moments": "x"}, {"scale": []}])
def test_a_damaged_description_is_refused(damage):
    state = json.loads(json.dumps({**ScoreCritic().state(), **damage}) if damage else "{}")
    with pytest.raises(LMEnvError, match="critic is damaged"):
        ScoreCritic.from_state(state)


def test_agents_without_values_do_not_take_it(id_task):
    with pytest.raises(ConfigurationError, match="critic must be"):
        GRPO(TextGenerationEnv(**id_task()), critic="score", **SMALL)
