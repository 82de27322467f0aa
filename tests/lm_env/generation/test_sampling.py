"""Inverse-CDF sampling: never an impossible token, the right frequencies, and the logprob of what was sampled from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lm_env.generation.sampling import inverse_cdf, sample

LARGEST = 1 - 2**-24  # what torch.rand in fp32 can come to
EDGES = [0.0, 2**-149, 2**-24, 0.5, LARGEST, 1.0]


def draw(probs, u) -> int:
    return int(inverse_cdf(torch.tensor([probs], dtype=torch.float32), torch.tensor([u], dtype=torch.float32)))


# -- impossible tokens -----------------------------------------------------------------------------
@pytest.mark.parametrize("u", EDGES)
@pytest.mark.parametrize(
    "probs",
    [
        [0, 0, 0.5, 0.5],
        [0.5, 0.5, 0, 0],
        [0.5, 0, 0, 0.5],
        [0, 0.25, 0, 0.75, 0],
        [0, 0, 1, 0, 0],
        [1, 0, 0],
        [0, 0, 1],
        [0, 1e-45, 0],
        [1e-38, 0, 1.0, 0],
    ],
    ids=str,
)
def test_masked_tokens_are_never_drawn(probs, u):
    assert probs[draw(probs, u)] > 0


@pytest.mark.parametrize("u", EDGES)
@pytest.mark.parametrize("short", [1 - 1e-7, 1 - 2**-24, 1 + 1e-6, 0.999, 1.001, 7.0, 1e-20])
def test_sums_that_are_not_1(short, u):
    """The row is taken for what it is proportional to, and masked tokens at the end stay out."""
    assert draw([0, 0.5 * short, 0, 0.5 * short, 0, 0], u) == (1 if u < 0.5 else 3)


def test_fp32_sum_that_ends_below_u():
    """10,000 equal probabilities: their fp32 sum may miss 1, and the largest u must still find a token of the row."""
    probs = torch.full((1, 10_100), 1e-4)
    probs[0, :50] = probs[0, -50:] = 0
    for u in EDGES:
        token = int(inverse_cdf(probs, torch.tensor([u])))
        assert 50 <= token < 10_050
    assert int(inverse_cdf(probs, torch.tensor([0.0]))) == 50
    assert int(inverse_cdf(probs, torch.tensor([1.0]))) == 10_049


PROBS = arrays(
    np.float32,
    st.integers(1, 12),
    elements=st.one_of(st.just(0.0), st.floats(0, 1, width=32), st.floats(2**-140, 2**-120, width=32)),
).filter(lambda row: row.sum() > 0)


@settings(max_examples=300)
@given(PROBS, st.one_of(st.sampled_from(EDGES), st.floats(0, 1, width=32)))
def test_no_row_and_no_u_gives_an_impossible_token(probs, u):
    assert probs[draw(probs.tolist(), u)] > 0


@settings(max_examples=300)
@given(PROBS, st.floats(0, LARGEST, width=32))
def test_equals_a_search_by_hand(probs, u):
    """The first token whose cumulative probability exceeds u; at a boundary the rounding of fp32 decides."""
    token = draw(probs.tolist(), u)
    exact = np.cumsum(probs.astype(np.float64)) / probs.astype(np.float64).sum()
    low, high = exact[token - 1] if token else 0.0, exact[token]
    assert low - 1e-6 <= u <= high + 1e-6


@given(PROBS)
def test_rows_are_drawn_independently(probs):
    rows = torch.tensor(np.stack([probs, probs[::-1].copy()]))
    u = torch.tensor([0.3, 0.8])
    together = inverse_cdf(rows, u).tolist()
    assert together == [int(inverse_cdf(rows[i : i + 1], u[i : i + 1])) for i in range(2)]


# -- frequencies and logprobs ---------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies(temperature):
    """Chi-square over 20,000 draws, one masked token; 99.9% quantile of 6 degrees of freedom: 22.46."""
    n = 20_000
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.0, 1.0, -2.0, 0.5])
    tokens, _ = sample(logits.expand(n, -1), temperature, torch.Generator().manual_seed(0))
    expected = n * torch.softmax(logits.double() / temperature, -1).numpy()
    counts = np.bincount(tokens.numpy(), minlength=8)
    assert counts[3] == 0
    possible = expected > 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 22.46


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("deterministic", [False, True])
def test_logprob_is_that_of_the_distribution_sampled_from(dtype, deterministic):
    """Temperature and mask included, in fp32 at least."""
    logits = 3 * torch.randn(50, 11, generator=torch.Generator().manual_seed(1))
    logits[:, [0, 4]] = -torch.inf
    logits = logits.to(dtype)
    tokens, logprobs = sample(logits, 0.7, torch.Generator().manual_seed(2), deterministic)
    expected = torch.log_softmax(logits.double() / 0.7, -1)[torch.arange(50), tokens]
    assert logprobs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=1e-5)
    assert torch.isfinite(logprobs).all()


def test_a_seed_repeats_the_draws_and_another_does_not():
    logits = torch.zeros(100, 30)
    draws = [sample(logits, 1.0, torch.Generator().manual_seed(s))[0].tolist() for s in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_one_uniform_per_row_is_drawn():
    """What a seed yields depends on the number of rows alone, not on the vocabulary."""
    generator, again = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    sample(torch.zeros(7, 3), 1.0, generator)
    torch.rand(7, generator=again)
    assert torch.equal(generator.get_state(), again.get_state())


def test_deterministic_takes_the_likeliest_and_no_randomness():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    tokens, _ = sample(torch.tensor([[0.0, 2.0, 1.0], [-torch.inf, -5.0, -4.0]]), 0.1, generator, deterministic=True)
    assert tokens.tolist() == [1, 2]
    assert torch.equal(generator.get_state(), before)


def test_one_possible_token_is_certain():
    logits = torch.full((4, 6), -torch.inf)
    logits[:, 2] = -123.0
    tokens, logprobs = sample(logits, 1.0, torch.Generator().manual_seed(0))
    assert tokens.tolist() == [2] * 4
    assert logprobs.tolist() == [0.0] * 4
