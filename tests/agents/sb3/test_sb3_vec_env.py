"""TextVecEnv steps as the Gymnasium vector environment does, through the interface of stable-baselines3."""

from __future__ import annotations

import numpy as np
import pytest
from sb3_helpers import PROMPTS, Recorder, V, make_agent, text_options
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from agents.sb3 import TextVecEnv
from lm_env import AdaptiveKL, Task, TextGenerationVectorEnv
from lm_env.errors import ConfigurationError, InvalidActionError, InvalidPromptError, PublishedActionsError, ResetNeeded


@pytest.fixture
def options(make_lm):
    return text_options(make_lm)


def test_steps_like_the_gymnasium_vector(options):
    ours = TextVecEnv(3, **options)
    theirs = TextGenerationVectorEnv(3, autoreset_mode="SameStep", **options)
    ours.seed(5)
    a, (b, _) = ours.reset(), theirs.reset(seed=5)
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(40):
        np.testing.assert_array_equal(a["input_ids"], b["input_ids"])
        np.testing.assert_array_equal(a["length"], b["length"])
        actions = rng.integers(0, V, 3)
        a, rewards, dones, infos = ours.step(actions)
        b, wanted, terminated, truncated, info = theirs.step(actions)
        assert rewards.dtype == np.float32 and dones.dtype == np.bool_
        np.testing.assert_allclose(rewards, wanted, atol=1e-6)
        np.testing.assert_array_equal(dones, terminated | truncated)
        for slot in np.flatnonzero(dones):
            ends += 1
            last = infos[slot]["terminal_observation"]
            np.testing.assert_array_equal(last["input_ids"], info["final_obs"][slot]["input_ids"])
            assert last["length"] == info["final_obs"][slot]["length"]
            assert infos[slot]["TimeLimit.truncated"] is False
            assert type(infos[slot]["score"]) is float
        for slot in np.flatnonzero(~dones):
            assert "terminal_observation" not in infos[slot]
    assert ends > 5


def test_truncation_is_reported_and_pays_no_score(options):
    env = TextVecEnv(2, **{**options, "cap_truncates": True, "eos_token_id": (), "beta": 0.0})
    env.reset()
    for step in range(6):
        _, rewards, dones, infos = env.step(np.array([5, 6]))
        assert not rewards.any()
        assert [i["TimeLimit.truncated"] for i in infos] == [step == 5] * 2
    assert dones.all()


def test_seeds_and_prompts_at_reset(options):
    env = TextVecEnv(4, **options)
    env.seed(3)
    first = env.reset()["input_ids"]
    assert [info["prompt_index"] for info in env.reset_infos] == [PROMPTS.index(r[r != 0].tolist()) for r in first]
    later = [env.reset()["input_ids"].tolist() for _ in range(8)]
    assert any(ids != first.tolist() for ids in later)  # a seed is used once
    env.seed(3)
    np.testing.assert_array_equal(env.reset()["input_ids"], first)
    env.set_options({"prompt": [30, 31]})
    np.testing.assert_array_equal(env.reset()["input_ids"][:, :3], [[30, 31, 0]] * 4)


def test_attributes_and_methods_by_slot(options):
    mask = np.arange(V) % 2 == 0
    env = TextVecEnv(3, **options, action_mask=lambda prompt, response: mask if len(response) else ~mask)
    env.reset()
    env.step(np.array([5, 7, 9]))
    assert env.get_attr("response", [0, 2]) == [[5], [9]]
    assert env.get_attr("task") == [env.task] * 3
    masks = env.env_method("action_masks")
    assert len(masks) == 3 and all(m.dtype == np.bool_ and (m == mask).all() for m in masks)
    env.set_attr("note", "x", indices=1)
    assert env.get_attr("note", 1) == ["x"]
    assert not env.has_attr("note") and env.has_attr("action_masks")
    assert "5" in env.env_method("render", indices=0)[0]
    assert env.env_is_wrapped(VecMonitor) == [False] * 3


def test_made_from_an_environment_a_task_or_an_id(options):
    vector = TextGenerationVectorEnv(5, **options)
    env = TextVecEnv.from_env(vector)
    assert env.task is vector.task and env.num_envs == 5
    again = TextVecEnv.from_env(VecMonitor(env))
    assert again.task is vector.task and again.num_envs == 5
    assert TextVecEnv.from_env(Task(**{**options}), 2).num_envs == 2
    assert TextVecEnv.from_env("lm_env/TokenMDP-v0", 3, beta=2.0).task.kl.beta == 2.0
    with pytest.raises(ConfigurationError, match="cannot be changed"):
        TextVecEnv.from_env(vector, beta=1.0)
    with pytest.raises(ConfigurationError, match="text environment"):
        TextVecEnv.from_env(object())


def test_the_kl_controller_gets_the_mean_kl_of_finished_episodes(options):
    updates = []

    class Controller(AdaptiveKL):
        def update(self, kl, episodes):
            updates.append((kl, episodes))

    env = TextVecEnv(4, **{**options, "beta": Controller()}, kl_update_episodes=8)
    agent = make_agent(PPO, env, n_steps=12, n_epochs=1, batch_size=16)
    recorder = Recorder()
    agent.learn(200, recorder)
    kls = []
    running = np.zeros(4)
    for step in recorder.steps:
        running += [i["kl"] for i in step["infos"]]
        for slot in np.flatnonzero(step["dones"]):
            kls.append(running[slot])
            running[slot] = 0
    assert sum(n for _, n in updates) >= 16 and all(n >= 8 for _, n in updates)
    assert updates[0][0] == pytest.approx(np.mean(kls[: updates[0][1]]), abs=1e-6)
    quiet = TextVecEnv(4, **{**options, "beta": Controller()}, kl_update_episodes=None)
    count = len(updates)
    quiet.reset()
    for _ in range(60):
        quiet.step(np.zeros(4, dtype=int))
    assert len(updates) == count


def test_vec_monitor_reports_episodes(options):
    env = TextVecEnv(4, **options)
    agent = make_agent(PPO, VecMonitor(env, info_keywords=("score",)), n_steps=16, n_epochs=1, batch_size=32)
    recorder = Recorder()
    agent.learn(64, recorder)
    episodes, rewards, _ = recorder.episodes(env.task)
    assert len(episodes) > 4
    reported = sorted(info["r"] for info in agent.ep_info_buffer)
    np.testing.assert_allclose(reported, sorted(map(sum, rewards)), atol=1e-5)
    assert {info["l"] for info in agent.ep_info_buffer} == set(map(len, rewards))


# -- wrong input --------------------------------------------------------------------------------------
def state_of(env):
    """Everything that a step changes."""
    mdp = env.mdp
    return [mdp.input_ids.tolist(), mdp.lengths.tolist(), mdp.running.tolist(), mdp.scores.tolist()]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([1.0, 2.0, 3.0], "whole token ids"),
        ([5, 6], "3 whole token ids"),
        ([[5], [6], [7]], "3 whole token ids"),
        (["a", "b", "c"], "whole token ids"),
        (None, "whole token ids"),
        ([5, 6, V], f"{V} of slot 2 is no token id"),
        ([5, -1, 6], "-1 of slot 1 is no token id"),
        ([5, 6, 8], "8 of slot 2 is masked"),
    ],
)
def test_actions_that_are_not_allowed_tokens_change_nothing(options, actions, message):
    env = TextVecEnv(3, **options, action_mask=lambda prompt, response: np.arange(V) != 8)
    env.reset()
    env.step(np.array([9, 10, 11]))
    before = state_of(env)
    with pytest.raises(InvalidActionError, match=message):
        env.step(actions if actions is None else np.array(actions))
    assert state_of(env) == before
    env.step(np.array([9, 10, 11]))


def test_a_step_needs_a_reset_and_actions(options):
    env = TextVecEnv(2, **options)
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step(np.array([5, 6]))
    env.reset()
    with pytest.raises(InvalidActionError, match="not None"):
        env.step_wait()


def test_published_actions_must_be_the_ones_taken(options):
    env = TextVecEnv(2, **options)
    env.reset()
    env.publish([5, 6], [-1.0, -2.0])
    with pytest.raises(PublishedActionsError):
        env.step(np.array([5, 7]))
    env.publish([5, 6], [-1.0, -2.0])
    _, _, _, infos = env.step(np.array([5, 6]))
    assert [info["logprob"] for info in infos] == [-1.0, -2.0]


@pytest.mark.parametrize("seed", [1.5, "3", -1, True])
def test_a_seed_must_be_an_integer(options, seed):
    with pytest.raises(ConfigurationError, match="seed must be an integer of at least 0"):
        TextVecEnv(2, **options).seed(seed)


def test_seeds_count_up_from_the_given_one(options):
    env = TextVecEnv(3, **options)
    assert env.seed(np.int64(4)) == [4, 5, 6]
    drawn = env.seed()
    assert drawn == list(range(drawn[0], drawn[0] + 3))


@pytest.mark.parametrize(
    ("reset_options", "error", "message"),
    [
        ({"promt": [3]}, ConfigurationError, "'promt'"),
        ([{"prompt": [3]}], ConfigurationError, "1 options for 2 environments"),
        (["prompt", {}], ConfigurationError, "not 'prompt'"),
        ({"prompt": []}, InvalidPromptError, "empty"),
        ([{"prompt": [30]}, {"prompt": [V]}], InvalidPromptError, str(V)),
    ],
)
def test_wrong_reset_options_are_refused_when_they_are_set(options, reset_options, error, message):
    env = TextVecEnv(2, **options)
    env.reset()
    env.set_options({"prompt": [40, 41]})
    before = state_of(env)
    with pytest.raises(error, match=message):
        env.set_options(reset_options)
    assert state_of(env) == before
    np.testing.assert_array_equal(env.reset()["input_ids"][:, :3], [[40, 41, 0]] * 2)


def test_a_prompt_for_some_slots_and_none_for_others(options):
    env = TextVecEnv(2, **options)
    env.set_options([{"prompt": [30, 31]}, {}])
    first = env.reset()["input_ids"]
    assert first[0, :3].tolist() == [30, 31, 0]
    assert env.reset_infos[0]["prompt_index"] == -1 and env.reset_infos[1]["prompt_index"] in range(len(PROMPTS))
    env.set_options(None)
    env.reset()
    assert all(info["prompt_index"] >= 0 for info in env.reset_infos)


def test_unknown_attributes_and_methods_are_named(options):
    """As AttributeError, which stable-baselines3 relies on."""
    env = TextVecEnv(2, **options)
    with pytest.raises(AttributeError, match=r"no 'missing'.*prompt, response"):
        env.get_attr("missing")
    with pytest.raises(AttributeError, match=r"no 'close'.*action_masks and render"):
        env.env_method("close")
    with pytest.raises(AttributeError, match="task of a TextVecEnv cannot be set"):
        env.set_attr("task", None)
    assert not env.has_attr("missing")


def test_kl_update_episodes_is_an_integer_or_none(options):
    for wrong in (0, 1.5):
        with pytest.raises(ConfigurationError, match="kl_update_episodes"):
            TextVecEnv(2, **options, kl_update_episodes=wrong)
