"""Random programs of reset, step, score, fork, save and load: no undocumented error, and a refusal changes nothing.

`STATE_MACHINE_STEPS=10000 pytest -s -k profile` makes as many steps and prints their number.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lm_env import Episodes
from lm_env.errors import (
    ConfigurationError,
    InvalidActionError,
    InvalidPromptError,
    PublishedActionsError,
    ResetNeeded,
    RewardError,
)
from lm_env.tasks.token_mdp import make

STEPS = int(os.environ.get("STATE_MACHINE_STEPS", "400"))
V, HORIZON = 6, 4

not_tokens = st.sampled_from([-1, V, 10**30, 1.5, math.nan, True, None, "1", [1, 2], np.zeros((1, 2)), {}])


class Reward:
    """Pays the sum of the tokens; out of order, it fails in one of the ways in which functions fail."""

    def __init__(self) -> None:
        self.trouble = "none"

    def __call__(self, prompts: list[str], responses: list[str], response_ids: list[list[int]]) -> Any:
        if self.trouble == "raises":
            raise OSError("away")
        scores = [float(sum(ids)) for ids in response_ids]
        return {"none": scores, "NaN": [math.nan] * len(scores), "count": [*scores, 1.0], "kind": "text"}[self.trouble]


class Program(RuleBasedStateMachine):
    """A program that uses one environment, beside a record of what its episode must be."""

    counts: ClassVar[dict[str, int]] = {"steps": 0, "programs": 0, "refused": 0}

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        self.reward = Reward()
        self.env = make(mdp_seed=seed, vocab_size=V, horizon=HORIZON, reward=self.reward)
        self.saved: list[tuple[Any, tuple[Any, ...]]] = []
        self.tokens: list[int] | None = None
        self.rewards: list[float] = []
        self.running = False
        Program.counts["programs"] += 1

    # -- what can be seen of the state --------------------------------------------------------------
    def record(self) -> tuple[Any, ...]:
        return (None if self.tokens is None else tuple(self.tokens), tuple(self.rewards), self.running)

    def state(self) -> bytes:
        """Everything that the environment says of itself, as bytes."""
        if self.tokens is None:
            return b"no episode"
        state = self.env.save_state()
        observation = {name: value.tolist() for name, value in self.env.observation().items()}
        return pickle.dumps(
            [observation, self.env.action_masks().tolist(), {k: str(v) for k, v in vars(state).items()}]
        )

    def count(self) -> None:
        Program.counts["steps"] += 1

    def refused(self, errors: type[Exception] | tuple[type[Exception], ...], call: Any) -> None:
        """The call raises one of the documented errors, and the environment is as before."""
        Program.counts["refused"] += 1
        Program.counts["steps"] += 1
        before = self.state()
        with pytest.raises(errors):
            call()
        assert self.state() == before

    @invariant()
    def the_text_is_what_was_written(self) -> None:
        if getattr(self, "tokens", None) is None:
            return
        state = self.env.save_state()
        assert state.response.tolist() == self.tokens and state.running == self.running
        np.testing.assert_array_equal(state.rewards, self.rewards)
        observation = self.env.observation()
        length = int(observation["length"][0])
        assert length == len(state.ids) and observation["input_ids"][:length].tolist() == state.ids.tolist()

    # -- what programs do ---------------------------------------------------------------------------
    @rule(seed=st.none() | st.integers(0, 5))
    def reset(self, seed: int | None) -> None:
        self.count()
        self.env.reset(seed=seed)
        self.tokens, self.rewards, self.running = [], [], True

    @precondition(lambda self: self.running)
    @rule(token=st.integers(0, V - 1))
    def step(self, token: int) -> None:
        self.count()
        _, reward, terminated, truncated, info = self.env.step(np.int64(token))
        assert self.tokens is not None
        self.tokens.append(token)
        self.rewards.append(reward)
        self.running = not (terminated or truncated)
        assert math.isfinite(reward) and not truncated
        ended = bool(self.env.task.is_eos(np.array(token)))
        assert terminated == (ended or len(self.tokens) == HORIZON)
        if terminated:
            assert info["score"] == (sum(self.tokens) if ended else self.env.task.missing_eos_score)

    @rule(seed=st.integers(0, 5), tokens=st.lists(st.integers(0, V - 2), min_size=1, max_size=HORIZON))
    def write(self, seed: int, tokens: list[int]) -> None:
        """A text of several tokens, none of which ends it."""
        self.reset(seed)
        for token in tokens:
            self.step(token)

    @precondition(lambda self: self.tokens and not self.running)
    @rule()
    def score(self) -> None:
        """A finished episode is paid as a whole what it was paid step by step."""
        self.state()
        state = self.env.save_state()
        episode = Episodes(
            state.ids[None], np.array([len(state.prompt.ids)]), np.array([len(state.ids)]), [state.prompt]
        )
        np.testing.assert_allclose(self.env.score(episode).rewards[0], self.rewards, atol=1e-5)

    @precondition(lambda self: self.tokens is not None)
    @rule(how=st.sampled_from(["as it is", "copied", "pickled"]))
    def save(self, how: str) -> None:
        self.count()
        state = self.env.save_state()
        if how == "copied":
            state = copy.deepcopy(state)
        elif how == "pickled":
            state = pickle.loads(pickle.dumps(state))  # noqa: S301
        self.saved.append((state, self.record()))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        self.count()
        state, record = data.draw(st.sampled_from(self.saved))
        self.env.restore_state(state)
        self.tokens, self.rewards, self.running = list(record[0]), list(record[1]), record[2]

    @precondition(lambda self: self.running)
    @rule(n=st.integers(1, 3), data=st.data())
    def fork(self, n: int, data: st.DataObject) -> None:
        """Forks go on by themselves: the environment stays, and the same token brings them what it brings it."""
        before = self.state()
        fork = self.env.fork(n)
        actions = data.draw(st.lists(st.integers(0, V - 1), min_size=n, max_size=n))
        _, rewards, terminated, _, _ = fork.step(np.array(actions))
        assert self.state() == before
        self.step(actions[0])
        assert bool(terminated[0]) == (not self.running)
        np.testing.assert_allclose(rewards[0], self.rewards[-1], atol=1e-5)

    # -- what is refused ----------------------------------------------------------------------------
    @precondition(lambda self: self.running)
    @rule(action=not_tokens)
    def step_without_a_token(self, action: Any) -> None:
        self.refused(InvalidActionError, lambda: self.env.step(action))

    @precondition(lambda self: not self.running)
    @rule(token=st.integers(0, V - 1))
    def step_out_of_turn(self, token: int) -> None:
        self.refused(ResetNeeded, lambda: self.env.step(token))

    @precondition(lambda self: self.tokens is None)
    @rule()
    def save_or_fork_without_an_episode(self) -> None:
        self.refused(ResetNeeded, self.env.save_state)
        self.refused(ResetNeeded, lambda: self.env.fork(2))

    @precondition(lambda self: self.running)
    @rule(trouble=st.sampled_from(["raises", "NaN", "count", "kind"]))
    def end_without_a_score(self, trouble: str) -> None:
        """The step at which the reward function fails has not happened, and can be made again."""
        eos = min(self.env.task.eos_token_ids)
        self.reward.trouble = trouble
        self.refused(RewardError, lambda: self.env.step(eos))
        self.reward.trouble = "none"
        self.step(eos)

    @rule(arguments=st.sampled_from([{"seed": -1}, {"seed": 1.5}, {"options": {"prompt": []}}, {"options": {"x": 1}}]))
    def reset_to_nothing(self, arguments: dict[str, Any]) -> None:
        self.refused((ConfigurationError, InvalidPromptError), lambda: self.env.reset(**arguments))

    @precondition(lambda self: self.tokens is not None)
    @rule(
        change=st.sampled_from(
            [
                {"response": np.array([V])},
                {"response": np.array([0.5])},
                {"rewards": np.zeros(9)},
                {"running": 1},
                {"score": math.nan},
                {"generator": {}},
                {"settings": {}},
                {"prompt": None},
            ]
        )
    )
    def load_what_was_changed(self, change: dict[str, Any]) -> None:
        state = replace(self.env.save_state(), **change)
        self.refused(ConfigurationError, lambda: self.env.restore_state(state))

    @rule(state=st.sampled_from([None, {}, b"state", 3]))
    def load_what_is_no_state(self, state: Any) -> None:
        self.refused(ConfigurationError, lambda: self.env.restore_state(state))

    @precondition(lambda self: self.running)
    @rule(n=st.sampled_from([0, -1, 1.5, None, True]))
    def fork_into_nothing(self, n: Any) -> None:
        self.refused(ConfigurationError, lambda: self.env.fork(n))

    @precondition(lambda self: self.running)
    @rule(action=not_tokens, logprob=st.just(-1.0) | st.sampled_from([math.nan, 1.0, "x", None]))
    def publish_nothing(self, action: Any, logprob: Any) -> None:
        self.refused(PublishedActionsError, lambda: self.env.publish(action, logprob))


def test_random_programs_profile():
    """In the suite a few hundred steps; see the head of this file."""
    Program.counts = dict.fromkeys(Program.counts, 0)
    programs = 10
    while Program.counts["steps"] < STEPS:
        options = settings(
            max_examples=programs,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=STEPS <= 400,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(Program, settings=options)
    counts = Program.counts
    print(f"\n{counts['steps']} steps in {counts['programs']} programs, {counts['refused']} of them refused")
    assert counts["refused"] > STEPS / 20
