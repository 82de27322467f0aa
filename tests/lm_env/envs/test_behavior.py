"""Where log pi comes from: what is published is used once, for the very actions it was published for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lm_env.envs.behavior import Behavior
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import ConfigurationError, LMEnvError, PublishedActionsError
from lm_env.models.logprobs import token_logprobs

ALL = np.arange(3)


def test_what_is_published_comes_back_for_the_slots_that_did():
    behavior = Behavior(3)
    behavior.publish([7, 9], [-0.5, -2.0], slots=[2, 0])
    waiting, logprobs = behavior.published(ALL, np.array([9, 1, 7]))
    assert waiting.tolist() == [True, False, True] and logprobs[[0, 2]].tolist() == [-2.0, -0.5]
    waiting, logprobs = behavior.published(np.array([2]), np.array([7]))
    assert waiting.tolist() == [True] and logprobs.tolist() == [-0.5]
    behavior.clear(np.array([2]))
    assert behavior.published(ALL, np.array([9, 1, 1]))[0].tolist() == [True, False, False]


def test_publishing_again_replaces_what_was_published():
    behavior = Behavior(1)
    behavior.publish(3, -1.0)
    behavior.publish(torch.tensor([4]), torch.tensor([-2.0]))
    waiting, logprobs = behavior.published(np.array([0]), np.array([4]))
    assert waiting.all() and logprobs[0] == -2.0


def test_other_actions_than_the_published_ones_are_refused_and_forgotten():
    behavior = Behavior(3)
    behavior.publish([1, 2, 3], [-1.0, -1.0, -1.0])
    with pytest.raises(PublishedActionsError, match=r"slot 1 .*action 5.*action 2"):
        behavior.published(ALL, np.array([1, 5, 3]))
    assert not behavior.published(ALL, np.array([1, 5, 3]))[0].any()


@pytest.mark.parametrize(
    ("actions", "logprobs", "slots"),
    [
        ([1, 2], [-1.0, -1.0], None),  # three slots
        ([1, 2, 3], [-1.0, -1.0], None),
        ([1], [-1.0], [0, 1]),
        ([1, 2, 3], [-1.0, np.nan, -1.0], None),
        ([1, 2, 3], [-1.0, -np.inf, -1.0], None),
        ([1, 2, 3], [-1.0, 0.5, -1.0], None),
        ([1.0, 2.7, 3.0], [-1.0, -1.0, -1.0], None),
        ([True, False, True], [-1.0, -1.0, -1.0], None),
        ([1], [-1.0], [3]),
        ([1], [-1.0], [-1]),
        ([1], [-1.0], [0.0]),
        ([1], [-1.0], [True]),
    ],
)
def test_what_cannot_be_logprobs_of_actions_is_refused_and_changes_nothing(actions, logprobs, slots):
    behavior = Behavior(3)
    behavior.publish([4], [-0.25], slots=[2])
    with pytest.raises(PublishedActionsError):
        behavior.publish(actions, logprobs, slots)
    waiting, kept = behavior.published(ALL, np.array([0, 0, 4]))
    assert waiting.tolist() == [False, False, True] and kept[2] == -0.25


def test_rounding_above_0_is_0():
    behavior = Behavior(1)
    behavior.publish([1], [1e-7])
    assert behavior.published(np.array([0]), np.array([1]))[1][0] == 0.0


# --- in an environment -----------------------------------------------------------------------------------------------


def test_the_reward_holds_the_published_kl_and_info_says_so(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    env.publish(5, -1.25)
    _, reward, _, _, info = env.step(5)
    assert (info["logprob"], info["logprob_source"]) == (-1.25, "published")
    assert info["kl"] == -1.25 - info["ref_logprob"] and reward == pytest.approx(-0.3 * info["kl"], abs=1e-12)
    assert env.step(5)[4]["logprob_source"] == "model"  # used once


def test_other_actions_than_published_leave_the_environment_unchanged(id_task):
    env = TextGenerationEnv(**id_task())
    before, _ = env.reset(seed=0)
    env.publish(5, -1.25)
    with pytest.raises(PublishedActionsError):
        env.step(6)
    assert env.mdp.lengths[0] == before["length"][0]
    assert env.step(6)[4]["logprob_source"] == "model"


@pytest.mark.parametrize("action", [61, 999, -1])
def test_what_is_no_token_id_cannot_be_published(action, id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    env.publish(5, -1.25)
    with pytest.raises(PublishedActionsError, match=f"action {action} of slot 0 is no token id: 0 to 60 are"):
        env.publish(action, -1.0)
    assert env.step(5)[4]["logprob_source"] == "published"


def test_what_was_published_before_a_reset_is_gone(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    env.publish(5, -1.25)
    env.reset()
    assert env.step(6)[4]["logprob_source"] == "model"


def test_a_published_step_that_fails_can_be_taken_again(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    env.publish(5, -1.25)
    with pytest.raises(LMEnvError):
        env.step(-1)
    assert env.step(5)[4]["logprob"] == -1.25


def test_a_logprob_fn_is_asked_for_those_who_did_not_publish(id_task):
    env = TextGenerationVectorEnv(3, **id_task())
    observation, _ = env.reset(seed=3)
    asked = []

    def scorer(observation, actions):
        asked.append((observation, actions))
        return torch.full((len(actions), 1), -4.0)

    env.bind_logprob_fn(scorer)
    env.publish([9], [-1.0], slots=[1])
    info = env.step(np.array([8, 9, 10]))[4]
    assert info["logprob"].tolist() == [-4.0, -1.0, -4.0]
    assert info["logprob_source"].tolist() == ["logprob_fn", "published", "logprob_fn"]
    ((seen, actions),) = asked
    assert actions.tolist() == [8, 10]
    np.testing.assert_array_equal(seen["input_ids"], observation["input_ids"][[0, 2]])
    np.testing.assert_array_equal(seen["length"], observation["length"][[0, 2]])
    seen["input_ids"][:] = 0  # its own copy
    assert (env.mdp.input_ids[:, 0] != 0).all()
    env.bind_logprob_fn(None)
    assert set(env.step(np.array([8, 9, 10]))[4]["logprob_source"]) == {"model"}


@pytest.mark.parametrize("value", [[np.nan], [0.1], [-1.0, -1.0], [], -np.inf])
def test_a_logprob_fn_that_gives_no_logprobs_is_refused_and_nothing_moves(value, id_task):
    env = TextGenerationEnv(**id_task())
    before, _ = env.reset(seed=0)
    env.bind_logprob_fn(lambda observation, actions: value)
    with pytest.raises(ConfigurationError, match="logprob_fn must return 1"):
        env.step(5)
    assert env.mdp.lengths[0] == before["length"][0]


def test_the_models_own_logprob_is_that_of_a_full_forward(id_task):
    options = id_task(temperature=0.7)
    env = TextGenerationEnv(**options)
    env.reset(options={"prompt": [4, 5, 6]})
    env.step(11)
    info = env.step(12)[4]
    with torch.no_grad():
        logits = [options[m](input_ids=torch.tensor([[4, 5, 6, 11]])).logits[0, -1] for m in ("model", "reference")]
    expected = [token_logprobs(row, torch.tensor(12), 0.7).item() for row in logits]
    np.testing.assert_allclose([info["logprob"], info["ref_logprob"]], expected, atol=1e-5)
    assert info["logprob_source"] == "model"
