"""Objectives that divide by their own std: of several fixed points, the one that small steps reach first."""

from __future__ import annotations

import numpy as np
import pytest

from lm_env import TokenMDP
from lm_env.theory import fixed_point
from lm_env.theory.credit import Credits
from lm_env.theory.first_fixed_point import first_mean, first_std

EPSILON = 1e-4  # beside the std
T0 = TokenMDP.t0()


def question(right: float) -> TokenMDP:
    """One token: the right answer, which the reference gives with this probability, or the wrong one."""
    logits = np.log([[right, 1 - right]])
    return TokenMDP(("right", "wrong"), 1, logits, lambda ids: float(ids[0] == 0), eos_id=1)


def share(right: float, beta: float, objective: str) -> float:
    return float(np.exp(fixed_point(question(right), beta, objective)[0, 0]))


def smallest_root(right: float, beta: float, objective: str) -> float:
    """The first p above the reference's at which the scalar equation of the question changes its sign, on a fine grid;
    1 if there is none.

    In z = logit p - logit right: beta (std + epsilon) z = 1 with k2, beta (std + epsilon) (p - right) = p (1 - p)
    with k3.
    """
    start = np.log(right / (1 - right))
    z = np.linspace(0, 60, 600_001)[1:]
    p = 1 / (1 + np.exp(-(start + z)))
    not_p = 1 / (1 + np.exp(start + z))
    std = np.sqrt(p * not_p) + EPSILON
    held = beta * std * z >= 1 if objective != "k3_loss_rescaled" else beta * std * (p - right) >= p * not_p
    return float(p[held.argmax()]) if held.any() else 1.0


@pytest.mark.parametrize("objective", ["k2_loss_rescaled", "k3_loss_rescaled", "reward_rescaled"])
@pytest.mark.parametrize("beta", [0.3, 0.5, 1.0, 2.0, 20.0])
def test_the_rest_is_the_smallest_root_of_the_scalar_equation(objective, beta):
    for right in (1e-4, 0.002, 0.01, 0.02, 0.1, 0.2, 0.25, 0.2555, 0.257, 0.3, 0.5, 0.657, 0.9, 0.98):
        assert share(right, beta, objective) == pytest.approx(smallest_root(right, beta, objective), abs=1e-4), right


@pytest.mark.parametrize("right", [1e-6, 1e-9, 1e-12])
def test_the_rest_of_a_question_that_is_hardly_ever_answered(right):
    """Around the beta below which there is only the collapse: 2 sqrt(1 + beta^2) / beta = logit p - logit q."""
    last = 2 / np.sqrt(np.log(1 / right) ** 2 - 4)
    for beta in last * np.linspace(0.8, 1.5, 8):
        expected = smallest_root(right, beta, "k2_loss_rescaled")
        assert share(right, beta, "k2_loss_rescaled") == pytest.approx(expected, abs=1e-4), beta


def test_two_fixed_points_close_together_are_not_skipped():
    """Where the two solutions meet, logit q = logit p - 2 sqrt(1 + beta^2) / beta, but for the epsilon."""
    beta, low, high = 1.0, 0.25, 0.26
    while high - low > 1e-12:  # the largest q with a solution below 1, to as many digits
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle, beta, "k2_loss_rescaled") < 0.99 else (low, middle)
    root = np.sqrt(1 + beta**2)
    p = (1 + beta / root) / 2
    assert low == pytest.approx(1 / (1 + np.exp(2 * root / beta) * (1 - p) / p), abs=2e-4)
    assert share(low, beta, "k2_loss_rescaled") == pytest.approx(p, abs=1e-3)


def steps_lead_to(mdp: TokenMDP, beta: float, objective: str, rate: float, steps: int) -> np.ndarray:
    """Small steps of the exact natural gradient of an agent's loss, from the reference: log pi (S, V)."""
    policy = mdp.reference_logits.copy()
    for _ in range(steps):
        credits = Credits(mdp, policy, beta)
        scores = mdp.scores()
        mean = credits.probabilities @ scores
        credit = np.repeat((scores - mean)[:, None], mdp.horizon, axis=1)
        if "rescaled" in objective:
            credit /= np.sqrt(credits.probabilities @ (scores - mean) ** 2) + EPSILON
        x = credits.log_ratio
        credit = np.where(credits.real, credit - beta * (x if objective.startswith("k2") else -np.expm1(-x)), 0.0)
        if objective.endswith("by_length"):
            credit = credit / credits.lengths
        tree = mdp.enumeration
        visits = np.zeros_like(policy)
        np.add.at(visits, (tree.states, tree.tokens), np.where(tree.real, credits.probabilities[:, None], 0.0))
        policy = policy + rate * np.divide(
            credits.gradient(credit), visits, out=np.zeros_like(policy), where=visits > 1e-14
        )
        policy = policy - np.logaddexp.reduce(policy, axis=1, keepdims=True)
    return policy


@pytest.mark.parametrize(
    ("objective", "beta"),
    [
        ("k2_loss_rescaled", 0.8),
        ("k3_loss_rescaled", 0.4),
        ("k2_loss_by_length", 0.5),
        ("k3_loss_by_length", 0.5),
        ("k2_loss_rescaled_by_length", 0.8),
        ("k3_loss_rescaled_by_length", 0.5),
    ],
)
def test_small_steps_from_the_reference_arrive_at_it(objective, beta):
    for mdp in (T0, TokenMDP.random(1, 3, 2)):
        found = np.exp(mdp.trajectory_logprobs(steps_lead_to(mdp, beta, objective, 0.2, 500)))
        expected = np.exp(mdp.trajectory_logprobs(fixed_point(mdp, beta, objective)))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_small_steps_on_a_hard_question_converge_to_the_first_fixed_point_and_do_not_collapse():
    mdp = question(0.01)
    found = np.exp(steps_lead_to(mdp, 1.0, "k2_loss_rescaled", 0.05, 800)[0, 0])
    assert found == pytest.approx(share(0.01, 1.0, "k2_loss_rescaled"), abs=1e-6) and found < 0.2


@pytest.mark.parametrize(
    ("objective", "beta"), [("k3_loss_rescaled_by_length", 2.0), ("k2_loss_rescaled_by_length", 0.5)]
)
def test_a_std_that_an_iteration_would_swing_around_is_found(objective, beta):
    """Of one answer, with a word after it, both weigh 1 / 2: the share is that without the lengths."""
    logits = np.full((4, 3), -np.inf)
    logits[0, :2] = np.log([0.02, 0.98])
    logits[1:, 2] = 0.0
    mdp = TokenMDP(("right", "wrong", "EOS"), 2, logits, lambda ids: float(ids[0] == 0), eos_id=2)
    found = np.exp(fixed_point(mdp, beta, objective)[0, 0])
    assert found == pytest.approx(share(0.02, beta, objective.removesuffix("_by_length")), abs=1e-9)
    assert found == pytest.approx(smallest_root(0.02, beta, objective.removesuffix("_by_length")), abs=1e-4)


def test_scores_that_are_all_equal_move_nothing():
    mdp = TokenMDP(("a", "EOS"), 1, np.log([[0.3, 0.7]]), lambda ids: 1.0, eos_id=1)
    for objective in ("k2_loss_rescaled", "k3_loss_rescaled_by_length", "reward_rescaled"):
        np.testing.assert_allclose(np.exp(fixed_point(mdp, 0.5, objective)[0]), [0.3, 0.7], atol=1e-12)


# -- the searches themselves --------------------------------------------------------------------------
@pytest.mark.parametrize("width", [1e-1, 1e-2, 1e-3, 1e-4])
def test_the_first_of_two_close_stds_is_found(width):
    """In u = log(1 / std), log(1 / std_of) - u = ((u - 1)^2 - width^2) (3 - u): fixed points at 1 +- width, and 3."""

    def moments_of(std: float) -> tuple[float, float]:
        u = -np.log(std)
        return 1.0, float(np.exp(-u - ((u - 1) ** 2 - width**2) * (3 - u)))

    assert -np.log(first_std(moments_of, (0.0, 1.0), 1.0, 1.0)) == pytest.approx(1 - width, abs=1e-8)


def test_the_mean_is_found_where_putting_it_in_again_would_diverge():
    assert first_mean(lambda m: float(np.clip(3 - 5 * m, 0, 1)), 0.9, 0.0, 1.0) == pytest.approx(0.5, abs=1e-12)


def test_the_mean_that_is_met_first_is_taken():
    def mean_of(m: float) -> float:  # fixed points at .2, .5 and .8, of which .5 repels
        return m - (m - 0.2) * (m - 0.5) * (m - 0.8)

    found = [first_mean(mean_of, start, 0.0, 1.0) for start in (0.0, 0.45, 0.55, 1.0)]
    assert found == pytest.approx([0.2, 0.2, 0.8, 0.8], abs=1e-9)
