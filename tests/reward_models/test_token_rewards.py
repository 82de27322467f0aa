"""Rewards that score tokens: words as spans, and sums, multiples and bounds of them."""

from __future__ import annotations

import numpy as np
import pytest

from lm_env import Causal, Span
from lm_env.errors import ConfigurationError
from lm_env.objective.rewards import call_reward, is_causal, score_responses
from reward_models import Affine, Clipped, KeywordSpans, Length, WeightedSum, normalize

TEXTS = ["good art, bad artist; ART", "", "art"]
IDS = [[5, 6, 7, 8], [9], [5, 6]]
COLUMNS = {"response_ids": IDS}


@Causal
def dense(prompts, responses, response_ids):
    return [[float(i) for i in ids] for ids in response_ids]


def last(prompts, responses):
    return [float(len(r)) for r in responses]


def tokens(reward, finished=None) -> list[list[float]]:
    """What is paid, each text being cut into pieces of equal length."""
    scores = call_reward(reward, [""] * 3, TEXTS, COLUMNS, None if finished is None else np.array(finished))
    ends = [np.linspace(0, len(t), len(ids) + 1).astype(int)[1:].tolist() for t, ids in zip(TEXTS, IDS, strict=True)]
    return scores.on_tokens([len(ids) for ids in IDS], ends.__getitem__).tolist()


def test_words_are_found_whole_and_span_the_character_that_ends_them():
    art = KeywordSpans(["art"], score=2.0)
    spans = art(prompts=[""] * 3, responses=TEXTS)
    assert spans == [[Span(5, 9, 2.0), Span(22, None, 2.0)], [], [Span(0, None, 2.0)]]
    assert score_responses(art, [""] * 3, TEXTS, {}).tolist() == [4, 0, 2]
    exact = KeywordSpans(["art"], score=2.0, case_sensitive=True)
    assert score_responses(exact, [""] * 3, TEXTS, {}).tolist() == [2, 0, 2]


def test_a_word_at_the_end_of_a_text_under_way_has_not_ended():
    art = KeywordSpans(["art"])
    assert art([""] * 3, TEXTS, response_finished=[False] * 3) == [[Span(5, 9, 1.0)], [], []]


@pytest.mark.parametrize("words", ["art", [], ["two words"], [""], ["can't"], [3], ["art", " "]])
def test_words_that_are_none(words):
    with pytest.raises(ConfigurationError, match="KeywordSpans"):
        KeywordSpans(words)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "1", None])
def test_a_score_that_is_none(score):
    with pytest.raises(ConfigurationError, match="score"):
        KeywordSpans(["art"], score=score)


def test_a_sum_pays_each_part_where_it_is_paid_alone():
    total = WeightedSum([(2.0, dense), (0.5, last), (-1.0, KeywordSpans(["art"]))])
    assert is_causal(total)
    expected = 2.0 * np.array(tokens(dense)) + 0.5 * np.array(tokens(last)) - np.array(tokens(KeywordSpans(["art"])))
    np.testing.assert_allclose(tokens(total), expected)
    assert {name: part.tolist() for name, part in total.last_parts.items()} == {
        "dense": [26, 9, 11],
        "last": [25, 0, 3],
        "KeywordSpans": [2, 0, 1],
    }


def test_of_a_text_under_way_only_the_causal_parts_are_asked():
    seen = []

    def expensive(prompts, responses):
        seen.append(responses)
        return [1.0] * len(responses)

    total = WeightedSum([(1.0, expensive), (1.0, dense)])
    got = tokens(total, finished=[False, True, False])
    assert seen == [[""]] and got == [[5, 6, 7, 8], [10, 0, 0, 0], [5, 6, 0, 0]]


def test_a_sum_of_numbers_per_text_is_no_sum_of_tokens():
    plain = WeightedSum([(1.0, last), (2.0, Length())])
    assert not is_causal(plain)
    assert isinstance(plain([""] * 3, TEXTS, **COLUMNS), np.ndarray)


def test_affine_multiplies_each_token_and_pays_its_bias_once():
    scaled = Affine(dense, gain=2.0, bias=0.5)
    assert is_causal(scaled) and not is_causal(Affine(last))
    assert tokens(scaled) == [[10, 12, 14, 16.5], [18.5, 0, 0, 0], [10, 12.5, 0, 0]]
    assert tokens(scaled, finished=[False] * 3) == [[10, 12, 14, 16], [18, 0, 0, 0], [10, 12, 0, 0]]


def test_normalizing_brings_the_scores_of_whole_texts_to_mean_0_and_spread_1():
    scaled = normalize(dense, [""] * 3, TEXTS, **COLUMNS)
    totals = np.array(tokens(scaled)).sum(1)
    assert totals.mean() == pytest.approx(0, abs=1e-12) and totals.std() == pytest.approx(1)


def test_clipping_is_for_the_score_of_a_whole_text():
    with pytest.raises(ConfigurationError, match=r"dense scores tokens .*clip its numbers inside it"):
        Clipped(dense, -1.0, 1.0)
    bounded = WeightedSum([(1.0, Clipped(last, high=4.0)), (1.0, dense)])
    assert tokens(bounded) == [[5, 6, 7, 12], [9, 0, 0, 0], [5, 9, 0, 0]]
    together = Clipped(lambda prompts, responses, response_ids: response_ids, high=10.0)  # paid at the end
    together.reward.causal = False
    assert tokens(together) == [[0, 0, 0, 10], [9, 0, 0, 0], [0, 10, 0, 0]]
