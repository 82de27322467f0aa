"""The rest that an update reaches from the reference, where the update divides by a statistic of its own policy.

A score divided by its standard deviation under the policy gives, for each std that is assumed, a policy; at rest that
policy has this std.  There may be several such rests, and to put the new std in for the old one, again and again, may
jump over the first of them, or back and forth across it.  A gradual update cannot: its policy moves away from the
reference as far as the pull of the score carries it.  So the pull 1 / std is raised from 0, where the policy is the
reference, up to the first one that the policy's own std gives back.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["first_mean", "first_std"]

LARGEST_CHANGE = 0.2
"""Of the logarithms of std and pull in one step."""
TOUCHING = 0.25
"""A gap that has a local minimum below this is looked at more closely: it may reach 0 between two steps."""
LARGEST_STEP = 0.5
"""Of the pull, times what the best score has above the mean, over beta: no text's odds against the mean change more."""
ROUNDING = 4e-16
GOLDEN = (np.sqrt(5) - 1) / 2


def first_std(
    moments_of: Callable[[float], tuple[float, float]], reference: tuple[float, float], beta: float, best: float
) -> float:
    """The largest std that the policy with this std has itself: the first that a gradual update meets.

    There always is one if the std has a positive lower bound; one as low as that stands for a collapsed policy.

    Args:
        moments_of: mean and std of the scores under the policy that rests where the score is divided by a given std.
        reference: mean and std under the reference.
        beta: of the KL penalty: how far a policy goes depends on the pull / beta.
        best: the largest score that there is.
    """
    mean, std = reference

    def scale() -> float:
        """The pull that can change what a policy mostly writes: of what lies above its mean, however rare that is."""
        return beta / max(best - mean, std)

    def gap(log_pull: float) -> float:
        """log(1 / std) - log pull: above 0 where the policy is pulled further."""
        nonlocal mean, std
        mean, std = moments_of(float(np.exp(-log_pull)))
        return float(-np.log(std)) - log_pull

    pull = float(np.log(LARGEST_CHANGE * min(scale(), 1 / std)))
    points = [(pull, gap(pull))]
    step, reach = LARGEST_CHANGE, scale()
    while points[-1][1] > 0:
        pull, here = points[-1]
        step = min(step, float(np.log1p(LARGEST_STEP * reach / np.exp(pull))))
        there = gap(pull + step)
        change = abs(there + step - here)  # of the log of the std
        if change > LARGEST_CHANGE and step > 1e-6:
            step /= 2
            continue
        points.append((pull + step, there))
        reach = scale()
        if len(points) >= 3 and points[-3][1] > points[-2][1] <= there and 0 < points[-2][1] < TOUCHING:
            lowest = _lowest(gap, points[-3][0], points[-1][0])
            if lowest[1] <= 0:
                points[-2:] = [lowest]
        if change < LARGEST_CHANGE / 2:
            step = min(2 * step, LARGEST_CHANGE)
    if len(points) == 1:
        return float(np.exp(-points[0][0]))
    return float(np.exp(-_zero(gap, *points[-2], *points[-1])))


def first_mean(mean_of: Callable[[float], float], start: float, low: float, high: float) -> float:
    """The mean with mean_of(mean) = mean that is met first from `start`, in the direction of mean_of(start) - start.

    Args:
        mean_of: the mean score of the policy that rests with a given baseline; never below `low` nor above `high`.
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
    """Where f is 0 between a and b, at which it has opposite signs: secants and, where these stall, halves."""
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
        else:  # the other end has stayed: halve its value, as the Illinois method does
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
