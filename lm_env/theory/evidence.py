"""Which objective an agent optimizes, from the policies of several trainings and the variance between them.

A policy is compared with the optimum and with the exact fixed points of other objectives.  Each policy, as
the square roots of its probabilities, is projected onto the line from the optimum (0) to a fixed point (1).  The
projections are modeled as normal around 0 or around 1, with the variance between the trainings.  The log-likelihood
ratio says how much better the fixed point explains them than the optimum does.

Shapes: K trainings, N texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.theory.objectives import Objective, fixed_point
from lm_env.theory.token_mdp import TokenMDP

__all__ = ["FAMILIES", "Evidence", "smallest_detectable", "total_variation", "weigh"]

RECOGNIZED_TV = 0.1
"""An agent this near to another objective's fixed point, and at most a third as far from it as from the optimum, has
that objective.  (A correct agent that was stopped early lies between the two, half-way to the optimum or closer.)"""
WHITENED_TV = 0.2
"""The same for whitening within each response.  Some texts then differ by noise alone, so that training may end at any
of several policies."""
CLEARER = 3.0
"""How much nearer to a fixed point than to the optimum an agent is that has that objective."""
UNTRAINED_TV = 1e-4
"""An agent this near to the reference, in total variation, has not learned at all."""
ENOUGH = math.log(100.0)
"""The log-likelihood ratio that decides: a hundred to one."""
LEAST_VARIANCE = 1e-12
"""The least variance of the projections: the precision of float32 policies."""
ALIKE_TV = 1e-6
"""Fixed points this close, in total variation, count as the same."""
COLLAPSED_TV = 0.01
"""A policy this near, in total variation, to the best response alone has collapsed on it; before that it looks like the
optimum at a small beta."""

FAMILIES: tuple[tuple[Objective, str, tuple[float, ...]], ...] = (
    ("entropy_bonus", "entropy_coef", (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)),
    ("gamma", "gamma", (0.99, 0.98, 0.9, 0.8, 0.7, 0.5)),
    ("reward_rescaled", "scale", (0.9, 0.7, 0.5, 0.35, 0.2, 0.1)),
    ("reward_rescaled", "scale", (1.1, 1.4, 2.0, 3.0, 5.0, 10.0)),
)
"""The objectives with a number of their own, and the grid on which it is sought, from small to large deviations."""

EARLY = (0.9, 0.95, 1.0, 1.05, 1.1)
"""What beta is multiplied by where a training stopped early."""
BY_CREDIT = ("kl_early", "score_at_each_token")
"""Objectives whose fixed point is another one if each token is credited with the whole return."""


@dataclass(frozen=True)
class Evidence:
    """The verdict on the policies."""

    objective: str
    """The other objective that was recognized, `untrained`, or `unknown`; `unknown` includes the optimum itself."""
    alike: tuple[str, ...]
    """Other objectives that have the same fixed point on this MDP."""
    log_ratio: float
    """The log-likelihood ratio, in nats, of the nearest other fixed point to the optimum."""
    decided: bool
    """False where more trainings could tell the optimum from the nearest other fixed point."""
    noise: float | None
    """The standard error of the mean policy, in total variation; None for one training."""


def weigh(mdp: TokenMDP, beta: float, probabilities: np.ndarray) -> Evidence:
    """Compare policies with the optimum and all known fixed points.

    Args:
        probabilities: (K, N), of each text under the policy of each training.
    """
    mean = probabilities.mean(0)
    noise = _noise(probabilities)
    if total_variation(mean, _reference(mdp)) <= UNTRAINED_TV:
        return Evidence("untrained", (), 0.0, True, noise)
    found = [(total_variation(mean, point), name, point) for name, point in _points(mdp, beta)]
    for objective, option, values in FAMILIES:
        point = _nearest(mdp, beta, objective, option, values, mean)
        if point is not None:
            found.append((total_variation(mean, point), objective, point))
    optimum = _point(mdp, beta, "gibbs")
    assert optimum is not None
    distance, name, point = min(found, key=lambda entry: entry[0])
    same = [other for _, other, place in found if total_variation(place, point) <= _radius(other)]
    alike = sorted(dict.fromkeys(same), key=lambda other: (other != "no_kl", "rescaled" in other, other))
    name = alike[0]
    log_ratio = _log_ratio(probabilities, optimum, point)
    from_optimum = total_variation(mean, optimum)
    # A beta that is a little off means training that stopped early, and is not to be taken for a mistake.
    early = _nearest(mdp, beta, "reward_rescaled", "scale", EARLY, mean)
    stopped_early = early is not None and total_variation(mean, early) < distance
    radius = WHITENED_TV if "whitened" in name else RECOGNIZED_TV
    clear = distance <= min(radius, from_optimum / CLEARER) and not stopped_early
    close = from_optimum <= RECOGNIZED_TV and distance <= CLEARER * from_optimum and not stopped_early
    recognized = clear and log_ratio >= ENOUGH
    decided = recognized or not close or log_ratio <= -ENOUGH
    return Evidence(
        name if recognized else "unknown", tuple(alike[1:]) if recognized else (), log_ratio, decided, noise
    )


def smallest_detectable(mdp: TokenMDP, beta: float, probabilities: np.ndarray, largest_tv: float) -> dict[str, float]:
    """The smallest deviation of each family that these trainings would have revealed, by its option.

    An agent at the deviation's fixed point with the same error would be three times nearer to it than to the optimum
    and to any training that stopped early, and a hundred times likelier there; or it would be further than `largest_tv`
    from the optimum.  Families whose largest deviation would not have been revealed are left out.
    """
    optimum = _point(mdp, beta, "gibbs")
    assert optimum is not None
    error = total_variation(probabilities.mean(0), optimum)
    smallest: dict[str, float] = {}
    for objective, option, values in FAMILIES:
        none = 0.0 if option == "entropy_coef" else 1.0

        def shows(value: float, objective: Objective = objective, option: str = option) -> bool:
            point = _point(mdp, beta, objective, **{option: value})
            if point is None:
                return False
            if total_variation(point, optimum) > largest_tv + error:
                return True
            early = _nearest(mdp, beta, "reward_rescaled", "scale", EARLY, point)
            apart = [total_variation(point, other) for other in (optimum, early) if other is not None]
            if min(apart) < CLEARER * error:
                return False
            return -_log_ratio(probabilities - probabilities.mean(0) + optimum, optimum, point) >= ENOUGH

        if not shows(values[-1]):
            continue
        low, high = none, values[-1]
        for _ in range(25):
            middle = (low + high) / 2
            low, high = (low, middle) if shows(middle) else (middle, high)
        key = option if option != "scale" else "scale_below_1" if values[0] < 1 else "scale_above_1"
        smallest[key] = float(high)
    return smallest


def _radius(objective: str) -> float:
    """How near a fixed point is that counts as the same one."""
    return COLLAPSED_TV if objective == "no_kl" else ALIKE_TV


def total_variation(probabilities: np.ndarray, other: np.ndarray) -> float:
    """Half the sum of the absolute differences."""
    return float(np.abs(probabilities - other).sum() / 2)


def _noise(probabilities: np.ndarray) -> float | None:
    """The mean distance of a training from the mean of all, over the square root of how many there are."""
    count = len(probabilities)
    if count < 2:
        return None
    apart = np.abs(probabilities - probabilities.mean(0)).sum(1) / 2
    return float(np.sqrt((apart**2).sum() / (count - 1) / count))


def _log_ratio(probabilities: np.ndarray, optimum: np.ndarray, point: np.ndarray) -> float:
    """How much likelier the trainings are at the point than at the optimum, in nats.

    The variance along the line is that of the trainings among themselves; and at least that of their distances from
    the line, per dimension, which is all there is of a single training.
    """
    start = np.sqrt(optimum)
    line = np.sqrt(point) - start
    length = float(line @ line)
    if length == 0:
        return 0.0
    steps = np.sqrt(np.maximum(probabilities, 0.0)) - start
    places = steps @ line / length
    beside = ((steps - places[:, None] * line) ** 2).sum(1) / length / max(1, len(line) - 2)
    variance = max(float(beside.mean()), float(places.var(ddof=1)) if len(places) > 1 else 0.0, LEAST_VARIANCE)
    return float((places - 0.5).sum() / variance)


def _points(mdp: TokenMDP, beta: float) -> list[tuple[str, np.ndarray]]:
    """The fixed points of the objectives without a number of their own, and of the std's own rescaling."""
    sought = {objective for objective, *_ in FAMILIES} - {"reward_rescaled"}
    points = []
    for objective in get_args(Objective):
        if objective in sought or objective == "gibbs":
            continue
        for options in ({}, {"credit": "return"}) if objective in BY_CREDIT else ({},):
            point = _point(mdp, beta, objective, **options)
            if point is not None:
                points.append((objective, point))
    return points


@lru_cache(maxsize=4096)
def _point(mdp: TokenMDP, beta: float, objective: Objective, **options: Any) -> np.ndarray | None:
    """The probabilities (N,) at an objective's fixed point; None where the MDP has none."""
    try:
        table = fixed_point(mdp, beta, objective, **options)
    except ConfigurationError:
        return None
    return np.exp(mdp.trajectory_logprobs(table))


@lru_cache(maxsize=16)
def _reference(mdp: TokenMDP) -> np.ndarray:
    return np.exp(mdp.trajectory_logprobs(mdp.reference_logits))


def _nearest(
    mdp: TokenMDP, beta: float, objective: Objective, option: str, values: Sequence[float], mean: np.ndarray
) -> np.ndarray | None:
    """The nearest fixed point of a family, by a grid that is refined around its best value."""

    def distance(value: float) -> float:
        point = _point(mdp, beta, objective, **{option: value})
        return math.inf if point is None else total_variation(mean, point)

    return _point(mdp, beta, objective, **{option: _least(distance, values)})


def _least(distance: Callable[[float], float], values: Sequence[float]) -> float:
    """Where the distance is least over an interval."""
    grid = np.asarray(values)
    for _ in range(4):
        best = int(np.argmin([distance(float(x)) for x in grid]))
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 5)
    return float(grid[int(np.argmin([distance(float(x)) for x in grid]))])
