"""Token MDPs that pay each token: the same optimum by enumeration, by recursion, and as without."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import PPO, RLOO
from lm_env import TokenMDP, check_agent
from lm_env.errors import ConfigurationError, RewardError
from lm_env.tasks.token_mdp import make
from lm_env.theory.check_agent import SCORE_STD, parse_mdp
from lm_env.theory.objectives import fixed_point
from lm_env.theory.prefix_tree import backward_recursion, gibbs_rule

few = settings(max_examples=25, deadline=None)
betas = st.floats(0.1, 5)


def arbitrary(seed: int, v: int, horizon: int, missing: float | None) -> TokenMDP:
    """Every (state, token) has a random score of its own; the reference lacks some tokens."""
    rng = np.random.default_rng(seed)
    drawn = TokenMDP.random(seed, v, horizon, missing)
    off = rng.random(drawn.reference_logits.shape) < 0.2
    off[np.arange(len(off)), rng.integers(v, size=len(off))] = False
    table = rng.standard_normal(drawn.reference_logits.shape)

    def score(ids):
        state, scores = 0, []
        for token in ids:
            scores.append(table[state, token])
            state = v * state + token + 1
        return scores

    logits = np.where(off, -np.inf, drawn.reference_logits)
    return dataclasses.replace(drawn, reference_logits=logits, score=score, dense=True)


mdps = st.builds(
    arbitrary, st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 4), st.sampled_from([None, -1.0])
)


@given(mdps, betas)
@few
def test_enumeration_equals_recursion(mdp, beta):
    one, two = mdp.optimum(beta), mdp.soft_recursion(beta)
    for field in dataclasses.fields(one):
        got, expected = getattr(two, field.name), getattr(one, field.name)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9, err_msg=field.name)
    assert pytest.approx(one.R - beta * one.KL, abs=1e-9) == one.J


@given(mdps, betas)
@few
def test_soft_values_are_what_is_still_to_come(mdp, beta):
    """V(s) = beta log sum_a pi_ref exp((r(s, a) + V(s')) / beta), written out over the states."""
    best, tree, v = mdp.optimum(beta), mdp.enumeration, mdp.vocab_size
    steps = mdp.step_scores()
    for row, t in np.argwhere(tree.real):
        state = tree.states[row, t]
        assert np.exp(best.policy_logits[state]).sum() == pytest.approx(1)
        child = v * state + tree.tokens[row, t] + 1
        later = 0.0 if t == tree.lengths[row] - 1 else best.value[child]
        expected = mdp.reference_logits[state, tree.tokens[row, t]] + (steps[row, t] + later - best.value[state]) / beta
        assert best.policy_logits[state, tree.tokens[row, t]] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("missing", [None, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_random_mdp_has_one_optimum_however_its_scores_are_paid(seed, missing):
    whole, dense = (TokenMDP.random(seed, 5, 4, missing, dense=d) for d in (False, True))
    np.testing.assert_allclose(dense.scores(), whole.scores(), atol=1e-12)
    np.testing.assert_allclose(dense.step_scores().sum(1), whole.scores(), atol=1e-12)
    last = whole.enumeration.last
    np.testing.assert_array_equal(whole.step_scores(), np.where(last, whole.scores()[:, None], 0.0))
    assert (dense.step_scores()[~last & dense.enumeration.real] != 0).any()
    a, b = whole.optimum(0.5), dense.optimum(0.5)
    assert pytest.approx((b.J, b.R, b.KL), abs=1e-9) == (a.J, a.R, a.KL)
    np.testing.assert_allclose(a.distribution, b.distribution, atol=1e-9)
    assert abs(a.value[1:] - b.value[1:]).max() > 0.1  # what has been paid is no longer to come


def test_two_steps_by_hand():
    """x pays 2 at once and y pays 1; then each pays 1 again if it repeats."""
    mdp = TokenMDP(
        ("x", "y", "EOS"),
        2,
        np.zeros((4, 3)),
        lambda ids: [(2.0, 1.0, 0.0)[ids[0]], *(float(a == b) for a, b in itertools.pairwise(ids))],
        eos_id=2,
        dense=True,
    )
    assert mdp.reward(["EOS"], ["x x"], response_ids=[[0, 0]]) == [[2, 1]]
    best, after = mdp.optimum(1.0), np.log((np.e + 2) / 3)
    np.testing.assert_allclose(best.value[1:3], after)
    assert pytest.approx(np.log((np.exp(2 + after) + np.exp(1 + after) + 1) / 3)) == best.J
    discounted = np.log((np.exp(2 + 0.5 * after) + np.exp(1 + 0.5 * after) + 1) / 3)
    _, value = backward_recursion(mdp.enumeration, mdp.reference_logits, mdp.step_scores(), gibbs_rule(1.0), 0.5)
    assert value[0] == pytest.approx(discounted)


@given(mdps, betas, st.floats(0, 1))
@few
def test_a_discount_acts_from_when_a_score_is_paid(mdp, beta, gamma):
    """V^pi of the discounted fixed point is stationary: a small change of the first state gains nothing."""
    table = fixed_point(mdp, beta, "gamma", gamma=gamma)
    steps, tree = mdp.step_scores(), mdp.enumeration

    def value(logits: np.ndarray) -> float:
        step = np.where(tree.real, logits[tree.states, tree.tokens], 0.0)
        p = np.exp(step.sum(1))
        ref = np.where(tree.real, mdp.reference_logits[tree.states, tree.tokens], 0.0)
        taken = p > 0
        paid = gamma ** np.arange(mdp.horizon) * (steps[taken] - beta * (step[taken] - ref[taken]))
        return float((p[taken, None] * np.where(tree.real[taken], paid, 0.0)).sum())

    for direction in (table, np.random.default_rng(0).standard_normal(table.shape)):
        first = table[0] + 1e-3 * np.where(np.isfinite(direction[0]), direction[0], 0.0)
        moved = table.copy()
        moved[0] = first - np.logaddexp.reduce(first)
        assert value(moved) <= value(table) + 1e-12


@pytest.mark.parametrize("objective", ["k2_loss", "k3_loss", "k3_loss_rescaled", "entropy_bonus", "reward_rescaled"])
def test_objectives_that_do_not_care_when_a_score_is_paid(objective):
    whole, dense = parse_mdp("random:3"), parse_mdp("dense:3")
    np.testing.assert_allclose(fixed_point(dense, 1.0, objective), fixed_point(whole, 1.0, objective), atol=1e-7)


@pytest.mark.parametrize("seed", [0, 7])
def test_dense_random_mdps_are_the_random_ones_paid_token_by_token(seed):
    whole, dense = parse_mdp(f"random:{seed}"), parse_mdp(f"dense:{seed}")
    np.testing.assert_allclose(dense.raw_scores(), whole.raw_scores(), atol=1e-12)
    reference = np.exp(dense.trajectory_logprobs(dense.reference_logits))
    assert np.sqrt(np.cov(dense.raw_scores(), aweights=reference, ddof=0)) == pytest.approx(SCORE_STD, abs=1e-9)


def test_scores_that_depend_on_later_tokens_are_refused():
    mdp = dataclasses.replace(TokenMDP.t0(), score=lambda ids: [float(ids[-1])] * len(ids), dense=True)
    with pytest.raises(ConfigurationError, match="depends on what follows it"):
        mdp.scores()
    with pytest.raises(RewardError, match="2 numbers for 1 response tokens"):
        dataclasses.replace(mdp, score=lambda ids: [0.0, 1.0]).scores()


def test_the_registered_environment_pays_at_once():
    env = make(mdp_seed=3, dense=True, beta=0.0)
    mdp = TokenMDP.random(3, dense=True)
    env.reset()
    assert [env.step(token)[1] for token in (1, 0, 5)] == pytest.approx(mdp.score([1, 0, 5]), abs=1e-12)
    with pytest.raises(ConfigurationError, match="mdp_seed"):
        make(dense=True)


# -- agents ------------------------------------------------------------------------------------------

PPO_FAST = {"rollout_episodes": 512, "slots": 512, "batch_size": 128, "learning_rate": 0.06, "n_epochs": 1}
ONE_STEP = {"rollout_episodes": 512, "slots": 512, "batch_size": 512, "learning_rate": 0.1, "group_size": 64}


def train(cls, rollouts: int, **options):
    def run(env, seed: int) -> None:
        cls(env, seed=seed, **options).learn(rollouts * options["rollout_episodes"] * 2)

    return run


@pytest.mark.parametrize(("cls", "rollouts", "options"), [(PPO, 60, PPO_FAST), (RLOO, 200, ONE_STEP)])
def test_agents_that_maximize_the_objective_pass_where_each_token_is_paid(cls, rollouts, options):
    check = check_agent(train(cls, rollouts, **options), mdp="dense:3", seeds=1)
    assert check.passed and check.sentence().startswith("PASS")


class LastScoreOnly(PPO):
    """Loses every score but the last token's."""

    def update(self, rollout):
        scored, mask = rollout.scored, rollout.mask
        last = np.cumsum(mask, 1) == rollout.episodes.response_lengths[:, None]
        rewards = scored.rewards - np.where(last, 0.0, scored.token_scores)
        return super().update(dataclasses.replace(rollout, scored=dataclasses.replace(scored, rewards=rewards)))


class AllAtTheEnd(PPO):
    """Pays all scores of a text at its last token, which changes no optimum."""

    def update(self, rollout):
        scored, mask = rollout.scored, rollout.mask
        last = (np.cumsum(mask, 1) == rollout.episodes.response_lengths[:, None]) & mask
        rewards = scored.rewards - scored.token_scores + np.where(last, scored.scores[:, None], 0.0)
        return super().update(dataclasses.replace(rollout, scored=dataclasses.replace(scored, rewards=rewards)))


def test_an_agent_that_loses_the_scores_on_the_way_is_named():
    check = check_agent(train(LastScoreOnly, 60, **PPO_FAST), mdp="dense:3", seeds=1)
    assert not check.passed and check.objective == "last_score_only" and "sum the rewards" in check.sentence()


def test_an_agent_that_is_paid_at_the_end_finds_the_same_optimum():
    assert check_agent(train(AllAtTheEnd, 60, **PPO_FAST), mdp="dense:3", seeds=1).passed
