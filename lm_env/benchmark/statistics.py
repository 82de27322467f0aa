"""Statistics of a few seeds: robust means with intervals, probabilities of improvement, paired tests over prompts.

The aggregates are those of Agarwal et al. 2021 (arXiv:2108.13264), "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", and equal those of the paper's package rliable where every task has the same number of runs.  If
tasks have different numbers of runs, all tasks have the same weight, so a run of a task with more runs has less.

Shapes: M tasks, n runs (seeds) of a task, R bootstrap replicates, P prompts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.validation import check_integer, check_number

__all__ = [
    "Interval",
    "Paired",
    "bootstrap",
    "holm",
    "interquartile_mean",
    "mean_over_tasks",
    "paired_difference",
    "performance_profile",
    "probability_of_improvement",
]

REPLICATES = 2000
SIGNS_AT_ONCE = 2**20
"""Random signs that are floats in memory at a time; as they are drawn each takes a byte."""
TRIMMED = 0.25
EXACT_FLIPS = 14
"""With at most this many prompts, all 2^P sign flips are enumerated."""

Runs = Sequence[np.ndarray]
"""M arrays (n,), one of each task: the scores of its runs."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Paired:
    """The mean difference of two agents over the same prompts, a - b."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided p-value of a sign-flip test."""
    prompts: int


def interquartile_mean(runs: Runs) -> float:
    """The mean of the middle half of all runs: the lowest and the highest quarter are left out.

    Agarwal et al. 2021, section 4.3.  An outlier changes it less than the mean, and it varies less from sample to
    sample than the median.  Whole runs are left out, as in `scipy.stats.trim_mean`.

    Args:
        runs: M arrays (n,) of scores on a common scale, such as the attained share of the ceiling.

    Raises:
        ConfigurationError: there are no runs, or a score is not finite.
    """
    rows = _checked(runs)
    return float(_trimmed(np.concatenate(rows)[None], _weights(rows))[0])


def mean_over_tasks(runs: Runs) -> float:
    """The mean over tasks of the mean over runs."""
    return float(np.mean([row.mean() for row in _checked(runs)]))


def bootstrap(
    estimate: Callable[[list[np.ndarray]], float] | None,
    runs: Runs,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """An estimate from runs with its 95% percentile interval by the stratified bootstrap.

    Runs are drawn with replacement within each task, so that every replicate has as many runs of each task as there
    are: Agarwal et al. 2021, section 4.2.  With fewer than about five runs of a task the interval is too narrow.

    Args:
        estimate: of M arrays; None: the interquartile mean.
        replicates: R.

    Raises:
        ConfigurationError: as `interquartile_mean`.
    """
    rows = _checked(runs)
    rng = np.random.default_rng(check_integer("seed", seed, low=0))
    drawn = [_resampled(row, check_integer("replicates", replicates), rng) for row in rows]
    if estimate is None:
        value = interquartile_mean(rows)
        found = _trimmed(np.concatenate(drawn, 1), _weights(rows))
    elif estimate is mean_over_tasks:  # the most frequent one, of all replicates at once
        value = mean_over_tasks(rows)
        found = np.mean([part.mean(1) for part in drawn], axis=0)
    else:
        value = float(estimate(rows))
        found = np.array([estimate([part[i] for part in drawn]) for i in range(replicates)])
    return _percentiles(value, found)


def probability_of_improvement(runs: Runs, others: Runs, *, replicates: int = REPLICATES, seed: int = 0) -> Interval:
    """The probability that a run of the one agent beats a run of the other on a task drawn at random.

    The mean over tasks of the Mann-Whitney statistic over n_x n_y, ties counting a half: Agarwal et al. 2021,
    section 4.3.  1/2 means no difference; if the interval contains 1/2, the runs do not show which agent is better.

    Args:
        runs, others: of the same M tasks in the same order.

    Raises:
        ConfigurationError: they are of different numbers of tasks; or as `interquartile_mean`.
    """
    ours, theirs = _checked(runs), _checked(others)
    if len(ours) != len(theirs):
        raise ConfigurationError(
            f"the agents have runs on {len(ours)} and {len(theirs)} tasks: compare them on the same tasks"
        )
    rng = np.random.default_rng(check_integer("seed", seed, low=0))
    value = float(np.mean([_wins(x[None], y[None])[0] for x, y in zip(ours, theirs, strict=True)]))
    found = np.zeros(check_integer("replicates", replicates))
    for x, y in zip(ours, theirs, strict=True):
        found += _wins(_resampled(x, replicates, rng), _resampled(y, replicates, rng)) / len(ours)
    return _percentiles(value, found)


def performance_profile(
    runs: Runs, thresholds: Sequence[float] | np.ndarray, *, replicates: int = REPLICATES, seed: int = 0
) -> list[Interval]:
    """The share of runs that score above each threshold, with pointwise 95% intervals.

    The run-score distribution of Agarwal et al. 2021, section 4.1: where one agent's curve is above another's at
    every threshold, it is better whatever the aggregate.

    Args:
        thresholds: any numbers on the scale of the scores.
        replicates: R.

    Raises:
        ConfigurationError: as `interquartile_mean`.
    """
    rows = _checked(runs)
    rng = np.random.default_rng(check_integer("seed", seed, low=0))
    drawn = [_resampled(row, check_integer("replicates", replicates), rng) for row in rows]
    found = []
    for threshold in thresholds:
        value = float(np.mean([(row > threshold).mean() for row in rows]))
        found.append(_percentiles(value, np.mean([(part > threshold).mean(1) for part in drawn], axis=0)))
    return found


def paired_difference(a: np.ndarray, b: np.ndarray, *, replicates: int = 10_000, seed: int = 0) -> Paired:
    """Whether two agents differ on the same prompts: their mean difference, its interval, and a sign-flip test.

    If the agents do not differ, each prompt's difference is as likely to have the other sign; p is the share of all
    assignments of signs (of random ones, where there are many prompts) whose mean is as far from 0 as the one found.
    The interval is the percentile bootstrap's over prompts.  Both say how sure a difference between THESE trained
    models is; that between algorithms needs several seeds, see `probability_of_improvement`.

    Source: Fisher 1935, section 21; Dror et al. 2018, "The Hitchhiker's Guide to Testing Statistical Significance in
    NLP".

    Args:
        a, b: float (P,), the measurements on P >= 2 shared prompts, in the same order.
        replicates: random assignments of signs, where there are too many to enumerate; the interval takes as many
            bootstrap replicates, but at most 2,000.

    Raises:
        ConfigurationError: they have different lengths, or fewer than 2 prompts, or a number is not finite.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigurationError(
            f"a paired test takes finite measurements on the same prompts, at least 2, not {a.shape} and {b.shape}"
        )
    differences = a - b
    rng = np.random.default_rng(check_integer("seed", seed, low=0))
    mean = float(differences.mean())
    limit = abs(mean) * (1 - 1e-12) - 1e-15  # the observed signs are among the extreme ones, however they round
    if len(a) <= EXACT_FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(a))))
        p = float((np.abs(signs @ differences) / len(a) >= limit).mean())
    else:
        flipped = rng.integers(2, size=(check_integer("replicates", replicates), len(a)), dtype=np.int8)
        extreme, at_once = 0, max(1, SIGNS_AT_ONCE // len(a))
        for start in range(0, replicates, at_once):
            signs = flipped[start : start + at_once] * 2.0 - 1.0
            extreme += int((np.abs(signs @ differences) / len(a) >= limit).sum())
        p = (1 + extreme) / (1 + replicates)
    interval = _percentiles(mean, _resampled(differences, min(replicates, REPLICATES), rng).mean(1))
    return Paired(mean, interval.low, interval.high, p, len(a))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for the number of tests, so that the family-wise error rate is kept (Holm 1979).

    Args:
        p_values: 0 to 1.

    Returns:
        the adjusted values in the given order; reject where they are at most .05.
    """
    for p in p_values:
        check_number("a p-value", p, low=0.0, high=1.0)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _checked(runs: Runs) -> list[np.ndarray]:
    rows = [np.asarray(row, dtype=np.float64) for row in runs]
    if not rows or any(row.ndim != 1 or not len(row) or not np.isfinite(row).all() for row in rows):
        raise ConfigurationError("runs must be one array of finite scores for each task, with at least one run each")
    return rows


def _resampled(row: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap replicates (R, n) of the values of a row (n,), drawn with replacement."""
    return row[rng.integers(len(row), size=(replicates, len(row)))]


def _weights(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The weight of each run, (N,): they sum to 1, and all tasks have the same weight."""
    return np.concatenate([np.full(len(row), 1 / (len(rows) * len(row))) for row in rows])


def _trimmed(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means (R,) of scores (R, N) without the runs that make up the lowest and the highest quarter of the weight."""
    order = np.argsort(scores, axis=1, kind="stable")
    ordered, heavy = np.take_along_axis(scores, order, 1), weights[order]
    up_to = np.cumsum(heavy, 1)
    kept = (up_to > TRIMMED + 1e-9) & (up_to - heavy < 1 - TRIMMED - 1e-9)
    return (ordered * heavy * kept).sum(1) / (heavy * kept).sum(1)


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The share of pairs in which x is larger, ties a half, (R,) of (R, n) and (R, m)."""
    difference = x[:, :, None] - y[:, None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((1, 2))


def _percentiles(value: float, found: np.ndarray) -> Interval:
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(value, float(low), float(high)) if math.isfinite(value) else Interval(math.nan, math.nan, math.nan)
