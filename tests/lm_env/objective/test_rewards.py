"""lm_env.objective.rewards: what comes back from a reward function is checked, and a reward is composed right."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_env.errors import LMEnvError, RewardError, RewardValueError
from lm_env.objective.rewards import compose_rewards, final_scores, score_responses


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


BAD_VALUES = [
    math.nan,
    math.inf,
    -math.inf,
    np.float32("nan"),
    np.float64("inf"),
    torch.tensor(math.nan),
    None,
    "1.0",
    b"1",
    "",
    True,
    False,
    np.True_,
    1j,
    np.complex64(1),
    10**400,
    Fraction(10**400),
    10**5000,
    [1.0],
    (1.0,),
    {},
    np.zeros(1),
    torch.zeros(1),
    torch.tensor(True),
    np.array("1"),
    np.timedelta64(1, "s"),
    np.datetime64("2020-01-01"),
    object(),
    Unprintable(),
]
GOOD_VALUES = [
    0,
    -3,
    2.5,
    Fraction(1, 4),
    np.float32(0.5),
    np.float16(2),
    np.int8(-1),
    torch.tensor(1.5),
    np.array(2.0),
]


def scores_of(value: object, count: int = 2) -> np.ndarray:
    """`score_responses` with a reward function that returns `value` for `count` responses."""
    prompts, responses = [f"prompt-{i}!" for i in range(count)], [f"response-{i}!" for i in range(count)]
    return score_responses(lambda prompts, responses: value, prompts, responses, {})


@settings(deadline=None)
@given(values=st.lists(st.sampled_from(GOOD_VALUES), max_size=6), container=st.sampled_from([list, tuple]))
def test_finite_numbers_of_any_type_are_taken(values, container):
    scores = scores_of(container(values), len(values))
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, np.array([float(v) for v in values]))


@settings(deadline=None)
@given(
    good=st.lists(st.sampled_from(GOOD_VALUES), max_size=5),
    bad=st.sampled_from(BAD_VALUES),
    where=st.integers(min_value=0, max_value=5),
)
def test_a_bad_value_is_reported_with_its_sample(good, bad, where):
    where = min(where, len(good))
    values = [*good[:where], bad, *good[where:]]
    with pytest.raises(RewardValueError) as caught:
        scores_of(values, len(values))
    message = str(caught.value)
    assert f"sample {where} " in message
    assert f"'prompt-{where}!'" in message
    assert f"'response-{where}!'" in message
    assert type(bad).__name__ in message
    assert len(message) < 600


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.float16])
def test_an_array_is_taken(dtype):
    np.testing.assert_array_equal(scores_of(np.array([1, -2], dtype=dtype)), [1.0, -2.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_a_tensor_is_taken(dtype):
    tensor = torch.tensor([1, -2], dtype=dtype)
    if dtype.is_floating_point:
        tensor.requires_grad_(True)
    np.testing.assert_array_equal(scores_of(tensor), [1.0, -2.0])


@pytest.mark.parametrize(
    "array", [np.array([0, np.nan]), np.array([0, True], dtype=object), torch.tensor([0.0, math.inf])]
)
def test_a_bad_element_of_an_array_is_found(array):
    with pytest.raises(RewardValueError, match="sample 1 "):
        scores_of(array)


@pytest.mark.parametrize(
    "value",
    [
        "12",
        b"12",
        {"a": 1, "b": 2},
        {1.0, 2.0},
        None,
        1.5,
        7,
        np.float64(1),
        np.array(1.0),
        torch.tensor(1.0),
        np.zeros((2, 1)),
        torch.zeros(2, 1),
        (x for x in (1.0, 2.0)),
        Unprintable(),
    ],
)
def test_anything_else_than_a_flat_list_is_refused(value):
    with pytest.raises(RewardValueError, match="return a flat list of 2 numbers"):
        scores_of(value)


@pytest.mark.parametrize("value", [[[1.0], [2.0]], [1.0, [2.0, 3.0]]])
def test_numbers_per_token_need_the_token_ids_to_be_counted(value):
    with pytest.raises(RewardValueError, match="column response_ids"):
        scores_of(value)


@settings(deadline=None)
@given(count=st.integers(0, 5), returned=st.integers(0, 5), as_array=st.booleans())
def test_the_count_must_match(count, returned, as_array):
    value = np.zeros(returned) if as_array else [0.0] * returned
    if count == returned:
        assert scores_of(value, count).shape == (count,)
    else:
        with pytest.raises(RewardValueError, match=f"{returned} scores for {count} responses"):
            scores_of(value, count)


@pytest.mark.parametrize("error", [ValueError("bad column"), KeyError("answer"), ZeroDivisionError(), StopIteration()])
def test_an_exception_is_chained_and_the_function_named(error):
    def my_reward(prompts, responses):
        raise error

    with pytest.raises(RewardError, match=f"my_reward raised {type(error).__name__}.*'the response'") as caught:
        score_responses(my_reward, ["p"], ["the response"], {})
    assert caught.value.__cause__ is error
    assert not isinstance(caught.value, RewardValueError)
    assert isinstance(caught.value, LMEnvError)


def test_a_function_that_ends_the_program_is_an_error_and_an_interrupt_is_none():
    def leave(prompts, responses):
        raise SystemExit(4)

    def interrupted(prompts, responses):
        raise KeyboardInterrupt

    with pytest.raises(RewardError, match="leave raised SystemExit: 4"):
        score_responses(leave, ["p"], ["r"], {})
    with pytest.raises(KeyboardInterrupt):
        score_responses(interrupted, ["p"], ["r"], {})


def test_a_reward_error_from_inside_stays_itself():
    inner = RewardValueError("part Length gave None")

    def outer(prompts, responses):
        raise inner

    with pytest.raises(RewardValueError) as caught:
        score_responses(outer, ["p"], ["r"], {})
    assert caught.value is inner


def test_an_interrupt_is_not_swallowed():
    def reward(prompts, responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_responses(reward, ["p"], ["r"], {})


def test_each_function_gets_the_columns_it_names():
    columns = {"answer": ["4"], "response_ids": [[1, 2, 3]]}
    seen = {}

    def none(prompts, responses):
        return [1.0]

    def one(prompts, responses, response_ids):
        return [float(len(response_ids[0]))]

    def every(prompts, responses, **rest):
        seen.update(rest)
        return [0.0]

    assert score_responses(none, ["p"], ["r"], columns) == [1.0]
    assert score_responses(one, ["p"], ["r"], columns) == [3.0]
    score_responses(every, ["p"], ["r"], columns)
    assert seen == columns


def test_the_function_cannot_change_the_callers_lists():
    def greedy(prompts, responses):
        responses.clear()
        return [0.0]

    responses = ["r"]
    score_responses(greedy, ["p"], responses, {})
    assert responses == ["r"]


# -- what is paid ----------------------------------------------------------------------------------
AS = {"numpy": np.asarray, "torch": torch.as_tensor}


@pytest.mark.parametrize("make", AS.values(), ids=AS.keys())
def test_compose_rewards_golden(make):
    # Two episodes of 3 and 2 tokens; -0.5 * (logprobs - ref), and what each token is paid.
    logprobs = make([[-1.0, -2.0, -0.5], [-0.25, -3.0, 0.0]])
    ref = make([[-1.5, -1.0, -0.5], [-0.75, -1.0, 0.0]])
    scores = make([[0.25, 0.0, 3.0], [0.0, -1.0, 0.0]])
    expected = [[0.0, 0.5, 3.0], [-0.25, 0.0, 0.0]]
    np.testing.assert_allclose(np.asarray(compose_rewards(scores, logprobs, ref, beta=0.5)), expected, atol=1e-7)


@pytest.mark.parametrize("make", AS.values(), ids=AS.keys())
def test_at_beta_0_a_token_that_the_reference_never_takes_costs_nothing(make):
    got = compose_rewards(make([0.0, 7.0]), make([-1.0, -1.0]), make([-math.inf, -math.inf]), beta=0.0)
    assert np.asarray(got).tolist() == [0.0, 7.0]  # 0 * inf is NaN


LOGP = st.floats(-30, 0)


@settings(deadline=None)
@given(
    data=st.lists(st.tuples(LOGP, LOGP), min_size=1, max_size=8),
    score=st.floats(-10, 10),
    beta=st.floats(0, 3),
)
def test_the_return_is_score_minus_beta_kl_and_both_libraries_agree(data, score, beta):
    logprobs, ref = np.array(data).T
    scores = np.where(np.arange(len(data)) == len(data) - 1, score, 0.0)
    rewards = compose_rewards(scores, logprobs, ref, beta)
    assert math.isclose(rewards.sum(), score - beta * (logprobs.sum() - ref.sum()), rel_tol=1e-9, abs_tol=1e-9)
    tensors = (torch.tensor(x) for x in (scores, logprobs, ref))
    np.testing.assert_array_equal(compose_rewards(*tensors, beta).numpy(), rewards)


@pytest.mark.parametrize("make", AS.values(), ids=AS.keys())
def test_a_missing_end_replaces_the_score(make):
    scores = make(np.array([[0, 5, 0], [0, 0, 5], [2, -4, 1], [2, 3, 0]], dtype=np.float32))
    last = make([[False, True, False], [False, False, True], [False, False, True], [False, True, False]])
    paid = final_scores(scores, last, make([True, False, False, True]), -1.0)
    # Not 4: nothing is subtracted.  What the earlier tokens were paid is taken back: 2 - 4 + 1 = -1.
    expected = [[0, 5, 0], [0, 0, -1], [2, -4, 1], [2, 3, 0]]
    np.testing.assert_array_equal(np.asarray(paid), expected)
    assert paid.dtype == scores.dtype
    assert final_scores(scores, last, make([True, False, False, True]), None) is scores
