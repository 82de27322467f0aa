"""The clipped losses: by hand, by cases, and where their gradient vanishes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.learning.losses import clipped_policy_loss, clipped_value_loss

NUMBERS = st.floats(-5, 5, allow_nan=False, width=32)


def policy_gradient(log_ratio: float, advantage: float, clip: float = 0.2) -> tuple[float, float]:
    """(loss, d loss / d logprobs) of one token."""
    logprobs = torch.tensor([log_ratio - 1.5], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.tensor([-1.5], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    loss = clipped_policy_loss(logprobs, old, advantages, clip)
    loss.sum().backward()
    return loss.item(), logprobs.grad.item()


# -- policy --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.1, 2.0, -2.2, False),
        (1.5, 2.0, -2.4, True),  # good action, already made likelier: 1.2 x 2, no more pull
        (0.5, 2.0, -1.0, False),  # good action, made less likely: pull it back
        (0.5, -2.0, 1.6, True),  # bad action, already made less likely: .8 x 2
        (1.5, -2.0, 3.0, False),  # bad action, made likelier: push it back, without a bound
        (0.9, -2.0, 1.8, False),
    ],
)
def test_clipped_policy_loss_by_cases(ratio, advantage, loss, clipped):
    value, gradient = policy_gradient(torch.tensor(ratio, dtype=torch.float64).log().item(), advantage)
    assert value == pytest.approx(loss)
    assert gradient == pytest.approx(0.0 if clipped else -ratio * advantage)


def test_first_gradient_is_the_policy_gradient(rng):
    """At ratio 1 the gradient is -A grad log pi, whatever the clip."""
    logprobs = torch.tensor(rng.normal(size=9), requires_grad=True)
    advantages = torch.tensor(rng.normal(size=9))
    clipped_policy_loss(logprobs, logprobs.detach(), advantages, 0.2).sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


@given(NUMBERS, NUMBERS, st.floats(0.01, 0.9))
def test_the_loss_is_a_pessimistic_bound(log_ratio, advantage, clip):
    """min(ratio A, clipped ratio A): never better than the unclipped objective, equal inside the clip."""
    value, _ = policy_gradient(log_ratio, advantage, clip)
    ratio = torch.tensor(log_ratio, dtype=torch.float64).exp().item()
    assert value >= -ratio * advantage - 1e-12
    if 1 - clip < ratio < 1 + clip:
        assert value == pytest.approx(-ratio * advantage, abs=1e-12)


# -- value ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "old", "target", "loss"),
    [
        (1.0, 1.0, 3.0, 2.0),  # (1 - 3)^2 / 2
        (1.1, 1.0, 3.0, 1.805),
        (2.0, 1.0, 3.0, 1.62),  # moved too far toward the target: the error of 1.2 counts, (1.2 - 3)^2 / 2
        (0.0, 1.0, 3.0, 4.5),  # moved away from it: the whole error counts
        (3.0, 1.0, 3.0, 1.62),
    ],
)
def test_clipped_value_loss_by_cases(value, old, target, loss):
    got = clipped_value_loss(*(torch.tensor([x], dtype=torch.float64) for x in (value, old, target)), clip=0.2)
    assert got.item() == pytest.approx(loss)


def test_value_loss_without_a_clip_is_half_the_squared_error(rng):
    value, old, target = (torch.tensor(rng.normal(0, 5, 20)) for _ in range(3))
    torch.testing.assert_close(clipped_value_loss(value, old, target, None), (value - target) ** 2 / 2)


def test_value_gradient_vanishes_only_where_the_step_was_clipped():
    value = torch.tensor([2.0, 1.1, 0.0], requires_grad=True)
    clipped_value_loss(value, torch.ones(3), torch.full((3,), 3.0), 0.2).sum().backward()
    torch.testing.assert_close(value.grad, torch.tensor([0.0, -1.9, -3.0]))


@given(NUMBERS, NUMBERS, NUMBERS, st.floats(0.01, 2))
def test_clipping_never_lowers_the_value_loss(value, old, target, clip):
    columns = [torch.tensor([x], dtype=torch.float64) for x in (value, old, target)]
    assert clipped_value_loss(*columns, clip).item() >= clipped_value_loss(*columns, None).item()


def test_losses_are_per_token():
    """No reduction inside: the caller divides by the tokens of the whole minibatch."""
    x = torch.zeros(5)
    assert clipped_policy_loss(x, x, x, 0.2).shape == clipped_value_loss(x, x, x, 0.2).shape == (5,)
