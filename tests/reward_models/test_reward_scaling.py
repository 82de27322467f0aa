"""Scaled and clipped rewards: what they do to beta and to the optimum, by enumeration of T0."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from agents import PPO
from lm_env.errors import ConfigurationError, RewardValueError
from lm_env.objective.rewards import score_responses
from lm_env.tasks.token_mdp import make
from lm_env.theory.token_mdp import TokenMDP
from reward_models import Affine, Clipped, WeightedSum, effective_beta, normalize

T0 = replace(TokenMDP.t0(), missing_eos_score=None)  # every text is judged, so every score is scaled
TOKENS, LENGTHS = T0.trajectories()
RESPONSES = [ids[:n].tolist() for ids, n in zip(TOKENS, LENGTHS, strict=True)]


def scored_by(reward) -> TokenMDP:
    """T0 with another reward."""
    return replace(T0, score=lambda ids: float(reward([""], [""], response_ids=[list(ids)])[0]))


def on_reference_samples(function):
    """`function(reward, prompts, responses, ...)` on 500 samples of T0's reference."""
    p = np.exp(T0.trajectory_logprobs(T0.reference_logits))
    drawn = np.random.default_rng(0).choice(len(RESPONSES), 500, p=p / p.sum())
    return function(T0.reward, [""] * 500, [""] * 500, response_ids=[RESPONSES[i] for i in drawn])


@pytest.mark.parametrize("beta", [0.2, 0.5, 2.0])
def test_normalized_by_s_at_beta_has_the_optimum_of_the_raw_score_at_beta_times_s(beta):
    scaled = on_reference_samples(normalize)
    assert abs(1 / scaled.gain - 1) > 0.2  # else this tests nothing
    got, raw = scored_by(scaled).optimum(beta), T0.optimum(beta / scaled.gain)
    np.testing.assert_allclose(got.distribution, raw.distribution, atol=1e-12)
    assert abs(T0.optimum(beta).distribution - got.distribution).max() > 0.01
    assert effective_beta(scaled, beta) == pytest.approx(beta / scaled.gain)


def test_a_constant_moves_nothing_but_a_missing_eos_score_counts_in_the_new_units():
    shifted = scored_by(Affine(T0.reward, 1.0, 7.0))
    np.testing.assert_allclose(shifted.optimum(0.5).distribution, T0.optimum(0.5).distribution, atol=1e-12)
    whole = TokenMDP.t0()
    halved = replace(whole, score=lambda ids: 0.5 * whole.score(ids))
    along = replace(halved, missing_eos_score=-0.5)
    expected = whole.optimum(1.0).distribution
    np.testing.assert_allclose(along.optimum(0.5).distribution, expected, atol=1e-12)
    assert abs(halved.optimum(0.5).distribution - expected).max() > 0.01


def test_clipping_moves_only_what_lies_beyond_the_bound():
    low, high, beta = 0.5, 1.5, 0.5
    raw, clipped = T0.scores(), scored_by(Clipped(T0.reward, low, high))
    inside = (raw >= low) & (raw <= high)
    assert 0 < inside.sum() < len(raw)
    np.testing.assert_array_equal(clipped.scores()[inside], raw[inside])
    assert (clipped.scores()[raw > high] == high).all() and (clipped.scores()[raw < low] == low).all()
    # Gibbs: log(pi / pi_ref) is the score / beta up to one constant, also where nothing was clipped.
    reference = T0.trajectory_logprobs(T0.reference_logits)
    tilt = np.log(clipped.optimum(beta).distribution) - reference
    before = np.log(T0.optimum(beta).distribution) - reference
    change = tilt - before
    assert np.ptp(change[inside]) <= 1e-9 and np.ptp(tilt[raw >= high]) <= 1e-9
    np.testing.assert_allclose(change - change[inside][0], (np.clip(raw, low, high) - raw) / beta, atol=1e-9)


def test_effective_beta_goes_through_layers():
    inner = WeightedSum([(3.0, T0.reward)])  # a score of its own, not a scaling
    nested = Clipped(Affine(Clipped(Affine(inner, 4.0), -1.0, 1.0), 0.5, 2.0), high=2.0)
    assert effective_beta(nested, 0.6) == pytest.approx(0.3)
    assert effective_beta(T0.reward, 0.6) == 0.6
    # The same by enumeration: a wrapper whose bounds bind nowhere.
    wrapped = scored_by(Clipped(Affine(Affine(T0.reward, 4.0), 0.5, 2.0), high=100.0))
    expected = T0.optimum(effective_beta(Affine(Affine(T0.reward, 4.0), 0.5), 0.6)).distribution
    np.testing.assert_allclose(wrapped.optimum(0.6).distribution, expected, atol=1e-12)


def test_normalizing_says_what_it_does_to_beta(caplog):
    with caplog.at_level(logging.INFO, logger="reward_models.combine"):
        scaled = on_reference_samples(normalize)
    assert [f"{1 / scaled.gain:.4g} b" in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("wrap", [lambda f: Clipped(f, -1.0, 1.0), lambda f: Affine(f, 2.0)], ids=["clipped", "affine"])
def test_a_bad_score_is_not_clipped_away(bad, wrap):
    def reward(prompts, responses):
        return [0.0, bad]

    with pytest.raises(RewardValueError, match=r"sample 1 \(prompt 'p', response 'second'\)"):
        score_responses(wrap(reward), ["o", "p"], ["first", "second"], {})


@pytest.mark.parametrize(
    "bounds", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("nan")), ("0", 1.0), (0.0, None)]
)
def test_bounds_that_cannot_work(bounds):
    with pytest.raises(ConfigurationError, match="low < high"):
        Clipped(T0.reward, *bounds)


@pytest.mark.parametrize("beta", [-0.1, float("nan"), "0.1", None])
def test_a_beta_that_cannot_be(beta):
    with pytest.raises(ConfigurationError, match="beta must be a finite number of at least 0"):
        effective_beta(Affine(T0.reward, 2.0), beta)


def test_an_agent_finds_the_optimum_of_the_clipped_reward():
    mdp = scored_by(Clipped(T0.reward, -1.0, 1.0))
    env = make(mdp=mdp, beta=0.5)
    agent = PPO(
        env, learning_rate=0.03, rollout_episodes=512, slots=512, batch_size=128, max_grad_norm=100.0, critic="none"
    ).learn(50_000)
    found = mdp.evaluate(agent.task.model, 0.5)
    assert found.tv <= 0.04
    assert np.abs(T0.optimum(0.5).distribution - mdp.optimum(0.5).distribution).sum() / 2 > 0.1
