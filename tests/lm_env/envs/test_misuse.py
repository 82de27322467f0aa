"""What is handed in wrongly, or called from two threads or from within: one clear error, and nothing has changed."""

from __future__ import annotations

import threading

import gymnasium
import numpy as np
import pytest
import torch

from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import (
    BusyError,
    ConfigurationError,
    InvalidActionError,
    InvalidPromptError,
    LMEnvError,
    PublishedActionsError,
)


def snapshot(env) -> dict:
    mdp = env.mdp
    names = ("input_ids", "lengths", "prompt_lengths", "running", "log_ratios", "step_rewards", "scores")
    return {name: getattr(mdp, name).tolist() for name in names} | {"prompts": list(map(id, mdp.prompts))}


def next_prompts(env, n: int = 6) -> list:
    """The prompts that the coming resets draw."""
    return [np.asarray(env.reset()[1]["prompt_index"]).tolist() for _ in range(n)]


# --- logprobs --------------------------------------------------------------------------------------------------------


NO_LOGPROBS = {
    "text": "x",
    "text of a number": "-1.0",
    "None": None,
    "bool": False,
    "a dict": {"logprob": -1.0},
    "a ragged list": [[-1.0], [-1.0, -2.0]],
    "complex": -1j,
    "a masked entry": np.ma.array([-1.0], mask=[True]),
    "a tensor without data": torch.zeros(1, device="meta"),
    "nan": np.nan,
    "above 0": 0.5,
    "two": [-1.0, -1.0],
}


@pytest.mark.parametrize("logprob", NO_LOGPROBS.values(), ids=NO_LOGPROBS)
def test_what_is_no_logprob_cannot_be_published(logprob, id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    with pytest.raises(PublishedActionsError, match="logprob"):
        env.publish(5, logprob)
    assert env.step(6)[4]["logprob_source"] == "model"


@pytest.mark.parametrize("action", ["x", None, [[1], [1, 2]], {"action": 1}, torch.zeros(1, device="meta"), 1.5])
def test_what_is_no_action_cannot_be_published(action, id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    with pytest.raises(PublishedActionsError, match="action"):
        env.publish(action, -1.0)
    assert env.step(6)[4]["logprob_source"] == "model"


@pytest.mark.parametrize("slots", ["x", None, [[0], [0, 1]], [0, 0]], ids=str)
def test_what_are_no_slots_cannot_be_published_for(slots, id_task):
    env = TextGenerationVectorEnv(2, **id_task())
    env.reset(seed=0)
    with pytest.raises(PublishedActionsError, match="slot"):
        env.publish([5, 6, 7] if slots is None else [5, 6], [-1.0] * (3 if slots is None else 2), slots)
    assert set(env.step(np.array([5, 6]))[4]["logprob_source"]) == {"model"}


@pytest.mark.parametrize("logprob", NO_LOGPROBS.values(), ids=NO_LOGPROBS)
def test_a_logprob_fn_that_returns_no_logprobs_is_named_and_nothing_moves(logprob, id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    before = snapshot(env)
    env.bind_logprob_fn(lambda observation, actions: logprob)
    with pytest.raises(ConfigurationError, match="logprob_fn must return 1"):
        env.step(5)
    assert snapshot(env) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logprobs_that_carry_a_gradient_count_by_their_value(dtype, id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    logprob = torch.tensor([-1.25], dtype=dtype, requires_grad=True)
    env.publish(torch.tensor(5), logprob)
    assert env.step(5)[4]["logprob"] == -1.25
    env.bind_logprob_fn(lambda observation, actions: 2 * logprob)
    assert env.step(5)[4]["logprob"] == -2.5


def test_only_a_function_can_be_bound(id_task):
    for env in (TextGenerationEnv(**id_task()), TextGenerationVectorEnv(2, **id_task())):
        with pytest.raises(ConfigurationError, match=r"logprob_fn must be a function.*None"):
            env.bind_logprob_fn("model")


def test_a_step_with_what_makes_no_array_is_refused(id_task):
    env = TextGenerationVectorEnv(2, **id_task())
    env.reset(seed=0)
    for actions in (torch.zeros(2, dtype=torch.long, device="meta"), np.ma.array([5, 6], mask=[True, False])):
        with pytest.raises(InvalidActionError):
            env.step(actions)


# --- seeds and options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [1.5, "a", -1, True, np.float64(1), [1], (1, 2.0), {}, np.array([1.0, 2.0]), b"ab"], ids=str
)
@pytest.mark.parametrize("slots", [0, 2])
def test_a_seed_is_an_integer_of_at_least_0(seed, slots, id_task):
    env = TextGenerationVectorEnv(slots, **id_task()) if slots else TextGenerationEnv(**id_task())
    env.reset(seed=3)
    before = snapshot(env)
    with pytest.raises(ConfigurationError, match="seed"):
        env.reset(seed=seed)
    assert snapshot(env) == before
    other = TextGenerationVectorEnv(slots, **id_task()) if slots else TextGenerationEnv(**id_task())
    other.reset(seed=3)
    assert next_prompts(env) == next_prompts(other)


@pytest.mark.parametrize("seed", [7, np.int64(7), np.uint8(7)])
def test_integers_of_every_kind_are_the_same_seed(seed, id_task):
    single, vector = TextGenerationEnv(**id_task()), TextGenerationVectorEnv(2, **id_task())
    same, same_vector = TextGenerationEnv(**id_task()), TextGenerationVectorEnv(2, **id_task())
    single.reset(seed=7), vector.reset(seed=7), same.reset(seed=seed), same_vector.reset(seed=seed)
    assert next_prompts(single) == next_prompts(same)
    assert next_prompts(vector) == next_prompts(same_vector)
    same_vector.reset(seed=np.array([7, 8])), vector.reset(seed=(7, 8))
    assert next_prompts(vector) == next_prompts(same_vector)


@pytest.mark.parametrize(
    "options", [5, "prompt", [("prompt", [1])], {"promt": [1]}, {1: 2}, {"prompt": [1], "seed": 1}]
)
@pytest.mark.parametrize("slots", [0, 2])
def test_unknown_options_are_named_beside_the_known_ones(options, slots, id_task):
    env = TextGenerationVectorEnv(slots, **id_task()) if slots else TextGenerationEnv(**id_task())
    env.reset(seed=3)
    before = snapshot(env)
    with pytest.raises(ConfigurationError, match=r"options.*'prompt'" + (r".*'reset_mask'" if slots else "")):
        env.reset(seed=4, options=options)
    assert snapshot(env) == before


@pytest.mark.parametrize("slots", [0, 2])
def test_a_bad_prompt_leaves_the_seed_as_it_was_too(slots, id_task):
    def make():
        return TextGenerationVectorEnv(slots, **id_task()) if slots else TextGenerationEnv(**id_task())

    env, other = make(), make()
    env.reset(seed=3), other.reset(seed=3)
    for prompt in ([99], [], {"text": [1], "prompts": 2}, object(), {1, 2}):
        with pytest.raises(InvalidPromptError):
            env.reset(seed=4, options={"prompt": prompt})
    assert snapshot(env)["input_ids"] == snapshot(other)["input_ids"]
    assert next_prompts(env) == next_prompts(other)


def test_a_bad_reset_mask_leaves_the_seed_as_it_was(id_task):
    env, other = TextGenerationVectorEnv(2, **id_task()), TextGenerationVectorEnv(2, **id_task())
    env.reset(seed=3), other.reset(seed=3)
    with pytest.raises(ConfigurationError, match="reset_mask"):
        env.reset(seed=4, options={"reset_mask": [1, 0]})
    assert next_prompts(env) == next_prompts(other)


# --- two threads, and calls from within ------------------------------------------------------------------------------


class Waits:
    """A reward function that holds a step up until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()

    def __call__(self, prompts, responses):
        self.entered.set()
        assert self.released.wait(30)
        return [1.0] * len(responses)


@pytest.mark.parametrize("slots", [0, 2])
def test_a_second_thread_is_refused_and_the_step_under_way_ends_as_it_would(slots, id_task):
    reward = Waits()
    options = id_task(reward=reward)
    env = TextGenerationVectorEnv(slots, **options) if slots else TextGenerationEnv(**options)
    env.reset(seed=0)
    action = np.zeros(slots, int) if slots else 0
    results = []
    thread = threading.Thread(target=lambda: results.append(env.step(action)))
    thread.start()
    assert reward.entered.wait(30)
    before = snapshot(env)
    calls = [lambda: env.step(action), env.reset, lambda: env.mdp.reset(np.array([0])), lambda: env.mdp.seed(0, 1)]
    for call in calls:
        with pytest.raises(BusyError, match=r"under way.*one environment for each thread"):
            call()
    assert snapshot(env) == before
    reward.released.set()
    thread.join(30)
    ((*_, terminated, _, info),) = results
    assert np.all(terminated) and np.all(np.asarray(info["score"]) == 1.0)
    assert np.all(env.mdp.lengths == np.array(before["lengths"]) + 1)
    env.reset(seed=0)
    env.step(action)


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("call", ["reset", "step"])
def test_a_reward_function_cannot_move_the_environment_that_asks_it(call, slots, id_task):
    def reward(prompts, responses):
        nonlocal inner
        try:
            env.reset() if call == "reset" else env.step(np.zeros(slots, int) if slots else 0)
        except BusyError as error:
            inner = error
        return [1.0] * len(responses)

    inner = None
    options = id_task(reward=reward)
    env = TextGenerationVectorEnv(slots, **options) if slots else TextGenerationEnv(**options)
    env.reset(seed=0)
    before = env.mdp.lengths.copy()
    _, _, terminated, _, info = env.step(np.zeros(slots, int) if slots else 0)
    assert isinstance(inner, LMEnvError) and isinstance(inner, RuntimeError)
    assert np.all(terminated) and np.all(np.asarray(info["score"]) == 1.0) and (env.mdp.lengths == before + 1).all()


def test_a_copied_environment_steps_by_itself(id_task):
    import copy

    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    env.step(5)
    other = copy.deepcopy(env)
    assert env.step(6)[1] == other.step(6)[1]


# --- what gymnasium.make returns -------------------------------------------------------------------------------------


def test_what_gymnasium_makes_is_the_environment_itself():
    env = gymnasium.make("lm_env/TokenMDP-v0")
    assert isinstance(env, TextGenerationEnv) and env.unwrapped is env
    assert env.spec.id == "lm_env/TokenMDP-v0" and env.spec.max_episode_steps is None
    env.reset(seed=0)
    env.publish(1, -0.5)
    assert env.step(1)[4]["logprob_source"] == "published"
    env.bind_logprob_fn(lambda observation, actions: np.full(len(actions), -1.0))
    assert env.step(1)[4]["logprob_source"] == "logprob_fn"
    assert env.action_masks().all() and env.task.vocab_size == 4
    again = gymnasium.make(env.spec)
    assert isinstance(again, TextGenerationEnv)
    vector = gymnasium.make_vec("lm_env/TokenMDP-v0", num_envs=2)
    assert isinstance(vector, TextGenerationVectorEnv) and vector.unwrapped is vector
    vector.reset(seed=0)
    vector.publish([1, 1], [-0.5, -0.5])
    assert set(vector.step(np.array([1, 1]))[4]["logprob_source"]) == {"published"}
