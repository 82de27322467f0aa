"""The memory arithmetic, against the bytes that an agent really holds and against sizes worked out by hand."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from paths import REPOSITORY
from transformers import LlamaConfig, LlamaForCausalLM

from agents import GRPO
from lm_env import TextGenerationEnv


def load():
    spec = importlib.util.spec_from_file_location("training_memory", REPOSITORY / "benchmarks" / "training_memory.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_memory"] = module  # where dataclasses look for the names in their annotations
    spec.loader.exec_module(module)
    return module


memory = load()


def test_weights_reference_gradients_and_moments_are_what_an_agent_holds():
    torch.manual_seed(0)
    hidden, layers, vocab = 64, 3, 96
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=vocab,
        num_attention_heads=4,
        intermediate_size=8 * hidden // 3,  # three matrices: 8 D^2 in all
        max_position_embeddings=32,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    env = TextGenerationEnv(
        model=LlamaForCausalLM(config),
        prompts=[[1]],
        reward=lambda prompts, responses, response_ids: [float(ids[0]) for ids in response_ids],
        eos_token_id=(),
        max_new_tokens=4,
    )
    agent = GRPO(env, rollout_episodes=8, batch_size=8, slots=8).learn(1)

    def size(tensors) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    agent.update(agent.collect_rollout())
    held = {
        "weights": size(env.task.model.parameters()),
        "reference": size(env.task.reference.parameters()),
        "gradients": size(p.grad for p in env.task.model.parameters()),
        "moments": size(s[m] for s in agent.updater.optimizer.state.values() for m in ("exp_avg", "exp_avg_sq")),
    }
    counted = memory.needed(memory.Shape(layers, hidden, vocab), memory.WAYS["full fp32"])
    for name, bytes_held in held.items():
        assert counted[name] == pytest.approx(bytes_held, rel=0.02), name  # norms are not counted


def test_seven_billion_by_hand():
    shape = memory.Shape(32, 4096, 32_000, keys=1.0)  # Llama 2 7B, but for its second table of embeddings
    assert shape.parameters == pytest.approx(6.6e9, rel=0.01)
    found = memory.needed(shape, memory.WAYS["full fp32"], slots=1, length=1024, tokens=1)
    assert found["weights"] + found["gradients"] + found["moments"] == 16 * shape.parameters
    assert found["cache"] == 2 * 4 * 1024 * 32 * 4096
    adapter = memory.needed(shape, memory.WAYS["LoRA on 4 bits"])
    assert adapter["weights"] == pytest.approx((0.5625 + 0.04) * shape.parameters) and adapter["reference"] == 0
    divided = memory.needed(shape, memory.WAYS["full, bf16, divided among 8"])
    assert divided["moments"] + divided["gradients"] + divided["divided copy"] == 2 * shape.parameters


@pytest.mark.parametrize("name", memory.WAYS)
def test_the_largest_fits_and_the_next_does_not(name):
    way = memory.WAYS[name]
    shape = memory.largest(140e9, way)
    more = memory.Shape(shape.layers + 1, 128 * (shape.layers + 1), shape.vocab, shape.keys)
    assert memory.needed(shape, way)["total"] <= 0.9 * 140e9 < memory.needed(more, way)["total"]
    assert memory.largest(1e6, way) is None
