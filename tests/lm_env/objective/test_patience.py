"""A reward function that raises, hangs or returns what are no scores: asked again, or its texts left out."""

from __future__ import annotations

import logging
import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lm_env
from lm_env import Causal, PatientReward, Span
from lm_env.errors import ConfigurationError, RewardError, RewardTimeoutError, RewardValueError
from lm_env.objective.patience import MAX_CALLS, MAX_HANGING, SkippingReward, patient
from lm_env.objective.rewards import call_reward, name_of, parts_of, reads_prefixes
from reward_models import Affine, Clipped

logging.getLogger("lm_env.objective.patience").addHandler(logging.NullHandler())


def lengths(prompts, responses):
    return [float(len(r)) for r in responses]


class Failing:
    """Fails at each call whose number is given, then pays the length."""

    def __init__(self, *numbers: int, how=None) -> None:
        self.numbers, self.calls, self.how = numbers, 0, how

    def __call__(self, prompts, responses):
        self.calls += 1
        if self.calls in self.numbers:
            if self.how is not None:
                return self.how(responses)
            raise OSError("the service is away")
        return lengths(prompts, responses)


def ask(reward, responses, **columns):
    return call_reward(reward, ["p"] * len(responses), responses, columns)


# -- asked again -------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", [None, lambda r: [math.nan] * len(r), lambda r: [1.0] * (len(r) + 1)])
def test_it_is_asked_again(how):
    inner = Failing(1, 2, how=how)
    reward = PatientReward(inner, pause=0)
    assert ask(reward, ["a", "bb"]).totals().tolist() == [1, 2]
    assert (inner.calls, reward.errors) == (3, 2)
    with pytest.raises(RewardError):
        ask(PatientReward(Failing(1, 2, 3, how=how), pause=0), ["a"])


def test_a_call_that_hangs_is_given_up_and_one_that_answers_is_heard():
    released = threading.Event()

    def slow(prompts, responses):
        if responses == ["hang"]:
            released.wait()
        return lengths(prompts, responses)

    def broken(prompts, responses):
        return len(3)

    reward = PatientReward(slow, deadline=0.05, attempts=2, pause=0)
    try:
        with pytest.raises(RewardTimeoutError, match=r"slow has not answered within 0\.05 s .*2 calls hang"):
            ask(reward, ["hang"])
        assert ask(PatientReward(slow, deadline=60), ["abc"]).totals().tolist() == [3]
        with pytest.raises(RewardError, match="broken raised TypeError"):
            ask(PatientReward(broken, deadline=60, attempts=1), ["x"])
        reward.attempts = MAX_HANGING
        with pytest.raises(RewardTimeoutError, match=f"{MAX_HANGING} earlier calls of it still hang"):
            for _ in range(2):
                reward.deadline = 1e-3
                ask(reward, ["hang"])
    finally:
        released.set()


def test_it_is_transparent():
    spans = lambda prompts, responses: [[Span(0, 1, 2.0)] for _ in responses]  # noqa: E731
    assert not hasattr(PatientReward(lengths), "causal") and PatientReward(Causal(spans)).causal
    scores = ask(PatientReward(Causal(spans), deadline=60), ["ab"], response_ids=[[1, 2]])
    assert scores.spans[0][0].score == 2.0
    seen = {}

    def columns(prompts, responses, answer):
        seen["answer"] = answer
        return lengths(prompts, responses)

    ask(PatientReward(columns), ["a"], answer=[7], other=[8])
    assert seen == {"answer": [7]}


class Told:
    """Says all that a reward function may say of itself, and has a state."""

    reads_prefixes = True

    def __init__(self) -> None:
        self.last_parts = {"part": np.ones(1)}
        self.state = 0

    def __call__(self, prompts, responses):
        return lengths(prompts, responses)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@pytest.mark.parametrize(
    "wrap", [PatientReward, SkippingReward, Causal, Affine, lambda reward: Clipped(reward, -1.0, 1.0)]
)
def test_what_a_reward_says_of_itself_holds_in_every_wrapping(wrap):
    told, silent = Told(), lengths
    wrapped, other = wrap(told), wrap(silent)
    assert name_of(wrapped) == name_of(told) and name_of(other) == "lengths"
    assert reads_prefixes(wrapped) and not reads_prefixes(other)
    assert not hasattr(other, "state_dict") and not hasattr(other, "load_state_dict")
    wrapped.load_state_dict(3)
    assert told.state == wrapped.state_dict() == 3
    call_reward(wrapped, ["p"], ["text"], {})
    assert parts_of(wrapped, 1) == told.last_parts and parts_of(other, 1) == {}


@pytest.mark.parametrize("options", [{"deadline": 0}, {"deadline": math.inf}, {"attempts": 0}, {"pause": -1}])
def test_impossible_settings(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        PatientReward(lengths, **options)
    with pytest.raises(ConfigurationError, match="on_reward_error must be one of"):
        patient(lengths, "ignore", None)
    with pytest.raises(ConfigurationError, match="takes a reward function"):
        PatientReward(3)


# -- left out ----------------------------------------------------------------------------------------
bad_kinds = st.sampled_from(["fine", "fine", "fine", "raises", "nan", "none", "short"])


@given(kinds=st.lists(bad_kinds, min_size=1, max_size=12), per_token=st.booleans(), tensor=st.booleans())
def test_exactly_the_bad_texts_are_left_out(kinds, per_token, tensor):
    """Whatever goes wrong at some texts, the others get their own scores; the function is any of its allowed kinds."""

    def reward(prompts, responses, response_ids):
        found = []
        for response in responses:
            number, kind = response.split()
            if kind == "raises":
                raise ValueError(response)
            value = {"nan": math.nan, "none": None}.get(kind, float(number))
            found.append(np.array([value, 1.0], dtype=object).tolist() if per_token else value)
        if any(r.endswith("short") for r in responses):
            return found[:-1]
        if tensor and not per_token and None not in found:
            return torch.tensor(found)
        return [np.array(f, dtype=float) if per_token and None not in f else f for f in found]

    reward.causal = False
    responses = [f"{i} {kind}" for i, kind in enumerate(kinds)]
    scores = ask(SkippingReward(reward), responses, response_ids=[[1, 2]] * len(kinds))
    assert scores.failed == {i for i, kind in enumerate(kinds) if kind != "fine"}
    wanted = [(i + per_token) * (kind == "fine") for i, kind in enumerate(kinds)]
    assert scores.totals().tolist() == wanted


def test_unfinished_texts_are_counted_right():
    """The failed ones of those that are asked about are named by their place among all."""
    finished = np.array([False, True, False, True])
    reward = SkippingReward(lambda prompts, responses: [math.nan if r == "bad" else 1.0 for r in responses])
    scores = call_reward(reward, ["p"] * 4, ["bad", "bad", "good", "good"], {}, finished)
    assert scores.failed == {1} and scores.totals().tolist() == [0, 0, 0, 1]


def test_a_dead_function_costs_a_bounded_number_of_calls():
    calls = []

    def dead(prompts, responses):
        calls.append(len(responses))
        raise OSError("away")

    scores = ask(SkippingReward(dead), ["a"] * 500)
    assert len(calls) == MAX_CALLS and scores.failed == set(range(500))


def test_a_hanging_function_costs_one_deadline():
    released = threading.Event()
    calls = []

    def hangs(prompts, responses):
        calls.append(1)
        released.wait()

    scores = ask(SkippingReward(hangs, deadline=0.05), ["a"] * 100)
    released.set()
    assert len(calls) == 1 and len(scores.failed) == 100


def test_values_are_refused_outside_a_rollout():
    assert lm_env.PatientReward is PatientReward
    with pytest.raises(RewardValueError):
        ask(PatientReward(lambda prompts, responses: [None], attempts=1), ["a"])
