"""What is saved loads again, in transformers too, and nothing is unpickled."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from saved_folders import edit_json, files_of, flip
from sb3_helpers import length_reward, make_agent, rollout, text_options
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from transformers import AutoModelForCausalLM

import agents.sb3
from agents.sb3 import EpisodeRolloutBuffer, TextVecEnv
from lm_env.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    ConfigurationError,
    NonFiniteError,
    UnsafeFileError,
)
from lm_env.objective.kl import AdaptiveKL


@pytest.fixture
def options(make_lm):
    return text_options(make_lm)


@pytest.fixture(scope="module")
def saved_once(make_lm, text_lm, tokenizer, tmp_path_factory):
    """(agent after an update, the folder it is saved in, options of its environment)."""
    options = text_options(make_lm) | {
        "model": text_lm(),
        "reference": text_lm(seed=1),
        "tokenizer": tokenizer,
        "prompts": ["a good", "the end"],
        "eos_token_id": None,
    }
    env = TextVecEnv(2, **options)
    agent = make_agent(
        PPO,
        env,
        n_epochs=2,
        batch_size=10,
        learning_rate=LinearSchedule(0.01, 0.0, 0.5),
        clip_range=0.17,
        gae_lambda=0.9,
        policy_kwargs={"critic": "separate", "optimizer_kwargs": {"eps": 1e-6}},
    ).learn(40)
    return agent, agents.sb3.save(agent, tmp_path_factory.mktemp("saved") / "agent"), options


@pytest.fixture
def saved(saved_once, text_lm, tmp_path):
    """The same, with a folder and a model of one's own to change."""
    agent, folder, options = saved_once
    return agent, shutil.copytree(folder, tmp_path / "agent"), {**options, "model": text_lm(seed=5)}


def test_a_weight_that_is_nan_is_not_saved(options, tmp_path):
    agent = make_agent(PPO, TextVecEnv(2, **options))
    with torch.no_grad():
        next(agent.policy.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite weights, so nothing was saved"):
        agents.sb3.save(agent, tmp_path / "agent")
    assert os.listdir(tmp_path) == []


def test_save_and_load(saved):
    agent, folder, options = saved
    env = TextVecEnv(2, **options)
    again = agents.sb3.load(PPO, folder, env)
    for (name, a), b in zip(agent.policy.state_dict().items(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert again.policy.network.lm is env.task.model
    assert again.num_timesteps == 40 and again._n_updates == 4 and type(again.rollout_buffer) is EpisodeRolloutBuffer
    for name in ("gamma", "gae_lambda", "n_steps", "batch_size", "n_epochs", "ent_coef"):
        assert getattr(again, name) == getattr(agent, name), name
    assert again.clip_range(1.0) == 0.17 and again.lr_schedule(0.75) == pytest.approx(0.005)
    assert again.policy.optimizer.param_groups[0]["eps"] == 1e-6
    moments = (a.policy.optimizer.state_dict()["state"] for a in (agent, again))
    for (index, a), (other, b) in zip(*(sorted(m.items()) for m in moments), strict=True):
        assert index == other and all(torch.equal(a[k], b[k]) for k in a)
    ids = {"input_ids": np.arange(8).reshape(1, 8), "length": np.array([[5]])}
    observation = {k: np.resize(v, (1, *env.observation_space[k].shape)) for k, v in ids.items()}
    assert agent.predict(observation, deterministic=True)[0] == again.predict(observation, deterministic=True)[0]
    again.set_logger(configure(None, []))
    again.learn(20, reset_num_timesteps=False)


def test_transformers_loads_what_is_saved(saved):
    agent, folder, _ = saved
    model = AutoModelForCausalLM.from_pretrained(folder)
    for (name, a), b in zip(model.state_dict().items(), agent.policy.network.lm.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    kinds = {p.suffix for p in folder.rglob("*") if p.is_file()}
    assert kinds <= {".json", ".safetensors", ".jinja", ".txt"}


def test_load_refuses_pickles_damage_and_other_agents(saved, tmp_path):
    agent, folder, options = saved
    env = TextVecEnv(2, **options)
    with pytest.raises(CheckpointMismatchError, match="holds a PPO"):
        agents.sb3.load(A2C, folder, env)
    agent.save(tmp_path / "theirs.zip", exclude=["observation_space", "policy_kwargs"])
    with pytest.raises(UnsafeFileError, match="unpickled"):
        agents.sb3.load(PPO, tmp_path / "theirs.zip", env)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointCorruptError):
        agents.sb3.load(PPO, tmp_path / "bin", env)
    state = folder / "agent" / "state.json"
    state.write_text(state.read_text().replace("0.17", "0.18"))
    with pytest.raises(CheckpointCorruptError, match="damaged"):
        agents.sb3.load(PPO, folder, env)


def test_table_models_and_a2c_are_saved_too(tmp_path):
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", 4)
    agent = make_agent(A2C, env, n_steps=5, buffer=None).learn(20)
    folder = agents.sb3.save(agent, tmp_path / "a2c")
    state = json.loads((folder / "agent" / "state.json").read_text())
    assert state["optimizer_class"] == "RMSprop" and state["buffer"] == "DictRolloutBuffer"
    again = agents.sb3.load(A2C, folder, TextVecEnv.from_env("lm_env/TokenMDP-v0", 4))
    assert torch.equal(again.policy.network.lm.table, agent.policy.network.lm.table)
    assert isinstance(again.policy.optimizer, torch.optim.RMSprop)


def test_what_json_cannot_hold_is_said(options, tmp_path):
    agent = make_agent(PPO, TextVecEnv(2, **options), learning_rate=lambda left: 0.1 * left)
    with pytest.raises(ConfigurationError, match="learning_rate is a function"):
        agents.sb3.save(agent, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_zip_of_sb3_works_for_those_who_ask(options, tmp_path, make_lm):
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, env, n_epochs=1).learn(20)
    agent.save(tmp_path / "theirs.zip")
    other = TextVecEnv(2, **{**options, "model": make_lm("gpt2", seed=4)})
    again = PPO.load(tmp_path / "theirs.zip", env=other, observation_space=other.observation_space)
    assert torch.equal(again.policy.network.lm.lm_head.weight, agent.policy.network.lm.lm_head.weight)
    assert again.policy.network.lm is other.task.model
    again.set_logger(configure(None, []))
    again.learn(20)


def test_lora_trains_adapters_alone_and_is_saved(options, make_lm, tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(seed=0):
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=True)
        return peft.get_peft_model(make_lm("gpt2", seed), config)

    env = TextVecEnv(2, **{**options, "model": adapted()})
    agent = make_agent(PPO, env, n_epochs=2, learning_rate=0.01)
    base = env.task.model.transformer.wte.weight.clone()
    buffer = rollout(agent)
    sample = next(buffer.get(None))
    _, logprobs, _ = agent.policy.evaluate_actions(sample.observations, sample.actions.flatten())
    torch.testing.assert_close(logprobs, sample.old_log_prob, atol=1e-5, rtol=0)
    agent.train()
    assert torch.equal(env.task.model.transformer.wte.weight, base)
    trained_names = {n for n, p in agent.policy.named_parameters() if p.requires_grad}
    assert all("lora" in n or "value_head" in n for n in trained_names) and len(trained_names) == 6
    folder = agents.sb3.save(agent, tmp_path / "lora")
    again = agents.sb3.load(PPO, folder, TextVecEnv(2, **{**options, "model": adapted(seed=3)}))
    ids = torch.arange(6)[None]
    with torch.no_grad():
        wanted = env.task.model(input_ids=ids).logits
        torch.testing.assert_close(again.policy.network.lm(input_ids=ids).logits, wanted)
        whole = agents.sb3.save(agent, tmp_path / "whole", merge=True)
        merged = AutoModelForCausalLM.from_pretrained(whole)
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-4)


# -- damage and wrong edits -----------------------------------------------------------------------------
STATE = "agent/state.json"


def assert_refused(folder, options, error, match=None):
    """Loading raises, and the environment's model is as it was."""
    env = TextVecEnv(2, **options)
    before = {k: v.clone() for k, v in env.task.model.state_dict().items()}
    with pytest.raises(error, match=match):
        agents.sb3.load(PPO, folder, env)
    assert all(torch.equal(v, before[k]) for k, v in env.task.model.state_dict().items())


def test_one_flipped_bit_in_any_file_is_refused(saved):
    _, folder, options = saved
    for name in files_of(folder):
        content = (folder / name).read_bytes()
        flip(folder / name, len(content) // 2)
        assert_refused(folder, options, CheckpointCorruptError)
        (folder / name).write_bytes(content)
    agents.sb3.load(PPO, folder, TextVecEnv(2, **options))


def test_a_place_to_write_is_not_taken_from_the_file(saved, tmp_path):
    """An archive from elsewhere names a folder for TensorBoard; nothing is written there."""
    _, folder, options = saved
    target = tmp_path / "outside"
    more = {"tensorboard_log": str(target), "monitor_wrapper": True, "verbose": 1, "device": "cuda:7"}
    edit_json(folder, STATE, lambda state: {**state, "arguments": {**state["arguments"], **more}})
    agent = agents.sb3.load(PPO, folder, TextVecEnv(2, **options))
    assert agent.tensorboard_log is None and agent.verbose == 0
    agent.set_logger(configure(None, []))
    agent.learn(20)
    assert not target.exists() and sorted(os.listdir(tmp_path)) == ["agent"]


WRONG_ARGUMENTS = {
    "callback": "x",
    "batch_size": "10",
    "n_steps": 0,
    "n_epochs": 1.5,
    "gamma": {"linear": [1, 2, 3]},
    "learning_rate": {"linear": [1, 2]},
    "clip_range": {"linear": [1, "2", 0.5]},
    "normalize_advantage": "yes",
    "ent_coef": None,
    "seed": "0",
    "target_kl": [1],
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused(saved, name):
    _, folder, options = saved
    edit_json(folder, STATE, lambda state: {**state, "arguments": {**state["arguments"], name: WRONG_ARGUMENTS[name]}})
    assert_refused(folder, options, CheckpointError)


@pytest.mark.parametrize(
    "more",
    [
        {"model": "x"},
        {"critic": 3},
        {"critic": "elsewhere"},
        {"temperature": "hot"},
        {"temperature": -1},
        {"optimizer_kwargs": [1]},
        {"optimizer_kwargs": {"nonsense": 1}},
        {"optimizer_kwargs": {"eps": {"a": 1}}},
        {"observation_space": None},
    ],
    ids=str,
)
def test_wrong_arguments_of_the_policy_are_refused(saved, more):
    _, folder, options = saved
    edit_json(folder, STATE, lambda state: {**state, "policy_kwargs": {**state["policy_kwargs"], **more}})
    assert_refused(folder, options, CheckpointError)


FIELDS = (
    "version",
    "agent",
    "policy",
    "buffer",
    "arguments",
    "policy_kwargs",
    "optimizer_class",
    "fingerprint",
    "num_timesteps",
    "n_updates",
    "kl",
    "optimizer",
)
WRONG = (None, 0, -1, "x", [], {}, {"param_groups": 3}, {"param_groups": [{"params": [0]}]}, True)


@pytest.mark.parametrize("field", FIELDS)
def test_any_field_of_the_state_wrongly_edited_is_refused(saved, field):
    """Missing, or of another kind, with right checksums."""
    _, folder, options = saved
    before = json.loads((folder / STATE).read_text())
    assert before.keys() == set(FIELDS)
    edit_json(folder, STATE, lambda state: {k: v for k, v in state.items() if k != field})
    assert_refused(folder, options, CheckpointError)
    for value in WRONG:
        if (field, value) in (("num_timesteps", 0), ("n_updates", 0), ("arguments", {}), ("policy_kwargs", {})):
            continue  # these are right
        edit_json(folder, STATE, lambda state: {**before, field: value})  # noqa: B023
        assert_refused(folder, options, CheckpointError)


@pytest.mark.parametrize("edit", [{"lr": "x"}, {"betas": [0.9]}, {"params": [0, 1]}, {"surprise": 1}, {"eps": None}])
def test_a_wrongly_edited_optimizer_is_refused(saved, edit):
    _, folder, options = saved

    def change(state):
        state["optimizer"]["param_groups"][0].update(edit)
        return state

    edit_json(folder, STATE, change)
    assert_refused(folder, options, CheckpointError)


def test_a_later_version_is_named(saved):
    _, folder, options = saved
    edit_json(folder, STATE, lambda state: {"version": 2})
    assert_refused(folder, options, CheckpointMismatchError, "version 2 of the format")


# -- another environment -----------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [{"n_head": 2}, {"activation_function": "relu"}, {"n_layer": 1}], ids=str)
def test_a_model_that_computes_something_else_is_refused(saved, text_lm, change):
    _, folder, options = saved
    assert_refused(folder, {**options, "model": text_lm(**change)}, CheckpointMismatchError, next(iter(change)))


def test_another_kl_controller_is_refused(saved):
    _, folder, options = saved
    assert_refused(folder, {**options, "beta": AdaptiveKL()}, CheckpointMismatchError, "KL controller")


def other_reward(prompts, responses):
    return [float(len(r)) for r in responses]


@pytest.mark.parametrize(
    "change",
    [{"reward": other_reward}, {"temperature": 0.5}, {"max_new_tokens": 5}, {"prompts": ["a good"]}],
    ids=["reward", "temperature", "max_new_tokens", "prompts"],
)
def test_another_task_is_a_warning(saved, change):
    _, folder, options = saved
    with pytest.warns(UserWarning, match=f"{next(iter(change))} differs"):
        agents.sb3.load(PPO, folder, TextVecEnv(2, **{**options, **change}))


def test_another_reference_is_a_warning(saved, text_lm):
    _, folder, options = saved
    assert options["reward"] is length_reward
    with pytest.warns(UserWarning, match="reference differs"):
        agents.sb3.load(PPO, folder, TextVecEnv(2, **{**options, "reference": text_lm(seed=7)}))
