"""GAE and whitening: golden numbers, the definition spelled out, truncation, and padding that holds rubbish."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agents.learning.advantages import gae, whiten

FINITE = st.floats(-10, 10, allow_nan=False, width=64)
UNIT = st.floats(0, 1, allow_nan=False, width=64)


def real(lengths: list[int], columns: int | None = None) -> np.ndarray:
    return np.arange(columns or max(lengths)) < np.array(lengths)[:, None]


@st.composite
def batches(draw):
    """(rewards, values, mask, last_values): 1 to 4 episodes of unequal length, rubbish in the padding."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    mask = real(lengths, max(lengths) + draw(st.integers(0, 2)))
    rewards, values = draw(arrays(float, mask.shape, elements=FINITE)), draw(arrays(float, mask.shape, elements=FINITE))
    rewards[~mask], values[~mask] = np.nan, 1e30
    return rewards, values, mask, draw(arrays(float, len(lengths), elements=FINITE))


# -- GAE -----------------------------------------------------------------------------------------------
def test_gae_golden_values():
    rewards, values = np.array([[-0.1, 0.05, 1.0]]), np.array([[0.2, 0.4, 0.3]])
    advantages, returns = gae(rewards, values, real([3]), gamma=1.0, lam=0.95)
    np.testing.assert_allclose(advantages, [[0.68425, 0.615, 0.7]], rtol=0, atol=1e-12)
    np.testing.assert_allclose(returns, [[0.88425, 1.015, 1.0]], rtol=0, atol=1e-12)


@given(batches(), UNIT, UNIT)
def test_gae_is_the_sum_of_discounted_td_errors(batch, gamma, lam):
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, each episode by itself and alone."""
    rewards, values, mask, last = batch
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam, last_values=last)
    for row, length in enumerate(mask.sum(1)):
        v = [*values[row, :length], last[row]]
        delta = [rewards[row, t] + gamma * v[t + 1] - v[t] for t in range(length)]
        expected = [sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, length)) for t in range(length)]
        np.testing.assert_allclose(advantages[row, :length], expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(returns[row, :length], np.add(expected, v[:-1]), rtol=0, atol=1e-9)
    assert not advantages[~mask].any() and not returns[~mask].any()


@given(batches())
def test_at_lambda_1_the_advantage_is_the_return_to_go_less_the_value(batch):
    rewards, values, mask, _ = batch
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = np.where(mask, rewards, 0.0)[:, ::-1].cumsum(1)[:, ::-1]
    np.testing.assert_allclose(returns[mask], to_go[mask], rtol=0, atol=1e-9)
    np.testing.assert_allclose(advantages[mask], (to_go - values)[mask], rtol=0, atol=1e-9)


def test_score_at_the_end_is_the_return_of_every_token():
    """gamma = lambda = 1, V = 0: any shift of the reward by one position would show."""
    mask = real([4, 1, 2])
    rewards = np.zeros(mask.shape)
    scores = np.array([1.5, -2.0, 0.25])
    rewards[np.arange(3), mask.sum(1) - 1] = scores
    _, returns = gae(rewards, np.zeros(mask.shape), mask, gamma=1.0, lam=1.0)
    np.testing.assert_array_equal(returns, np.where(mask, scores[:, None], 0.0))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.0), (0.9, 0.5)])
def test_truncated_bootstraps_and_terminated_does_not(gamma, lam):
    """A constant V and no reward: the last advantage is gamma V - V where truncated, -V where terminated."""
    v, mask = 3.0, real([3, 3])
    last = np.array([v, 0.0])
    advantages, _ = gae(np.zeros(mask.shape), np.full(mask.shape, v), mask, gamma=gamma, lam=lam, last_values=last)
    np.testing.assert_allclose(advantages[:, -1], [gamma * v - v, -v], rtol=0, atol=1e-12)


def test_bootstrap_value_enters_at_the_last_real_token():
    mask = real([1, 3])
    advantages, _ = gae(
        np.zeros(mask.shape), np.zeros(mask.shape), mask, gamma=1.0, lam=0.0, last_values=np.array([5.0, 7.0])
    )
    np.testing.assert_array_equal(advantages, [[5, 0, 0], [0, 0, 7]])


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf, 1e30])
def test_what_lies_in_the_padding_changes_no_bit(rng, rubbish):
    mask = real([5, 2, 1, 4])
    rewards, values = rng.normal(size=mask.shape), rng.normal(size=mask.shape)
    clean = gae(np.where(mask, rewards, 0), np.where(mask, values, 0), mask)
    dirty = gae(np.where(mask, rewards, rubbish), np.where(mask, values, rubbish), mask)
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        whiten(np.where(mask, rewards, 0), mask), whiten(np.where(mask, rewards, rubbish), mask)
    )


def test_inputs_are_left_as_they_were(rng):
    mask = real([3, 2])
    rewards, values = rng.normal(size=mask.shape), rng.normal(size=mask.shape)
    before = rewards.copy(), values.copy()
    gae(rewards, values, mask)
    whiten(rewards, mask)
    np.testing.assert_array_equal(rewards, before[0])
    np.testing.assert_array_equal(values, before[1])


# -- whitening -----------------------------------------------------------------------------------------
def test_whiten_golden_values():
    x = np.arange(1.2, 2.05, 0.1)[None]
    kept = whiten(x, np.ones(x.shape, dtype=bool), keep_mean=True)
    golden = [0.0508, 0.4381, 0.8254, 1.2127, 1.6, 1.9873, 2.3746, 2.7619, 3.1492]
    np.testing.assert_allclose(kept[0], golden, rtol=0, atol=5e-5)
    np.testing.assert_allclose(whiten(x, np.ones(x.shape, dtype=bool)), kept - 1.6, rtol=0, atol=1e-12)


def test_whitened_has_mean_0_and_biased_variance_1_over_the_real_entries(rng):
    mask = real([7, 3, 1, 5])
    x = np.where(mask, rng.normal(5, 3, mask.shape), np.nan)
    whitened = whiten(x, mask)
    assert abs(whitened[mask].mean()) < 1e-12
    assert whitened[mask].var() == pytest.approx(1, abs=1e-8)
    assert not whitened[~mask].any()
    np.testing.assert_array_equal(np.argsort(whitened[mask]), np.argsort(x[mask]))


def test_whitening_a_constant_gives_0_not_nan():
    mask = real([2, 1])
    np.testing.assert_array_equal(whiten(np.full(mask.shape, 4.0), mask), np.zeros(mask.shape))


def test_whitening_nothing():
    mask = np.zeros((2, 3), dtype=bool)
    np.testing.assert_array_equal(whiten(np.full(mask.shape, np.nan), mask), np.zeros(mask.shape))
