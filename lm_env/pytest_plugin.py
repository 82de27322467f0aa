"""Fixtures for a project's own pytest suite: hold a trainer or a loss against the closed form.

Installed together with the package; pytest finds it by itself.

    def test_my_trainer(check_agent):
        check_agent(train, beta=0.5)               # fails with the verdict, unless train reaches the optimum

    def test_my_loss(check_loss):
        check_loss(loss, require=("padding", "permutation", "micro_batches"))

    def test_grpo_is_what_we_think(check_loss):
        check_loss(grpo, expect=("score_divided_by_group_std", "k3_loss"))

Torch is imported when a fixture is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lm_env.theory.check_agent import AgentCheck, Train
    from lm_env.theory.loss import Loss, LossCheck

__all__ = ["check_agent", "check_loss"]


@pytest.fixture(scope="session")
def check_agent() -> Callable[..., AgentCheck]:
    """`check_agent(train, expect="gibbs", **options)`: fails the test unless the trainer has that objective.

    Args:
        train, options: as of `lm_env.check_agent`.
        expect: the objective; `gibbs` is E[score] - beta KL.

    Returns:
        the `AgentCheck`.
    """
    from lm_env.theory.check_agent import check_agent as check

    def checked(train: Train, *, expect: str = "gibbs", **options: Any) -> AgentCheck:
        __tracebackhide__ = True
        result = check(train, **options)
        if result.objective != expect:
            pytest.fail(_verdict(result.agent, result.sentence(), expect, "gibbs"), pytrace=False)
        return result

    return checked


@pytest.fixture(scope="session")
def check_loss() -> Callable[..., LossCheck]:
    """`check_loss(loss, expect=(), **options)`: fails the test unless exactly these are the loss's mistakes.

    Args:
        loss, options: as of `lm_env.check_loss`.
        expect: a cause, or several in any order; none for a loss that is right.

    Returns:
        the `LossCheck`.
    """
    from lm_env.theory.loss import check_loss as check

    def checked(loss: Loss, *, expect: str | Sequence[str] = (), **options: Any) -> LossCheck:
        __tracebackhide__ = True
        expected = {expect} if isinstance(expect, str) else set(expect)
        result = check(loss, **options)
        if set(result.causes) != expected:
            pytest.fail(_verdict(result.loss, result.sentence(), ", ".join(sorted(expected)), ""), pytrace=False)
        return result

    return checked


def _verdict(name: str, sentence: str, expected: str, default: str) -> str:
    """What the failed test says."""
    wanted = "" if expected == default else f" ({expected} was expected)"
    return f"{name}: {sentence}{wanted}"
