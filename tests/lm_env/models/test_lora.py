"""LoRA through peft: the adapter off is the reference, one copy of the weights, and a merged export."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO as SB3PPO
from transformers import AutoModelForCausalLM

from agents import PPO, RLOO
from agents.sb3 import CausalLMPolicy, TextVecEnv
from lm_env import TextGenerationEnv, TextGenerationVectorEnv
from lm_env.errors import ConfigurationError, UnsupportedModelError
from lm_env.objective.scoring import measure_kl, score_episodes

peft = pytest.importorskip("peft")

OPTIONS = {"rollout_episodes": 16, "slots": 8, "batch_size": 8, "learning_rate": 0.01}
TARGETS = {
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "llama": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
}


@pytest.fixture(params=["gpt2", "llama"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def lora(make_lm):
    """`lora(kind)` -> (peft model, an untouched copy of its base)."""

    def build(kind: str):
        base = make_lm(kind)
        untouched = copy.deepcopy(base)
        config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, **TARGETS[kind])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return peft.get_peft_model(base, config), untouched

    return build


def task_options(id_task, model) -> dict:
    options = id_task(model=model)
    del options["reference"]
    return options


IDS = torch.tensor([[5, 9, 2, 7, 1, 8], [3, 3, 60, 11, 0, 4]])


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def trained(id_task, lora, kind, cls=PPO):
    model, untouched = lora(kind)
    agent = cls(TextGenerationEnv(**task_options(id_task, model)), **OPTIONS)
    agent.learn(300)
    return agent, model, untouched


def test_the_kl_is_exactly_zero_at_the_start(id_task, lora, kind):
    agent = PPO(TextGenerationEnv(**task_options(id_task, lora(kind)[0])), **OPTIONS)
    episodes = agent.collect_rollout().episodes
    scored = score_episodes(agent.task, replace(episodes, logprobs=None))
    assert (scored.kl == 0).all() and (scored.logprobs == scored.ref_logprobs).all()  # both by the same forwards
    assert all(value == 0 for value in measure_kl(agent.task, episodes).values())


def test_the_reference_stays_the_base_to_the_bit(id_task, lora, kind):
    agent, _, untouched = trained(id_task, lora, kind)
    with agent.task.as_reference():
        assert torch.equal(logits(agent.task.reference), logits(untouched))
    assert not torch.allclose(logits(agent.task.model), logits(untouched), atol=1e-3)  # the policy did change
    report = measure_kl(agent.task, agent.generate_episodes(n=32))
    assert report["full"] > 1e-3


def test_only_adapters_and_the_value_head_are_trained(id_task, lora, kind):
    model, _ = lora(kind)
    agent = PPO(TextGenerationEnv(**task_options(id_task, model)), **OPTIONS)
    names = {id(p): n for n, p in agent.policy.named_parameters()}
    optimized = [names[id(p)] for group in agent.updater.optimizer.param_groups for p in group["params"]]
    assert optimized and all("lora_" in n or n.startswith("value_head") for n in optimized)
    before = {n: p.detach().clone() for n, p in agent.policy.named_parameters()}
    agent.learn(300)
    changed = {n for n, p in agent.policy.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(optimized)


def sb3_agent(env):
    return SB3PPO(CausalLMPolicy, TextVecEnv.from_env(env, 2), n_steps=4, batch_size=8)


@pytest.mark.parametrize("take", [PPO, sb3_agent])
def test_a_frozen_adapter_is_refused(id_task, lora, kind, take):
    """As peft loads one: unfrozen with the base below it, it would train its own reference."""
    model, _ = lora(kind)
    model.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="is_trainable=True"):
        take(TextGenerationEnv(**task_options(id_task, model)))
    assert not any(p.requires_grad for p in model.parameters())


def test_there_is_one_copy_of_the_weights(id_task, lora, kind):
    model, _ = lora(kind)
    task = TextGenerationEnv(**task_options(id_task, model)).task
    assert task.model is task.reference and task.adapter is model


@pytest.mark.parametrize("cls", [PPO, RLOO])
def test_live_merged_and_reloaded_are_the_same(id_task, lora, kind, cls, tmp_path):
    agent, model, _ = trained(id_task, lora, kind, cls)
    live = logits(agent.task.model)
    agent.save(tmp_path / "saved", merge=True)
    assert torch.equal(logits(agent.task.model), live)  # saving merges a copy
    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.allclose(logits(merged), live, atol=1e-5)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert not any("lora" in name for name in reloaded.state_dict())
    assert torch.allclose(logits(reloaded), live, atol=1e-5)
    if kind == "gpt2":
        assert reloaded.lm_head.weight.data_ptr() == reloaded.transformer.wte.weight.data_ptr()


def test_an_agent_is_loaded_onto_a_fresh_adapter(id_task, lora, kind, tmp_path):
    agent, *_ = trained(id_task, lora, kind)
    agent.save(tmp_path / "saved")
    fresh = TextGenerationEnv(**task_options(id_task, lora(kind)[0]))
    loaded = PPO.load(tmp_path / "saved", fresh)
    assert torch.equal(logits(loaded.task.model), logits(agent.task.model))
    with loaded.task.as_reference(), agent.task.as_reference():
        assert torch.equal(logits(loaded.task.model), logits(agent.task.model))


def test_stepping_and_scoring_agree(id_task, lora, kind):
    """Stepwise and episode-wise, after training, with the environment's own model (adapter on) as the policy."""
    agent, model, _ = trained(id_task, lora, kind)
    env = TextGenerationVectorEnv(4, **task_options(id_task, model))
    episodes = agent.generate_episodes(n=4)
    scored = score_episodes(env.task, episodes)
    assert abs(scored.kl).max() > 0.01
    for row in range(4):
        single = TextGenerationEnv(**{**task_options(id_task, model), "prompts": [episodes.prompts[row].ids.tolist()]})
        single.reset(seed=0)
        for t, token in enumerate(episodes.responses()[row]):
            _, reward, terminated, _, info = single.step(token)
            assert reward == pytest.approx(scored.rewards[row, t], abs=1e-5)
            assert info["ref_logprob"] == pytest.approx(scored.ref_logprobs[row, t], abs=1e-5)
            assert info["logprob"] == pytest.approx(scored.logprobs[row, t], abs=1e-5)
        assert terminated


def test_the_adapter_is_on_again_after_an_error_in_scoring(id_task, lora, kind):
    model, _ = lora(kind)
    task = TextGenerationEnv(**task_options(id_task, model)).task
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    live = logits(task.model)
    with pytest.raises(ZeroDivisionError), task.as_reference():
        raise ZeroDivisionError
    assert torch.equal(logits(task.model), live)
    with task.as_reference():
        assert not torch.allclose(logits(task.model), live, atol=1e-3)


def test_a_reference_of_ones_own_needs_no_adapter_off(id_task, lora, make_lm, kind):
    options = id_task(model=lora(kind)[0], reference=make_lm(kind, 1))
    task = TextGenerationEnv(**options).task
    assert task.adapter is options["model"] and task.reference is options["reference"]


def test_the_base_itself_is_no_reference(id_task, lora, kind):
    """It holds the adapter's layers, and would follow them."""
    model, _ = lora(kind)
    with pytest.raises(ConfigurationError, match="shares weights"):
        TextGenerationEnv(**id_task(model=model, reference=model.get_base_model()))


@pytest.mark.parametrize("config", ["PrefixTuningConfig", "PromptTuningConfig"])
@pytest.mark.parametrize("role", ["model", "reference"])
def test_prompts_that_are_trained_outside_the_model_are_refused(id_task, make_lm, config, role):
    """The model inside knows nothing of them, so that neither training nor the KL would either."""
    tuned = peft.get_peft_model(make_lm("llama"), getattr(peft, config)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UnsupportedModelError, match=r"prompt .*LoRA"):
        TextGenerationEnv(**id_task("llama", **{role: tuned}))


def test_dropout_of_the_adapter_is_off_in_rollout_and_update(id_task, lora, kind):
    agent = PPO(TextGenerationEnv(**task_options(id_task, lora(kind)[0].train())), **OPTIONS)
    for _ in range(3):  # from the second rollout on the adapter counts
        metrics = agent.update(agent.collect_rollout())
        assert metrics["first_log_ratio"] <= 1e-5
    assert np.isfinite(metrics["grad_norm"])
