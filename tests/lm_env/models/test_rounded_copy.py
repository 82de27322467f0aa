"""A bfloat16 copy that follows its original, and rollouts written by it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from agents import PPO
from agents.learning.options import Updating
from agents.learning.policy import ValueHeadPolicy
from agents.learning.rollout import collect
from lm_env.envs.env import TextGenerationEnv
from lm_env.errors import ConfigurationError
from lm_env.generation import Decoding, LocalBackend, Sampling
from lm_env.models.logprobs import response_logprobs
from lm_env.models.rounded_copy import RoundedCopy
from lm_env.objective.task import Task


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3"])
def test_the_copy_has_the_rounded_weights_in_the_same_places(kind, make_lm):
    model = make_lm(kind)
    rounded = RoundedCopy(model)
    copied = rounded.refresh()
    places = [p.data_ptr() for p in copied.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    assert rounded.refresh() is copied and places == [p.data_ptr() for p in copied.parameters()]
    for (name, mine), (_, theirs) in zip(copied.named_parameters(), model.named_parameters(), strict=True):
        assert mine.dtype == torch.bfloat16 and theirs.dtype == torch.float32 and not mine.requires_grad, name
        assert torch.equal(mine, theirs.to(torch.bfloat16)), name
    for (name, mine), (_, theirs) in zip(copied.named_buffers(), model.named_buffers(), strict=True):
        assert mine is not theirs and torch.equal(mine, theirs) and mine.dtype == theirs.dtype, name
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (copied.get_input_embeddings().weight is copied.get_output_embeddings().weight)


def test_a_copy_is_made_anew_when_the_model_has_other_parts(make_lm):
    model = make_lm("gpt2")
    rounded = RoundedCopy(model)
    first = rounded.refresh()
    model.resize_token_embeddings(70)
    second = rounded.refresh()
    assert second is not first and second.get_input_embeddings().weight.shape[0] == 70


def test_a_quantized_model_is_not_rounded(make_lm):
    model = make_lm("gpt2")
    model.is_quantized = True
    with pytest.raises(ConfigurationError, match="quantized"):
        RoundedCopy(model)


def test_logprobs_are_those_of_the_copy_and_the_mismatch_is_against_the_policy(id_task):
    task = Task(**id_task(max_new_tokens=9, temperature=0.8))
    policy = ValueHeadPolicy(task.model, "shared", 0.8)
    backend = LocalBackend(task, 5, value_of=policy.value_of, decoding=Decoding(bf16=True))
    prompts = task.prompts.sample(np.random.default_rng(0), 12)
    for _ in range(2):
        rollout = collect(backend, policy, task, prompts, Sampling(seeded()), updating=Updating(logprobs_of="sampler"))
        episodes, mask = rollout.episodes, rollout.mask
        copied = RoundedCopy(task.model).refresh()
        by_copy = response_logprobs(copied, episodes, 0.8)[mask]
        by_policy = response_logprobs(task.model, episodes, 0.8)[mask]
        kept = episodes.logprobs[mask]
        # A forward of the whole text rounds in other places than one with a cache does.
        assert np.abs(kept - by_copy).mean() < np.abs(kept - by_policy).mean() < 0.1
        np.testing.assert_allclose(rollout.mismatch, np.abs(kept - by_policy), rtol=0, atol=1e-5)
        with torch.no_grad():  # the next rollout is written with the new weights
            task.model.transformer.wte.weight.mul_(1.3)


def test_logprobs_in_bfloat16_are_of_a_distribution_in_fp32(id_task):
    """The probabilities of all 61 tokens, from logits in bfloat16, sum to 1 as fp32 does it."""
    task = Task(**id_task(max_new_tokens=1, prompts=[[1, 2, 3]]))
    prompts = list(task.prompts.head(1)) * 3000
    backend = LocalBackend(task, 3000, decoding=Decoding(bf16=True))
    episodes = backend.generate(prompts, Sampling(seeded())).episodes
    probability = dict(zip(episodes.input_ids[:, 3].tolist(), np.exp(episodes.logprobs[:, 0]).tolist(), strict=True))
    copied = RoundedCopy(task.model).refresh()
    with torch.no_grad():
        expected = copied(input_ids=torch.tensor([[1, 2, 3]])).logits[0, -1].float().softmax(-1)
    for token, p in probability.items():
        assert p == pytest.approx(float(expected[token]), rel=1e-5)
    assert len(probability) > 20


def test_the_mismatch_is_logged_and_only_in_bfloat16(id_task, tmp_path):
    columns = {}
    for bf16 in (False, True):
        env = TextGenerationEnv(**id_task())
        agent = PPO(env, rollout_episodes=20, slots=4, log_dir=tmp_path / str(bf16), decoding=Decoding(bf16=bf16))
        agent.learn(1)
        agent.logger.close()
        (columns[bf16],) = csv.DictReader((tmp_path / str(bf16) / "progress.csv").read_text().splitlines())
    assert "rollout/logprob_mismatch" not in columns[False]
    mean, largest = (float(columns[True][f"rollout/logprob_mismatch{end}"]) for end in ("", "_max"))
    assert 0 < mean < largest < 0.5
