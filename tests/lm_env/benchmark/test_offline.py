"""The entrants that learn from samples drawn beforehand, on token MDPs whose values are enumerated."""

from __future__ import annotations

import numpy as np
import pytest

from lm_env.benchmark import BenchSettings, run_bench
from lm_env.benchmark.defaults import AGENTS
from lm_env.benchmark.entrants import entrant
from lm_env.benchmark.offline import OFFLINE, OfflineDPO, OfflineSFT
from lm_env.benchmark.results import summarize_records
from lm_env.benchmark.settings import AgentSpec
from lm_env.errors import ConfigurationError
from lm_env.tasks import get_task
from lm_env.theory import TokenMDP

T0 = "lm_env/TokenMDP-v0"
LONGEST = 3
"""Tokens of a text of T0."""


def made(learner, **options):
    return learner(get_task(T0).make("train"), **{"seed": 0, "rollout_episodes": 64, **options})


def constant_reward_task(model_folder):
    from lm_env.tasks import TextTask

    return TextTask(
        id="me/Alike-v0",
        summary="all texts score alike",
        source=["good", "film", "story", "bad"],
        reward=lambda prompts, responses: [1.0] * len(responses),
        model=str(model_folder),
        max_new_tokens=3,
    )


def test_sft_on_the_best_of_k_becomes_the_best_of_k():
    """The likelihood of a table is greatest at the frequencies of the texts, whose mean score is known exactly."""
    mdp = TokenMDP.t0()
    agent = made(OfflineSFT, samples=4, epochs=30, learning_rate=3e-2, batch_size=256)
    agent.learn(16_000)
    probs, scores = np.exp(mdp.trajectory_logprobs(mdp.reference_model())), mdp.scores()
    levels = np.unique(scores)
    below = np.array([probs[scores <= level].sum() for level in levels])
    best_of_4 = levels @ np.diff(np.concatenate([[0.0], below**4]))
    learned = mdp.evaluate(agent.task.model, agent.task.kl.beta)
    groups = agent.num_timesteps / LONGEST / 4
    assert abs(learned.R - best_of_4) < 4 * np.ptp(scores) / 2 / np.sqrt(groups)
    assert best_of_4 - probs @ scores > 0.5


def test_a_second_call_is_a_second_round():
    """The best of 2 of the best of 2 is the best of 4; samples of the untrained model would end at the best of 2."""
    mdp = TokenMDP.t0()
    agent = made(OfflineSFT, samples=2, epochs=15, learning_rate=0.1, batch_size=256, rollout_episodes=256, slots=256)
    probs, scores = np.exp(mdp.trajectory_logprobs(mdp.reference_model())), mdp.scores()
    levels = np.unique(scores)
    below = np.array([probs[scores <= level].sum() for level in levels])
    best_of = {n: levels @ np.diff(np.concatenate([[0.0], below**n])) for n in (2, 4)}
    spent = []
    for n in (2, 4):
        agent.learn(4_000)
        spent.append(agent.num_timesteps)
        error = 4 * np.ptp(scores) / 2 / np.sqrt(4_000 / LONGEST / 2)
        assert abs(mdp.evaluate(agent.task.model, agent.task.kl.beta).R - best_of[n]) < error
    assert 4_000 <= spent[0] < 4_000 + 256 * LONGEST and 4_000 <= spent[1] - spent[0] < 4_000 + 256 * LONGEST
    assert best_of[4] - best_of[2] > error, "the test can tell the two apart"


@pytest.mark.parametrize("learner", [OfflineSFT, OfflineDPO])
def test_both_come_nearer_to_the_enumerated_optimum(learner):
    mdp = TokenMDP.t0()
    agent = made(learner, learning_rate=0.1, batch_size=16)
    beta = agent.task.kl.beta
    before = mdp.evaluate(agent.task.model, beta).J
    agent.learn(4_000)
    after, best = mdp.evaluate(agent.task.model, beta).J, mdp.optimum(beta).J
    assert before + 0.2 * (best - before) < after <= best
    assert abs(mdp.evaluate(agent.task.reference, beta).KL) < 1e-9


def test_dpo_with_its_own_beta_stays_nearer_to_the_reference():
    """The implied reward of a larger beta needs smaller log-ratios for the same margin."""
    mdp = TokenMDP.t0()
    found = []
    for beta in (0.1, 5.0):
        agent = made(OfflineDPO, learning_rate=3e-2, epochs=10, beta=beta)
        agent.learn(2_000)
        found.append(mdp.evaluate(agent.task.model, 1.0).KL)
    assert found[1] < found[0] / 2


def test_a_pair_is_ordered_by_its_scores_and_a_tie_is_left_out():
    agent = made(OfflineDPO, samples=4)
    groups = agent.draw(600)
    pairs = [pair for group in groups for pair in (group[:2], group[2:])]
    ties = sum(one.score == other.score for one, other in pairs)
    found = agent.comparisons(groups)
    assert 0 < ties < len(pairs) and len(found) == len(pairs) - ties
    mdp = TokenMDP.t0()
    tokens, lengths = mdp.trajectories()
    score_of = {tuple(row[:n]): score for row, n, score in zip(tokens.tolist(), lengths, mdp.scores(), strict=True)}
    assert all(score_of[tuple(c.chosen_ids)] > score_of[tuple(c.rejected_ids)] for c in found)


@pytest.mark.parametrize("learner", [OfflineSFT, OfflineDPO])
@pytest.mark.parametrize("tokens", [1, 500, 1501])
def test_the_tokens_drawn_are_the_budget_and_at_most_one_round_more(learner, tokens):
    agent = made(learner, rollout_episodes=16)
    groups = agent.draw(tokens)
    drawn = sum(len(sample.response) for group in groups for sample in group)
    assert agent.num_timesteps == drawn
    assert tokens <= drawn < tokens + 16 * LONGEST
    assert all(len(group) == agent.config.samples for group in groups)
    assert all(len({id(sample.prompt) for sample in group}) == 1 for group in groups)


def test_the_same_seed_gives_the_same_weights():
    weights = []
    for seed in (3, 3, 4):
        agent = made(OfflineDPO, seed=seed, learning_rate=1e-2).learn(300)
        weights.append(np.concatenate([p.detach().numpy().ravel() for p in agent.task.model.parameters()]))
    assert np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])


def test_without_a_pair_that_differs_dpo_says_so(model_folder):
    agent = OfflineDPO(constant_reward_task(model_folder).make("train"), rollout_episodes=8)
    with pytest.raises(ConfigurationError, match="all 4 pairs of samples have equal scores"):
        agent.learn(1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {"samples": 3, "rollout_episodes": 6}, "samples must be even"),
        ("dpo", {"beta": -1.0}, "beta"),
        ("sft", {"samples": 1}, "samples"),
        ("sft", {"samples": 8, "rollout_episodes": 12}, "multiple of samples"),
        ("sft", {"learning_rate": 0.0}, "learning_rate"),
        ("sft", {"beta": 0.1}, "sft: .*beta"),
    ],
)
def test_a_bad_option_is_refused_before_anything_runs(name, options, message):
    with pytest.raises(ConfigurationError, match=message):
        entrant(AgentSpec.of({"agent": name, **options}))


def test_dpo_needs_a_penalty():
    env = get_task(T0).make("train", beta=0.0)
    with pytest.raises(ConfigurationError, match="no optimum at beta 0"):
        OfflineDPO(env)
    assert OfflineDPO(env, beta=0.1).beta == 0.1


def test_they_take_part_in_a_benchmark_and_are_tuned(tmp_path):
    """Their rows lie above the reference; the trials have learning rates around their own."""
    assert set(OFFLINE) <= set(AGENTS)
    agents = [{"agent": name, "learning_rate": 0.1, "batch_size": 16, "rollout_episodes": 64} for name in OFFLINE]
    settings = BenchSettings.of(
        {
            "tasks": [T0],
            "agents": agents,
            "seeds": 2,
            "tokens": 3000,
            "tune": 2,
            "texts": 512,
            "curve_texts": 64,
            "ceiling_most": 96,
        }
    )
    found = run_bench(settings, tmp_path / "out")
    assert not found.failed
    (table,) = summarize_records(found.records).tables
    for name in OFFLINE:
        trials = [r for r in found.records if r["kind"] == "trial" and r["agent"] == name]
        assert [r["learning_rate"] for r in trials] == [0.1, pytest.approx(0.3)]
        row = table.row(name)
        assert row.attained.low > 0.1
        for record in row.records:
            assert record["tokens"] >= 3000 and record["seconds"] > 0
            assert [point["tokens"] for point in record["curve"]] == [0, record["tokens"]]
