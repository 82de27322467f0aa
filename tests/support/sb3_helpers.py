"""What the tests of `agents.sb3` share: an environment, an agent with a rollout, and callbacks that watch the steps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer
from lm_env import Episodes
from lm_env.models.inspection import evaluating

V = 61
PROMPTS = [[3, 4, 5], [7], [9, 10, 11, 12, 13], [20, 21]]


def length_reward(prompts, responses, response_ids):
    """Something that depends on the whole text."""
    return [len(r) / 4 + (sum(r) % 7) / 7 for r in response_ids]


def text_options(make_lm):
    """Options of an environment over token ids, for the fixture `options`."""
    return {
        "model": make_lm("gpt2"),
        "reference": make_lm("gpt2", seed=1),
        "prompts": PROMPTS,
        "reward": length_reward,
        "beta": 0.3,
        "max_new_tokens": 6,
        "eos_token_id": (0, 1, 2, 3),
    }


def make_agent(cls, env, *, n_steps=10, buffer=EpisodeRolloutBuffer, policy=CausalLMPolicy, **kwargs):
    if cls is not A2C:
        kwargs.setdefault("batch_size", n_steps * env.num_envs)
    agent = cls(policy, env, n_steps=n_steps, gamma=1.0, seed=0, rollout_buffer_class=buffer, **kwargs)
    agent.set_logger(configure(None, []))
    return agent


def rollout(agent):
    """Fill the agent's buffer, as `learn` does."""
    _, callback = agent._setup_learn(10_000, None)
    assert agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, agent.n_steps)
    return agent.rollout_buffer


def full_logits(model, ids, length):
    """The next token's logits by one plain forward of the text alone."""
    with torch.no_grad(), evaluating(model):
        return model(input_ids=torch.as_tensor(ids[None, :length])).logits[0, -1]


def next_logprob(model, ids, length, token, temperature=1.0):
    """The logprob of the next token by one plain forward of the text alone."""
    return float(torch.log_softmax(full_logits(model, ids, length) / temperature, -1)[token])


def continued(observation, tokens):
    """The observation with one more token in each row."""
    ids, length = observation["input_ids"].copy(), observation["length"].copy()
    ids[np.arange(len(ids)), length[:, 0]] = tokens
    return {"input_ids": ids, "length": length + 1}


class Recorder(BaseCallback):
    """Every step's observation, actions, rewards, ends and infos."""

    def _on_training_start(self):
        self.steps = []

    def _on_step(self):
        names = ("obs_tensor", "actions", "rewards", "dones", "infos")
        self.steps.append({n: copy.deepcopy(self.locals[n]) for n in names})
        return True

    def episodes(self, task):
        """(Episodes, per episode its rewards, and its logprobs) of those that ended in the recording."""
        rows, rewards, logprobs = [], [], []
        for slot in range(len(self.steps[0]["dones"])):
            begin = 0
            for t, step in enumerate(self.steps):
                if step["dones"][slot]:
                    last = step["infos"][slot]["terminal_observation"]
                    rows.append((last["input_ids"], int(last["length"][0])))
                    rewards.append([s["rewards"][slot] for s in self.steps[begin : t + 1]])
                    logprobs.append([s["infos"][slot]["logprob"] for s in self.steps[begin : t + 1]])
                    begin = t + 1
        by_ids = {tuple(p.ids.tolist()): p for p in task.prompts}
        lengths = np.array([n for _, n in rows])
        prompt_lengths = lengths - np.array([len(r) for r in rewards])
        prompts = [by_ids[tuple(ids[:p].tolist())] for (ids, _), p in zip(rows, prompt_lengths, strict=True)]
        return Episodes(np.stack([ids for ids, _ in rows]), prompt_lengths, lengths, prompts), rewards, logprobs


class KLCheck(BaseCallback):
    """At each step, the logprobs and rewards of the environment against full forwards of the acting policy."""

    def __init__(self, env):
        super().__init__()
        self.env = env

    def _on_training_start(self):
        self.steps = 0

    def _on_step(self):
        task = self.env.task
        observation = {key: value.numpy() for key, value in self.locals["obs_tensor"].items()}
        lm = self.model.policy.network.lm
        for slot, info in enumerate(self.locals["infos"]):
            ids = observation["input_ids"][slot]
            length = observation["length"][slot, 0]
            token = self.locals["actions"][slot]
            logprob = next_logprob(lm, ids, length, token)
            ref_logprob = next_logprob(task.reference, ids, length, token)
            assert info["logprob_source"] == "published"
            assert info["logprob"] == pytest.approx(logprob, abs=1e-5)
            assert info["kl"] == pytest.approx(logprob - ref_logprob, abs=1e-5)
            reward = info["score"] - task.kl.beta * (logprob - ref_logprob)
            assert self.locals["rewards"][slot] == pytest.approx(reward, abs=1e-5)
        self.steps += 1
        return True
