"""Training with a reward function that fails: what is learned is what could be scored, and the log counts the rest."""

from __future__ import annotations

import csv
import math
import threading

import numpy as np
import pytest
import torch

from agents import GRPO, PPO, Checkpointing, EvaluateTexts
from lm_env.errors import ConfigurationError, RewardError
from lm_env.objective.scoring import score_episodes
from lm_env.tasks.token_mdp import make

SMALL = {"rollout_episodes": 32, "slots": 32, "learning_rate": 1e-2}


def parity(prompts, responses, response_ids):
    """A score that depends on the text alone."""
    return [float(sum(ids) % 3) for ids in response_ids]


class Moody:
    """`parity`, but each call may raise, hang, return NaN or one score too many; and some texts never get a score."""

    def __init__(self, seed: int, released: threading.Event) -> None:
        self.rng, self.released, self.failed_calls = np.random.default_rng(seed), released, 0

    def __call__(self, prompts, responses, response_ids):
        mood = self.rng.choice(["fine", "raise", "hang", "nan", "count"], p=[0.6, 0.1, 0.1, 0.1, 0.1])
        scores = parity(prompts, responses, response_ids)
        if mood == "raise":
            raise OSError("the service is away")
        if mood == "hang":
            self.released.wait()
        if mood == "nan":
            scores[int(self.rng.integers(len(scores)))] = math.nan
        return scores + [0.0] * (mood == "count")


def rows_of(folder):
    with (folder / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_left_is_what_scoring_it_alone_gives():
    """The rollout without the failed episodes, array by array, equals one that never had them."""
    unlucky = lambda prompts, responses, response_ids: [  # noqa: E731
        math.nan if ids[0] == 1 else float(sum(ids)) for ids in response_ids
    ]
    agent = PPO(make(reward=unlucky), on_reward_error="skip", **SMALL)
    rollout = agent.collect_rollout()
    assert 0 < len(rollout) < 32
    assert all(ids[0] != 1 for ids in rollout.episodes.responses())
    scored = score_episodes(agent.task, rollout.episodes)
    for name in ("rewards", "scores", "logprobs", "token_scores", "ended"):
        np.testing.assert_array_equal(getattr(rollout.scored, name), getattr(scored, name))
    assert rollout.values.shape == rollout.mask.shape and rollout.last_values.shape == (len(rollout),)


def test_groups_are_left_out_whole():
    unlucky = lambda prompts, responses, response_ids: [  # noqa: E731
        math.nan if ids[0] == 1 else float(sum(ids)) for ids in response_ids
    ]
    agent = GRPO(make(reward=unlucky), on_reward_error="skip", group_size=4, batch_size=8, **SMALL)
    rollout = agent.collect_rollout()
    assert len(rollout) % 4 == 0 and len(rollout) < 32
    agent.learn(100)


@pytest.mark.parametrize("cls", [PPO, GRPO])
def test_a_moody_reward_does_not_end_the_training_and_the_counters_add_up(tmp_path, cls):
    released = threading.Event()
    agent = cls(
        make(reward=Moody(0, released)),
        on_reward_error="skip",
        reward_deadline=0.05,
        log_dir=tmp_path,
        **SMALL,
        **({"group_size": 4} if cls is GRPO else {}),
    )
    learned = []
    agent.learn(1500, lambda local, _: learned.append(len(local["rollout"])) or True)
    released.set()
    rows = rows_of(tmp_path)
    skipped = [float(row["rollout/skipped"]) for row in rows]
    assert [32 - n for n in learned] == skipped and 0 < sum(skipped) < 32 * len(rows)
    assert 32 in skipped, "a whole rollout was lost, and the next one was not"
    assert sum(float(row["rollout/reward_errors"]) for row in rows) > 0
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())


def test_a_rollout_without_scores_changes_nothing(tmp_path):
    def dead(prompts, responses):
        raise OSError("away")

    agent = PPO(make(reward=dead), on_reward_error="skip", log_dir=tmp_path, **SMALL)
    before = [p.detach().clone() for p in agent.policy.parameters()]
    agent.learn(200)
    assert all(torch.equal(p, b) for p, b in zip(agent.policy.parameters(), before, strict=True))
    assert all(row["rollout/skipped"] == "32.0" for row in rows_of(tmp_path))


def test_a_reward_that_recovers_costs_nothing():
    class Recovers:
        def __init__(self, bad) -> None:
            self.bad, self.calls = bad, 0

        def __call__(self, prompts, responses, response_ids):
            self.calls += 1
            if self.calls in self.bad:
                raise OSError("away")
            return parity(prompts, responses, response_ids)

    def trained(bad, **options):
        agent = PPO(make(reward=Recovers(bad)), **SMALL, **options)
        if agent.reward is not None:
            agent.reward.pause = 0
        return [p.detach().numpy().tobytes() for p in agent.learn(200).policy.parameters()]

    assert trained({1, 3, 4}, on_reward_error="retry") == trained(set())
    with pytest.raises(RewardError, match="away"):
        trained({3})
    with pytest.raises(RewardError, match="away"):
        trained({3, 4, 5}, on_reward_error="retry")


def test_the_score_critic_bears_it():
    released = threading.Event()
    agent = PPO(
        make(reward=Moody(1, released)), critic="score", on_reward_error="skip", reward_deadline=0.05, **SMALL
    ).learn(600)
    released.set()
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())


def test_a_skipping_run_goes_on_from_a_checkpoint(tmp_path):
    """What is skipped depends on the text alone here, so that both runs skip the same."""
    unlucky = lambda prompts, responses, response_ids: [  # noqa: E731
        math.nan if sum(ids) % 4 == 1 else float(sum(ids)) for ids in response_ids
    ]

    def run(total, folder):
        agent = PPO(make(reward=unlucky), on_reward_error="skip", lr_schedule="constant", **SMALL)
        agent.learn(total, checkpoint=Checkpointing(folder, every=1), resume=True)
        return [p.detach().numpy().tobytes() for p in agent.policy.parameters()]

    run(150, tmp_path / "a")
    assert run(400, tmp_path / "a") == run(400, tmp_path / "b")


def test_impossible_settings():
    with pytest.raises(ConfigurationError, match="on_reward_error"):
        PPO(make(), on_reward_error="ignore", **SMALL)
    with pytest.raises(ConfigurationError, match="deadline"):
        PPO(make(), on_reward_error="skip", reward_deadline=-1, **SMALL)


def test_a_skipping_run_goes_on_without_an_evaluation_that_fails(tmp_path):
    """The reward is asked in the first evaluation, in two rollouts, and in the last evaluation; the first fails."""
    calls = []

    def once(prompts, responses, response_ids):
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the service is away")
        return parity(prompts, responses, response_ids)

    for on_error in ("skip", "raise"):
        calls.clear()
        agent = PPO(make(reward=once), on_reward_error=on_error, **SMALL)
        held_out = EvaluateTexts(n=4, every=10_000)
        if on_error == "raise":
            with pytest.raises(RewardError, match="the service is away"):
                agent.learn(100, callback=held_out)
        else:
            agent.learn(100, callback=held_out)
            assert [found.timesteps for found in held_out.history] == [agent.num_timesteps]
            assert agent.num_timesteps >= 100
