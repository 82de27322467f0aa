"""TextGenerationEnv by the rules of Gymnasium and stable-baselines3, and against all that can be handed to it."""

from __future__ import annotations

import copy

import gymnasium
import numpy as np
import pytest
import stable_baselines3.common.env_checker
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env

from lm_env.data.prompts import Prompt
from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.errors import (
    ConfigurationError,
    InvalidActionError,
    InvalidPromptError,
    ResetNeeded,
    RewardError,
    RewardValueError,
)
from lm_env.theory.token_mdp import TokenMDP

IDS = ["lm_env/Sentiment-v0", "lm_env/TokenMDP-v0"]


@pytest.fixture
def arguments(model_folder):
    """What `gymnasium.make` is given for an id."""
    sentiment = {"model": model_folder, "prompts": ["a good film", "the end"], "max_new_tokens": 8}
    return {"lm_env/Sentiment-v0": sentiment, "lm_env/TokenMDP-v0": {}}


def state_of(env: TextGenerationEnv) -> dict:
    mdp = env.mdp
    names = ("input_ids", "lengths", "prompt_lengths", "running", "log_ratios", "step_rewards", "scores")
    return {name: getattr(mdp, name).tolist() for name in names}


# --- the rules of others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", IDS)
def test_gymnasium_has_nothing_to_say(name, flat, arguments):
    check_env(gymnasium.make(name, flat=flat, **arguments[name]).unwrapped)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", IDS)
def test_stable_baselines3_has_nothing_to_say(name, flat, arguments):
    env = gymnasium.make(name, flat=flat, **arguments[name]).unwrapped
    stable_baselines3.common.env_checker.check_env(env, warn=True, skip_render_check=False)


@pytest.mark.parametrize("name", IDS)
def test_the_checks_of_gymnasium_make_find_nothing_in_whole_episodes(name, arguments):
    env = gymnasium.make(name, **arguments[name])
    env.action_space.seed(0)
    for episode in range(5):
        observation, _ = env.reset(seed=episode)
        done = False
        while not done:
            assert observation in env.observation_space
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            assert type(reward) is float and type(terminated) is type(truncated) is bool
            done = terminated or truncated
        assert observation in env.observation_space


@pytest.mark.parametrize("name", IDS)
def test_a_spec_survives_copying(name, arguments):
    env = gymnasium.make(name, **arguments[name])
    again = gymnasium.make(copy.deepcopy(env.spec))
    assert again.observation_space == env.observation_space and again.action_space == env.action_space
    a, b = env.reset(seed=3), again.reset(seed=3)
    np.testing.assert_array_equal(a[0]["input_ids"], b[0]["input_ids"])
    assert a[1] == b[1] and env.step(1)[1] == again.step(1)[1]
    assert env.spec.max_episode_steps is None


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines3_makes_a_vector_of_it(name, arguments):
    vector = make_vec_env(name, n_envs=2, seed=0, env_kwargs=arguments[name])  # asks for render_mode="rgb_array"
    vector.reset()
    for _ in range(4):
        observations, rewards, *_ = vector.step(np.array([1, 2]))
    assert observations["input_ids"].shape[0] == 2 and rewards.shape == (2,)
    vector.close()


def test_token_mdp_by_seed_and_by_itself():
    mdp = TokenMDP.random(3, vocab_size=4, horizon=2)
    envs = [
        gymnasium.make("lm_env/TokenMDP-v0", **how)
        for how in ({"mdp": mdp}, {"mdp_seed": 3, "vocab_size": 4, "horizon": 2})
    ]
    for env in envs:
        assert env.action_space.n == 4
    rewards = []
    for env in envs:
        env.reset(seed=0)
        rewards.append([env.step(action)[1] for action in (0, 1)])
    assert rewards[0] == rewards[1] and rewards[0][1] == pytest.approx(-1.0)  # no EOS within two tokens


def test_importing_the_package_brings_in_neither_torch_nor_transformers():
    import subprocess
    import sys

    code = "import lm_env, sys; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- spaces and observations -----------------------------------------------------------------------------------------


def test_the_observation_is_the_text_so_far(id_task):
    env = TextGenerationEnv(**id_task())
    assert env.observation_space["input_ids"].shape == (11,) and env.observation_space["input_ids"].dtype == np.int64
    assert env.action_space.n == 61
    observation, info = env.reset(options={"prompt": [7, 0, 0]})
    assert info == {"prompt": "7 0 0", "prompt_index": -1}
    assert observation["length"].tolist() == [3] and observation["input_ids"][:3].tolist() == [7, 0, 0]
    for n, action in enumerate((5, 6), start=4):
        observation, *_ = env.step(action)
        assert observation["length"].tolist() == [n] and observation["input_ids"][n - 1] == action


def test_flat_is_the_same_with_the_length_first(id_task):
    options = id_task()
    tree, flat = TextGenerationEnv(**options), TextGenerationEnv(flat=True, **options)
    assert flat.observation_space.shape == (12,) and flat.observation_space.dtype == np.int64
    a, b = tree.reset(seed=1)[0], flat.reset(seed=1)[0]
    for action in (5, 9, 60):
        np.testing.assert_array_equal(b, np.concatenate([a["length"], a["input_ids"]]))
        assert b in flat.observation_space
        a, b = tree.step(action)[0], flat.step(action)[0]


def test_observations_are_the_callers_own(id_task):
    env = TextGenerationEnv(**id_task())
    first, _ = env.reset(seed=0)
    kept = copy.deepcopy(first)
    second, *_ = env.step(5)
    np.testing.assert_array_equal(first["input_ids"], kept["input_ids"])
    second["input_ids"][:], second["length"][:] = 0, 1
    third, *_ = env.step(6)
    assert third["length"][0] == kept["length"][0] + 2 and third["input_ids"][0] == kept["input_ids"][0]


def test_the_keys_of_info(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    info = env.step(5)[4]
    kinds = {"score": float, "logprob": float, "ref_logprob": float, "kl": float, "logprob_source": str}
    assert {k: type(v) for k, v in info.items()} == kinds and info["score"] == 0.0
    assert info["kl"] == info["logprob"] - info["ref_logprob"] and info["logprob"] < 0 > info["ref_logprob"]
    _, reward, terminated, _, info = env.step(0)
    assert terminated and reward == pytest.approx(info["score"] - 0.3 * info["kl"], abs=1e-12) and info["score"] > 0


# --- seeds and prompts -----------------------------------------------------------------------------------------------


def prompts_of(env, n: int, seed: int) -> list[int]:
    return [env.reset(seed=seed if i == 0 else None)[1]["prompt_index"] for i in range(n)]


def test_the_seed_alone_decides_the_prompts(id_task):
    options = id_task(prompts=[[i] for i in range(1, 40)])
    a, b = TextGenerationEnv(**options), TextGenerationEnv(**options)
    np.random.seed(0)
    first = prompts_of(a, 12, seed=5)
    np.random.seed(1)
    torch.manual_seed(1)
    a.step(1)
    assert first == prompts_of(b, 12, seed=5) == prompts_of(a, 12, seed=5)
    assert first != prompts_of(b, 12, seed=6) and len(set(first)) > 3


def test_neither_steps_nor_resets_touch_global_random_states(id_task):
    np.random.seed(0)
    torch.manual_seed(0)
    expected = (np.random.rand(), torch.rand(1))
    np.random.seed(0)
    torch.manual_seed(0)
    env = TextGenerationEnv(**id_task())
    env.reset(seed=9)
    env.step(5)
    assert (np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize("prompt", ["a good film", [5, 6], {"prompt": "bad", "answer": "x"}, np.array([7])])
def test_a_prompt_of_ones_own(prompt, text_task, tokenizer):
    env = TextGenerationEnv(**text_task())
    observation, info = env.reset(options={"prompt": prompt})
    ids = (
        prompt
        if not isinstance(prompt, str | dict)
        else tokenizer(prompt if isinstance(prompt, str) else "bad")["input_ids"]
    )
    assert observation["input_ids"][: len(ids)].tolist() == list(ids) and observation["length"][0] == len(ids)
    assert info["prompt_index"] == -1


def test_a_prompt_of_the_pool_keeps_its_index_and_its_columns(text_task):
    shown = []

    def reward(prompts, responses, answer):
        shown.extend(answer)
        return [0.0] * len(responses)

    rows = [{"prompt": "bad", "answer": i} for i in range(3)]
    env = TextGenerationEnv(**text_task(prompts=rows, reward=reward, max_new_tokens=1))
    assert env.reset(options={"prompt": env.task.prompts[2]})[1] == {"prompt": "bad", "prompt_index": 2}
    env.step(9)
    env.reset(options={"prompt": {"prompt": "bad", "answer": "mine"}})
    env.step(9)
    assert shown == [2, "mine"]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        [61 + 400],
        "a good film " * 20,
        5,
        [1.5],
        Prompt(np.arange(1, 40), "long", {}, 0),
        Prompt(np.array([999]), "x", {}, 0),
    ],
)
def test_a_prompt_that_is_none_changes_nothing(prompt, text_task):
    env = TextGenerationEnv(**text_task())
    env.reset(seed=0)
    env.step(9)
    before = state_of(env)
    with pytest.raises(InvalidPromptError):
        env.reset(options={"prompt": prompt})
    assert state_of(env) == before
    env.step(9)


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_a_step_needs_a_reset_first_and_again_after_the_end(id_task):
    env = TextGenerationEnv(**id_task())
    for error in (ResetNeeded, gymnasium.error.ResetNeeded):
        with pytest.raises(error, match="call reset"):
            env.step(5)
    env.reset(seed=0)
    assert env.step(0)[2]
    ended = state_of(env)
    for _ in range(2):
        with pytest.raises(ResetNeeded):
            env.step(5)
    assert state_of(env) == ended
    env.reset()
    env.step(5)


NO_ACTIONS = st.one_of(
    st.integers(max_value=-1),
    st.integers(min_value=61),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(),
    st.binary(),
    st.complex_numbers(),
    st.lists(st.integers(0, 60)),
    st.lists(st.lists(st.integers(0, 60), max_size=2), min_size=1, max_size=3),
)
ODD_ACTIONS = [
    -1,
    61,
    3.7,
    np.nan,
    True,
    None,
    "1",
    b"1",
    [1],
    [1, [2]],
    {"action": 1},
    {1},
    object(),
    2**63,
    2**80,
    -(2**70),
    np.array([1]),
    np.array([1, 2]),
    np.array([[1]]),
    np.array([], int),
    np.float32(1),
    np.bool_(True),
    np.uint64(2**63),
    np.array(None),
    np.array("1"),
    np.datetime64("2020-01-01"),
    np.timedelta64(1, "s"),
    torch.tensor([1]),
    torch.tensor(1.0),
    torch.tensor([1, 2]),
    torch.tensor(True),
]


@pytest.fixture(scope="module")
def running_env(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    env.step(5)
    return env


def refuses(env: TextGenerationEnv, action: object) -> None:
    before = state_of(env)
    with pytest.raises(InvalidActionError):
        env.step(action)
    assert state_of(env) == before


@settings(deadline=None)
@given(NO_ACTIONS)
def test_what_is_no_token_id_is_refused_and_changes_nothing(running_env, action):
    refuses(running_env, action)


@pytest.mark.parametrize("action", ODD_ACTIONS, ids=lambda value: type(value).__name__)
def test_odd_things_are_refused_too(running_env, action):
    refuses(running_env, action)


@pytest.mark.parametrize(
    "action", [5, np.int64(5), np.uint8(5), np.array(5), torch.tensor(5), torch.tensor(5, dtype=torch.int32)]
)
def test_whole_numbers_of_every_kind_are_actions(action, id_task):
    env = TextGenerationEnv(**id_task())
    env.reset(seed=0)
    assert env.step(action)[0]["input_ids"].tolist().count(5) >= 1


def test_a_masked_token_is_refused_and_changes_nothing(id_task):
    env = TextGenerationEnv(**id_task(action_mask=lambda prompt, response: np.arange(61) != 9))
    env.reset(seed=0)
    before = state_of(env)
    with pytest.raises(InvalidActionError, match=r"action 9 .* masked"):
        env.step(9)
    assert state_of(env) == before
    env.step(8)


class Moody:
    """A reward function that fails for a while."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)

    def __call__(self, prompts, responses):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [answer] * len(responses)


@pytest.mark.parametrize("kind", ["gpt2", "table"])
def test_a_reward_that_fails_leaves_everything_and_the_step_can_be_taken_again(kind, id_task):
    reward = Moody(OSError("no connection"), float("nan"), None, 2.0, 2.0)
    env = TextGenerationEnv(**id_task(kind, reward=reward, eos_token_id=(0, 3)))
    env.reset(seed=0)
    _, _, _, _, first = env.step(2)
    before = state_of(env)
    for error in (RewardError, RewardValueError, RewardValueError):
        with pytest.raises(error):
            env.step(3)
        assert state_of(env) == before
    observation, paid, terminated, truncated, info = env.step(3)
    assert terminated and not truncated and info["score"] == 2.0 and first["score"] == 0.0
    smooth = TextGenerationEnv(**id_task(kind, reward=Moody(2.0), eos_token_id=(0, 3)))
    smooth.reset(seed=0)
    smooth.step(2)
    expected = smooth.step(3)
    assert paid == pytest.approx(expected[1], abs=1e-5) and observation["length"] == expected[0]["length"]


def test_after_a_failed_step_another_action_may_be_taken(id_task):
    env = TextGenerationEnv(**id_task(reward=Moody(OSError())))
    env.reset(seed=0)
    with pytest.raises(RewardError):
        env.step(0)
    other = TextGenerationEnv(**id_task())
    other.reset(seed=0)
    for action in (7, 8):
        assert env.step(action)[1] == pytest.approx(other.step(action)[1], abs=1e-5)


@pytest.mark.parametrize("bad", [{"render_mode": "ascii"}, {"render_values": "logprob"}])
def test_unknown_ways_to_render_are_named(bad, id_task):
    for make in (TextGenerationEnv, TextGenerationVectorEnv):
        with pytest.raises(ConfigurationError, match="|".join(map(str, bad.values()))):
            make(**bad, **id_task())


# --- ends ------------------------------------------------------------------------------------------------------------


def run(env: TextGenerationEnv, *actions: int) -> list[tuple[bool, bool]]:
    env.reset(seed=0)
    return [env.step(action)[2:4] for action in actions]


def test_the_cap_terminates_and_with_the_option_truncates(id_task):
    assert run(TextGenerationEnv(**id_task(max_new_tokens=2)), 5, 6) == [(False, False), (True, False)]
    cut = TextGenerationEnv(**id_task(max_new_tokens=2, cap_truncates=True, beta=0.0))
    assert run(cut, 5, 6) == [(False, False), (False, True)]
    cut.reset()
    cut.step(5)
    assert cut.step(6)[1] == 0.0
    assert run(cut, 5, 0) == [(False, False), (True, False)]


# --- rendering -------------------------------------------------------------------------------------------------------


def test_ansi_returns_the_text_and_human_prints_it_at_the_end(text_task, tokenizer, capsys):
    actions = tokenizer(" film")["input_ids"]
    env = TextGenerationEnv(render_mode="ansi", **text_task(max_new_tokens=len(actions)))
    env.reset(options={"prompt": "a good"})
    for action in actions:
        env.step(action)
    assert isinstance(env.render(), str) and "a good" in env.render() and "score" in env.render()
    assert capsys.readouterr().out == ""
    env = TextGenerationEnv(render_mode="human", render_values="reward", **text_task(max_new_tokens=len(actions)))
    env.reset(options={"prompt": "a good"})
    for action in actions[:-1]:
        env.step(action)
    assert capsys.readouterr().out == ""
    env.step(actions[-1])
    assert "a good" in capsys.readouterr().out
    assert env.render() is None and "a good" in capsys.readouterr().out


def test_without_a_mode_nothing_is_rendered(id_task):
    env = TextGenerationEnv(**id_task())
    env.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_before_a_reset_there_is_nothing_to_render(id_task):
    with pytest.raises(ResetNeeded):
        TextGenerationEnv(render_mode="ansi", **id_task()).render()
