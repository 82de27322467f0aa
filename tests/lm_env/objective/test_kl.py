"""The estimators against integrals, sums and each other; the controllers against their formula and a real optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_env.errors import CheckpointMismatchError, ConfigurationError
from lm_env.objective.kl import AdaptiveKL, FixedKL, full_kl, k1, k2, k3, make_controller
from lm_env.theory.token_mdp import TokenMDP

log_ratios = st.floats(-5, 5)


# --- estimators ------------------------------------------------------------------------------------------------------


def gaussian(mu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights of a fine grid under pi, log pi, log pi_ref) for pi = N(mu, 1) and pi_ref = N(0, 1)."""
    a = np.linspace(mu - 12, mu + 12, 40_001)
    logprobs, ref_logprobs = (-((a - m) ** 2) / 2 - math.log(2 * math.pi) / 2 for m in (mu, 0.0))
    return np.exp(logprobs) * (a[1] - a[0]), logprobs, ref_logprobs


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 1.2])
def test_mean_and_spread_of_the_estimators_for_a_gaussian_shift(mu):
    weights, logprobs, ref_logprobs = gaussian(mu)
    kl = mu**2 / 2
    spread = {}
    for name, estimator in (("k1", k1), ("k2", k2), ("k3", k3)):
        x = estimator(logprobs, ref_logprobs)
        mean = weights @ x
        spread[name] = math.sqrt(weights @ (x - mean) ** 2) / kl
        assert mean / kl == pytest.approx(1 + (mu**2 / 4 if name == "k2" else 0), abs=1e-6)
    assert spread["k1"] == pytest.approx(2 / mu, rel=1e-6)
    assert spread["k2"] == pytest.approx(math.sqrt(2 + mu**2), rel=1e-6)
    assert spread["k3"] == pytest.approx(math.sqrt(math.exp(mu**2) - 1 - mu**2) * 2 / mu**2, rel=1e-6)


def test_the_spreads_at_a_tenth_are_the_known_ones():
    weights, logprobs, ref_logprobs = gaussian(0.1)
    golden = {k1: 20, k2: 1.4177, k3: 1.4166}
    for estimator, value in golden.items():
        x = estimator(logprobs, ref_logprobs)
        assert math.sqrt(weights @ (x - weights @ x) ** 2) / 0.005 == pytest.approx(value, abs=5e-5)


@given(log_ratios, log_ratios)
def test_formulas(logprobs, ref):
    x = logprobs - ref
    for dtype in (np.float64, torch.float64):
        make = (lambda v, d=dtype: torch.tensor(v, dtype=d)) if dtype is torch.float64 else np.float64
        assert float(k1(make(logprobs), make(ref))) == pytest.approx(x)
        assert float(k2(make(logprobs), make(ref))) == pytest.approx(x * x / 2)
        assert float(k3(make(logprobs), make(ref))) == pytest.approx(math.exp(-x) - 1 + x, abs=1e-12)
        assert float(k3(make(logprobs), make(ref))) >= 0


def test_near_equality_k3_does_not_cancel_to_noise():
    x = 1e-9
    assert float(k3(np.float64(-1 + x), np.float64(-1.0))) == pytest.approx(x**2 / 2, abs=1e-24 + 1e-16 * x)


def test_full_kl_is_the_sum_over_the_vocabulary():
    generator = torch.Generator().manual_seed(0)
    logits, ref = (torch.randn(3, 4, 7, generator=generator) * 2 for _ in range(2))
    for temperature in (1.0, 0.7):
        p = np.exp(logits.double().numpy() / temperature)
        q = np.exp(ref.double().numpy() / temperature)
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        expected = (p * np.log(p / q)).sum(-1)
        np.testing.assert_allclose(full_kl(logits, ref, temperature), expected, atol=1e-6)
    assert (full_kl(logits, logits) == 0).all()


def test_full_kl_where_the_policy_has_zeros():
    policy = torch.tensor([0.0, 0.0, -torch.inf])
    # the reference's third is spread over two: KL = log(3/2)
    assert full_kl(policy, torch.zeros(3)).item() == pytest.approx(math.log(1.5), rel=1e-6)
    assert full_kl(policy, policy).item() == 0
    assert full_kl(torch.zeros(3), policy).item() == math.inf


def test_the_estimators_agree_with_the_full_sum_on_average():
    generator = torch.Generator().manual_seed(0)
    logits, ref = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2))
    logprobs, ref_logprobs = torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)
    exact = float(full_kl(logits, ref))
    for estimator in (k1, k3):
        assert float((logprobs.exp() * estimator(logprobs, ref_logprobs)).sum()) == pytest.approx(exact, rel=1e-6)


# --- controllers -----------------------------------------------------------------------------------------------------


def test_the_adaptive_formula_by_hand():
    controller = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    controller.update(6.6, 512)  # 10% above the target: 1 + .1 * 512 / 10000
    assert controller.beta == pytest.approx(0.15 * 1.00512, rel=1e-12)
    for kl, clipped in ((60.0, 0.2), (0.0, -0.2), (-3.0, -0.2)):
        controller = AdaptiveKL(1.0)
        controller.update(kl, 1000)
        assert controller.beta == pytest.approx(1 + clipped * 0.1, rel=1e-12)


@pytest.mark.parametrize(("start", "updates"), [(0.15, 196), (5.0, 188)])
def test_on_t0_the_controller_finds_the_beta_of_its_target(start, updates):
    """Given the exact KL*(beta) of the optimum each time: beta* .901769 for a target of .5 nats."""
    mdp, target = TokenMDP.t0(), 0.901769
    np.testing.assert_allclose(mdp.optimum(target).KL, 0.5, atol=1e-6)
    controller = AdaptiveKL(start, target=0.5, horizon=10_000)
    betas = [controller.beta]
    for _ in range(updates + 400):
        controller.update(mdp.optimum(controller.beta).KL, 512)
        betas.append(controller.beta)
    within = [abs(mdp.optimum(beta).KL / 0.5 - 1) <= 0.01 for beta in betas]
    assert within.index(True) == updates and all(within[updates:])
    assert betas[-1] == pytest.approx(target, rel=1e-6) and betas[updates] == pytest.approx(target, rel=0.01)


@given(st.floats(-100, 1e6), st.integers(1, 10**9))
def test_beta_stays_positive_and_finite(kl, episodes):
    controller = AdaptiveKL(0.1)
    controller.update(kl, episodes)
    assert 0 < controller.beta < math.inf


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_no_number_leaves_beta_alone(kl):
    controller = AdaptiveKL(0.1)
    with pytest.raises(ConfigurationError, match="support"):
        controller.update(kl, 512)
    assert controller.beta == 0.1


def test_a_fixed_beta_is_fixed():
    controller = FixedKL(0.3)
    controller.update(1e9, 512)
    assert controller.beta == 0.3


def test_a_saved_fixed_beta_replaces_another_with_a_warning():
    controller = FixedKL(0.9)
    with pytest.warns(UserWarning, match=r"beta differs: 0\.3 was saved, 0\.9 is given"):
        controller.load_state_dict(FixedKL(0.3).state_dict())
    assert controller.beta == 0.3


@pytest.mark.parametrize("make", [lambda: FixedKL(0.25), lambda: AdaptiveKL(0.25, target=2.0, horizon=500)])
def test_a_saved_controller_goes_on_where_it_was(make):
    first, second = make(), make()
    first.update(7.0, 100)
    second.load_state_dict(first.state_dict())
    for controller in (first, second):
        controller.update(0.3, 64)
    assert first.beta == second.beta and first.state_dict() == second.state_dict()


@pytest.mark.parametrize(
    ("saved", "into", "words"),
    [
        (FixedKL(0.1), AdaptiveKL(), "'fixed'"),
        (AdaptiveKL(), FixedKL(0.1), "'adaptive'"),
        (AdaptiveKL(target=3.0), AdaptiveKL(target=6.0), "target 3"),
        (AdaptiveKL(horizon=100.0), AdaptiveKL(), "horizon 100"),
    ],
)
def test_a_state_of_another_controller_is_refused(saved, into, words):
    before = into.state_dict()
    with pytest.raises(CheckpointMismatchError, match=words):
        into.load_state_dict(saved.state_dict())
    assert into.state_dict() == before


@pytest.mark.parametrize("state", [{}, {"kind": "adaptive"}, {"kind": "fixed"}, {"kind": "fixed", "beta": "x"}])
def test_a_state_that_is_none_is_refused(state):
    for controller in (FixedKL(0.1), AdaptiveKL()):
        with pytest.raises((CheckpointMismatchError, ConfigurationError)):
            controller.load_state_dict(state)


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf, True, "0.1", None, [0.1]])
def test_a_beta_that_is_none(beta):
    with pytest.raises(ConfigurationError, match="beta"):
        make_controller(beta)


def test_what_makes_a_controller():
    assert make_controller(0).beta == 0 and make_controller(np.float32(0.5)).beta == 0.5
    controller = AdaptiveKL()
    assert make_controller(controller) is controller
    for bad in ({"beta": 0.0}, {"target": 0}, {"horizon": -1}, {"target": math.nan}):
        with pytest.raises(ConfigurationError, match=next(iter(bad))):
            AdaptiveKL(**bad)
