"""What has the wrong type, or cannot be an option: a clear error of this package, and nothing has changed."""

from __future__ import annotations

import dataclasses
import inspect
import json

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agents
from agents import PPO, BestOfN
from lm_env import Causal, TextGenerationEnv, TextGenerationVectorEnv
from lm_env.data.prompts import load_prompts
from lm_env.errors import (
    CheckpointCorruptError,
    ConfigurationError,
    InvalidPromptError,
    LMEnvError,
    UnsafeFileError,
)
from lm_env.storage import write_folder
from lm_env.validation import check_field_types

T0 = "lm_env/TokenMDP-v0"
SMALL = {"rollout_episodes": 4, "slots": 4, "batch_size": 4}
HUGE = 10**400


@pytest.fixture(scope="module")
def env():
    return gymnasium.make(T0)


@pytest.fixture(scope="module")
def agent(env):
    return PPO(env, **SMALL)


# -- environments ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"beeta": 1}, "no option 'beeta'; did you mean 'beta'"),
        ({"zzz": 1}, "no option 'zzz': it has .*max_new_tokens"),
        ({"cap_truncates": "x"}, "cap_truncates must be True or False"),
        ({"action_mask": 3}, "action_mask must be a function"),
        ({"flat": "x"}, "flat must be True or False"),
        ({"tokenizer": 3}, "the tokenizer is of type int, and it has no"),
        ({"stop_strings": 3}, "stop_strings must be a string or a list of strings"),
        ({"add_special_tokens": 1}, "add_special_tokens must be True or False"),
        ({"prompt_column": 3}, "prompt_column must be the name of a column"),
        ({"download": "x"}, "download must be True or False"),
        ({"temperature": HUGE}, "temperature must be a finite number above 0"),
        ({"beta": HUGE}, "beta must be a finite number"),
        ({"max_new_tokens": HUGE}, r"max_new_tokens must be an integer of at least 1 and below 2\*\*62"),
        ({"reward": 3}, "reward must be a function"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_of_environments(option, words):
    for make in (gymnasium.make, gymnasium.make_vec):
        with pytest.raises(ConfigurationError, match=words) as caught:
            make(T0, **option)
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize("missing", ["model", "prompts", "reward"])
def test_an_environment_without_what_it_needs(missing, id_task):
    options = id_task()
    del options[missing]
    for make in (TextGenerationEnv, TextGenerationVectorEnv):
        with pytest.raises(ConfigurationError, match=f"needs a {missing}: pass {missing}="):
            make(**options)


@pytest.mark.parametrize("reward", [3, None, "text"])
def test_causal_wraps_functions(reward):
    with pytest.raises(ConfigurationError, match="Causal wraps a reward function"):
        Causal(reward)


def test_a_ragged_reset_mask():
    env = gymnasium.make_vec(T0, num_envs=2)
    env.reset(seed=0)
    before = env.observation()["input_ids"].tolist()
    for mask in ([[True], [True, False]], "x", 3, [1, 0], [True]):
        with pytest.raises(ConfigurationError, match="reset_mask must be a bool array"):
            env.reset(options={"reset_mask": mask})
    assert env.observation()["input_ids"].tolist() == before


def test_overflow_is_an_option_of_the_environment_as_the_error_says(text_task):
    long = "a good film and the end of a bad film " * 3
    given = {"prompts": ["bad", long], "max_prompt_tokens": 8}
    with pytest.raises(InvalidPromptError, match="pass overflow='truncate'"):
        TextGenerationEnv(**text_task(**given))
    task = TextGenerationEnv(**text_task(**given, overflow="truncate")).task
    assert len(task.prompts[1].ids) == 8
    strict = TextGenerationEnv(**text_task(prompts=["bad"], max_prompt_tokens=8))
    with pytest.raises(InvalidPromptError, match=r"make the environment with .*overflow='truncate'"):
        strict.reset(options={"prompt": long})
    loose = TextGenerationEnv(**text_task(prompts=["bad"], max_prompt_tokens=8, overflow="truncate"))
    assert loose.reset(options={"prompt": long})[0]["length"] == 8


def test_the_remedy_of_a_task_is_no_argument_of_load_prompts():
    assert "too_long" not in inspect.signature(load_prompts).parameters


def test_a_time_limit_is_noticed_where_it_cuts_texts():
    env = gymnasium.make(T0, max_episode_steps=1)
    with pytest.warns(UserWarning, match=r"max_episode_steps=1 .*cuts .*max_new_tokens=1") as caught:
        env.reset(seed=0)
    assert caught[0].filename == __file__ and len(caught) == 1
    env.reset(seed=1)  # said once
    *_, truncated, info = env.step(1)
    assert truncated and info["score"] == 0
    gymnasium.make(T0, max_episode_steps=3).reset()  # as long as the texts: nothing is cut


# -- agents ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "observation",
    [
        None,
        "x",
        3,
        {},
        {"input_ids": [0, 1]},
        {"input_ids": [0, 1], "length": [9]},
        {"input_ids": [0, 1], "length": [0]},
        {"input_ids": [0, 99], "length": [2]},
        {"input_ids": [0.5, 1], "length": [2]},
        {"input_ids": [[0, 1], [0]], "length": [[1], [1]]},
        {"input_ids": [[0, 1], [0, 1]], "length": [1]},
        {"input_ids": [], "length": []},
        [1],
        [[[1, 2]]],
        [None, 1],
    ],
    ids=str,
)
def test_what_is_no_observation(agent, observation):
    with pytest.raises(ConfigurationError, match="observation"):
        agent.predict(observation)


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.integers(-9, 9) | st.text(max_size=2) | st.floats(), st.lists, max_leaves=6))
def test_whatever_is_given_it_is_answered_or_refused(agent, observation):
    try:
        action, _ = agent.predict(observation)
    except ConfigurationError:
        return
    assert ((np.asarray(action) >= 0) & (np.asarray(action) < 4)).all()


def test_padding_is_nobodys_business(agent, env):
    observation, _ = env.reset(seed=0)
    padded = dict(observation, input_ids=np.where(np.arange(4) < observation["length"], observation["input_ids"], -1))
    first, second = (agent.predict(o, deterministic=True)[0] for o in (observation, padded))
    assert first == second


@pytest.mark.parametrize("masks", [[True], "x", np.ones(4), np.zeros(4, bool), np.ones((3, 4), bool)], ids=str)
def test_masks_that_do_not_fit(agent, env, masks):
    with pytest.raises(ConfigurationError, match="action_masks must be bool"):
        agent.predict(env.reset()[0], action_masks=masks)


@pytest.mark.parametrize(
    "option",
    [
        {"bf16": "x"},
        {"ema_decay": "x"},
        {"ema_decay": 2.0},
        {"clip_range": HUGE},
        {"clip_range": 10**30},
        {"clip_range_vf": "x"},
        {"gradient_checkpointing": 1},
        {"normalize_advantage": None},
        {"lr_schedule": ["linear"]},
        {"learning_rate": True},
        {"micro_batch_tokens": HUGE},
        {"n_epochs": 2.0},
    ],
    ids=str,
)
def test_options_of_agents(env, option):
    with pytest.raises(ConfigurationError, match=next(iter(option))) as caught:
        PPO(env, **SMALL, **option)
    assert len(str(caught.value)) < 300


CONFIGS = [value for name, value in vars(agents).items() if name.endswith("Config")]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_no_option_of_any_config_takes_a_thing_of_no_type_that_it_has(config):
    """Each field by itself, through the constructor; what is right stays right."""
    config()
    for field in dataclasses.fields(config):
        for value in (object(), b"x", [1], {"a": 1}, 1j):
            with pytest.raises(ConfigurationError, match=field.name):
                config(**{field.name: value})


def test_types_that_are_not_looked_at_and_those_that_are():
    @dataclasses.dataclass
    class Config:
        anything: list[int] | None = None
        number: float = 1
        several: int | str | None = None

    for good in (Config(), Config(anything="x"), Config(number=np.float32(2)), Config(several="a"), Config(several=3)):
        check_field_types(good)
    for bad, words in (
        (Config(number=True), "number must be a number"),
        (Config(several=2.5), "an integer or text or"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            check_field_types(bad)


def test_best_of_n_looks_at_its_options_too(env):
    with pytest.raises(ConfigurationError, match="slots must be an integer"):
        BestOfN(env, slots="x")


# -- files -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", [3, None, b"x", "", ["x"]], ids=str)
def test_what_is_no_path(agent, env, path):
    for call in (agent.save, lambda p: PPO.load(p, env)):
        with pytest.raises(ConfigurationError, match="the path must be a path"):
            call(path)


def test_merge_is_a_flag(agent, tmp_path):
    with pytest.raises(ConfigurationError, match="merge must be True or False"):
        agent.save(tmp_path / "a", merge="yes")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": -1}, "its format is -1"),
        ({"format": 0}, "its format is 0"),
        ({"format": True}, "its format is True"),
        ({"format": "1"}, "its format is '1'"),
        ({"config": {"bf16": "x"}}, "bf16 must be True or False"),
        ({"config": {"ema_decay": "x"}}, "ema_decay must be"),
        ({"config": {"rollout_episodes": 1e30}}, "rollout_episodes must be an integer"),
        ({"config": {"lr_schedule": None}}, "lr_schedule must be"),
    ],
    ids=str,
)
def test_a_saved_option_of_the_wrong_type_is_refused_before_anything_changes(agent, env, tmp_path, changes, words):
    agent.save(tmp_path / "agent")
    state = json.loads((tmp_path / "agent" / "agent" / "state.json").read_text())
    for name, value in changes.items():
        state[name] = {**state[name], **value} if isinstance(value, dict) else value

    def fill(folder):
        (folder / "agent").mkdir()
        for name in ("policy.safetensors", "optimizer.safetensors"):
            (folder / "agent" / name).write_bytes((tmp_path / "agent" / "agent" / name).read_bytes())
        (folder / "agent" / "state.json").write_text(json.dumps(state))

    write_folder(tmp_path / "edited", fill)
    before = {name: value.clone() for name, value in env.unwrapped.task.model.state_dict().items()}
    with pytest.raises(CheckpointCorruptError, match=words):
        PPO.load(tmp_path / "edited", env)
    assert all((before[name] == value).all() for name, value in env.unwrapped.task.model.state_dict().items())


def test_a_path_that_ends_in_zip_names_the_folder_everywhere(agent, env, tmp_path):
    assert agent.save(tmp_path / "policy.zip") == tmp_path / "policy"
    for path in ("policy.zip", "policy"):
        assert PPO.load(tmp_path / path, env).config == agent.config
    (tmp_path / "theirs.zip").write_bytes(b"PK")
    with pytest.raises(UnsafeFileError, match="is a file, such as stable-baselines3's own save"):
        PPO.load(tmp_path / "theirs.zip", env)
    with pytest.raises(LMEnvError):
        PPO.load(tmp_path / "absent.zip", env)
