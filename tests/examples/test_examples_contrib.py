"""The examples with Tianshou and TorchRL: exact rewards, a first ratio of 1, and the optimum is reached."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
from paths import REPOSITORY

from lm_env import Episodes, TextGenerationVectorEnv, TokenMDP
from lm_env.errors import MissingDependencyError
from lm_env.models.inspection import evaluating

EXAMPLES = REPOSITORY / "examples"
LIBRARIES = {"tianshou_ppo": "tianshou", "torchrl_ppo": "torchrl"}
NUM_ENVS, NUM_STEPS = 5, 16


def example(name):
    """The module of `examples/NAME.py`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def envs(make_lm):
    """A model with dropout, sampled at a temperature, that differs from its reference."""
    torch.manual_seed(0)
    envs = TextGenerationVectorEnv(
        NUM_ENVS,
        autoreset_mode="Disabled",
        model=make_lm("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train(),
        reference=make_lm("gpt2", seed=1),
        prompts=[[3, 4, 5], [7], [9, 10, 11, 12, 13], [20, 21]],
        reward=lambda prompts, responses, response_ids: [len(r) / 4 + sum(r) % 7 / 7 for r in response_ids],
        beta=0.3,
        temperature=0.7,
        max_new_tokens=6,
        eos_token_id=(0, 1, 2, 3),
    )
    envs.reset(seed=0)
    return envs


def tianshou_rollout(envs):
    """What Tianshou has collected: (ids, lengths, actions, rewards, dones, last ids), each (n, T, ...)."""
    module = example("tianshou_ppo")
    agent, collector = module.build(envs.task, NUM_ENVS, NUM_STEPS, module.AdamOptimizerFactory(), gamma=1.0)
    collector.reset()
    collector.collect(n_step=NUM_ENVS * NUM_STEPS)
    batch, _ = collector.buffer.sample(0)
    columns = (batch.obs[:, 1:], batch.obs[:, 0], batch.act, batch.rew, batch.done, batch.obs_next[:, 1:])
    return agent, collector, [np.asarray(c).reshape(NUM_ENVS, NUM_STEPS, *c.shape[1:]) for c in columns]


def torchrl_rollout(envs):
    """What TorchRL has collected, in the same form."""
    module = example("torchrl_ppo")
    collector, loss = module.build(envs, NUM_STEPS)
    data = next(iter(collector))
    last = data["next"]
    columns = (data["input_ids"], data["length"][..., 0], data["action"], last["reward"][..., 0], last["done"][..., 0])
    return loss, data, [c.numpy() for c in (*columns, last["input_ids"])]


def full_logprobs(task, ids, lengths, actions):
    """Logprobs (n, T) of the actions, by one plain forward of each text alone."""
    with torch.no_grad(), evaluating(task.model):
        logits = [
            task.model(input_ids=torch.as_tensor(row[None, :length])).logits[0, -1]
            for row, length in zip(ids.reshape(-1, ids.shape[-1]), lengths.reshape(-1), strict=True)
        ]
    logprobs = torch.log_softmax(torch.stack(logits) / task.temperature, -1)
    return logprobs[torch.arange(actions.size), torch.as_tensor(actions).reshape(-1)].reshape(actions.shape).numpy()


@pytest.mark.parametrize("rollout", [tianshou_rollout, torchrl_rollout])
def test_rewards_are_those_of_score(envs, rollout):
    """Texts are put together from what the library stored and scored whole, with the environment's own model."""
    _, _, (ids, lengths, actions, rewards, dones, last) = rollout(envs)
    by_ids = {tuple(p.ids.tolist()): p for p in envs.task.prompts}
    rows = []
    for slot in range(NUM_ENVS):
        ends = np.flatnonzero(dones[slot])
        for begin, end in zip([0, *ends[:-1] + 1], ends, strict=True):
            prompt = by_ids[tuple(ids[slot, begin, : lengths[slot, begin]].tolist())]
            text = last[slot, end]
            response = text[len(prompt.ids) :][: end - begin + 1]
            np.testing.assert_array_equal(response, actions[slot, begin : end + 1])
            rows.append((text, prompt, rewards[slot, begin : end + 1]))
    assert len(rows) >= 2 * NUM_ENVS and len({len(r) for _, _, r in rows}) > 2
    prompt_lengths = np.array([len(p.ids) for _, p, _ in rows])
    episodes = Episodes(
        np.stack([text for text, _, _ in rows]),
        prompt_lengths,
        prompt_lengths + [len(r) for _, _, r in rows],
        [p for _, p, _ in rows],
    )
    scored = envs.score(episodes)
    for (_, _, seen), wanted in zip(rows, scored.rewards, strict=True):
        np.testing.assert_allclose(seen, wanted[: len(seen)], atol=1e-5, rtol=0)
        assert abs(seen.sum() - wanted.sum()) < 1e-5


def test_the_first_ratio_of_tianshou_is_one(envs):
    agent, collector, (ids, lengths, actions, *_) = tianshou_rollout(envs)
    wanted = full_logprobs(envs.task, ids, lengths, actions).reshape(-1)
    batch, _ = collector.buffer.sample(0)
    np.testing.assert_allclose(batch.info.logprob, wanted, atol=1e-5, rtol=0)  # what the environment was given
    others = {"input_ids": batch.obs[:, 1:], "length": batch.obs[:, :1]}  # not what has just been acted on
    np.testing.assert_allclose(collector.env.mdp.behavior.logprob_fn(others, batch.act), wanted, atol=1e-5, rtol=0)
    agent.train()
    logprobs = agent.policy(batch).dist.log_prob(torch.as_tensor(batch.act))  # what the loss reads
    np.testing.assert_allclose(logprobs.detach(), wanted, atol=1e-5, rtol=0)
    agent.policy.is_within_training_step = True
    stats = agent.update(collector.buffer, batch_size=None, repeat=1)
    assert stats.gradient_steps == 1
    assert abs(stats.actor_loss.mean) < 1e-5  # the mean of normalized advantages, times 1
    assert stats.loss.mean == pytest.approx(stats.actor_loss.mean + 0.5 * stats.vf_loss.mean)  # no entropy bonus


def test_the_first_ratio_of_torchrl_is_one(envs):
    loss, data, (ids, lengths, actions, *_) = torchrl_rollout(envs)
    wanted = full_logprobs(envs.task, ids, lengths, actions)
    np.testing.assert_allclose(data["action_log_prob"], wanted, atol=1e-5, rtol=0)
    loss.value_estimator(data)
    assert not data["advantage"].requires_grad
    first = loss(data.flatten())
    assert abs(first["loss_objective"]) < 1e-5 and abs(first["kl_approx"]) < 1e-5 and first["clip_fraction"] == 0
    assert first["ESS"] == pytest.approx(1)


@pytest.mark.parametrize("name", LIBRARIES)
def test_reaches_the_optimum(name):
    """With gamma .9 the gap ends at .0036 at best, and with a learning rate of 0 at .78."""
    task = example(name).main(steps=20_000, verbose=False)
    assert TokenMDP.t0().evaluate(task.model, 0.5).gap < 0.001


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named(name, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == LIBRARIES[name]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)  # what the import system takes for "not there"
    with pytest.raises(MissingDependencyError, match=r"pip install 'lm-env\[contrib\]'"):
        example(name)
