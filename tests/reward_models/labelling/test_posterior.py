"""Agreement, annotators, strengths and information: worked examples, planted truths, and second ways to compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import ConfigurationError
from reward_models.labelling.posterior import (
    Judgement,
    Unit,
    Votes,
    bradley_terry,
    cohen_kappa,
    expected_information,
    fit_annotators,
    flip_rates,
    krippendorff_alpha,
    measure_agreement,
    votes_of,
    votes_of_records,
)
from reward_models.labelling.posterior.annotators import _Model
from reward_models.labelling.posterior.votes import FIRST, SECOND, TIE
from reward_models.preferences import Preference

NOBODY = -1


def expanded(joint: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The two lists of categories that a table of counts stands for."""
    cells = [(i, j) for i, row in enumerate(joint) for j, count in enumerate(row) for _ in range(count)]
    one, two = np.array(cells).T
    return one, two


def parsed(rows: list[str]) -> np.ndarray:
    """Each row an annotator, each word a category; a dot is missing."""
    return np.array([[NOBODY if word == "." else ord(word) for word in row.split()] for row in rows])


# -- agreement -----------------------------------------------------------------------------------------
def test_kappa_of_cohens_own_example():
    """Cohen 1960, table 1: 200 patients, agreement .70, by chance .41, kappa .492."""
    kappa = cohen_kappa(*expanded([[88, 14, 18], [10, 40, 10], [2, 6, 12]]))
    assert kappa.share == pytest.approx(0.70)
    assert kappa.value == pytest.approx(0.492, abs=5e-4)
    assert kappa.units == 200


def test_the_interval_of_kappa_is_that_of_the_delta_method():
    joint = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]]) / 200

    def value(p: np.ndarray) -> float:
        chance = p.sum(1) @ p.sum(0)
        return (np.trace(p) - chance) / (1 - chance)

    slope = np.zeros(joint.shape)
    for cell in np.ndindex(joint.shape):
        step = np.zeros(joint.shape)
        step[cell] = 1e-6
        slope[cell] = (value(joint + step) - value(joint - step)) / 2e-6
    variance = ((joint * slope**2).sum() - (joint * slope).sum() ** 2) / 200
    kappa = cohen_kappa(*expanded([[88, 14, 18], [10, 40, 10], [2, 6, 12]]))
    assert kappa.high - kappa.value == pytest.approx(1.959964 * variance**0.5, rel=1e-6)


def test_kappa_where_it_is_not_defined():
    assert cohen_kappa(np.array([0, NOBODY]), np.array([NOBODY, 1])) is None
    assert cohen_kappa(np.zeros(5, int), np.zeros(5, int)).value is None
    with pytest.raises(ConfigurationError, match="equal length"):
        cohen_kappa(np.zeros(5, int), np.zeros(4, int))


@pytest.mark.parametrize(
    ("rows", "alpha"),
    [
        (["0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"], 0.095),
        (["a a b b d c c c e d d a", "b a b b b c c c e d d d"], 0.692),
        (
            [
                "1 2 3 3 2 1 4 1 2 . . .",
                "1 2 3 3 2 2 4 1 2 5 . 3",
                ". 3 3 3 2 3 4 2 2 5 1 .",
                "1 2 3 3 2 4 4 1 2 5 1 .",
            ],
            0.743,
        ),
    ],
    ids=["two categories", "five categories", "four annotators, values missing"],
)
def test_alpha_of_krippendorffs_own_examples(rows, alpha):
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", sections A, B and C."""
    assert krippendorff_alpha(parsed(rows)) == pytest.approx(alpha, abs=5e-4)


@given(st.lists(st.lists(st.integers(-1, 2), min_size=6, max_size=6), min_size=2, max_size=5))
def test_alpha_is_one_minus_observed_over_expected_disagreement(table):
    """Counted pair by pair, as it is defined."""
    table = np.array(table)
    units = [[v for v in column if v >= 0] for column in table.T]
    units = [unit for unit in units if len(unit) >= 2]
    values = [v for unit in units for v in unit]
    n = len(values)
    pairs = [(a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j]
    expected = sum(a != b for a, b in pairs)
    alpha = krippendorff_alpha(table)
    if expected == 0:
        assert alpha is None
        return
    observed = sum(
        sum(a != b for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j) / (len(unit) - 1)
        for unit in units
    )
    assert alpha == pytest.approx(1 - (observed / n) / (expected / (n * (n - 1))))


def simulated(accuracy, units: int, rng: np.random.Generator, *, ties: float = 0.0, share: float = 1.0):
    """Votes of annotators who say the truth as often as planted; -> (votes, truth)."""
    truth = rng.choice([FIRST, SECOND, TIE], size=units, p=[(1 - ties) / 2, (1 - ties) / 2, ties])
    rows = []
    for who, a in enumerate(accuracy):
        for unit in np.flatnonzero(rng.random(units) < share):
            others = [v for v in (FIRST, SECOND, TIE) if v != truth[unit] and (ties or v != TIE)]
            rows.append((unit, who, truth[unit] if rng.random() < a else rng.choice(others)))
    unit, who, value = np.array(rows).T
    names = tuple(f"annotator {i}" for i in range(len(accuracy)))
    votes = Votes(tuple(Unit(i, 0, 1) for i in range(units)), names, unit, who, value, np.ones(len(unit)))
    return votes, truth


def test_the_interval_of_alpha_covers_the_alpha_of_many_more_units():
    accuracy = [0.9, 0.8, 0.7]
    large = measure_agreement(simulated(accuracy, 20_000, np.random.default_rng(0))[0], resamples=2).alpha
    covered = 0
    for seed in range(40):
        found = measure_agreement(simulated(accuracy, 150, np.random.default_rng(seed + 1))[0], seed=seed)
        covered += found.low <= large <= found.high
        assert set(found.kappas) == {tuple(f"annotator {i}" for i in pair) for pair in ((0, 1), (0, 2), (1, 2))}
    assert covered >= 34  # P(fewer | 95%) < 1%


def test_agreement_does_not_depend_on_which_response_is_called_the_first():
    """As in a file in which the better one always comes first: nearly all votes are then of one category."""
    votes, truth = simulated([0.9, 0.85, 0.8], 300, np.random.default_rng(0), ties=0.1)
    turned = (truth == SECOND)[votes.unit] & (votes.value != TIE)
    sorted_ = replace(votes, value=np.where(turned, 1 - votes.value, votes.value))
    one, two = measure_agreement(votes), measure_agreement(sorted_)
    assert one.alpha == pytest.approx(two.alpha) and (one.low, one.high) == pytest.approx((two.low, two.high))
    for names, kappa in one.kappas.items():
        assert two.kappas[names].value == pytest.approx(kappa.value)
        assert two.kappas[names].high == pytest.approx(kappa.high)
    # Where both orders are equally common anyway, it is the plain measure, up to chance.
    assert one.alpha == pytest.approx(krippendorff_alpha(votes.table()), abs=0.01)
    plain = cohen_kappa(*votes.table()[:2])
    assert one.kappas["annotator 0", "annotator 1"].value == pytest.approx(plain.value, abs=0.01)


# -- annotators ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("ties", [0.0, 0.2], ids=["no ties", "ties"])
def test_planted_accuracies_are_inside_their_intervals(ties):
    planted = np.array([0.95, 0.85, 0.75, 0.65, 0.55])
    inside = []
    for seed in range(30):
        votes, truth = simulated(planted, 250, np.random.default_rng(seed), ties=ties, share=0.7)
        fit = fit_annotators(votes)
        inside.append((fit.low <= planted) & (planted <= fit.high))
        assert np.all(fit.high - fit.low < 0.35)
        best = fit.truth.argmax(1)
        assert (best == truth).mean() > np.mean([v == truth[u] for u, v in zip(votes.unit, votes.value, strict=True)])
    # Bounds of three standard errors about 95%, of all 150 intervals and of the 30 of each annotator.
    assert np.mean(inside) >= 0.95 - 3 * (0.95 * 0.05 / 150) ** 0.5
    assert np.mean(inside, axis=0).min() >= 0.95 - 3 * (0.95 * 0.05 / 30) ** 0.5


def test_the_truth_is_as_probable_as_it_is_said_to_be():
    rng = np.random.default_rng(3)
    votes, truth = simulated([0.85, 0.7, 0.6], 4000, rng, ties=0.15)
    fit = fit_annotators(votes)
    best = fit.truth.argmax(1)
    sure = fit.truth.max(1)
    assert (best == truth).mean() == pytest.approx(sure.mean(), abs=3 * 0.5 / 4000**0.5)
    assert fit.ties == pytest.approx(0.15, abs=0.04)


@pytest.mark.parametrize("ties", [0.0, 0.2], ids=["no ties", "ties"])
def test_the_fit_is_a_maximum_with_the_stated_curvature(ties):
    """First and second derivative of the log posterior by finite differences, in log odds."""
    votes, _ = simulated([0.9, 0.7, 0.6], 60, np.random.default_rng(1), ties=ties)
    model = _Model(votes, (4.0, 2.0))
    model.maximize()

    def logit(p):
        return np.log(p) - np.log1p(-p)

    at = logit(np.append(model.accuracy, [model.ties, model.tie_errors] if ties else []))

    def value(x: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-x))
        model.accuracy = p[:3]
        if ties:
            model.ties, model.tie_errors = p[3:]
        return model.log_posterior()

    exact = model.second_derivative()
    size, h = len(at), 1e-4
    steps = np.eye(size) * h
    slope = [(value(at + s) - value(at - s)) / (2 * h) for s in steps]
    assert np.allclose(slope, 0, atol=1e-4)
    for i in range(size):
        for j in range(size):
            a, b = steps[i], steps[j]
            second = (value(at + a + b) - value(at + a - b) - value(at - a + b) + value(at - a - b)) / (4 * h * h)
            assert exact[i, j] == pytest.approx(second, rel=1e-3, abs=2e-3)


def test_without_shared_units_nothing_is_known_of_accuracies():
    votes = votes_of(Judgement(i, (0, 1), (0, 1), "ana" if i % 2 else "ben") for i in range(100))
    fit = fit_annotators(votes)
    assert np.all(fit.low < 0.35) and np.all(fit.high > 0.85)
    with pytest.raises(ConfigurationError, match="no votes"):
        fit_annotators(votes_of([]))


def test_flip_rates_make_the_best_annotator_the_measure():
    flips = flip_rates(np.array([0.9, 0.7, 0.5]))
    assert flips[0] == 0 and flips[2] == pytest.approx(0.5, abs=1e-2)
    assert (2 * 0.9 - 1) * (1 - 2 * flips[1]) == pytest.approx(2 * 0.7 - 1)


# -- votes ---------------------------------------------------------------------------------------------
def test_a_ranking_is_a_vote_on_each_pair():
    votes = votes_of([Judgement("x", (2, 0, 1), (0, 1, None), "ana")])  # 2 before 0 before 1
    said = {(u.first, u.second): v for u, v in zip(votes.units, votes.value.tolist(), strict=True)}
    assert said == {(0, 2): SECOND, (1, 2): SECOND, (0, 1): FIRST}
    assert votes.weight.sum() == pytest.approx(2)  # three responses hold two independent comparisons


def test_records_in_another_order_are_votes_on_the_same_unit():
    records = [
        Preference("p", ("x", "y"), (0, 1), annotator="ana"),
        Preference("p", ("y", "x"), (0, 1), annotator="ben"),
        Preference("q", ("x", "y"), (0, 0), annotator="ana"),
    ]
    votes = votes_of_records(records)
    assert votes.table().tolist() == [[FIRST, TIE], [SECOND, NOBODY]]


# -- strengths -----------------------------------------------------------------------------------------
def compared(strength: np.ndarray, count: int, rng: np.random.Generator, flip: float = 0.0):
    size = len(strength)
    first = rng.integers(size, size=count)
    second = (first + rng.integers(1, size, size=count)) % size
    p = 1 / (1 + np.exp(strength[second] - strength[first]))
    return first, second, (rng.random(count) < flip + (1 - 2 * flip) * p).astype(float)


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_planted_strengths_are_within_four_standard_errors(flip):
    distances = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        planted = rng.normal(size=8)
        planted -= planted.mean()
        fit = bradley_terry(*compared(planted, 1500, rng, flip), flips=flip)
        assert abs(fit.mean.mean()) < 1e-9
        distances.append((fit.mean - planted) / fit.standard_error)
    assert np.abs(distances).max() <= 4
    assert np.std(distances) == pytest.approx(1, abs=0.15)  # neither too narrow nor too wide


def test_two_things_have_the_closed_form():
    """ln(wins / losses), with variance 1 / wins + 1 / losses."""
    fit = bradley_terry([0] * 30, [1] * 30, [1.0] * 21 + [0.0] * 9)
    assert fit.mean[0] - fit.mean[1] == pytest.approx(np.log(21 / 9))
    variance = fit.covariance[0, 0] + fit.covariance[1, 1] - 2 * fit.covariance[0, 1]
    assert variance == pytest.approx(1 / 21 + 1 / 9)


def test_strengths_that_are_not_determined_are_refused():
    with pytest.raises(ConfigurationError, match="prior_sd"):
        bradley_terry([0, 0], [1, 1], [1.0, 1.0])  # 0 has never lost
    with pytest.raises(ConfigurationError, match="undetermined"):
        bradley_terry([0, 0], [1, 1], [1.0, 0.0], count=3)  # 2 was never compared
    assert bradley_terry([0, 0], [1, 1], [1.0, 1.0], prior_sd=1.0).mean[0] > 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([0], [0], [1.0]), "two different things"),
        (([0], [1], [2.0]), "wins are 1"),
        (([], [], []), "at least one comparison"),
        (([0, 1], [1, 0], [1.0]), "entries"),
    ],
)
def test_comparisons_that_are_none_are_refused(arguments, match):
    with pytest.raises(ConfigurationError, match=match):
        bradley_terry(*arguments, prior_sd=1.0)


# -- information ---------------------------------------------------------------------------------------
@given(st.floats(-4, 4), st.floats(0.01, 9), st.floats(0, 0.4))
@settings(max_examples=30)
def test_information_is_that_of_a_sum_over_a_fine_grid(mean, variance, flip):
    x = np.linspace(mean - 9 * variance**0.5, mean + 9 * variance**0.5, 20_001)
    density = np.exp(-((x - mean) ** 2) / (2 * variance))
    density /= density.sum()
    p = flip + (1 - 2 * flip) / (1 + np.exp(-x))
    joint = np.stack([density * p, density * (1 - p)])
    marginal = joint.sum(1, keepdims=True)
    expected = np.sum(joint * np.log(joint / (marginal * density), where=joint > 0, out=np.zeros_like(joint)))
    assert expected_information(np.array([mean]), np.array([variance]), flip)[0] == pytest.approx(expected, abs=2e-4)


def test_information_at_its_ends():
    known, unknown = expected_information(np.array([0.0, 0.0]), np.array([0.0, 1e6]))
    assert known == pytest.approx(0, abs=1e-12)  # an answer that is chance tells nothing
    assert unknown == pytest.approx(np.log(2), rel=0.02)
    assert expected_information(np.array([0.0]), np.array([4.0]), 0.5)[0] == pytest.approx(0, abs=1e-12)
