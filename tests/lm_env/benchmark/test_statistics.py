"""The benchmark's statistics against closed forms, enumeration, and rliable where it is installed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.benchmark.statistics import (
    bootstrap,
    holm,
    interquartile_mean,
    mean_over_tasks,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from lm_env.errors import ConfigurationError

finite = st.floats(-100, 100, allow_nan=False)


def test_the_interquartile_mean_by_hand():
    assert interquartile_mean([np.array([0.0, 1.0, 2.0, 100.0])]) == 1.5
    assert interquartile_mean([np.array([5.0])]) == 5.0
    assert interquartile_mean([np.array([0.0, 10.0]), np.array([1.0, 4.0])]) == 2.5


@given(st.lists(finite, min_size=1, max_size=30))
def test_the_interquartile_mean_leaves_whole_runs_out(values):
    """A quarter of the runs, rounded down, goes at each end, as in scipy's trim_mean and so in rliable."""
    cut = int(0.25 * len(values))
    expected = np.mean(sorted(values)[cut : len(values) - cut])
    assert interquartile_mean([np.array(values)]) == pytest.approx(expected, abs=1e-9)


def test_a_task_with_more_runs_counts_the_same():
    """Each run of a task given twice changes nothing, and a plain pooled mean would change."""
    few, many = np.array([0.0, 0.2, 0.4, 0.6]), np.array([1.0, 1.2, 1.4, 1.6])
    once = interquartile_mean([few, many])
    assert interquartile_mean([few, np.repeat(many, 4)]) == pytest.approx(once)
    assert mean_over_tasks([few, np.repeat(many, 4)]) == pytest.approx(0.8)


def test_the_bootstrap_has_the_spread_of_a_mean():
    """The standard deviation of a bootstrapped mean is that of the empirical distribution over root n."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=40), rng.normal(3, 2, size=60)]
    se = math.sqrt(sum(row.var() / len(row) for row in rows)) / 2
    found = bootstrap(mean_over_tasks, rows, replicates=4000)
    assert found.value == pytest.approx(np.mean([row.mean() for row in rows]))
    assert found.high - found.low == pytest.approx(2 * 1.96 * se, rel=0.05)


def test_the_bootstrap_is_stratified():
    """Two tasks without spread have no interval, however far they are apart."""
    found = bootstrap(None, [np.zeros(5), np.ones(5)])
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


def test_vectorized_and_plain_bootstrap_agree():
    rows = [np.random.default_rng(i).normal(size=7) for i in range(3)]
    assert bootstrap(None, rows, replicates=200) == bootstrap(interquartile_mean, rows, replicates=200)
    rows.append(np.random.default_rng(3).normal(size=2))
    fast, plain = bootstrap(mean_over_tasks, rows), bootstrap(lambda runs: mean_over_tasks(runs), rows)
    assert (fast.value, fast.low, fast.high) == pytest.approx((plain.value, plain.low, plain.high), abs=1e-12)


@settings(max_examples=50)
@given(st.lists(st.lists(finite, min_size=1, max_size=6), min_size=1, max_size=3), st.data())
def test_the_probability_of_improvement_counts_pairs(tasks, data):
    ours = [np.array(row) for row in tasks]
    theirs = [np.array(data.draw(st.lists(finite, min_size=1, max_size=6))) for _ in ours]
    counted = [
        np.mean([1.0 if x > y else 0.5 if x == y else 0.0 for x, y in itertools.product(a, b)])
        for a, b in zip(ours, theirs, strict=True)
    ]
    found = probability_of_improvement(ours, theirs, replicates=10)
    assert found.value == pytest.approx(np.mean(counted))
    assert probability_of_improvement(theirs, ours, replicates=10).value == pytest.approx(1 - found.value)


def test_a_performance_profile_is_the_share_above():
    rows = [np.array([0.0, 0.5]), np.array([1.0, 1.0, 1.0])]
    assert [point.value for point in performance_profile(rows, [-1, 0, 0.5, 1])] == [1, 0.75, 0.5, 0]
    assert all(point.low <= point.value <= point.high for point in performance_profile(rows, [0.2, 0.7]))


def test_the_sign_flip_test_enumerates():
    """Of 2^4 signs of (1, 2, 3, 4) only the two constant ones have a mean as far from 0."""
    found = paired_difference(np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4))
    assert (found.difference, found.p) == (2.5, 2 / 16)
    assert paired_difference(np.array([1.0, -1.0]), np.zeros(2)).p == 1.0


def test_the_sampled_sign_flips_agree_with_the_normal_limit():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.15, 1, size=200)
    z = differences.mean() / math.sqrt((differences**2).mean() / 200)
    found = paired_difference(differences, np.zeros(200))
    assert found.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.015)
    assert found.low < differences.mean() < found.high


def test_the_sign_flip_test_counts_all_its_replicates():
    """So many prompts that the signs are multiplied in parts, against all at once."""
    differences = np.random.default_rng(3).normal(0.02, 1, size=2000)
    signs = np.random.default_rng(0).integers(2, size=(1201, 2000), dtype=np.int8) * 2.0 - 1.0
    extreme = (np.abs((signs * differences).mean(1)) >= abs(differences.mean())).sum()
    assert 10 < extreme < 1150
    assert paired_difference(differences, np.zeros(2000), replicates=1201).p == (1 + extreme) / 1202


def test_the_sign_flip_test_keeps_its_level():
    """Without a difference p is at most .05 in about one case of twenty."""
    rng = np.random.default_rng(2)
    ps = [paired_difference(rng.normal(size=10), rng.normal(size=10)).p for _ in range(600)]
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: interquartile_mean([]),
        lambda: interquartile_mean([np.array([math.nan])]),
        lambda: probability_of_improvement([np.ones(2)], [np.ones(2), np.ones(2)]),
        lambda: paired_difference(np.ones(3), np.ones(2)),
        lambda: holm([1.5]),
    ],
)
def test_what_cannot_work_is_refused(call):
    with pytest.raises(ConfigurationError):
        call()


def test_it_agrees_with_rliable():
    """The package of Agarwal et al. 2021 is no requirement: it pins old versions of others."""
    pytest.importorskip("arch", exc_type=Exception)
    metrics = pytest.importorskip("rliable.metrics", exc_type=Exception)
    library = pytest.importorskip("rliable.library", exc_type=Exception)
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.3, 1, size=(10, 5)), rng.normal(size=(10, 5))  # rliable has runs first
    a, b = list(ours.T), list(theirs.T)
    assert interquartile_mean(a) == pytest.approx(metrics.aggregate_iqm(ours))
    improvement = probability_of_improvement(a, b, replicates=10).value
    assert improvement == pytest.approx(metrics.probability_of_improvement(ours, theirs))
    thresholds = np.linspace(-1, 1, 5)
    profiles, _ = library.create_performance_profile({"ours": ours}, thresholds, reps=20)
    assert [p.value for p in performance_profile(a, thresholds)] == pytest.approx(list(profiles["ours"]))
    point, intervals = library.get_interval_estimates(
        {"ours": ours}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=2000
    )
    found = bootstrap(None, a)
    assert found.value == pytest.approx(float(point["ours"][0]))
    assert (found.low, found.high) == pytest.approx(tuple(intervals["ours"][:, 0]), abs=0.05)
