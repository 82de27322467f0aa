"""Which critic an agent takes when none is asked for: that of a cheap reward function, else a value head."""

from __future__ import annotations

import pytest

from agents import A2C, PPO
from agents.learning.score_critic import ScoreCritic
from lm_env import TextGenerationEnv
from lm_env.objective.rewards import reads_prefixes
from reward_models import Affine, Clipped, ExactMatch, Keyword, Length, LexiconSentiment, WeightedSum

SMALL = {"rollout_episodes": 4, "slots": 4}


def unknown(prompts, responses, **columns):
    return [0.0] * len(responses)


def declared(prompts, responses, **columns):
    return [float(len(response)) for response in responses]


declared.reads_prefixes = True


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_a_reward_that_reads_prefixes_gives_the_critic_and_its_lambda(id_task, kind):
    agent = kind(TextGenerationEnv(**id_task(reward=declared)), **SMALL)
    assert isinstance(agent.score_critic, ScoreCritic)
    assert agent.policy.value_head is None
    assert agent.gae_lambda == 0.7
    other = kind(TextGenerationEnv(**id_task(reward=unknown)), **SMALL)
    assert other.score_critic is None
    assert other.policy.reads_trunk
    assert other.gae_lambda == 0.95


def test_the_lambda_of_a_score_critic_rises_evenly_to_one(id_task):
    agent, seen = PPO(TextGenerationEnv(**id_task(reward=declared)), **SMALL), []

    def note(locals_, globals_):
        assert agent.gae_lambda == pytest.approx(0.7 + 0.3 * started[-1] / total)
        seen.append(agent.gae_lambda)
        started.append(agent.num_timesteps)
        return True

    total, started = 200, [0]
    agent.learn(total, callback=note)
    assert len(seen) > 3 and seen[0] == pytest.approx(0.7) and seen == sorted(seen)


def test_what_is_asked_for_wins(id_task):
    shared = PPO(TextGenerationEnv(**id_task(reward=declared)), critic="shared", gae_lambda=0.5, **SMALL)
    assert shared.score_critic is None
    assert shared.policy.reads_trunk
    assert shared.gae_lambda == 0.5
    score = PPO(TextGenerationEnv(**id_task(reward=unknown)), critic="score", gae_lambda=1.0, **SMALL)
    assert isinstance(score.score_critic, ScoreCritic)
    assert score.gae_lambda == 1.0


def test_an_agent_that_is_loaded_keeps_its_critic(id_task, tmp_path):
    """Even where another reward function would have given another one."""
    PPO(TextGenerationEnv(**id_task(reward=unknown)), **SMALL).save(tmp_path / "head")
    with pytest.warns(UserWarning, match="reward"):
        agent = PPO.load(tmp_path / "head", TextGenerationEnv(**id_task(reward=declared)))
    assert agent.score_critic is None
    assert agent.policy.reads_trunk


REWARDS = {
    "the lexicon": (LexiconSentiment(), True),
    "a length": (Length(), True),
    "keywords": (Keyword(["a"]), True),
    "an exact match": (ExactMatch(), False),
    "a function": (unknown, False),
    "scaled, declared": (Affine(declared, 2.0), True),
    "scaled, a function": (Affine(unknown, 2.0), False),
    "clipped, declared": (Clipped(declared, 0.0, 1.0), True),
    "a sum of both kinds": (WeightedSum([(1.0, LexiconSentiment()), (1.0, unknown)]), False),
    "a sum of such": (WeightedSum([(1.0, LexiconSentiment()), (1.0, Length())]), True),
}


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_made_of_rewards_read_prefixes_if_all_their_parts_do(name):
    reward, expected = REWARDS[name]
    assert reads_prefixes(reward) is expected
