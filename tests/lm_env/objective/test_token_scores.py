"""Scores of tokens: what a reward function may return, where it is paid, and how texts are mapped onto tokens."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm_env import Causal, Span, TextGenerationEnv
from lm_env.data.pieces import piece_ends
from lm_env.errors import RewardValueError
from lm_env.objective.rewards import call_reward, is_causal, name_of, score_responses
from lm_env.objective.scores import Scores, checked_rows
from lm_env.objective.scoring import paid_scores
from lm_env.objective.task import Task

EOS = 0
LENGTHS = (1, 3, 2)
IDS = [list(range(5, 5 + n)) for n in LENGTHS]
TEXTS = ["first text", "second text", ""]


class Fixed:
    """Returns one thing for whatever it is asked about, and says or does not say that it is causal."""

    def __init__(self, value, **attributes) -> None:
        self.value = value
        self.__dict__.update(attributes)

    def __call__(self, prompts, responses):
        return self.value


def judged(value, count: int = 3, **attributes) -> Scores:
    """What becomes of `value`, returned for texts of 1, 3 and 2 tokens by a causal reward function."""
    reward = Fixed(value, **{"causal": True, **attributes})
    return call_reward(reward, ["p"] * count, TEXTS[:count], {"response_ids": IDS[:count]})


def paid(value) -> list[list[float]]:
    """What each token is paid, every text being made of tokens of four characters."""
    scores = judged(value)
    ends = [[min(4 * (t + 1), len(text)) for t in range(n)] for text, n in zip(TEXTS, LENGTHS, strict=True)]
    for row, text in enumerate(TEXTS):
        ends[row][-1] = len(text)
    return scores.on_tokens(LENGTHS, ends.__getitem__).tolist()


# -- what may come back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [list, tuple, np.array, torch.tensor, lambda x: np.array(x, dtype=object)],
    ids=["list", "tuple", "array", "tensor", "objects"],
)
def test_one_number_per_token(make):
    value = [make([1.0]), make([2.0, 0.5, -1.0]), make([0.0, 4.0])]
    assert paid(value) == [[1, 0, 0], [2, 0.5, -1], [0, 4, 0]]
    assert judged(value).totals().tolist() == [1, 1.5, 4]


def test_a_batch_may_mix_numbers_arrays_and_spans():
    value = [7, np.array([1.0, 0.0, 2.0], dtype=np.float32), [Span(0, None, 3.0)]]
    assert paid(value) == [[7, 0, 0], [1, 0, 2], [0, 3, 0]]
    assert judged(value).totals().tolist() == [7, 3, 3]


def test_a_span_is_paid_at_the_last_token_that_has_one_of_its_characters():
    # "second text" in tokens of four characters: "seco", "nd t", "ext".
    assert paid([0, [Span(0, 1, 1.0), Span(3, 4, 2.0)], 0])[1] == [3, 0, 0]
    assert paid([0, [Span(3, 5, 1.0), Span(0, 8, 2.0)], 0])[1] == [0, 3, 0]
    assert paid([0, [Span(7, 9, 1.0), Span(0, 11, 2.0), Span(0, None, 4.0)], 0])[1] == [0, 0, 7]
    assert paid([[], [], []]) == [[0, 0, 0]] * 3


def test_a_flat_list_is_one_number_per_text_even_where_it_could_be_one_per_token():
    assert judged([1.0, 2.0, 3.0]).tokens == {}
    one_text = call_reward(Fixed([1.0], causal=True), ["p"], ["r"], {"response_ids": [[5]]})
    assert one_text.at_end.tolist() == [1.0] and not one_text.per_token


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ([1.0, 2.0], "2 numbers for 3 response tokens"),
        ([1.0] * 4, "4 numbers for 3 response tokens"),
        (np.zeros(0), "0 numbers for 3"),
        ([1.0, math.nan, 2.0], "token 1 has nan"),
        ([1.0, 2.0, math.inf], "token 2 has inf"),
        ([1.0, None, 2.0], "token 1 has None"),
        ([True, 1.0, 2.0], "token 0 has True"),
        (np.array([True, False, True]), "token 0 has"),
        (np.array(["1", "2", "3"]), "token 0 has"),
        ([1.0, [2.0], 3.0], "token 1 has"),
        (np.zeros((3, 1)), "one dimension"),
        (torch.zeros(1, 3), "one dimension"),
        (np.ma.array([1.0, 2.0, 3.0], mask=[0, 0, 1]), "token 2 has masked"),
        ([Span(0, 2, 1.0), 1.0, 2.0], "token 0 has Span"),
        ([Span(0, 12, 1.0)], "0 <= start < end <= 11"),
        ([Span(-1, 2, 1.0)], "0 <= start"),
        ([Span(3, 3, 1.0)], "0 <= start"),
        ([Span(3, 2, 1.0)], "0 <= start"),
        ([Span(0, 2.0, 1.0)], "0 <= start"),
        ([Span(True, 2, 1.0)], "0 <= start"),
        ([Span(0, 2, math.nan)], "finite number"),
        ([Span(0, 2, "1")], "finite number"),
    ],
    ids=str,
)
def test_what_fits_no_token_or_character_is_reported_with_its_sample(entry, words):
    with pytest.raises(RewardValueError) as caught:
        judged([0.0, entry, 0.0])
    message = str(caught.value)
    assert words in message and "sample 1 (prompt 'p', response 'second text')" in message and "Fixed" in message


def test_masked_numpy_scores_do_not_count_as_0():
    values = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])
    with pytest.raises(RewardValueError, match=r"masked.* for sample 1 "):
        score_responses(Fixed(values), ["p"] * 3, TEXTS, {})
    with pytest.raises(RewardValueError, match="sample 0 "):
        score_responses(Fixed([np.ma.masked]), ["p"], ["r"], {})
    unmasked = np.ma.array([1.0, 2.0, 3.0])
    assert score_responses(Fixed(unmasked), ["p"] * 3, TEXTS, {}).tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [np.zeros((3, 3)), torch.zeros(3, 3), np.ma.zeros((3, 3))])
def test_a_padded_array_is_refused_for_its_padding_has_no_mark(value):
    with pytest.raises(RewardValueError, match="3 arrays of one number per response token"):
        judged(value)


@pytest.mark.parametrize("value", [np.zeros((3, 3)), torch.zeros(3, 3)])
def test_a_padded_array_is_no_matter_of_single_texts(value):
    """Rows of as many numbers as their text happens to have tokens must not be kept while the others are left out."""
    with pytest.raises(RewardValueError, match="3 arrays of one number per response token"):
        checked_rows("padded", value, ["p"] * 3, TEXTS, LENGTHS)


def test_the_numbers_of_one_texts_tokens_are_one_entry():
    with pytest.raises(RewardValueError, match=r"3 scores for 1 responses.*one entry, an array"):
        call_reward(Fixed([1.0, 2.0, 3.0]), ["p"], ["r"], {"response_ids": [[5, 6, 7]]})


# -- sums and multiples ------------------------------------------------------------------------------

numbers = st.floats(-10, 10).map(lambda x: round(x, 3))
entries = st.tuples(*(numbers | st.lists(numbers, min_size=n, max_size=n) for n in LENGTHS)).map(list)


@settings(deadline=None)
@given(entries, entries, numbers)
def test_sums_and_multiples_are_paid_where_their_parts_are(one, two, gain):
    a, b = judged(one), judged(two)
    both = a.plus(b.scaled(gain))

    def tokens(scores: Scores) -> np.ndarray:
        return scores.on_tokens(LENGTHS, lambda row: [])

    np.testing.assert_allclose(tokens(both), tokens(a) + gain * tokens(b), atol=1e-9)
    np.testing.assert_allclose(both.totals(), tokens(both).sum(1), atol=1e-9)


def test_scores_of_numbers_alone_are_a_plain_array():
    assert isinstance(judged([1, 2, 3]).simplest(), np.ndarray)
    assert isinstance(judged([1, 2, [Span(0, None, 1.0)]]).simplest(), Scores)


def test_scores_put_together_by_hand_are_checked_too():
    ones = np.ones(3)
    assert judged(Scores(ones, {1: np.ones(3)})).totals().tolist() == [1, 4, 1]
    for bad in (
        Scores(np.array([1.0, np.nan, 1.0])),
        Scores(ones, {1: np.ones(2)}),
        Scores(ones, {3: np.ones(1)}),
        Scores(ones, {}, {0: (Span(0, 99, 1.0),)}),
        Scores(np.ones(2)),
    ):
        with pytest.raises(RewardValueError, match=r"Scores that do not fit|2 scores for 3"):
            judged(bad)


# -- when they are paid ------------------------------------------------------------------------------


def test_without_a_word_on_when_they_are_known_scores_of_tokens_are_paid_at_the_end_with_a_warning():
    value = [[1.0], [2.0, 0.5, -1.0], 4.0]
    silent = Fixed(value)
    with pytest.warns(UserWarning, match=r"Fixed scores tokens.*lm_env.Causal"):
        scores = call_reward(silent, ["p"] * 3, TEXTS, {"response_ids": IDS})
    assert not scores.per_token and scores.totals().tolist() == [1, 1.5, 4] == judged(value).totals().tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        declared = judged(value, causal=False)
        assert not declared.per_token and declared.totals().tolist() == [1, 1.5, 4]
        call_reward(Fixed([1.0, 2.0, 3.0]), ["p"] * 3, TEXTS, {"response_ids": IDS})
        assert score_responses(silent, ["p"] * 3, TEXTS, {"response_ids": IDS}).tolist() == [1, 1.5, 4]


def test_causal_wraps_a_function_and_keeps_its_name_and_columns():
    def counted(prompts, responses, response_ids):
        return [[1.0] * len(ids) for ids in response_ids]

    wrapped = Causal(counted)
    assert is_causal(wrapped) and not is_causal(counted) and name_of(wrapped) == "counted"
    scores = call_reward(wrapped, ["p"] * 3, TEXTS, {"response_ids": IDS, "answer": ["x"] * 3})
    assert scores.totals().tolist() == [1, 3, 2]


def test_only_causal_functions_are_asked_about_texts_under_way():
    seen = []

    def reward(prompts, responses, response_ids, response_finished=None):
        seen.append((responses, response_finished))
        return [1.0] * len(responses)

    finished = np.array([True, False, True])
    plain = call_reward(reward, ["p"] * 3, TEXTS, {"response_ids": IDS}, finished)
    none = call_reward(reward, ["p"] * 3, TEXTS, {"response_ids": IDS}, np.zeros(3, bool))
    causal = call_reward(Causal(reward), ["p"] * 3, TEXTS, {"response_ids": IDS}, finished)
    assert seen == [(["first text", ""], None), (TEXTS, [True, False, True])]
    # One number for a whole text belongs to its end, which the second has not reached.
    assert plain.totals().tolist() == causal.totals().tolist() == [1, 0, 1] and none.totals().tolist() == [0, 0, 0]


def test_a_span_at_the_end_of_the_text_waits_for_it():
    """As one number for a whole text does; spans inside the text, and other texts, are paid as they are."""
    entries = [[Span(0, 3, 2.0), Span(0, None, 5.0)], [Span(1, 4, 3.0), Span(0, None, 7.0)], 11.0]

    @Causal
    def reward(prompts, responses):
        return entries

    def after(finished):
        return call_reward(reward, ["p"] * 3, TEXTS, {"response_ids": IDS}, np.array(finished)).totals().tolist()

    assert after([True, True, True]) == [7, 10, 11]
    assert after([True, False, True]) == [7, 3, 11]
    assert after([False, True, False]) == [2, 10, 0]


def test_a_span_at_the_end_is_paid_once_and_stepwise_as_episode_wise(id_task):
    """The texts end at the cap, so that none is finished where the cap truncates, and each one where it ends a text."""

    @Causal
    def reward(prompts, responses):
        return [[Span(0, None, 1.0)] for _ in responses]

    for truncates, score in ((False, 1.0), (True, 0.0)):
        env = TextGenerationEnv(**id_task(reward=reward, beta=0.0, max_new_tokens=3, cap_truncates=truncates))
        env.reset(seed=0)
        paid = []
        over = False
        while not over:
            _, given, terminated, truncated, _ = env.step(5)
            paid.append(given)
            over = terminated or truncated
        assert paid == [0.0, 0.0, score]


def test_failed_texts_stay_failed_in_multiples_and_sums():
    failed = Scores(np.zeros(3), failed=frozenset([1]))
    other = Scores(np.ones(3), failed=frozenset([2]))
    assert failed.scaled(2.0).failed == {1}
    assert failed.plus(other).failed == other.plus(failed).failed == {1, 2}


def test_a_missing_eos_takes_back_what_the_tokens_were_paid(id_task):
    dense = Causal(lambda prompts, responses, response_ids: [[2.0] * len(ids) for ids in response_ids])
    task = Task(**id_task(reward=dense, missing_eos_score=-1.0, max_new_tokens=3))
    got = paid_scores(task, task.prompts[:2], [[5, 6, 7], [5, EOS]], np.array([False, True]))
    assert got.tokens.tolist() == [[2, 2, -5], [2, 2, 0]] and got.totals.tolist() == [-1, 4]


# -- texts and their tokens --------------------------------------------------------------------------

STOPS = ((), ("e", "oo", " f"), ("the end",), ("aa", "ab"))


@pytest.fixture(scope="module")
def stopping(text_task) -> dict[tuple[str, ...], Task]:
    return {stops: Task(**text_task(stop_strings=stops, max_new_tokens=16)) for stops in STOPS}


byte_ids = st.lists(st.integers(1, 289), min_size=1, max_size=16)


@settings(max_examples=200, deadline=None)
@example([95, 65, 65], ("aa", "ab"))
@given(byte_ids, st.sampled_from(STOPS))
def test_the_text_so_far_is_a_beginning_of_every_text_that_follows(stopping, ids, stops):
    task = stopping[stops]
    for n in range(1, len(ids)):
        if task.holds_stop_string(ids[:n]):
            return
        so_far = task.text_so_far(ids[:n])
        assert task.text_of(ids[: n + 1]).startswith(so_far)
        assert task.holds_stop_string(ids[: n + 1]) or task.text_so_far(ids[: n + 1]).startswith(so_far)
    ends = piece_ends(task.text_of(ids), ids, task.text_so_far)
    assert ends == sorted(ends) and len(ends) == len(ids) and ends[-1] == len(task.text_of(ids))
    assert ends[:-1] == [len(task.text_so_far(ids[:n])) for n in range(1, len(ids))]


def test_half_a_character_and_the_beginning_of_a_stop_string_are_held_back(text_task, tokenizer):
    task = Task(**text_task(stop_strings=["THE"]))
    e_acute = tokenizer("é")["input_ids"]
    assert len(e_acute) == 2
    x, t, h = (tokenizer(letter)["input_ids"][0] for letter in "xTH")
    assert [task.text_so_far([x, *e_acute[:n]]) for n in range(3)] == ["x", "x", "xé"]
    assert [task.text_so_far([x, t, h][:n]) for n in (1, 2, 3)] == ["x", "x", "x"]
    half = e_acute[:1]
    assert [task.text_so_far([x, *half, t, h][:n]) for n in (2, 3, 4)] == ["x", "x\ufffd", "x\ufffd"]
    assert task.text_of([x, t, h]) == "xTH" and task.text_so_far([x, t, x]) == "xTx"


@pytest.mark.parametrize(
    "value",
    [torch.ones(3, device="meta"), torch.ones(3).to_sparse(), [torch.ones((), device="meta"), 1.0, 1.0]],
    ids=["meta", "sparse", "one of them meta"],
)
def test_tensors_whose_numbers_cannot_be_read(value):
    with pytest.raises(RewardValueError, match="Fixed"):
        judged(value)
