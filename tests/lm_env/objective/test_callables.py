"""Functions that a task is given: what cannot be called as it will be is refused at once, what raises is named."""

from __future__ import annotations

import numpy as np
import pytest

from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import ConfigurationError

ROWS = [{"prompt": "bad", "answer": "4"}]


def positional(p, r):
    return [0.0] * len(r)


def positional_only(prompts, responses, /):
    return [0.0] * len(responses)


def prompts_only(prompts):
    return [0.0] * len(prompts)


@pytest.mark.parametrize("reward", [positional, positional_only, prompts_only])
def test_a_reward_that_cannot_be_called_with_keywords_is_refused_at_construction(text_task, reward):
    words = rf"reward function {reward.__name__}\(.*cannot be called with keywords.*write f\(prompts, responses,"
    with pytest.raises(ConfigurationError, match=words):
        TextGenerationEnv(**text_task(prompts=ROWS, reward=reward))


class OnAllTokens:
    causal = True

    def __call__(self, prompts, responses, response_finished, answer, weight=1.0):
        return [weight] * len(responses)


@pytest.mark.parametrize(
    "reward",
    [
        lambda prompts, responses: [0.0] * len(responses),
        lambda prompts, responses, answer, response_ids, prompt_ids: [0.0] * len(responses),
        lambda prompts, responses, summary="": [0.0] * len(responses),
        lambda responses, **others: [0.0] * len(responses),
        OnAllTokens(),
    ],
)
def test_a_reward_may_name_what_it_is_given(text_task, reward):
    env = TextGenerationEnv(**text_task(prompts=ROWS, reward=reward))
    env.reset()
    while not any(env.step(1)[2:4]):
        pass


def division(prompt, response):
    raise ZeroDivisionError("division by zero")


def one_argument(prompt):
    return np.ones(3, dtype=bool)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (division, "division raised ZeroDivisionError: division by zero"),
        (one_argument, "one_argument raised TypeError"),
    ],
)
def test_an_action_mask_that_raises_is_named_and_the_step_can_be_repeated(text_task, mask, words):
    env = TextGenerationEnv(**text_task(action_mask=mask))
    env.reset()
    with pytest.raises(ConfigurationError, match=rf"action_mask {words}.*\(prompt_ids, response_ids\)") as caught:
        env.step(1)
    assert caught.value.__cause__ is not None
    env.task.action_mask = None
    env.step(1)


@pytest.mark.parametrize("eos", [True, False, [True], [0, True]])
def test_a_bool_is_no_eos(text_task, eos):
    with pytest.raises(ConfigurationError, match="eos_token_id must be a token id"):
        TextGenerationEnv(**text_task(eos_token_id=eos))
