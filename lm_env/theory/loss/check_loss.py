"""check_loss: what any library's loss optimizes, from its exact expected gradient, without training.

The loss is called on batches in which each group of responses occurs in proportion to its probability, so that its
gradient is the expected one.  This is compared, in float64 and under several policies, with the gradient of
J = E[score] - beta KL, which is computed separately.  If the two differ, the mistakes that explain the difference are
named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.objective.rewards import name_of
from lm_env.theory.foreign import calling
from lm_env.theory.loss.batch import LossBatch
from lm_env.theory.loss.causes import MATCH, Finding, find_causes
from lm_env.theory.loss.invariances import invariances, is_repeatable, ratio_of
from lm_env.theory.loss.mistakes import EXPLANATIONS
from lm_env.theory.loss.problem import MAX_GROUP_SIZE, LossProblem, make_problems
from lm_env.validation import check_integer, check_number

__all__ = ["INVARIANCES", "Loss", "LossCheck", "check_loss"]

TOLERANCE = 1e-4
"""The largest component of a gradient orthogonal to that of J that passes, as a share of the gradient's norm; the
rounding of float32 stays well below."""
INVARIANCES = {
    "padding": "padding_counted",
    "eos": "pad_is_eos",
    "permutation": "order_dependent",
    "micro_batches": "micro_batches",
    "ratio": "no_importance_ratio",
}
"""Each property that is tested, and the cause that is named if it is required and does not hold.  An importance ratio
that is there and none of the known ones is `unknown_importance_ratio`."""
REQUIRED = ("padding", "eos", "permutation")

Loss = Callable[[LossBatch], Tensor | None]
"""`loss(batch)` returns a scalar to be minimized, or leaves its gradient in `batch.model.table.grad`."""


@dataclass(frozen=True)
class LossCheck:
    """The result of `check_loss`."""

    loss: str
    beta: float
    group_size: int
    passed: bool
    causes: tuple[str, ...]
    """The mistakes by name, see `EXPLANATIONS`; empty for a right loss, `("unknown",)` if none explains it."""
    numbers: dict[str, float]
    """`gamma`, `entropy_coef` and `effective_beta` as fitted to the gradients, for those that belong to a cause."""
    cosine: float
    """The cosine between the expected gradient and that of J; the smallest over several policies."""
    orthogonal: float
    """The component of the expected gradient orthogonal to that of J, as a share of its norm: the sine of their angle,
    the largest over several policies."""
    along: tuple[float, ...]
    """The component of the expected gradient along that of J, in units of the latter's norm, under each policy."""
    holds: dict[str, bool]
    """Which of `INVARIANCES` hold; those that could not be decided are left out."""
    ratio: str
    """The importance ratio: `token`, `sequence`, `sequence_mean`, `none` or `unknown`."""
    notes: tuple[str, ...] = field(default=())
    """A sentence about each property that does not hold and was not required, or that could not be decided."""

    def sentence(self) -> str:
        """The verdict in words."""
        if self.passed:
            return "PASS: the expected gradient is that of E[score] - beta KL"
        return "FAIL: " + "; ".join(f"'{cause}': {EXPLANATIONS[cause]}" for cause in self.causes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def check_loss(
    loss: Loss,
    *,
    name: str | None = None,
    beta: float = 0.5,
    group_size: int = 2,
    seed: int = 0,
    require: Collection[str] = REQUIRED,
    tolerance: float = TOLERANCE,
) -> LossCheck:
    """Compare a loss's exact expected gradient with that of E[score] - beta KL.

    Args:
        loss: `loss(batch)` gets a `LossBatch` and returns a scalar to be minimized, as it would in training, advantages
            included; or it returns None and leaves its gradient in `batch.model.table.grad`.  It must not
            change the table.
        beta: the weight of the KL penalty, which the batch tells the loss.
        group_size: G, responses per prompt, 1 to 3; the batch has all groups: 64, 8192 or 786,432 rows.
        seed: of the MDPs, policies and scores that are drawn.
        require: which of `INVARIANCES` must hold as well.  Add `ratio` if the trainer takes several steps per batch,
            and `micro_batches` if it accumulates gradients.
        tolerance: the largest component of the gradient orthogonal to that of J, as a share of its norm.

    Raises:
        ConfigurationError: an option out of range, or a loss that raises (chained), returns no scalar, or does
            not depend on the policy.
        NonFiniteError: a gradient is NaN or infinite.
    """
    _check_arguments(loss, beta, group_size, seed, require, tolerance)
    problems, off_policy = make_problems(beta, group_size, seed)

    def gradient_of(batch: LossBatch) -> np.ndarray:
        return _gradient(loss, batch)

    gradients = [gradient_of(problem.batch()) for problem in problems]
    repeatable = is_repeatable(gradient_of, problems[-1])
    reached = [_reached(problem, gradient) for problem, gradient in zip(problems, gradients, strict=True)]
    causes: list[str] = []
    if any(_norm(g - r) > MATCH * _norm(g) for g, r in zip(gradients, reached, strict=True)):
        causes.append("padding_counted")
    targets = [problem.objective_gradient() for problem in problems]
    compared = [_Compared.of(g, t) for g, t in zip(reached, targets, strict=True)]
    right = all(each.orthogonal <= tolerance and each.along > 0 for each in compared)
    finding = Finding(()) if right else _finding(problems, reached, targets)
    causes += finding.causes if finding is not None else ["unknown"] if repeatable else ["unknown", "not_repeatable"]
    holds: dict[str, bool] = {}
    ratio = "unknown"
    if "no_gradient" not in causes:
        holds = invariances(gradient_of, problems[-1], tolerance) if repeatable else {}
        ratio = _ratio(gradient_of, off_policy, finding, tolerance)
        if "preference_loss" in causes:
            holds["ratio"] = True  # it is right for any samples
        elif ratio != "unknown" or (right and repeatable):
            holds["ratio"] = ratio.partition(" ")[0] not in ("none", "unknown")
    if ratio.endswith("+ kl") and "k2_loss" in causes:
        causes[causes.index("k2_loss")] = "k3_loss_with_ratio"
    broken = {kind: _cause_of(kind, ratio) for kind, held in holds.items() if not held}
    causes += [cause for kind, cause in broken.items() if kind in require and cause not in causes]
    noted = [*broken.values()] if repeatable else [*broken.values(), "not_repeatable"]
    return LossCheck(
        loss=name or name_of(loss),
        beta=beta,
        group_size=group_size,
        passed=not causes,
        causes=tuple(causes),
        numbers={} if finding is None else finding.numbers,
        cosine=min(each.cosine for each in compared),
        orthogonal=max(each.orthogonal for each in compared),
        along=tuple(each.along for each in compared),
        holds=holds,
        ratio=ratio.partition(" ")[0],
        notes=tuple(EXPLANATIONS[cause] for cause in noted if cause not in causes),
    )


def _cause_of(kind: str, ratio: str) -> str:
    """The cause that is named where a property of `INVARIANCES` does not hold."""
    return "unknown_importance_ratio" if (kind, ratio) == ("ratio", "unknown") else INVARIANCES[kind]


def _check_arguments(
    loss: Loss, beta: float, group_size: int, seed: int, require: Collection[str], tolerance: float
) -> None:
    if not callable(loss):
        raise ConfigurationError(f"loss must be a function loss(batch), not a {type(loss).__name__}")
    check_number("beta", beta, low=0.0, above=True)
    check_number("tolerance", tolerance, low=0.0, above=True)
    check_integer("seed", seed, low=0)
    if check_integer("group_size", group_size) > MAX_GROUP_SIZE:
        raise ConfigurationError(f"group_size must be at most {MAX_GROUP_SIZE}, so that all groups can be enumerated")
    if unknown := set(require) - set(INVARIANCES):
        raise ConfigurationError(f"require names {sorted(unknown)[0]!r}: use some of {', '.join(INVARIANCES)}")


@dataclass(frozen=True)
class _Compared:
    """A gradient beside that of J; `LossCheck` explains the three."""

    along: float
    orthogonal: float
    cosine: float

    @classmethod
    def of(cls, gradient: np.ndarray, target: np.ndarray) -> _Compared:
        """Both (S, V)."""
        product, norm = float((gradient * target).sum()), _norm(gradient)
        along = product / float((target**2).sum())
        return cls(along, _norm(gradient - along * target) / (norm or 1.0), product / ((norm * _norm(target)) or 1.0))


def _finding(problems: list[LossProblem], gradients: list[np.ndarray], targets: list[np.ndarray]) -> Finding | None:
    """What is wrong with these gradients; None if no known mistake explains them."""
    if all(_norm(g) <= 1e-9 * _norm(t) for g, t in zip(gradients, targets, strict=True)):
        return Finding(("no_gradient",))
    return find_causes([problem.credits for problem in problems], gradients)


def _ratio(
    gradient_of: Callable[[LossBatch], np.ndarray],
    problems: list[LossProblem],
    finding: Finding | None,
    tolerance: float,
) -> str:
    """The importance ratio that the loss has, or "unknown"."""
    if finding is None:
        return "unknown"
    gradients = [_reached(problem, gradient_of(problem.batch())) for problem in problems]
    credits = [problem.credits for problem in problems]
    return ratio_of(gradients, credits, finding.mistakes, max(tolerance, MATCH))


def _reached(problem: LossProblem, gradient: np.ndarray) -> np.ndarray:
    """The gradient at the states where a token is to be taken; beyond an EOS only padding has one."""
    return np.where(problem.mdp.enumeration.reachable(len(gradient))[:, None], gradient, 0.0)


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array))


def _gradient(loss: Loss, batch: LossBatch) -> np.ndarray:
    """The ascent direction (S, V): minus the gradient of the loss in the policy's logits."""
    table = batch.model.table
    table.grad = None
    with calling(loss, "loss(batch)", "takes a LossBatch and returns a scalar"):
        value = loss(batch)
        if isinstance(value, Tensor) and value.ndim == 0 and value.requires_grad:
            value.backward()
            value = None
    if value is not None:
        described = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if isinstance(value, Tensor) and value.ndim == 0:
            described = "a scalar without a graph"
        raise ConfigurationError(
            f"{name_of(loss)} returned {described}: return a scalar that depends on batch.logprobs, batch.logits or"
            " batch.model, or None with the gradient left in batch.model.table.grad"
        )
    if table.grad is None:
        raise ConfigurationError(
            f"the loss of {name_of(loss)} does not depend on the policy: use batch.logprobs, batch.logits or"
            " batch.model"
        )
    if not torch.isfinite(table.grad).all():
        raise NonFiniteError(f"the gradient of {name_of(loss)} is not finite: look for 0 / 0 and for padding")
    return -table.grad.double().numpy()
