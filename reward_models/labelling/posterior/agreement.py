"""How far annotators agree beyond chance: Cohen's kappa of two, Krippendorff's alpha of any number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lm_env.errors import ConfigurationError
from reward_models.labelling.posterior.votes import FIRST, SECOND, TIE, Votes
from reward_models.trust.statistics import Z95

__all__ = ["Agreement", "Kappa", "cohen_kappa", "krippendorff_alpha", "measure_agreement"]

SWAP = [SECOND, FIRST, TIE]
"""The categories of a pair if its two responses change places."""


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa of two annotators, on the units that both judged.

    Attributes:
        value: 1 is agreement on all units, 0 what chance gives; None where chance alone would agree on all.
        low, high: 95% interval, of the normal approximation.
        share: of the units on which they agree.
        units: how many both judged.
    """

    value: float | None
    low: float | None
    high: float | None
    share: float
    units: int


def cohen_kappa(one: np.ndarray, two: np.ndarray) -> Kappa | None:
    """Agreement of two annotators; None without a unit that both judged.

    Source: Cohen 1960; the standard error is that of Fleiss, Cohen & Everitt 1969, equation 13.

    Args:
        one, two: integers (U,), the category each gave each unit; negative: not judged.

    Raises:
        ConfigurationError: they have different lengths.
    """
    one, two = np.asarray(one), np.asarray(two)
    if one.shape != two.shape or one.ndim != 1:
        raise ConfigurationError(
            f"the two annotators' categories have shapes {one.shape} and {two.shape}: give two lists of equal length"
        )
    both = (one >= 0) & (two >= 0)
    n = int(both.sum())
    if n == 0:
        return None
    categories, coded = np.unique(np.concatenate([one[both], two[both]]), return_inverse=True)
    joint = np.zeros((len(categories), len(categories)))
    np.add.at(joint, (coded[:n], coded[n:]), 1 / n)
    return _kappa(joint, n)


def _kappa(joint: np.ndarray, n: int) -> Kappa:
    """Cohen's kappa from a table (C, C): the share of n units to which the two gave each pair of categories."""
    rows, columns = joint.sum(1), joint.sum(0)
    agreed, chance = float(np.trace(joint)), float(rows @ columns)
    if chance >= 1:
        return Kappa(None, None, None, agreed, n)
    kappa = (agreed - chance) / (1 - chance)
    # Fleiss, Cohen & Everitt: cells on the diagonal, cells off it, and the correction for the mean.
    pairs = columns[:, None] + rows[None, :]
    on = float(np.sum(np.diag(joint) * (1 - np.diag(pairs) * (1 - kappa)) ** 2))
    off = (1 - kappa) ** 2 * float(np.sum((joint * pairs**2)[~np.eye(len(joint), dtype=bool)]))
    variance = max(0.0, on + off - (kappa - chance * (1 - kappa)) ** 2) / (n * (1 - chance) ** 2)
    half = Z95 * math.sqrt(variance)
    return Kappa(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), agreed, n)


def krippendorff_alpha(table: np.ndarray) -> float | None:
    """Krippendorff's alpha for nominal categories, with any number of annotators and any values missing.

    1 is agreement on everything, 0 what chance gives, below 0 is systematic disagreement.  None where no unit was
    judged twice, or only one category was ever used, which leaves nothing to disagree about.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C.

    Args:
        table: integers (W, U), the category each annotator gave each unit; negative: not judged.
    """
    counts = _counts(table)
    return _alpha(counts, counts.sum(0))


def _counts(table: np.ndarray) -> np.ndarray:
    """(U, C): how often each unit was given each category, of the units that were judged at least twice."""
    table = np.asarray(table)
    categories = np.unique(table[table >= 0])
    counts = np.stack([(table == c).sum(0) for c in categories], axis=1) if len(categories) else np.zeros((0, 1))
    return counts[counts.sum(1) >= 2]


def _alpha(counts: np.ndarray, of_category: np.ndarray) -> float | None:
    judged = counts.sum(1)
    total = float(judged.sum())
    expected = total**2 - float((of_category**2).sum())  # pairs of values of different categories, over all units
    if total == 0 or expected == 0:
        return None
    observed = float(((judged**2 - (counts**2).sum(1)) / (judged - 1)).sum())
    return 1 - (total - 1) * observed / expected


@dataclass(frozen=True)
class Agreement:
    """Agreement among all annotators beyond chance.

    Which response of a pair is called the first is arbitrary, and in a file of preferences it may always be the better
    one.  So the agreement expected by chance is computed as if each pair had been judged in both orders; otherwise two
    annotators who are always right in such a file would seem to agree by chance.

    Attributes:
        alpha: Krippendorff's, None where it is not defined.
        low, high: its 95% interval, from resampling the units.
        units: how many were judged at least twice.
        kappas: of each two annotators, by their names, those with the most common units first.
    """

    alpha: float | None
    low: float | None
    high: float | None
    units: int
    kappas: dict[tuple[str, str], Kappa]


def measure_agreement(votes: Votes, *, resamples: int = 400, seed: int = 0) -> Agreement:
    """Krippendorff's alpha with an interval, and Cohen's kappa of each two annotators.

    The interval resamples whole items, whose pairs of responses are not independent.
    """
    table = votes.table()
    numbers = {item: n for n, item in enumerate(dict.fromkeys(unit.item for unit in votes.units))}
    item = np.array([numbers[unit.item] for unit in votes.units], dtype=np.int64)
    counts = (table[:, :, None] == np.arange(3)).sum(0)
    twice = counts.sum(1) >= 2
    counts, item = counts[twice], item[twice]
    alpha = _alpha(counts, _either_order(counts.sum(0)))
    low = high = None
    if alpha is not None:
        low, high = _bootstrapped(counts, item, resamples, seed)
    found = {}
    for a, b in combinations(range(len(votes.annotators)), 2):
        both = (table[a] >= 0) & (table[b] >= 0)
        if both.any():
            joint = np.zeros((3, 3))
            np.add.at(joint, (table[a, both], table[b, both]), 1 / both.sum())
            found[votes.annotators[a], votes.annotators[b]] = _kappa(
                (joint + joint[SWAP][:, SWAP]) / 2, int(both.sum())
            )
    kappas = dict(sorted(found.items(), key=lambda pair: -pair[1].units))
    return Agreement(alpha, low, high, int(twice.sum()), kappas)


def _either_order(of_category: np.ndarray) -> np.ndarray:
    """How often each category (..., 3) is chosen if each pair is counted in both orders, half each."""
    return (of_category + of_category[..., SWAP]) / 2


def _bootstrapped(counts: np.ndarray, item: np.ndarray, resamples: int, seed: int) -> tuple[float | None, float | None]:
    """The 2.5% and 97.5% quantiles of alpha over resampled items; None for fewer than two items."""
    _, item = np.unique(item, return_inverse=True)
    size = int(item.max()) + 1
    if size < 2:
        return None, None
    judged = counts.sum(1)
    disagreement = (judged**2 - (counts**2).sum(1)) / (judged - 1)
    sums = np.zeros((size, 1 + counts.shape[1]))  # of each item: its disagreement, and its values by category
    np.add.at(sums, item, np.column_stack([disagreement, counts]))
    times = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    drawn = times @ sums
    total = drawn[:, 1:].sum(1)
    expected = total**2 - (_either_order(drawn[:, 1:]) ** 2).sum(1)
    valid = expected > 0
    if not valid.any():
        return None, None
    alphas = 1 - (total[valid] - 1) * drawn[valid, 0] / expected[valid]
    low, high = np.quantile(alphas, [0.025, 0.975])
    return float(low), float(high)
