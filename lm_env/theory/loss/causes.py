"""Explains the gradient of a loss by known mistakes: the fewest that reproduce it on every problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from lm_env.theory.credit import Credits
from lm_env.theory.loss.mistakes import MOST, Mistakes, combinations

__all__ = ["MATCH", "Finding", "find_causes", "pieces"]

MATCH = 3e-4
"""Mistakes explain a gradient if the residual is at most this share of its norm."""
GAMMAS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
"""The first grid of the search for a discount."""


@dataclass(frozen=True)
class Finding:
    """A set of mistakes that together explain the gradients."""

    causes: tuple[str, ...]
    """Their names; empty if the loss is right."""
    numbers: dict[str, float] = field(default_factory=dict)
    """`gamma`, `entropy_coef`, `effective_beta`, as fitted to the gradients."""
    left_over: float = 0.0
    """The largest unexplained residual, as a share of the gradient's norm."""
    mistakes: Mistakes = field(default_factory=Mistakes)


@dataclass(frozen=True)
class _Fit:
    """Weights of score, KL and entropy in the gradient of each problem, and the largest residual."""

    score: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray
    sees_kl: np.ndarray
    """bool (problems,): whether the KL has a gradient there; at the reference it has none."""
    shares: np.ndarray
    """(problems, 3): how much of the gradient's norm each of the three makes up."""
    left_over: float


def find_causes(credits: list[Credits], gradients: list[np.ndarray]) -> Finding | None:
    """The fewest mistakes that explain the ascent gradients (S, V) of all problems; None if no known ones do."""
    found: list[Finding] = []

    def look(mistakes: Mistakes) -> None:
        finding = _finding(mistakes, _fit(mistakes, credits, gradients), credits)
        if finding is not None:
            found.append(finding)

    by_count = [[mistakes for mistakes in combinations() if len(mistakes.causes) == count] for count in range(MOST + 1)]
    for count, plain in enumerate(by_count):
        for mistakes in plain:
            look(mistakes)
        if not any(len(finding.causes) <= count for finding in found) and 0 < count <= 2:
            for mistakes in by_count[count - 1]:
                if mistakes.takes_gamma:
                    gamma = _least(lambda x, s=mistakes: _fit(s.with_gamma(x), credits, gradients).left_over)  # type: ignore[misc]
                    look(mistakes.with_gamma(gamma))
        if any(len(finding.causes) <= count + 1 for finding in found):
            break
    return min(found, key=lambda finding: (len(finding.causes), finding.left_over), default=None)


def _fit(mistakes: Mistakes, credits: list[Credits], gradients: list[np.ndarray]) -> _Fit:
    """The weights that explain each gradient best, by least squares."""
    rows = []
    left_over = 0.0
    for credit, gradient in zip(credits, gradients, strict=True):
        columns = [credit.gradient(piece).ravel() for piece in pieces(mistakes, credit)]
        sizes = np.array([np.linalg.norm(column) for column in columns])
        target = gradient.ravel()
        norm = float(np.linalg.norm(target)) or 1.0
        seen = sizes > 1e-9 * max(1.0, float(sizes.max()))
        design = np.stack([column / size for column, size in zip(columns, sizes, strict=True) if size > 0], 1)
        design = design[:, seen[sizes > 0]]
        weights = np.zeros(len(columns))
        solved = np.linalg.lstsq(design, target, rcond=1e-10)[0]
        weights[seen] = solved / sizes[seen]
        left_over = max(left_over, float(np.linalg.norm(design @ solved - target)) / norm)
        rows.append((weights[:3], seen[1], np.abs(weights[:3]) * sizes[:3] / norm))
    table = np.array([row[0] for row in rows])
    return _Fit(
        score=table[:, 0],
        kl=table[:, 1],
        entropy=table[:, 2],
        sees_kl=np.array([row[1] for row in rows]),
        shares=np.array([row[2] for row in rows]),
        left_over=left_over,
    )


def pieces(mistakes: Mistakes, credit: Credits) -> Iterator[np.ndarray]:
    """Score, KL and entropy as credits; then the baselines, which matter where tokens weigh differently."""
    weight = credit.weight(mistakes.length, mistakes.mask)
    beta = credit.beta
    if mistakes.whole is None:
        yield weight * credit.score(mistakes.score, mistakes.gamma)
        yield -beta * weight * credit.kl(mistakes.kl, mistakes.gamma)
    else:
        yield weight * credit.whole(mistakes.whole, mistakes.gamma)
        yield np.zeros_like(weight)
    yield -weight * credit.logprobs
    if (mistakes.length, mistakes.mask) != ("constant", "all"):
        yield weight
        yield weight * credit.values
        if mistakes.length != "constant":  # the KL of the tokens before, which no longer is a mere constant
            yield weight * (credit.paid_k1.cumsum(1) - credit.paid_k1)


def _finding(mistakes: Mistakes, fit: _Fit, credits: list[Credits]) -> Finding | None:
    """The mistakes that the weights imply; None if the weights contradict them or the residual is too large."""
    if fit.left_over > MATCH:
        return None
    causes = list(mistakes.causes)
    numbers: dict[str, float] = {"gamma": mistakes.gamma} if "gamma" in causes else {}
    share_of_score, share_of_kl, share_of_entropy = fit.shares.max(0)
    if share_of_score <= MATCH:
        return None
    sign = np.sign(fit.score[0])
    if (np.sign(fit.score) != sign).any():
        return None
    if sign < 0:
        causes.append("loss_sign")
    relative = (fit.kl / fit.score)[fit.sees_kl]
    if share_of_kl > MATCH:
        if (np.sign(relative) != np.sign(relative[0])).any():
            return None
        if relative[0] < 0:
            causes.append("kl_sign")
        causes += _rescaling(mistakes, np.abs(relative), fit, credits, numbers)
    elif mistakes.kl != "reward":
        return None  # a KL of another kind that weighs nothing is no KL, which is found without it
    elif mistakes.whole is None:
        causes.append("no_kl")
    if share_of_entropy > MATCH:
        causes.append("entropy_bonus")
        numbers["entropy_coef"] = float(np.mean(fit.entropy / fit.score))
    return Finding(tuple(causes), numbers, fit.left_over, mistakes)


def _rescaling(
    mistakes: Mistakes, relative: np.ndarray, fit: _Fit, credits: list[Credits], numbers: dict[str, float]
) -> list[str]:
    """The mistakes that give the KL a weight other than beta relative to the score."""
    size = credits[0].group_size
    beta = credits[0].beta

    def are(expected: np.ndarray | float) -> bool:
        return bool(np.allclose(relative, expected, rtol=2e-3))

    if are(1.0):
        return []
    biased_std = np.sqrt((size - 1) / size) if size > 1 else 1.0
    if mistakes.score == "group_std" and are(biased_std):
        return []
    if size > 1 and mistakes.kl.endswith("_loss") and are(size / (size - 1)):
        numbers["effective_beta"] = beta * size / (size - 1)
        return ["mean_with_itself"]
    spreads = np.array([_spread(credit) for credit, sees in zip(credits, fit.sees_kl, strict=True) if sees])
    if are(relative[0] * spreads / spreads[0]):
        return ["score_divided_by_batch_std"]
    if are(relative[0]):
        numbers["effective_beta"] = beta * float(relative[0])
        return ["score_rescaled"]
    return ["score_rescaled_variously"]


def _spread(credit: Credits) -> float:
    """The standard deviation of the scores under the policy that samples."""
    p, scores = credit.probabilities, credit.scores[:, 0]
    return float(np.sqrt(p @ (scores - p @ scores) ** 2))


def _least(left_over: Callable[[float], float]) -> float:
    """The point in [0, 1) with the smallest residual, by a grid that is refined around its best point."""
    grid = np.array(GAMMAS)
    for _ in range(8):
        best = int(np.argmin([left_over(float(x)) for x in grid]))
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 7)
    return float(grid[int(np.argmin([left_over(float(x)) for x in grid]))])
