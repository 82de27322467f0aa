"""Losses of comparisons, rankings, choices and ratings; groups of one prompt; early stopping; what is trained."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import ConfigurationError
from reward_models import Preference, RewardModel, train_reward_model
from reward_models.preferences import (
    best_of_loss,
    kwise_loss,
    pair_ratings,
    pairwise_loss,
    plackett_luce_loss,
    split_records,
)
from reward_models.preferences.objectives import Objective, encode_groups, make_scorer, summed_loss
from reward_models.preferences.records.preference import ranking_outcomes
from reward_models.preferences.stopping import measure


def scores_of(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- losses ----------------------------------------------------------------------------------------
def test_equal_scores_cost_what_a_guess_costs():
    for k in (2, 4, 9):
        equal = torch.full((k,), 3.0, dtype=torch.float64)
        assert float(kwise_loss(equal, tuple(range(k)))) == pytest.approx(math.log(2), abs=1e-12)
        assert float(best_of_loss(equal[None], torch.tensor([k - 1]))) == pytest.approx(math.log(k), abs=1e-12)
        choices = [math.log(left) for left in range(k, 1, -1)]
        assert float(plackett_luce_loss(equal, tuple(range(k)))) * (k - 1) == pytest.approx(
            sum(choices) * (k - 1) / len(choices), abs=1e-12
        )


@settings(deadline=None, max_examples=50)
@given(data=st.data(), k=st.integers(2, 6))
def test_k_wise_is_the_mean_over_all_pairs_by_hand(data, k):
    values = data.draw(st.lists(st.floats(-5, 5), min_size=k, max_size=k))
    ranking = data.draw(st.lists(st.none() | st.integers(0, 3), min_size=k, max_size=k))
    terms = []
    for i, j in itertools.combinations(range(k), 2):
        a, b = ranking[i], ranking[j]
        if a is None and b is None:
            continue
        d = values[i] - values[j]
        even = (math.log1p(math.exp(-d)) + math.log1p(math.exp(d))) / 2
        first = a is not None and (b is None or a < b)
        terms.append(even if a == b else math.log1p(math.exp(-d if first else d)))
    expected = np.mean(terms) if terms else 0.0
    assert float(kwise_loss(scores_of(values), ranking)) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=4))
def test_plackett_luce_is_a_distribution_over_rankings(values):
    k = len(values)
    total = 0.0
    for order in itertools.permutations(range(k)):
        ranking = [order.index(i) for i in range(k)]
        total += math.exp(-float(plackett_luce_loss(scores_of(values), ranking)) * (k - 1))
    assert total == pytest.approx(1.0, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5), st.data())
def test_plackett_luce_of_two_is_pairwise_and_of_a_best_one_is_best_of(values, data):
    s = scores_of(values)
    two = plackett_luce_loss(s[:2], (1, 0))
    assert float(two) == pytest.approx(float(pairwise_loss(s[1:2], s[:1])), abs=1e-12)
    tie = plackett_luce_loss(s[:2], (0, 0))
    assert float(tie) == pytest.approx(float(pairwise_loss(s[:1], s[1:2], tied=torch.tensor([True]))), abs=1e-12)
    best = data.draw(st.integers(0, len(values) - 1))
    ranking = [0 if i == best else None for i in range(len(values))]
    expected = float(best_of_loss(s[None], torch.tensor([best])))
    assert float(plackett_luce_loss(s, ranking)) == pytest.approx(expected, abs=1e-12)


def test_a_tie_pulls_the_scores_together_and_a_margin_moves_the_optimum():
    s = scores_of([1.0, -0.5]).requires_grad_()
    pairwise_loss(s[:1], s[1:], tied=torch.tensor([True])).backward()
    assert s.grad[0] > 0 > s.grad[1]
    equal = scores_of([2.0, 2.0]).requires_grad_()
    pairwise_loss(equal[:1], equal[1:], tied=torch.tensor([True])).backward()
    torch.testing.assert_close(equal.grad, torch.zeros(2, dtype=torch.float64))
    with_margin = pairwise_loss(scores_of([3.0]), scores_of([1.0]), margins=scores_of([2.0]))
    assert float(with_margin) == pytest.approx(math.log(2), abs=1e-12)


# -- groups ----------------------------------------------------------------------------------------
@pytest.fixture
def make_model(text_lm, tokenizer):
    return lambda seed=0, **options: RewardModel.from_causal_lm(text_lm(seed=seed), tokenizer, **options)


def film_records(rng: np.random.Generator, count: int, k: int = 3) -> list[Preference]:
    """Responses of some words; the more of them are "good", the better."""
    records = []
    for i in range(count):
        texts = tuple(" ".join(rng.choice(["good", "bad", "film"], 5)) for _ in range(k))
        records.append(Preference(f"film {i // 2}", texts, ratings=tuple(float(t.count("good")) for t in texts)))
    return records


def test_all_judgements_of_a_prompt_are_one_element_with_each_response_once(make_model):
    model = make_model()
    answers = ("a film", "the end", "bad", "good")
    pairs = [Preference.pair("p", answers[i], answers[j]) for i, j in itertools.combinations(range(4), 2)]
    ranking = Preference("p", answers, (0, 1, 2, 3))
    aim = Objective()
    (group,) = encode_groups(model, pairs, aim)
    assert len(group.rows) == 4 and len(group.outcomes) == 6
    scorer = make_scorer(model, [group])
    (whole,) = encode_groups(model, [ranking], aim)
    expected = kwise_loss(scorer(whole.rows), ranking.ranking)
    torch.testing.assert_close(summed_loss(scorer(group.rows), [group], aim), expected)
    # Texts without a prompt have nothing in common; chats of the same messages have.
    alone = [Preference.pair("", "a", "b"), Preference.pair("", "a", "c")]
    assert len(encode_groups(model, alone, aim)) == 2
    chat = ({"role": "user", "content": "hi"},)
    assert len(encode_groups(model, [Preference.pair(chat, "a", "b"), Preference.pair(chat, "b", "c")], aim)) == 1


@pytest.mark.parametrize("name", ["pairwise", "plackett-luce", "best-of", "regression"])
def test_a_batch_is_the_sum_of_its_groups(name, make_model, rng):
    model = make_model()
    aim = Objective(name, rating_mean=1.0, rating_std=2.0)
    groups = encode_groups(model, film_records(rng, 10), aim)
    assert len(groups) > 2
    scorer = make_scorer(model, groups)
    together = summed_loss(scorer([row for g in groups for row in g.rows]), groups, aim)
    apart = sum(summed_loss(scorer(g.rows), [g], aim).item() for g in groups)
    assert together.item() == pytest.approx(apart, rel=1e-5)


def test_regression_is_the_squared_error_in_standard_deviations(make_model):
    model = make_model()
    record = Preference("p", ("good", "bad"), ratings=(5.0, 1.0))
    aim = Objective("regression", rating_mean=3.0, rating_std=2.0)
    (group,) = encode_groups(model, [record], aim)
    scores = torch.tensor([0.5, -1.0])
    assert float(summed_loss(scores, [group], aim)) == pytest.approx(((0.5 - 1) ** 2 + 0.0) / 2)


def test_ties_and_unusable_records_are_left_out(make_model):
    model = make_model()
    tie, pair, rated = Preference("p", ("a", "b"), (0, 0)), Preference.pair("q", "a", "b"), Preference("r", ("a",))
    assert len(encode_groups(model, [tie, pair, rated], Objective())) == 2
    assert len(encode_groups(model, [tie, pair, rated], Objective(drop_ties=True))) == 1
    assert not encode_groups(model, [tie, pair], Objective("regression"))
    with pytest.raises(ConfigurationError, match="none of 1 records holds anything for 'best-of'"):
        train_reward_model(model, [tie], objective="best-of", held_out=[])
    with pytest.raises(ConfigurationError, match="needs ratings that differ"):
        train_reward_model(model, [pair], objective="regression", held_out=[])


@pytest.mark.parametrize("name", ["pairwise", "plackett-luce", "best-of", "regression"])
def test_every_objective_learns_a_planted_order(name, make_model, rng):
    records = film_records(rng, 240)
    options = {"learning_rate": 3e-3, "batch_size": 8, "epochs": 3, "held_out_fraction": 0.25}
    report = train_reward_model(make_model(), records, objective=name, **options)
    assert report.held_out_accuracy > 0.9


def test_margins_spread_the_scores(make_model, rng):
    records = [Preference.pair(f"p{i}", "good film", "bad film", margin=3.0) for i in range(40)]
    gaps = []
    for use in (False, True):
        model = make_model()
        train_reward_model(model, records, learning_rate=3e-3, epochs=4, batch_size=8, held_out=[], use_margins=use)
        gaps.append(float(np.subtract(*model(["p1", "p1"], ["good film", "bad film"]))))
    assert gaps[1] > gaps[0] + 1


# -- what is trained -------------------------------------------------------------------------------
def test_a_frozen_trunk_is_read_once_and_trains_as_if_it_were_not(make_model, rng):
    records = film_records(rng, 40)
    results = []
    for cached in (True, False):
        model = make_model()
        model.network.double()
        model.network.trunk.requires_grad_(False)
        calls = []
        model.network.trunk.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if not cached:  # one parameter that gets no gradient keeps the whole network in use
            extra = torch.nn.Parameter(torch.zeros(()))
            model.network.trunk.register_parameter("unused", extra)
        train_reward_model(model, records, epochs=3, learning_rate=1e-2, batch_size=8, held_out=[])
        results.append((model.network.head.weight.detach().clone(), len(calls)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-9)
    assert results[0][1] < results[1][1] / 3


def test_lora_trains_little_and_leaves_a_plain_trunk(make_model, rng):
    pytest.importorskip("peft")
    from lm_env.models.adapters import inject_lora, merge_lora

    model = make_model()
    names = list(model.network.state_dict())
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    inject_lora(model.network.trunk, rank=4)
    trained = [n for n, p in model.network.trunk.named_parameters() if p.requires_grad]
    assert trained and all("lora" in name for name in trained)
    report = train_reward_model(model, film_records(rng, 200), learning_rate=1e-2, batch_size=8, held_out_fraction=0.2)
    assert report.held_out_accuracy > 0.85
    texts = ["good good film", "bad film bad"]
    with_layers = model(["", ""], texts)
    merge_lora(model.network.trunk)
    np.testing.assert_allclose(model(["", ""], texts), with_layers, rtol=1e-4, atol=1e-5)
    assert list(model.network.state_dict()) == names
    changed = [n for n in names if not torch.equal(before[n], model.network.state_dict()[n])]
    assert any("c_attn" in n for n in changed) and not any("wte" in n or "ln" in n for n in changed)


# -- stopping --------------------------------------------------------------------------------------
def test_early_stopping_goes_back_to_the_best_weights(make_model, rng):
    # The training data say the opposite of the held-out data: every update makes it worse.
    records = film_records(rng, 40)
    opposite = [Preference(r.prompt, r.responses, ratings=tuple(-x for x in r.ratings)) for r in records]
    model = make_model()
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    report = train_reward_model(
        model, records, held_out=opposite, epochs=10, learning_rate=1e-2, patience=2, batch_size=8
    )
    assert len(report.history) == 3  # one before, and two that were worse
    assert report.history[0].loss < min(h.loss for h in report.history[1:])
    assert report.held_out_loss == pytest.approx(report.history[0].loss)
    assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())


def test_without_patience_nothing_is_measured_on_the_way_and_training_is_the_same(make_model, rng):
    records = film_records(rng, 40)
    weights = []
    for patience in (None, 100):
        model = make_model()
        train_reward_model(model, records, epochs=2, learning_rate=1e-4, patience=patience, seed=3)
        weights.append(model.network.head.weight.detach().clone())
    torch.testing.assert_close(*weights)
    with pytest.raises(ConfigurationError, match="patience needs held-out records"):
        train_reward_model(make_model(), records, held_out=[], patience=1)


def test_measure_counts_pairs_by_hand(make_model):
    model = make_model()
    records = [Preference("p", ("good", "bad", "film"), (0, 1, 1)), Preference("q", ("end", "a"), (1, 0))]
    aim = Objective()
    groups = encode_groups(model, records, aim)
    found = measure(make_scorer(model, groups), groups, aim, 100)
    scores = [model([r.prompt] * len(r.responses), list(r.responses)) for r in records]
    right = [
        s[o.better] > s[o.worse]
        for r, s in zip(records, scores, strict=True)
        for o in ranking_outcomes(r.ranking)
        if not o.tied
    ]
    assert len(right) == 3 and found.accuracy == pytest.approx(np.mean(right))


# -- splitting and pairing -------------------------------------------------------------------------
def test_no_prompt_and_no_text_is_on_both_sides(rng):
    records = [Preference(f"p{i % 30}", ("a", "b"), (0, 1)) for i in range(90)]
    training, held_out = split_records(records, 0.2, rng)
    assert len(held_out) == 18
    assert not {r.prompt for r in training} & {r.prompt for r in held_out}
    texts = [Preference("", (f"t{i % 50}",), ratings=(float(i),)) for i in range(100)]
    training, held_out = split_records(texts, 0.2, rng)
    assert len(held_out) == 20
    assert not {r.responses for r in training} & {r.responses for r in held_out}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=25), st.integers(1, 6), st.integers(1, 5))
def test_pairs_of_ratings_differ_by_enough_and_none_is_missed(ratings, difference, partners):
    records = [Preference("", (f"t{i}",), ratings=(float(r),)) for i, r in enumerate(ratings)]
    possible = {i: sum(abs(r - other) >= difference for other in ratings) for i, r in enumerate(ratings)}
    if not any(possible.values()):
        with pytest.raises(ConfigurationError, match="no two ratings"):
            pair_ratings(records, min_difference=difference, pairs_per_response=partners)
        return
    pairs = pair_ratings(records, min_difference=difference, pairs_per_response=partners)
    for pair in pairs:
        assert pair.ratings[0] - pair.ratings[1] == pair.margin >= difference and pair.best == 0
    assert len({pair.responses for pair in pairs}) == len(pairs)
    seen = {text for pair in pairs for text in pair.responses}
    assert seen == {f"t{i}" for i, n in possible.items() if n}
