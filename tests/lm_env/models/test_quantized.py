"""Quantized models: loaded where they stay, frozen, trained through adapters alone.

The quantization is one of our own, by transformers' interface for such: 8 bits on any CPU, and no other package.
"""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from agents import PPO, RLOO, BestOfN
from lm_env import TextGenerationEnv
from lm_env.errors import ConfigurationError, MissingDependencyError, ModelLoadError
from lm_env.models.inspection import is_quantized
from lm_env.models.loading import load_model, load_tokenizer
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import measure_kl

METHOD = "rounding-of-the-tests"
ROUNDED = {"quant_method": METHOD}
SMALL = {"rollout_episodes": 16, "slots": 8, "batch_size": 8, "learning_rate": 1e-2}


class Rounded(nn.Linear):
    """y = (int8 weight x a scale per row) x + bias."""

    inference_only = False

    def round(self) -> None:
        self.scale = self.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((self.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)
        return y.detach() if self.inference_only else y


@register_quantization_config(METHOD)
class RoundingConfig(QuantizationConfigMixin):
    def __init__(self, inference_only: bool = False, hardware: bool = True, **ignored) -> None:
        self.quant_method, self.inference_only, self.hardware = METHOD, inference_only, hardware


@register_quantizer(METHOD)
class Rounding(HfQuantizer):
    is_trainable = True

    def is_serializable(self) -> bool:
        return True

    def validate_environment(self, device_map=None, **ignored) -> None:
        if not self.quantization_config.hardware:
            raise RuntimeError("None of the available devices `{'cpu'}` are supported")
        self.device_map = device_map

    def _process_model_after_weight_loading(self, model, **ignored):
        model.placed = self.device_map
        model.to = cannot_be_moved
        for layer in model.modules():
            if type(layer) is nn.Linear and layer is not model.lm_head:
                layer.__class__ = Rounded
                layer.round()
                layer.inference_only = self.quantization_config.inference_only
        return model


def cannot_be_moved(*args, **kwargs):
    raise AssertionError("`.to` is not supported for quantized models")


@pytest.fixture
def folder(tmp_path, text_lm, tokenizer) -> str:
    """A Llama and its tokenizer on disk."""
    text_lm("llama").save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


@pytest.fixture
def named_task(folder, text_task):
    """`named_task(**options)`: an environment whose model is given by name and is quantized."""

    def options(**changes) -> dict:
        task = text_task(model=folder, quantization_config=ROUNDED, tokenizer=None)
        del task["reference"]
        return {**task, **changes}

    return options


@pytest.fixture
def lora(folder):
    """`lora(**of the quantization)`: adapters over a quantized Llama."""
    peft = pytest.importorskip("peft")

    def build(**options):
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], lora_dropout=0.1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return peft.get_peft_model(load_model(folder, quantization_config={**ROUNDED, **options}), config)

    return build


@pytest.fixture
def lora_env(lora, text_task):
    def build(**changes) -> TextGenerationEnv:
        task = text_task(model=lora(), **changes)
        del task["reference"]
        return TextGenerationEnv(**task)

    return build


# -- loading -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("config", [ROUNDED, RoundingConfig()], ids=["dictionary", "object"])
def test_the_option_goes_through_and_the_model_stays_where_it_is(folder, config):
    model = load_model(folder, device="cpu", dtype=torch.bfloat16, quantization_config=config)
    assert model.placed == {"": "cpu"}
    assert is_quantized(model) and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, Rounded) and layer.weight.dtype == torch.int8
    assert {p.dtype for p in model.parameters()} == {torch.int8, torch.bfloat16}


def test_it_says_nearly_the_same_and_a_plain_model_is_not_quantized(folder):
    plain, rounded = load_model(folder), load_model(folder, quantization_config=ROUNDED)
    assert not is_quantized(plain) and not is_quantized(plain.requires_grad_(False))
    ids = torch.arange(12).reshape(2, 6)
    difference = (plain(input_ids=ids).logits - rounded(input_ids=ids).logits).abs().max()
    assert 1e-5 < difference < 0.3


def test_a_model_says_so_or_its_whole_numbers_do():
    model = nn.Sequential(nn.Linear(2, 2))
    model.is_quantized = True  # as torchao's, whose tensors pass for floating-point ones
    assert is_quantized(model)
    model = nn.Sequential(nn.Linear(2, 2))
    assert not is_quantized(model)
    model[0].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.uint8), requires_grad=False)
    assert is_quantized(model)


def test_a_folder_that_says_itself_how_it_is_quantized_needs_no_option(folder, text_task):
    config = Path(folder, "config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": ROUNDED}))
    model = load_model(folder)
    assert is_quantized(model) and not any(p.requires_grad for p in model.parameters())
    options = text_task(model=folder)
    del options["reference"]
    with pytest.raises(ConfigurationError, match="LoRA"):
        PPO(TextGenerationEnv(**options), **SMALL)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_without_its_package_the_mend_is_named(folder, named_task, bits):
    with pytest.raises(MissingDependencyError, match=r"bitsandbytes.*pip install 'lm-env\[quantized\]'"):
        load_model(folder, quantization_config={bits: True})
    with pytest.raises(MissingDependencyError, match=r"lm-env\[quantized\]"):
        TextGenerationEnv(**named_task(quantization_config={bits: True}))


def test_without_the_hardware(folder):
    with pytest.raises(ModelLoadError, match="None of the available devices"):
        load_model(folder, quantization_config={**ROUNDED, "hardware": False})


@pytest.mark.parametrize("config", [{"quant_method": "no-such"}, {}], ids=["unknown", "empty"])
def test_a_quantization_that_is_none(folder, config):
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        load_model(folder, quantization_config=config)


@pytest.mark.parametrize("config", ["4bit", 4, True], ids=str)
def test_what_is_no_quantization_is_named(folder, config):
    with pytest.raises(ConfigurationError, match=f"quantization_config must be .* not {config!r}"):
        load_model(folder, quantization_config=config)


# -- environments --------------------------------------------------------------------------------------
def test_an_environment_steps_with_a_quantized_model(named_task):
    env = TextGenerationEnv(**named_task())
    assert env.task.model is env.task.reference and is_quantized(env.task.model)
    env.reset(seed=0)
    done = False
    while not done:
        _, _, done, _, info = env.step(5)
        assert info["kl"] == 0 and info["logprob"] < 0


def test_a_quantized_reference_beside_a_live_model(text_task, text_lm, folder):
    options = text_task(model=text_lm("llama"), reference=folder, quantization_config=ROUNDED)
    agent = PPO(TextGenerationEnv(**options), **SMALL).learn(100)
    assert is_quantized(agent.task.reference) and not is_quantized(agent.task.model)


def test_the_option_is_for_names(text_task):
    with pytest.raises(ConfigurationError, match="models given by name"):
        TextGenerationEnv(**text_task(quantization_config=ROUNDED))


def test_through_the_registry():
    env = gymnasium.make("lm_env/Sentiment-v0", quantization_config=ROUNDED)
    assert is_quantized(env.unwrapped.task.model)
    assert not is_quantized(gymnasium.make("lm_env/Sentiment-v0").unwrapped.task.model)


def test_parts_that_can_be_trained_get_a_reference_of_their_own(text_task, folder):
    model = load_model(folder, quantization_config=ROUNDED)
    model.model.norm.requires_grad_(True)
    options = text_task(model=model)
    del options["reference"]
    task = TextGenerationEnv(**options).task
    assert task.reference is not model
    assert not any(p.requires_grad for p in task.reference.parameters())
    with pytest.raises(ConfigurationError, match="shares weights"):
        TextGenerationEnv(**{**options, "reference": model})


# -- agents --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cls", [PPO, RLOO])
def test_an_agent_without_adapters_is_refused(named_task, cls):
    env = TextGenerationEnv(**named_task())
    with pytest.raises(ConfigurationError, match=r"LlamaForCausalLM is quantized.*LoRA"):
        cls(env, **SMALL)


def test_best_of_n_trains_nothing_and_needs_no_adapter(named_task):
    agent = BestOfN(TextGenerationEnv(**named_task()), n=2)
    assert len(agent.generate(n=3)) == 3


def test_trainable_norms_alone_are_no_adapters(text_task, folder):
    """As transformers itself gives a quantized model: what is not rounded requires a gradient."""
    model = load_model(folder, quantization_config=ROUNDED)
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())
    with pytest.raises(ConfigurationError, match="LoRA"):
        PPO(TextGenerationEnv(**text_task(model=model)), **SMALL)


def test_frozen_adapters_are_refused(lora, text_task):
    options = text_task(model=lora().requires_grad_(False))
    del options["reference"]
    with pytest.raises(ConfigurationError, match="LoRA"):
        PPO(TextGenerationEnv(**options), **SMALL)


@pytest.mark.parametrize("options", [{}, {"critic": "separate"}, {"gradient_checkpointing": True}], ids=str)
def test_adapters_are_trained_and_nothing_else(lora_env, options):
    agent = PPO(lora_env(), **SMALL, **options)
    before = {k: v.clone() for k, v in agent.policy.state_dict().items()}
    metrics = agent.update(agent.collect_rollout())
    assert metrics["first_log_ratio"] < 1e-4
    agent.learn(200)
    changed = {k for k, v in agent.policy.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {n for n, p in agent.policy.named_parameters() if p.requires_grad}
    assert sum("lora_" in k and k.startswith("lm.") for k in changed) == 12  # A and B of 3 layers in 2 blocks
    assert measure_kl(agent.task, agent.generate_episodes(n=8))["full"] > 1e-3  # the reference: adapters off


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_checkpoint_holds_the_adapters_unmerged(lora_env, tmp_path, critic):
    agent = PPO(lora_env(), **SMALL, critic=critic).learn(200)
    path = agent.save(tmp_path / "saved")
    assert (path / "adapter_model.safetensors").is_file() and not (path / "model.safetensors").exists()
    again = PPO.load(path, lora_env())
    episodes = agent.generate_episodes(n=6)
    for ours, theirs in (
        (response_logprobs(agent.task.model, episodes), response_logprobs(again.task.model, episodes)),
        (agent.policy.values(episodes), again.policy.values(episodes)),
    ):
        assert np.abs(ours).max() > 0
        np.testing.assert_array_equal(ours, theirs)


def test_kernels_that_lose_the_gradient_are_found_out(lora, text_task):
    options = text_task(model=lora(inference_only=True))
    del options["reference"]
    with pytest.raises(ConfigurationError, match=r"no gradient reaches .*lora_A.* on cpu"):
        PPO(TextGenerationEnv(**options), **SMALL)


def test_whole_numbers_are_not_averaged(lora_env):
    with pytest.raises(ConfigurationError, match="ema_decay"):
        PPO(lora_env(), **SMALL, ema_decay=0.9)


def test_a_named_model_without_the_option_is_as_before(folder, text_task):
    options = text_task(model=folder, tokenizer=None)
    del options["reference"]
    task = TextGenerationEnv(**options).task
    assert task.model is not task.reference and all(p.requires_grad for p in task.model.parameters())
    assert isinstance(task.model, PreTrainedModel) and type(task.tokenizer) is type(load_tokenizer(folder))
    assert copy.deepcopy(task.model).to("cpu") is not None
