"""The evidence about a reward model: statistics, baselines, degenerate texts, the two curves, the page."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import ConfigurationError
from reward_models import Preference, Recipe
from reward_models.preferences.recipe import digest
from reward_models.trust import (
    evaluate_reward,
    expected_calibration_error,
    fit_baselines,
    learning_curve,
    rank_degenerate,
    spearman,
    wilson,
    write_page,
)
from reward_models.trust.baselines import Baselines, WordBaseline, load_baselines
from reward_models.trust.curves import best_of_n_curve
from reward_models.trust.statistics import Share, calibration_bins, fitted_scale, sigmoid


def goods(prompts, responses):
    return [float(text.split().count("good")) for text in responses]


def lengths(prompts, responses):
    return [float(len(text)) for text in responses]


def film_records(rng: np.random.Generator, count: int, k: int = 2, reward=goods) -> list[Preference]:
    """Texts of five words, ranked by a reward; equal ones tie."""
    records = []
    for i in range(count):
        texts = tuple(" ".join(rng.choice(["good", "bad", "film", "it"], rng.integers(3, 7))) for _ in range(k))
        records.append(Preference(f"film {i}", texts, ratings=tuple(reward([""] * k, texts))))
    return records


# -- statistics ------------------------------------------------------------------------------------
def test_wilson_solves_its_equation():
    """The bounds are the shares p for which the observed one is 1.96 standard errors of p away (Wilson 1927)."""
    for hits, n in ((0, 10), (7, 10), (10, 10), (510, 1000)):
        share = wilson([1.0] * hits + [0.0] * (n - hits))
        for bound in (share.low, share.high):
            if 1e-9 < bound < 1 - 1e-9:
                z = (hits / n - bound) / math.sqrt(bound * (1 - bound) / n)
                assert abs(z) == pytest.approx(1.959963984540054, rel=1e-9)
        assert share.low <= share.mean == hits / n <= share.high
    assert wilson([]) is None


def test_a_calibrated_score_has_no_error_and_is_scaled_by_one(rng):
    margins = rng.normal(0, 2, 40_000)
    chosen = np.where(rng.random(40_000) < sigmoid(margins), margins, -margins)  # Bradley-Terry holds
    assert expected_calibration_error(chosen) < 0.01
    assert fitted_scale(chosen) == pytest.approx(1.0, abs=0.03)
    # Three times as sure as it should be.
    assert expected_calibration_error(3 * chosen) > 0.1
    assert fitted_scale(3 * chosen) == pytest.approx(1 / 3, abs=0.01)
    assert fitted_scale(-chosen) == pytest.approx(0.0, abs=1e-6)
    # In another unit, as if the scores were given in thousandths or in thousands.
    for unit in (1e-3, 1e4):
        assert fitted_scale(unit * chosen) == pytest.approx(fitted_scale(chosen) / unit, rel=1e-6)
    assert fitted_scale(np.zeros(5)) == 1.0
    assert sum(count for _, _, count in calibration_bins(chosen)) == 40_000


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=3, max_size=12))
def test_spearman_by_counting(values):
    x = np.array(values, dtype=float)
    y = np.arange(len(x))[::-1].astype(float)
    found = spearman(x, y)
    if len(set(values)) == 1:
        assert found is None
        return
    ranks = [np.mean([sum(other < v for other in values) + 1, sum(other <= v for other in values)]) for v in values]
    assert found == pytest.approx(np.corrcoef(ranks, y)[0, 1], abs=1e-9)


# -- baselines -------------------------------------------------------------------------------------
def test_the_words_that_decide_are_found(rng):
    records = film_records(rng, 400)
    baselines = fit_baselines(records)
    weights = baselines.words.weights
    assert weights["good"] > 1 and abs(weights["film"]) < 0.3 * weights["good"]
    trust = evaluate_reward(goods, film_records(rng, 200), baselines=baselines)
    assert trust.word_baseline.mean > 0.95


def test_the_length_is_found_in_either_direction(rng):
    longer = fit_baselines(film_records(rng, 100, reward=lengths))
    shorter = fit_baselines(film_records(rng, 100, reward=lambda p, r: [-x for x in lengths(p, r)]))
    assert longer.length > 0 > shorter.length


def test_ratings_alone_are_enough_and_nothing_gives_nothing(rng, tmp_path):
    rated = [Preference("", (r.responses[0],), ratings=(r.ratings[0],)) for r in film_records(rng, 200)]
    baselines = fit_baselines(rated)
    assert baselines.words.weights["good"] > 0.3
    assert fit_baselines([Preference("", ("a",))]) is None
    baselines.save(tmp_path)
    again = load_baselines(tmp_path)
    texts = ["a good film", "bad"]
    np.testing.assert_allclose(again.words(texts), baselines.words(texts), atol=1e-3)
    assert again.length == baselines.length


# -- the evaluation --------------------------------------------------------------------------------
def test_the_truth_is_right_and_the_opposite_is_wrong(rng):
    records = film_records(rng, 150, k=4)
    found = evaluate_reward(goods, records)
    outcomes = [o for r in records for o in r.outcomes()]
    assert found.comparisons == len(outcomes) and found.ties == sum(o.tied for o in outcomes)
    assert found.accuracy.mean == 1.0 and found.accuracy.count == len(outcomes) - found.ties
    assert found.best_of.mean == 1.0 and found.best_of_chance == 0.25
    assert found.tie_gap == 0.0 < found.decided_gap
    assert found.rating_correlation[1] == pytest.approx(1.0)
    wrong = evaluate_reward(lambda prompts, responses: [-x for x in goods(prompts, responses)], records)
    assert wrong.accuracy.mean == 0.0 and wrong.best_of.mean < 0.1
    constant = evaluate_reward(lambda prompts, responses: [0.0] * len(responses), records)
    assert constant.accuracy.mean == 0.5 and constant.length_correlation is None
    assert any("chance" in doubt for doubt in constant.doubts())


def test_a_score_without_difference_finds_the_best_as_often_as_chance(rng):
    """Though the best response stands first, as in many files."""
    records = []
    for record in film_records(rng, 60, k=4):
        texts = tuple(sorted(record.responses, key=lambda text: -text.split().count("good")))
        records.append(Preference(record.prompt, texts, ratings=tuple(goods([], texts))))
    records = [record for record in records if record.best is not None]
    assert len(records) > 20 and all(record.best == 0 for record in records)
    found = evaluate_reward(lambda prompts, responses: [0.0] * len(responses), records)
    assert found.best_of.mean == pytest.approx(found.best_of_chance)


def test_a_score_of_the_length_is_seen_through(rng):
    """On texts of which people prefer the longer ones in most cases, accuracy alone would be deceived."""
    records = film_records(rng, 300, reward=lambda p, r: [x + rng.normal(0, 4) for x in lengths(p, r)])
    found = evaluate_reward(lengths, records, baselines=fit_baselines(records))
    assert found.accuracy.low > 0.5
    assert found.length_correlation == pytest.approx(1.0)
    doubts = " ".join(found.doubts())
    assert "does not beat a score of the length alone" in doubts and "follows the length" in doubts
    assert "the text twice" in doubts
    assert found.by_length[0].accuracy.mean == 0.0 and found.by_length[-1].accuracy.mean == 1.0
    assert sum(b.accuracy.count for b in found.by_length) == found.accuracy.count


def test_leaks_annotators_and_ties(rng):
    records = [
        Preference(r.prompt, r.responses, r.ranking, annotator="ab"[i % 2])
        for i, r in enumerate(film_records(rng, 100))
    ]
    trained = {digest(r) for r in records[:7]}
    found = evaluate_reward(goods, records, training_digests=trained)
    assert found.leaked == 7 and found.doubts()[0].startswith("7 of 100 records")
    assert set(found.annotator_accuracy) == {"a", "b"}
    with pytest.raises(ConfigurationError, match="--pair-ratings"):
        evaluate_reward(goods, [Preference("", ("a",), ratings=(1.0,))])


def test_degenerate_texts_by_hand():
    records = [Preference.pair("what?", "good film", "bad film"), Preference.pair("who?", "it", "bad")]
    found = {kind.name: kind for kind in rank_degenerate(goods, records, None)}
    assert found["one word, repeated"].beats == 1.0 and found["one word, repeated"].percentile == 1.0
    assert found["the prompt copied"].beats == 0.0 and found["the prompt copied"].example == "what?"
    assert found["the text twice"].beats == 0.5  # two goods against one; none against none
    assert found["three words, repeated"].example == " ".join(["good film"] * 12)


# -- curves ----------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_best_of_n_under_a_proxy_is_the_mean_over_all_subsets(data):
    count = data.draw(st.integers(2, 6))
    rows = data.draw(st.integers(1, 3))
    numbers = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    proxy = np.array([data.draw(numbers) for _ in range(rows)], dtype=float)
    gold = np.array([data.draw(numbers) for _ in range(rows)], dtype=float)
    n = data.draw(st.integers(1, count))
    expected = []
    for p, g in zip(proxy, gold, strict=True):
        for subset in itertools.combinations(range(count), n):
            top = max(p[i] for i in subset)
            expected.append(np.mean([g[i] for i in subset if p[i] == top]))
    curve = best_of_n_curve(proxy, gold, [n])
    # Tied samples share their gold score over the whole row, not over the subset: the mean is the same.
    assert curve.gold[0] == pytest.approx(np.mean(expected), abs=1e-9)
    assert curve.kl[0] == pytest.approx(math.log(n) - (n - 1) / n)


def test_over_optimization_is_noticed(rng):
    proxy = rng.normal(size=(60, 64))
    falling = best_of_n_curve(proxy, -((proxy - 0.8) ** 2), [1, 2, 4, 8, 16, 32, 64])
    assert falling.falls() and falling.proxy == sorted(falling.proxy)
    assert not best_of_n_curve(proxy, proxy, [1, 2, 4, 8, 16, 32, 64]).falls()
    one_prompt = best_of_n_curve(proxy[:1], -proxy[:1], [1, 2, 64])
    assert one_prompt.gold_error == [None] * 3 and not one_prompt.falls(), "one prompt has no standard error"
    with pytest.raises(ConfigurationError, match="no best of"):
        best_of_n_curve(proxy, proxy, [65])


def test_the_learning_curve_trains_on_more_and_more(rng, model_folder):
    said = []
    recipe = Recipe(model=model_folder, trunk="full", epochs=3, learning_rate=3e-3, batch_size=8, device="cpu")
    curve = learning_curve(film_records(rng, 160), film_records(rng, 100), recipe, say=said.append)
    assert [p.records for p in curve] == [20, 40, 80, 160] and len(said) == 4
    assert curve[-1].accuracy.mean > max(0.9, curve[0].accuracy.mean)


# -- the page --------------------------------------------------------------------------------------
def test_the_page_holds_everything_and_asks_nobody(rng, tmp_path):
    records = film_records(rng, 60, k=3)
    baselines = Baselines(1.0, WordBaseline({"good": 1.0}))
    trust = evaluate_reward(goods, records, baselines=baselines)
    path = write_page(trust, tmp_path / "x" / "page.html", title="<b>rm</b>", facts=[("data", "a & b")])
    text = path.read_text()
    assert "&lt;b&gt;rm&lt;/b&gt;" in text and "a &amp; b" in text and "<b>rm" not in text
    assert text.count("<svg") == 3
    for address in ("src=", 'href="http', "url(http", "@import"):
        assert address not in text
    assert str(Share(1.0, 0.5, 1.0, 3)) == "1.000 (0.500 to 1.000, n 3)"
