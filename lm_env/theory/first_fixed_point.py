"""The fixed point that small updates reach first, for losses that use a statistic of the policy's own scores.

GRPO divides the score by its standard deviation (std) under the policy.  If one assumes some std, the loss has a known
fixed point: a policy.  It is a fixed point of the real loss if its scores have the std that was assumed.  There may be
several such policies, and plain iteration (assume a std, solve, measure the std, assume that one) may skip the nearest
or go back and forth around it.  Small gradient steps from the reference do neither.  So the weight of the score,
1 / std, is raised from 0, where the policy is the reference, until the policy's own std first equals the assumed one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["first_mean", "first_std"]

LARGEST_CHANGE = 0.2
"""The most by which the logarithms of the weight and of the std may change in one step."""
NEAR_ZERO = 0.25
"""Where the gap has a local minimum below this, the minimum is located: it may reach 0 between two steps."""
LARGEST_STEP = 0.5
"""The most by which (weight x (best score - mean score) / beta) may change in one step, so that no text's log-odds
against a text of mean score change more."""
ROUNDING = 4e-16
GOLDEN = (np.sqrt(5) - 1) / 2


def first_std(
    moments_of: Callable[[float], tuple[float, float]], reference: tuple[float, float], beta: float, best: float
) -> float:
    """The largest std that its own fixed point has: the one that small updates from the reference reach first.

    There is one wherever the std has a positive lower bound.  A result as low as that bound means that the policy
    collapses on the best response.

    Args:
        moments_of: std -> (mean, std) of the scores under the fixed point of the loss with the score divided by that
            std.
        reference: mean and std under the reference.
        beta: weight of the KL penalty, score per nat.
        best: the largest score that there is.
    """
    mean, std = reference

    def scale() -> float:
        """The weight at which the best text, however rare, becomes about e times as likely against a mean one."""
        return beta / max(best - mean, std)

    def gap(log_weight: float) -> float:
        """log(1 / the policy's own std) - log(weight): above 0 where small updates raise the weight further."""
        nonlocal mean, std
        mean, std = moments_of(float(np.exp(-log_weight)))
        return float(-np.log(std)) - log_weight

    log_weight = float(np.log(LARGEST_CHANGE * min(scale(), 1 / std)))
    points = [(log_weight, gap(log_weight))]
    step, unit = LARGEST_CHANGE, scale()
    while points[-1][1] > 0:
        log_weight, here = points[-1]
        step = min(step, float(np.log1p(LARGEST_STEP * unit / np.exp(log_weight))))
        there = gap(log_weight + step)
        change = abs(there + step - here)  # of the log of the std
        if change > LARGEST_CHANGE and step > 1e-6:
            step /= 2
            continue
        points.append((log_weight + step, there))
        unit = scale()
        if len(points) >= 3 and points[-3][1] > points[-2][1] <= there and 0 < points[-2][1] < NEAR_ZERO:
            lowest = _lowest(gap, points[-3][0], points[-1][0])
            if lowest[1] <= 0:
                points[-2:] = [lowest]
        if change < LARGEST_CHANGE / 2:
            step = min(2 * step, LARGEST_CHANGE)
    if len(points) == 1:
        return float(np.exp(-points[0][0]))
    return float(np.exp(-_zero(gap, *points[-2], *points[-1])))


def first_mean(mean_of: Callable[[float], float], start: float, low: float, high: float) -> float:
    """The solution of mean_of(mean) = mean that comes first from `start`, in the direction of mean_of(start) - start.

    Args:
        mean_of: baseline -> the mean score under the fixed point of the loss with that baseline; never below `low` nor
            above `high`.
    """

    def gap(mean: float) -> float:
        return mean_of(mean) - mean

    here, there = start, gap(start)
    tolerance = 1e-14 * max(abs(low), abs(high), high - low)
    while abs(there) > tolerance:
        following = min(max(here + there, low), high)
        beyond = gap(following)
        if following == here or beyond * there <= 0:
            return here if following == here else _zero(gap, here, there, following, beyond, tolerance)
        here, there = following, beyond
    return here


def _zero(
    f: Callable[[float], float], a: float, f_a: float, b: float, f_b: float, tolerance: float = ROUNDING
) -> float:
    """Where f is 0 between a and b, at which it has opposite signs: the secant method, else bisection."""
    for _ in range(200):
        if f_b == 0:
            return b
        width = abs(b - a)
        middle = b - f_b * (b - a) / (f_b - f_a)
        if not min(a, b) < middle < max(a, b):
            middle = (a + b) / 2
        f_middle = f(middle)
        if abs(f_middle) <= tolerance:
            return middle
        if (f_middle > 0) != (f_b > 0):
            a, f_a = b, f_b
        else:  # the same end has stayed twice: halve its value, as the Illinois method does
            f_a /= 2
        b, f_b = middle, f_middle
        if abs(b - a) <= ROUNDING * max(abs(a), abs(b), 1e-3) or abs(b - a) == width:
            return b
    return b


def _lowest(f: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """(x, f(x)) of a minimum of f between two points, or of the first x found with f(x) <= 0, by golden section."""
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    f_a, f_b = f(a), f(b)
    while high - low > 1e-9 and min(f_a, f_b) > 0:
        if f_a < f_b:
            high, b, f_b = b, a, f_a
            a = high - GOLDEN * (high - low)
            f_a = f(a)
        else:
            low, a, f_a = a, b, f_b
            b = low + GOLDEN * (high - low)
            f_b = f(b)
    return (a, f_a) if f_a < f_b else (b, f_b)
