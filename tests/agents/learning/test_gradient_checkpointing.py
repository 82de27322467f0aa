"""Gradient checkpointing: the same gradients from fewer stored activations, in updates alone."""

from __future__ import annotations

import pytest
import torch

from agents import GRPO, PPO, PPOPtx
from agents.learning.gradient_checkpointing import recomputable_layers, recomputing
from lm_env import TextGenerationEnv
from lm_env.errors import UnsupportedModelError
from lm_env.tasks.token_mdp import make

SMALL = {"rollout_episodes": 16, "slots": 8, "batch_size": 16, "n_epochs": 1, "max_grad_norm": 1e9}


class Stored:
    """Inside, counts the bytes of the activations that autograd keeps, each storage once."""

    def __init__(self, agent) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in agent.policy.parameters()}
        self.found: dict[int, torch.Tensor] = {}

    def __enter__(self) -> Stored:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.found[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no address is used twice
        return tensor

    @property
    def bytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for at, t in self.found.items() if at not in self.weights)


def step(agent, rollout) -> tuple[dict[str, torch.Tensor], int]:
    """The gradient of an update on the whole rollout, and the bytes of its forward that wait for the backward."""
    with Stored(agent) as stored, agent.updater.forwards():
        evaluation = agent.policy.evaluate(rollout.episodes)
    weights = torch.linspace(-1, 1, len(evaluation.logprobs))
    agent.policy.zero_grad()
    (weights * evaluation.logprobs + evaluation.values.square()).sum().backward()
    return {k: p.grad.clone() for k, p in agent.policy.named_parameters() if p.grad is not None}, stored.bytes


def pair(cls, task, **options):
    """The same agent without and with checkpointing, and a rollout."""
    plain, saving = (
        cls(TextGenerationEnv(**task()), **{**SMALL, **options}, gradient_checkpointing=on) for on in (False, True)
    )
    if plain.policy.value_head is not None:
        for agent in (plain, saving):
            torch.nn.init.constant_(agent.policy.value_head.weight, 0.1)
    return plain, saving, plain.collect_rollout()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "gpt-neox", "mistral"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_same_gradients_from_fewer_bytes(id_task, kind, critic):
    plain, saving, rollout = pair(PPO, lambda: id_task(kind, max_new_tokens=20), critic=critic)
    (expected, all_of_it), (got, kept) = step(plain, rollout), step(saving, rollout)
    assert expected.keys() == got.keys() and max(float(g.abs().max()) for g in expected.values()) > 0.1
    for name, gradient in expected.items():
        assert (got[name] - gradient).abs().max() <= 1e-6 * max(1.0, float(gradient.abs().max())), name
    assert kept < 0.5 * all_of_it


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_dropout_stays_off_whatever_the_training_flag_says(id_task, make_lm, kind):
    """OPT's layers read their own flag; the second run comes when the update's forward is over."""
    dropout = {"gpt2": {"resid_pdrop": 0.5, "attn_pdrop": 0.5}, "opt": {"dropout": 0.5}}[kind]
    plain, saving, rollout = pair(PPO, lambda: id_task(kind, model=make_lm(kind, **dropout)))
    saving.policy.train()
    (expected, _), (got, _) = step(plain, rollout), step(saving, rollout)
    assert all((got[k] - g).abs().max() <= 1e-6 * max(1.0, float(g.abs().max())) for k, g in expected.items())
    assert saving.policy.lm.training


@pytest.mark.parametrize("cls", [PPO, GRPO])
def test_training_goes_the_same_way(id_task, cls):
    ends = list(range(0, 61, 5))
    start = id_task()["model"].state_dict()
    one, two = (
        cls(TextGenerationEnv(**id_task(eos_token_id=ends)), **SMALL, learning_rate=1e-3, gradient_checkpointing=on)
        .learn(150)
        .task.model.state_dict()
        for on in (False, True)
    )
    assert all(torch.allclose(two[k], v, rtol=0, atol=1e-6) for k, v in one.items())
    assert max(float((v - start[k]).abs().max()) for k, v in one.items()) > 1e-3


def test_pretraining_texts_are_checkpointed_too(id_task):
    kept = []
    for on in (False, True):
        env = TextGenerationEnv(**id_task())
        agent = PPOPtx(env, [[1, 2, 3, 4] * 8] * 4, **SMALL, gradient_checkpointing=on)
        with Stored(agent) as stored:
            agent.add_text_gradient(agent.texts)
        kept.append(stored.bytes)
    assert kept[1] < 0.5 * kept[0]


def test_nothing_is_left_behind(id_task):
    """The rollout's forwards and their cache see the plain layers; an error in the update leaves them plain, too."""
    agent = PPO(TextGenerationEnv(**id_task()), **SMALL, gradient_checkpointing=True)
    layers = recomputable_layers(agent.policy)
    assert len(layers) == 2 and not any("forward" in vars(layer) for layer in layers)
    with pytest.raises(ZeroDivisionError), agent.updater.forwards():
        assert all("forward" in vars(layer) for layer in layers)
        raise ZeroDivisionError
    assert not any("forward" in vars(layer) for layer in layers)
    hook = layers[0].forward  # as accelerate leaves one
    layers[0].forward = hook
    with recomputing(layers):
        assert layers[0].forward is not hook
    assert vars(layers[0])["forward"] is hook and "forward" not in vars(layers[1])


def test_models_without_such_layers_are_refused():
    with pytest.raises(UnsupportedModelError, match="TableLM does not support gradient checkpointing"):
        PPO(make(), gradient_checkpointing=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_adapters_get_their_gradients(id_task, make_lm, kind):
    """The base is frozen, so a layer's input need not require a gradient where its adapters do."""
    peft = pytest.importorskip("peft")
    targets = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "down_proj"]}[kind]

    def task():
        config = peft.LoraConfig(r=2, target_modules=targets, fan_in_fan_out=kind == "gpt2")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            options = id_task(model=peft.get_peft_model(make_lm(kind), config))
        del options["reference"]
        for name, p in options["model"].named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(p, 0.02)
        return options

    plain, saving, rollout = pair(PPO, task, critic="shared")
    (expected, _), (got, _) = step(plain, rollout), step(saving, rollout)
    assert sum("lora_A" in k and bool(g.abs().max() > 1e-4) for k, g in expected.items()) == 4
    assert expected.keys() == got.keys()
    assert all((got[k] - g).abs().max() <= 1e-6 * max(1.0, float(g.abs().max())) for k, g in expected.items())


def test_under_bfloat16_too(id_task):
    plain, saving, rollout = pair(PPO, id_task, bf16=True)
    (expected, all_of_it), (got, kept) = step(plain, rollout), step(saving, rollout)
    assert all(torch.equal(got[k], g) for k, g in expected.items()) and kept < all_of_it
