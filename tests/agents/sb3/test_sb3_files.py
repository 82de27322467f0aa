"""What is saved loads again, in transformers too, and nothing is unpickled."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sb3_helpers import make_agent, rollout, text_options
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from transformers import AutoModelForCausalLM

import agents.sb3
from agents.sb3 import EpisodeRolloutBuffer, TextVecEnv
from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, ConfigurationError, UnsafeFileError


@pytest.fixture
def options(make_lm):
    return text_options(make_lm)


@pytest.fixture
def saved(options, text_lm, tokenizer, tmp_path):
    """(agent after an update, the folder it is saved in, options of its environment)."""
    options |= {
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
    return agent, agents.sb3.save(agent, tmp_path / "agent"), {**options, "model": text_lm(seed=5)}


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
    agent.policy_kwargs = {}
    agent.save(tmp_path / "theirs.zip", exclude=["observation_space"])
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
        merged = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-4)
