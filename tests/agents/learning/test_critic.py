"""A critic that starts as a reward model: V of a prefix is at first the score of that prefix."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from agents import A2C, GRPO, PPO
from agents.learning.critic import RewardCritic
from lm_env import TextGenerationEnv
from lm_env.errors import CheckpointMismatchError, ConfigurationError, UnsupportedModelError
from reward_models import RewardModel, ScalarHeadModel

SMALL = {"rollout_episodes": 16, "slots": 8, "batch_size": 8, "n_epochs": 1, "learning_rate": 1e-2}


@pytest.fixture
def rm_of(text_lm, tokenizer):
    """`rm_of(kind)`: a reward model of other weights than the policy, with a normalization that does something."""

    def build(kind: str = "gpt2", **options) -> RewardModel:
        rm = RewardModel.from_causal_lm(text_lm(kind, seed=3, **options), copy.deepcopy(tokenizer), seed=1)
        torch.nn.init.constant_(rm.network.head.bias, 0.7)
        rm.normalize(["a"] * 3, [" good", " bad film", " end"])
        assert abs(float(rm.network.gain) - 1) > 0.1 < abs(float(rm.network.bias))
        return rm

    return build


def weights(rm: RewardModel) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in rm.network.state_dict().items()}


def prefix_scores(rm: RewardModel, episodes) -> np.ndarray:
    """The reward model itself on every prefix that a token was added to, (B, T)."""
    expected = np.zeros(episodes.response_mask().shape)
    for row, (p, n) in enumerate(zip(episodes.prompt_lengths, episodes.lengths, strict=True)):
        prefixes = [episodes.input_ids[row, :t].tolist() for t in range(p, n)]
        expected[row, : n - p] = rm.score_rows(prefixes)
    return expected


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("policy_kind", ["gpt2", "llama"])
def test_v_starts_as_the_score_of_the_text_so_far(text_task, text_lm, rm_of, kind, policy_kind):
    rm = rm_of(kind)
    agent = PPO(TextGenerationEnv(**text_task(model=text_lm(policy_kind), reward=rm)), critic=rm, **SMALL)
    rollout = agent.collect_rollout()
    expected = prefix_scores(rm, rollout.episodes)
    assert expected.std() > 0.1
    np.testing.assert_allclose(rollout.values, expected, atol=2e-5)
    # The update sees the same values as the rollout, and `predict`'s full forwards too.
    evaluated = agent.policy.evaluate(rollout.episodes).values.detach().numpy()
    np.testing.assert_allclose(evaluated, expected[rollout.mask], atol=2e-5)
    ids, lengths = rollout.episodes.input_ids, rollout.episodes.prompt_lengths
    np.testing.assert_allclose(agent.policy.next_outputs(ids, lengths)[1].numpy(), expected[:, 0], atol=2e-5)


def test_training_moves_the_critic_and_leaves_the_reward_model(text_task, rm_of):
    rm = rm_of()
    before = weights(rm)
    agent = PPO(TextGenerationEnv(**text_task(reward=rm)), critic=rm, **SMALL)
    start = {k: v.clone() for k, v in agent.policy.state_dict().items() if not k.startswith("lm.")}
    agent.learn(200)
    assert all(torch.equal(v, before[k]) for k, v in weights(rm).items())
    assert not any(p.requires_grad and p.grad is not None for p in rm.network.parameters())
    now = agent.policy.state_dict()
    assert not torch.equal(now["value_head.weight"], start["value_head.weight"])
    moved = [k for k, v in start.items() if k.startswith("critic.trunk.") and not torch.equal(now[k], v)]
    assert len(moved) > 10
    own = {p.data_ptr() for p in agent.policy.parameters()}
    assert not own & {p.data_ptr() for p in rm.network.parameters()}


def test_a_frozen_reward_model_gives_a_critic_that_learns(text_task, rm_of):
    rm = rm_of()
    rm.network.requires_grad_(False)
    agent = A2C(TextGenerationEnv(**text_task(reward=rm)), critic=rm, rollout_episodes=16, slots=8)
    optimized = {id(p) for group in agent.updater.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in agent.policy.parameters()}
    assert not any(p.requires_grad for p in rm.network.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_needs_no_reward_model_to_come_back(text_task, rm_of, tmp_path, kind, dtype):
    rm = rm_of(kind)
    rm.network.trunk.to(dtype)
    rm.save(tmp_path / "rm")
    rm = RewardModel.load(tmp_path / "rm", device="cpu")
    agent = PPO(TextGenerationEnv(**text_task()), critic=rm, **SMALL).learn(60)
    path = agent.save(tmp_path / "agent")
    assert {f.suffix for f in path.rglob("*") if f.is_file()} <= {".json", ".safetensors"}
    again = PPO.load(path, TextGenerationEnv(**text_task()))
    assert isinstance(again.policy.critic, RewardCritic)
    assert {p.dtype for p in again.policy.critic.parameters()} == {dtype}
    first, second = agent.collect_rollout(), again.collect_rollout()
    np.testing.assert_array_equal(first.values, second.values)
    assert first.values.std() > 0
    agent.update(first), again.update(second)  # and goes on as if never stopped
    ours, theirs = agent.policy.state_dict(), again.policy.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_dtype_and_attention_are_the_trunks_own(text_task, text_lm, tokenizer, tmp_path):
    lm = text_lm("llama-eager", seed=3)
    lm.config.dtype = torch.bfloat16  # as a model says that was saved so; a reward model's trunk is in fp32
    rm = RewardModel.from_causal_lm(lm, tokenizer)
    path = PPO(TextGenerationEnv(**text_task()), critic=rm, **SMALL).save(tmp_path / "agent")
    again = PPO.load(path, TextGenerationEnv(**text_task()))
    trunk = again.policy.critic.trunk
    assert trunk.config._attn_implementation == "eager" and trunk.dtype == torch.float32


@pytest.mark.parametrize("other", ["shared", "separate", "none"])
def test_another_critic_does_not_fit_the_checkpoint(text_task, rm_of, tmp_path, other):
    path = PPO(TextGenerationEnv(**text_task()), critic=rm_of(), **SMALL).save(tmp_path / "agent")
    with pytest.raises(CheckpointMismatchError, match="do not fit"):
        PPO.load(path, TextGenerationEnv(**text_task()), critic=other)
    state = json.loads((path / "agent" / "state.json").read_text())
    assert "critic" not in state["config"] and state["critic"]["trunk"]["model_type"] == "gpt2"


@pytest.mark.parametrize("critic", ["shared", "separate", "none"])
def test_a_named_critic_is_remembered(text_task, tmp_path, critic):
    path = PPO(TextGenerationEnv(**text_task()), critic=critic, **SMALL).save(tmp_path / "agent")
    policy = PPO.load(path, TextGenerationEnv(**text_task())).policy
    assert (policy.value_head is None) == (critic == "none")
    assert (policy.critic is not None) == (critic == "separate")


def test_agents_without_values_have_no_critic(text_task):
    assert GRPO(TextGenerationEnv(**text_task()), **SMALL).policy.value_head is None


# -- what cannot be a critic ---------------------------------------------------------------------------
def test_another_tokenizer_is_refused(text_task, rm_of, tokenizer):
    rm = rm_of()
    rm.tokenizer.add_tokens(["<other>"])
    with pytest.raises(ConfigurationError, match="another tokenizer"):
        PPO(TextGenerationEnv(**text_task()), critic=rm, **SMALL)


def test_too_few_embeddings_are_refused(text_task, make_lm, tokenizer):
    narrow = RewardModel.from_causal_lm(make_lm("gpt2", vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(ConfigurationError, match=f"can write {len(tokenizer) + 6} tokens.* {len(tokenizer)}"):
        PPO(TextGenerationEnv(**text_task()), critic=narrow, **SMALL)


def test_a_reward_model_that_reads_less_than_a_text_is_refused(text_task, rm_of):
    rm = rm_of()
    task = TextGenerationEnv(**text_task()).task
    rm.max_length = task.max_length - 1
    with pytest.raises(ConfigurationError, match=f"reads {rm.max_length} tokens"):
        PPO(TextGenerationEnv(**text_task()), critic=rm, **SMALL)
    rm.max_length += 1
    PPO(TextGenerationEnv(**text_task()), critic=rm, **SMALL)


def test_a_trunk_that_looks_ahead_is_refused(text_task, tokenizer):
    config = BertConfig(
        vocab_size=len(tokenizer) + 6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    bert = RewardModel(ScalarHeadModel(BertModel(config).eval()), tokenizer)
    with pytest.raises(UnsupportedModelError, match="BertModel cannot be a critic"):
        PPO(TextGenerationEnv(**text_task()), critic=bert, **SMALL)


@pytest.mark.parametrize(
    "critic", ["both", 3, len, torch.nn.Linear(2, 1)], ids=["name", "number", "function", "module"]
)
def test_what_is_no_critic_is_named(text_task, critic):
    with pytest.raises(ConfigurationError, match="critic must be"):
        PPO(TextGenerationEnv(**text_task()), critic=critic, **SMALL)


def test_ids_without_a_tokenizer_take_a_reward_model_of_the_same_width(id_task, make_lm, tokenizer):
    rm = RewardModel.from_causal_lm(make_lm("llama", seed=5), tokenizer)
    agent = PPO(TextGenerationEnv(**id_task()), critic=rm, **SMALL)
    rollout = agent.collect_rollout()
    np.testing.assert_allclose(rollout.values, prefix_scores(rm, rollout.episodes), atol=2e-5)
