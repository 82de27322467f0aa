"""Writing on a CUDA device by captured steps; skipped where there is none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from agents import PPO
from lm_env.envs.env import TextGenerationEnv
from lm_env.generation import Decoding, LocalBackend, Sampling
from lm_env.generation.cache_support import why_no_static_step
from lm_env.generation.static_writer import StaticWriter
from lm_env.models.inspection import evaluating
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.task import Task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ENDS = list(range(0, 61, 5))
KINDS = ["gpt2", "gpt2-eager", "llama", "qwen3", "gpt-neox", "opt", "granite", "mistral", "gemma2", "gemma3", "gpt-neo"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_cuda(options: dict) -> Task:
    return Task(**{**options, "model": options["model"].cuda(), "reference": options["reference"].cuda()})


@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_write_what_the_cpu_writes(kind, id_task):
    options = id_task(kind, eos_token_id=ENDS, max_new_tokens=9)
    on_cpu = Task(**{**options, "model": copy.deepcopy(options["model"]), "reference": None})
    task = on_cuda(options)
    assert why_no_static_step(task.model, task.max_length) is None
    prompts = task.prompts.sample(np.random.default_rng(0), 17)
    usual = LocalBackend(on_cpu, 5).generate(prompts, Sampling(seeded())).episodes
    for slots, look_every in ((5, None), (20, 1), (20, 3)):
        backend = LocalBackend(task, slots, decoding=Decoding(look_every=look_every))
        for _ in range(2):  # the second time by the graphs of the first
            episodes = backend.generate(prompts, Sampling(seeded())).episodes
            np.testing.assert_array_equal(usual.input_ids, episodes.input_ids)
            np.testing.assert_allclose(usual.logprobs, episodes.logprobs, rtol=0, atol=1e-3)
        assert backend._kept is not None and backend._kept._graphs


def test_steps_do_not_wait_for_the_device(id_task):
    task = on_cuda(id_task(max_new_tokens=9))
    head = nn.Linear(32, 1, device="cuda").requires_grad_(False)
    writer = StaticWriter(task.model, 8, task.max_length, 9, 1.0, lambda hidden: head(hidden).squeeze(-1))
    slots = np.arange(writer.begin(8))
    ids, lengths = np.full((8, 3), 5), np.full(8, 3)
    uniforms = np.full((8, 9), 0.5, dtype=np.float32)
    with torch.no_grad(), evaluating(task.model):
        writer.start(slots, ids, lengths, uniforms)
        writer.step(slots)  # captures
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(6):
                writer.step(slots)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_weights_that_train_are_those_that_write(id_task):
    """Captured steps read the weights where the optimizer writes them, also those of the bfloat16 copy."""
    for bf16, near in ((False, 1e-3), (True, 0.2)):
        options = id_task()
        env = TextGenerationEnv(
            **{**options, "model": options["model"].cuda(), "reference": options["reference"].cuda()}
        )
        agent = PPO(env, rollout_episodes=40, slots=16, learning_rate=3e-3, decoding=Decoding(bf16=bf16))
        before = copy.deepcopy(agent.task.model)
        agent.learn(1000)
        rollout = agent.collect_rollout()
        kept = rollout.episodes.logprobs[rollout.mask]
        off = np.abs(response_logprobs(agent.task.model, rollout.episodes)[rollout.mask] - kept)
        by_old = np.abs(response_logprobs(before, rollout.episodes)[rollout.mask] - kept)
        assert off.max() < near and by_old.mean() > 3 * off.mean()


def test_the_compiled_step_writes_the_same(id_task):
    task = on_cuda(id_task(eos_token_id=ENDS, max_new_tokens=9))
    prompts = task.prompts.sample(np.random.default_rng(0), 17)
    plain = LocalBackend(task, 8).generate(prompts, Sampling(seeded())).episodes
    compiled = LocalBackend(task, 8, decoding=Decoding(compile=True)).generate(prompts, Sampling(seeded())).episodes
    np.testing.assert_array_equal(plain.input_ids, compiled.input_ids)
    np.testing.assert_allclose(plain.logprobs, compiled.logprobs, rtol=0, atol=1e-3)
