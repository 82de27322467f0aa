"""A fingerprint is the same for the same task, and each thing that makes another task is named."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError
from lm_env.objective.fingerprint import check_fingerprint, compare_fingerprints, model_digest, task_fingerprint
from lm_env.objective.task import Task
from lm_env.objective.wrapping import Causal
from reward_models import WeightedSum


def other_reward(prompts, responses):
    return [0.0] * len(prompts)


class Network:
    """A reward function with weights."""

    def __init__(self, seed: int) -> None:
        self.layer = nn.Linear(2, 1)
        nn.init.constant_(self.layer.weight, seed)
        nn.init.zeros_(self.layer.bias)

    def __call__(self, prompts, responses):
        return [0.0] * len(prompts)


def saved(task: Task) -> dict:
    return json.loads(json.dumps(task_fingerprint(task)))


def test_the_same_task_made_anew_has_the_same_fingerprint(text_task):
    assert compare_fingerprints(saved(Task(**text_task())), task_fingerprint(Task(**text_task()))) == {}


CHANGES = {
    "reward": {"reward": other_reward},
    "prompts": {"prompts": ["a good film", "the end", "Bad"]},
    "temperature": {"temperature": 0.7},
    "max_new_tokens": {"max_new_tokens": 7},
    "eos_token_ids": {"eos_token_id": [1, 2]},
    "stop_strings": {"stop_strings": ["."]},
    "missing_eos_score": {"missing_eos_score": -1.0},
    "cap_truncates": {"cap_truncates": True},
    "action_mask": {"action_mask": lambda prompt, response: None},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_named(text_task, name):
    differences = compare_fingerprints(saved(Task(**text_task())), task_fingerprint(Task(**text_task(**CHANGES[name]))))
    assert list(differences) == [name]


def test_one_weight_of_the_reference(text_task, text_lm):
    before = task_fingerprint(Task(**text_task()))
    reference = text_lm(seed=1)
    with torch.no_grad():
        reference.transformer.h[1].mlp.c_fc.weight[3, 5] += 1e-6
    differences = compare_fingerprints(before, task_fingerprint(Task(**text_task(reference=reference))))
    assert list(differences) == ["reference"]


def test_the_weights_under_training_do_not_count(text_task, text_lm):
    assert task_fingerprint(Task(**text_task())) == task_fingerprint(Task(**text_task(model=text_lm(seed=9))))


def test_the_weights_of_a_reward_count(text_task):
    prints = [task_fingerprint(Task(**text_task(reward=Network(seed)))) for seed in (0, 0, 1)]
    assert prints[0] == prints[1]
    assert list(compare_fingerprints(prints[0], prints[2])) == ["reward_weights"]


def another_reward(prompts, responses):
    return [1.0] * len(prompts)


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        (Causal(other_reward), Causal(another_reward), "reward"),
        (Causal(other_reward), other_reward, "reward"),
        (Causal(Causal(other_reward)), Causal(Causal(another_reward)), "reward"),
        (Causal(Network(0)), Causal(Network(1)), "reward_weights"),
        (Causal(other_reward), Causal(other_reward), None),
    ],
)
def test_what_a_causal_reward_wraps_counts(text_task, a, b, name):
    prints = [task_fingerprint(Task(**text_task(reward=reward))) for reward in (a, b)]
    assert list(compare_fingerprints(*prints)) == ([] if name is None else [name])


@pytest.mark.parametrize("change", [{"n_head": 2}, {"activation_function": "relu"}], ids=str)
def test_the_same_shapes_with_another_meaning_are_refused(text_task, text_lm, change):
    before = saved(Task(**text_task()))
    other = Task(**text_task(model=text_lm(**change)))
    with pytest.raises(CheckpointMismatchError, match=f"model.{next(iter(change))} differs"):
        check_fingerprint(before, other, "runs/a")


def test_other_tokens_are_refused(text_task, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["zzz"])
    with pytest.raises(CheckpointMismatchError, match="vocabulary differs"):
        check_fingerprint(saved(Task(**text_task())), Task(**text_task(tokenizer=other)), "runs/a")


def test_another_objective_is_a_warning(text_task):
    with pytest.warns(UserWarning, match=r"runs/a was saved for another task.*temperature differs: 1.0 was saved, 0.5"):
        check_fingerprint(saved(Task(**text_task())), Task(**text_task(temperature=0.5)), "runs/a")


@pytest.mark.parametrize("edit", [None, [], "x", {}, {"reward": 3}])
def test_what_is_no_fingerprint_is_corrupt(text_task, edit):
    with pytest.raises(CheckpointCorruptError, match="no fingerprint"):
        check_fingerprint(edit, Task(**text_task()), "runs/a")


def test_settings_of_a_newer_transformers_are_passed_over(text_task):
    task = Task(**text_task())
    assert compare_fingerprints(saved(task), {**task_fingerprint(task), "model.new_in_6": 1}) == {}


def test_a_setting_that_a_newer_transformers_adds_leaves_the_digests(text_task, text_lm):
    old, new = text_lm(), text_lm()
    new.config.new_in_6 = 1
    reward = Network(0)
    prints = []
    for reference in (old, new):
        reward.model = reference
        prints.append(task_fingerprint(Task(**text_task(reference=reference, reward=reward))))
    assert compare_fingerprints(*prints) == {}


def test_settings_of_the_reference_count(text_task, text_lm):
    prints = []
    for activation in ("relu", "gelu_new"):
        prints.append(task_fingerprint(Task(**text_task(reference=text_lm(activation_function=activation)))))
    assert list(compare_fingerprints(*prints)) == ["reference.activation_function"]


class Networks:
    """A reward function that holds networks in a list and in a dict, and counts its calls."""

    def __init__(self, first: int, second: int) -> None:
        self.calls = 0
        self.members = [Network(first)]
        self.others = {"other": partial(Network(second), [])}
        self.itself = self

    def __call__(self, prompts, responses):
        self.calls += 1
        return [0.0] * len(prompts)


@pytest.mark.parametrize(
    ("weights", "differ"), [((0, 0), []), ((1, 0), ["reward_weights"]), ((0, 1), ["reward_weights"])]
)
def test_networks_deep_in_a_reward_count(text_task, weights, differ):
    before = task_fingerprint(Task(**text_task(reward=Networks(0, 0))))
    reward = Networks(*weights)
    reward(["a"], ["b"])
    assert list(compare_fingerprints(before, task_fingerprint(Task(**text_task(reward=reward))))) == differ


def test_a_saved_buffer_of_a_reward_counts(text_task):
    prints = []
    for gain in (1.0, 2.0):
        reward = Network(0)
        reward.layer.register_buffer("gain", torch.tensor(gain))
        reward.layer.register_buffer("cache", torch.rand(2), persistent=False)
        prints.append(task_fingerprint(Task(**text_task(reward=reward))))
    assert list(compare_fingerprints(*prints)) == ["reward_weights"]


@dataclass(frozen=True)
class Long:
    """A reward function with a setting."""

    by: float = 1.0

    def __call__(self, prompts, responses):
        return [self.by * len(response) for response in responses]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Long(1.0), Long(2.0)),
        (Causal(Long(1.0)), Causal(Long(2.0))),
        (WeightedSum([(1.0, Long()), (0.5, other_reward)]), WeightedSum([(1.0, Long()), (0.6, other_reward)])),
        (WeightedSum([(1.0, Long(1.0))]), WeightedSum([(1.0, Long(2.0))])),
        (partial(Long(1.0).__call__), partial(Long(2.0).__call__)),
    ],
    ids=lambda reward: repr(reward)[:40],
)
def test_settings_of_a_reward_count(text_task, a, b):
    prints = [task_fingerprint(Task(**text_task(reward=reward))) for reward in (a, b, copy.deepcopy(a))]
    assert list(compare_fingerprints(prints[0], prints[1])) == ["reward_settings"]
    assert prints[0] == prints[2]


def test_an_adapter_is_no_part_of_the_reference(text_task, text_lm):
    peft = pytest.importorskip("peft")
    prints = []
    for size in (0.0, 0.1):
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["ln_f"])
        adapter = peft.get_peft_model(text_lm(), config)
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    parameter += size
        prints.append(task_fingerprint(Task(**text_task(model=adapter, reference=None))))
    assert prints[0] == prints[1]


def test_large_weights_are_sampled_and_the_digest_says_so(text_lm):
    """At three times the limit every third weight counts: one of them is noticed, its neighbor is not."""
    model = text_lm()
    limit = -(-sum(p.numel() * p.element_size() for p in model.parameters()) // 3)
    before = model_digest(model, limit)
    assert before.startswith("a sample of 1 weight in 3")
    bias = model.transformer.ln_f.bias.data
    bias[1] += 1
    assert model_digest(model, limit) == before
    bias[3] += 1
    assert model_digest(model, limit) != before
