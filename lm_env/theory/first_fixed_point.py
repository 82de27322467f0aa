"""The fixed point that small updates reach first, for losses that use a statistic of the policy's own scores.

GRPO divides the score by its standard deviation (std) under the policy.  If one assumes some std, the loss has a known
fixed point: a policy.  It is a fixed point of the real loss if its own scores have the std that was assumed.  There may
be several such policies.  Plain iteration (assume a std, solve, measure the std, assume that one) may skip the nearest
or go back and forth around it, and small gradient steps from the reference do neither.

So `first_std` follows the small steps.  The *weight* of the score is 1 / std.  At weight 0 the policy is the reference.
The weight is raised until it is 1 over the std of the policy that it gives.  `first_mean` does the same for a baseline,
the mean score that a loss subtracts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["first_mean", "first_std"]

LARGEST_CHANGE = 0.2
"""The most by which the logarithm of the weight, and that of the policy's own std, may change in one step."""
LARGEST_STEP = 0.5
"""The most by which weight x (best score - mean score) / beta may change in one step: no text's log-odds against a text
of mean score change by more."""
SMALLEST_STEP = 1e-6
"""The step in the logarithm of the weight that is taken whatever changes: there the std may jump."""
NEAR_ZERO = 0.25
"""Where the gap has a local minimum below this, the minimum is located: it may reach 0 between two steps."""
ROUNDING = 4e-16
"""About two roundings of a float64 near 1: what is smaller is taken for 0."""
GOLDEN = (np.sqrt(5) - 1) / 2


def first_std(
    moments_of: Callable[[float], tuple[float, float]], reference: tuple[float, float], beta: float, best: float
) -> float:
    """The std of the scores at the fixed point that small updates from the reference reach first.

    Of all stds that are their own fixed point, it is the largest.  There is one wherever the std has a positive lower
    bound.  A result as low as that bound means that the policy collapses on the best response.

    Args:
        moments_of: std -> (mean, std) of the scores under the fixed point of the loss with the score divided by that
            std; the std that it returns must be above 0.
        reference: mean and std under the reference.
        beta: weight of the KL penalty, score per nat.
        best: the largest score that there is.
    """

    def scale_of(mean: float, std: float) -> float:
        """The weight at which the best text, however rare, becomes about e times as likely against a mean one."""
        return beta / max(best - mean, std)

    def measured(log_weight: float) -> tuple[float, float]:
        """(log(1 / the policy's own std) - log(weight), its `scale_of`).

        Small updates raise the weight further while the first of them, the gap, is above 0.
        """
        mean, std = moments_of(float(np.exp(-log_weight)))
        return float(-np.log(std)) - log_weight, scale_of(mean, std)

    def gap_at(log_weight: float) -> float:
        return measured(log_weight)[0]

    log_weight = float(np.log(LARGEST_CHANGE * min(scale_of(*reference), 1 / reference[1])))
    gap, scale = measured(log_weight)
    points = [(log_weight, gap)]
    step = LARGEST_CHANGE
    while points[-1][1] > 0:
        log_weight, gap = points[-1]
        step = min(step, float(np.log1p(LARGEST_STEP * scale / np.exp(log_weight))))
        next_gap, next_scale = measured(log_weight + step)
        change = abs(next_gap + step - gap)  # of the logarithm of the std
        if change > LARGEST_CHANGE and step > SMALLEST_STEP:
            step /= 2
            continue
        points.append((log_weight + step, next_gap))
        scale = next_scale
        if len(points) >= 3 and points[-3][1] > points[-2][1] <= next_gap and 0 < points[-2][1] < NEAR_ZERO:
            lowest = _lowest(gap_at, points[-3][0], points[-1][0])
            if lowest[1] <= 0:
                points[-2:] = [lowest]
        if change < LARGEST_CHANGE / 2:
            step = min(2 * step, LARGEST_CHANGE)
    if len(points) == 1:
        return float(np.exp(-points[0][0]))
    return float(np.exp(-_zero(gap_at, *points[-2], *points[-1])))


def first_mean(mean_of: Callable[[float], float], start: float, low: float, high: float) -> float:
    """The solution of mean_of(mean) = mean that comes first from `start`, in the direction of mean_of(start) - start.

    Args:
        mean_of: baseline -> the mean score under the fixed point of the loss with that baseline; never below `low` nor
            above `high`.
        start: the baseline to begin with, such as the mean score under the reference.
        low, high: between these the solution is.
    """

    def gap_at(mean: float) -> float:
        return mean_of(mean) - mean

    mean, gap = start, gap_at(start)
    tolerance = 1e-14 * max(abs(low), abs(high), high - low)
    while abs(gap) > tolerance:
        next_mean = min(max(mean + gap, low), high)
        next_gap = gap_at(next_mean)
        if next_mean == mean:
            return mean
        if next_gap * gap <= 0:
            return _zero(gap_at, mean, gap, next_mean, next_gap, tolerance)
        mean, gap = next_mean, next_gap
    return mean


def _zero(
    f: Callable[[float], float], a: float, f_a: float, b: float, f_b: float, tolerance: float = ROUNDING
) -> float:
    """Where f is 0 between a and b, at which it has opposite signs, by the Illinois method (a safe secant method).

    Args:
        a, f_a, b, f_b: two points, and f there.
        tolerance: a value of f that is taken for 0.
    """
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
    """(x, f(x)) at a minimum of f between two points, by golden section; or at the first x found where f(x) <= 0."""
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
