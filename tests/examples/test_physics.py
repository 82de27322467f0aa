"""The scripts of examples/physics against closed forms, brute force, and the gradients that torch finds."""

from __future__ import annotations

import itertools

import best_of_n
import exact
import grpo
import kl_estimators
import numpy as np
import over_optimization
import pytest
import sampler_mismatch
import samplers
import staleness
import torch

from agents.learning.losses import clipped_policy_loss
from lm_env import TokenMDP
from lm_env.objective.kl import k1, k2, k3
from lm_env.theory import fixed_point
from lm_env.theory.credit import Credits

BETA = 0.5
T0 = TokenMDP.t0()
REFERENCE = exact.probabilities(T0, T0.reference_logits)


def random_policy(seed: int, distance: float = 0.3) -> np.ndarray:
    """Logprobs (S, V) near T0's reference."""
    noise = np.random.default_rng(seed).normal(scale=distance, size=T0.reference_logits.shape)
    return exact.normalized(T0.reference_logits + noise)


class Autograd:
    """The logprobs (N, T) of a policy's tokens as tensors with a graph, and the gradient of what is made of them."""

    def __init__(self, policy: np.ndarray) -> None:
        tree = T0.enumeration
        self.logits = torch.tensor(policy, requires_grad=True)
        self.real = torch.tensor(tree.real)
        table = torch.log_softmax(self.logits, -1)
        self.logprobs = torch.where(self.real, table[torch.tensor(tree.states), torch.tensor(tree.tokens)], 0.0)

    def ascent(self, per_token: torch.Tensor, weights: np.ndarray) -> np.ndarray:
        """Minus the gradient of sum_n weights_n sum_t loss(n, t)."""
        loss = torch.where(self.real, torch.tensor(weights)[:, None] * per_token, 0.0).sum()
        return -torch.autograd.grad(loss, self.logits)[0].numpy()


# -- exact.py ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_is_what_counting_all_draws_gives(n):
    reference, scores = np.array([0.1, 0.2, 0.3, 0.25, 0.15]), np.array([1.0, 0.0, 2.0, 1.0, 2.0])
    counted = np.zeros(5)
    for draw in itertools.product(range(5), repeat=n):
        winners = [i for i in draw if scores[i] == scores[list(draw)].max()]
        for i in winners:  # the winner is drawn from the best of the draw
            counted[i] += reference[list(draw)].prod() / len(winners)
    np.testing.assert_allclose(exact.best_of(reference, scores, n), counted, atol=1e-15)


def test_the_clipped_weight_is_that_of_the_agents_loss():
    rng = np.random.default_rng(0)
    old, advantage = torch.tensor(rng.normal(size=200)), torch.tensor(rng.normal(size=200))
    new = (old + torch.tensor(rng.normal(scale=0.3, size=200))).requires_grad_()
    slope = torch.autograd.grad(clipped_policy_loss(new, old, advantage, 0.2).sum(), new)[0]
    ratio = torch.exp(new - old).detach().numpy()
    expected = exact.clipped(ratio, advantage.numpy(), 0.2) * advantage.numpy()
    np.testing.assert_allclose(-slope.numpy(), expected, atol=1e-12)
    assert 20 < (expected == 0).sum() < 180


# -- over-optimization -------------------------------------------------------------------------------
@pytest.mark.parametrize("beta", [0.2, 0.5, 2.0])
def test_the_policies_are_the_optima_of_an_mdp_with_the_proxy_as_its_score(beta):
    def proxy(ids) -> float:
        return T0.score(ids) + 3 * ((2, 2) in itertools.pairwise(ids))

    ends, flawed = T0.ended(), over_optimization.proxy_scores(T0, 3)
    mdp = TokenMDP(T0.tokens, T0.horizon, T0.reference_logits, proxy, T0.eos_id)
    # Without an EOS the gold score is -1, and the flaw is paid nevertheless.
    scores = np.where(ends, mdp.scores(), mdp.scores() - T0.raw_scores() - 1)
    np.testing.assert_allclose(flawed, scores)
    found = over_optimization.point(T0, 3, over_optimization.optimum(T0, 3, beta))
    log_z = np.log(REFERENCE @ np.exp(scores / beta))
    assert found.d**2 == pytest.approx(found.proxy / beta - log_z)
    h = 1e-6  # E[proxy] = d log Z / d (1 / beta)
    assert found.proxy == pytest.approx((np.log(REFERENCE @ np.exp(scores * (1 / beta + h))) - log_z) / h, rel=1e-4)


def test_gold_is_largest_at_the_peak():
    def gold(beta: float) -> float:
        return over_optimization.point(T0, 3, over_optimization.optimum(T0, 3, beta)).gold

    beta = over_optimization.peak_beta(T0, 3)
    assert gold(beta) > max(gold(beta * 1.01), gold(beta / 1.01))
    assert gold(beta) == pytest.approx(max(map(gold, over_optimization.BETAS)), abs=1e-3)
    assert over_optimization.peak_beta(T0, 0) == 0


@pytest.mark.parametrize("flaw", [0, 3])
def test_the_first_slope_is_that_of_the_curve(flaw):
    start, near = (over_optimization.point(T0, flaw, over_optimization.optimum(T0, flaw, beta)) for beta in (1e7, 1e4))
    slope = (near.gold - start.gold) / (near.d - start.d)
    assert slope == pytest.approx(over_optimization.slope(T0, flaw)[1], rel=1e-3)


# -- KL estimators -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("place", ["loss", "loss x ratio"])
def test_what_is_credited_is_the_gradient_of_the_loss(kind, place):
    policy = random_policy(0)
    tokens = Autograd(policy)
    credits = Credits(T0, policy, BETA)
    reference = torch.tensor(credits.on_tokens(T0.reference_logits))
    penalty = {"k1": k1, "k2": k2, "k3": k3}[kind](tokens.logprobs, reference)
    if place == "loss x ratio":
        penalty = penalty * torch.exp(tokens.logprobs - tokens.logprobs.detach())
    loss = -torch.tensor(T0.scores())[:, None] * tokens.logprobs + BETA * penalty
    found = credits.gradient(kl_estimators.credit(kind, place, credits))
    np.testing.assert_allclose(found, tokens.ascent(loss, credits.probabilities), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "place", "objective"),
    [
        ("k1", "reward", "gibbs"),
        ("k1", "loss", "no_kl"),
        ("k2", "loss", "k2_loss"),
        ("k1", "loss x ratio", "k2_loss"),
        ("k3", "loss x ratio", "k2_loss"),
        ("k3", "loss", "k3_loss"),
    ],
)
def test_updates_come_to_rest_at_the_fixed_points_of_the_theory(kind, place, objective):
    found = exact.probabilities(T0, kl_estimators.rest(T0, 1.0, kind, place).policy)
    there = exact.probabilities(T0, fixed_point(T0, 1.0, objective))
    assert exact.total_variation(found, there) < 1e-6


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_in_the_reward_no_token_is_left_that_has_become_rarer(kind):
    found = kl_estimators.rest(T0, 1.0, kind, "reward")
    first = found.policy[0]
    left = first > -20
    assert found.settled and 1 < left.sum() < 4
    assert (first[left] > T0.reference_logits[0][left]).all()


# -- best-of-n ---------------------------------------------------------------------------------------
def test_best_of_n_of_exponential_scores_is_the_optimum():
    size = 4000
    reference, scores = np.full(size, 1 / size), np.log((np.arange(size) + 0.5) / size)
    for n in (2, 5, 20):
        chosen = exact.best_of(reference, scores, n)
        assert exact.total_variation(chosen, exact.tilted(reference, scores, 1 / (n - 1))) < 1e-3
        assert exact.kl(chosen, reference) == pytest.approx(best_of_n.bound(n), abs=1e-3)


@pytest.mark.parametrize("n", [2, 16, 1024])
def test_best_of_n_lies_below_the_optimum_and_left_of_the_bound(n):
    distance, score = best_of_n.chosen(T0, n)
    beta, best = best_of_n.at_kl(best_of_n.optimum(T0), distance)
    assert best_of_n.optimum(T0)(beta)[0] == pytest.approx(distance, abs=1e-6)
    pi = exact.best_of(REFERENCE, T0.scores(), n)
    gap = exact.kl(pi, T0.optimum(beta).distribution)  # J* - J = beta KL(pi || pi*), at equal KL all in the score
    assert best - score == pytest.approx(beta * gap, abs=1e-6)
    assert distance < best_of_n.bound(n)


# -- GRPO --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("q", "beta"), [(0.02, 1.0), (0.3, 1.0), (0.9, 1.0), (0.3, 2.0), (0.02, 2.0)])
def test_the_shares_of_right_answers_solve_their_equations(q, beta):
    best, plain, std, both = (
        grpo.at_rest(q, o, beta).right for o in ("gibbs", "k3_loss", "k3_loss_rescaled", "k3_loss_rescaled_by_length")
    )
    assert best == pytest.approx(q * np.e ** (1 / beta) / (1 - q + q * np.e ** (1 / beta)))
    assert plain * (1 - plain) == pytest.approx(beta * (plain - q))
    assert np.sqrt(std * (1 - std)) == pytest.approx(beta * (std - q), abs=1e-3)  # the std has an epsilon of 1e-4
    assert both == pytest.approx(std, abs=1e-6)


def test_without_own_lengths_the_lengths_stay():
    for objective in ("gibbs", "k3_loss", "k3_loss_rescaled"):
        found = grpo.at_rest(0.3, objective)
        assert found.length_right == pytest.approx(1 + 1 + 1 / 2 + 1 / 4 + 1 / 8)
        assert found.length_wrong == pytest.approx(found.length_right)


def test_with_own_lengths_the_update_is_at_rest_where_lengths_have_changed():
    possible = grpo.question(0.3)
    never = np.maximum(possible.reference_logits, -40)  # in place of -inf, whose differences are no numbers
    mdp = TokenMDP(possible.tokens, possible.horizon, never, possible.score, possible.eos_id)
    policy = fixed_point(mdp, grpo.BETA, "k3_loss_rescaled_by_length")
    credits = Credits(mdp, policy, grpo.BETA)
    mean = credits.probabilities @ mdp.scores()
    std = np.sqrt(credits.probabilities @ (mdp.scores() - mean) ** 2) + 1e-4
    advantage = np.where(credits.real, ((mdp.scores() - mean) / std)[:, None], 0.0)
    slope = np.where(credits.real, -np.expm1(-credits.log_ratio), 0.0)
    assert np.abs(credits.gradient(advantage - grpo.BETA * slope)).max() > 1e-3
    assert np.abs(credits.gradient((advantage - grpo.BETA * slope) / credits.lengths)).max() < 1e-9
    found = grpo.at_rest(0.3, "k3_loss_rescaled_by_length")
    assert found.length_right < 2.875 < found.length_wrong


@pytest.mark.parametrize("q", [0.002, 0.01, 0.02, 0.1, 0.25])
def test_std_and_ratio_rest_where_the_theory_says(q):
    assert grpo.with_std_and_ratio(q) == pytest.approx(grpo.at_rest(q, "k2_loss_rescaled").right, abs=2e-3)


@pytest.mark.parametrize("beta", [0.7, 1.0, 2.0])
def test_std_and_ratio_collapse_from_the_last_rest_on(beta):
    last = grpo.last_rest(beta)
    assert grpo.with_std_and_ratio(last - 1e-3, beta) < 0.99 and grpo.with_std_and_ratio(last + 1e-3, beta) == 1


# -- staleness ---------------------------------------------------------------------------------------
def objective(logits: np.ndarray) -> float:
    return T0.evaluate(logits, staleness.BETA).J


def test_with_the_ratio_of_the_text_and_the_kl_anew_the_gradient_is_that_of_the_objective():
    policy, old = random_policy(1), Credits(T0, random_policy(2), staleness.BETA)
    found = staleness.gradient(policy, old, "text ratio, KL anew", old.probabilities)
    h = 1e-6
    for at in [(0, 1), (2, 0), (7, 3)]:
        step = np.zeros_like(policy)
        step[at] = h
        assert found[at] == pytest.approx((objective(policy + step) - objective(policy - step)) / (2 * h), abs=1e-7)


@pytest.mark.parametrize("kind", ["no ratio", "token ratio", "clipped ratio"])
def test_the_other_gradients_are_those_of_the_agents_losses(kind):
    policy, old = random_policy(3), Credits(T0, random_policy(4), staleness.BETA)
    tokens = Autograd(policy)
    advantage, logprobs = torch.tensor(old.to_go(old.rewards) - old.values), torch.tensor(old.logprobs)
    loss = {
        "no ratio": -tokens.logprobs * advantage,
        "token ratio": -torch.exp(tokens.logprobs - logprobs) * advantage,
        "clipped ratio": clipped_policy_loss(tokens.logprobs, logprobs, advantage, staleness.CLIP),
    }[kind]
    share = np.random.default_rng(0).dirichlet(np.ones(len(REFERENCE)))
    np.testing.assert_allclose(staleness.gradient(policy, old, kind, share), tokens.ascent(loss, share), atol=1e-12)


@pytest.mark.parametrize("kind", staleness.KINDS)
def test_at_the_optimum_no_text_moves_it(kind):
    best = exact.normalized(T0.optimum(staleness.BETA).policy_logits)
    share = np.random.default_rng(0).dirichlet(np.ones(len(REFERENCE)))
    assert np.abs(staleness.gradient(best, Credits(T0, best, staleness.BETA), kind, share)).max() < 1e-12


@pytest.mark.parametrize("kind", staleness.KINDS[:3])
def test_steps_on_one_rollout_are_damped_up_to_the_number_that_is_said(kind):
    """The least eigenvalue of K steps, by differences at the optimum: -1 at that K."""
    best = exact.normalized(T0.optimum(staleness.BETA).policy_logits)
    bound = staleness.largest_damped(T0)
    steps = int(bound)

    def after(logits: np.ndarray) -> np.ndarray:
        old = Credits(T0, exact.normalized(logits), staleness.BETA)
        policy = old.policy
        for _ in range(steps):
            policy = policy + staleness.RATE * staleness.gradient(policy, old, kind, old.probabilities)
            policy = exact.normalized(policy)
        return policy.ravel()

    h = 1e-6
    jacobian = [(after(best + h * e.reshape(best.shape)) - after(best)) / h for e in np.eye(best.size)]
    least = np.linalg.eigvals(np.array(jacobian).T).real.min()
    assert least == pytest.approx(1 - 2 * steps / bound, abs=1e-3) and steps > 2


# -- sampler mismatch --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sampler_mismatch.TRAINERS)
def test_without_a_mismatch_each_trainer_rests_where_it_should(name):
    trainer = sampler_mismatch.TRAINERS[name]
    found = sampler_mismatch.rest(T0, samplers.temperature(1.0), trainer)
    there = sampler_mismatch.intended(T0, trainer)
    assert exact.total_variation(exact.probabilities(T0, found.policy), there) < 1e-6


@pytest.mark.parametrize("sampler", [samplers.temperature(0.7), samplers.temperature(1.4), samplers.fixed_error(0.3)])
def test_with_its_own_logprobs_in_the_reward_it_rests_at_the_optimum(sampler):
    found = sampler_mismatch.rest(T0, sampler, sampler_mismatch.TRAINERS["k1, own"])
    assert T0.evaluate(found.policy, BETA).tv < 1e-4


@pytest.mark.parametrize("t", [0.7, 1.4])
def test_with_the_samplers_logprobs_the_sampler_is_at_the_optimum(t):
    found = sampler_mismatch.rest(T0, samplers.temperature(t), sampler_mismatch.TRAINERS["k1, sampler's"])
    assert T0.evaluate(found.policy / t, BETA).tv < 1e-6
    assert T0.evaluate(t * T0.optimum(BETA).policy_logits, BETA).tv == pytest.approx(
        T0.evaluate(found.policy, BETA).tv, abs=1e-6
    )


def test_weights_are_those_of_the_agents():
    """The direction against the gradient of min(pi / mu, limit) x (policy loss + beta k3) of each token."""
    policy, sampled = random_policy(5), random_policy(6, 0.8)
    tokens, credits = Autograd(policy), Credits(T0, policy, BETA, behavior=sampled)
    advantage = torch.tensor(T0.scores() - credits.probabilities @ T0.scores())[:, None]
    reference = torch.tensor(credits.on_tokens(T0.reference_logits))
    ratio = torch.exp(tokens.logprobs.detach() - torch.tensor(credits.old_logprobs))
    weight = ratio.clamp(max=sampler_mismatch.LIMIT)
    loss = weight * (-tokens.logprobs * advantage + BETA * k3(tokens.logprobs, reference))
    found = sampler_mismatch.direction(T0, policy, sampled, sampler_mismatch.TRAINERS["k3, token weights"])
    visits = exact.per_token(credits, credits.ones())[1].sum(1, keepdims=True)
    unscaled = found * np.maximum(np.exp(policy), sampler_mismatch.RARE) * visits
    np.testing.assert_allclose(unscaled, tokens.ascent(loss, credits.probabilities), atol=1e-12)
    assert (ratio > sampler_mismatch.LIMIT).any()


def test_top_p_keeps_the_fewest_likeliest_tokens():
    policy = random_policy(7)
    kept = samplers.top_p(0.8)(policy) > exact.FLOOR / 2
    for row, chosen in zip(np.exp(policy), kept, strict=True):
        fewest = next(n for n in range(1, 5) if np.sort(row)[-n:].sum() >= 0.8)
        assert chosen.sum() == fewest and row[chosen].min() >= row[~chosen].max(initial=0)
