"""Unmodified stable-baselines3 and sb3-contrib on the text environment: same numbers, same optimum, no pickle."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecMonitor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import agents.sb3
from agents.sb3 import CausalLMPolicy, EpisodeRolloutBuffer, TextVecEnv
from agents.sb3.sequences import Sequences
from lm_env import AdaptiveKL, Episodes, Task, TextGenerationVectorEnv, TokenMDP
from lm_env.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    ConfigurationError,
    PublishedActionsError,
    UnsafeFileError,
)
from lm_env.forwards import evaluating, response_logprobs

V, EOS = 61, 0
PROMPTS = [[3, 4, 5], [7], [9, 10, 11, 12, 13], [20, 21]]


def length_reward(prompts, responses, response_ids):
    """Something that depends on the whole text."""
    return [len(r) / 4 + (sum(r) % 7) / 7 for r in response_ids]


@pytest.fixture
def options(make_lm):
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


class Recorder(BaseCallback):
    """Every step's observation, actions, rewards, ends and infos."""

    def _on_training_start(self):
        self.steps = []

    def _on_step(self):
        names = ("obs_tensor", "actions", "rewards", "dones", "infos")
        self.steps.append({n: copy.deepcopy(self.locals[n]) for n in names})
        return True

    def episodes(self, task):
        """(Episodes, per episode its rewards, and its log-probs) of those that ended in the recording."""
        rows, rewards, logps = [], [], []
        for slot in range(len(self.steps[0]["dones"])):
            begin = 0
            for t, step in enumerate(self.steps):
                if step["dones"][slot]:
                    last = step["infos"][slot]["terminal_observation"]
                    rows.append((last["input_ids"], int(last["length"][0])))
                    rewards.append([s["rewards"][slot] for s in self.steps[begin : t + 1]])
                    logps.append([s["infos"][slot]["logp"] for s in self.steps[begin : t + 1]])
                    begin = t + 1
        by_ids = {tuple(p.ids.tolist()): p for p in task.prompts}
        lengths = np.array([n for _, n in rows])
        prompt_lengths = lengths - np.array([len(r) for r in rewards])
        prompts = [by_ids[tuple(ids[:p].tolist())] for (ids, _), p in zip(rows, prompt_lengths, strict=True)]
        return Episodes(np.stack([ids for ids, _ in rows]), prompt_lengths, lengths, prompts), rewards, logps


# -- the vector environment ----------------------------------------------------------------------------
def test_steps_like_the_gymnasium_vector(options):
    ours = TextVecEnv(3, **options)
    theirs = TextGenerationVectorEnv(3, autoreset_mode="SameStep", **options)
    ours.seed(5)
    a, (b, _) = ours.reset(), theirs.reset(seed=5)
    rng, ends = np.random.default_rng(0), 0
    for _ in range(40):
        np.testing.assert_array_equal(a["input_ids"], b["input_ids"])
        np.testing.assert_array_equal(a["length"], b["length"])
        actions = rng.integers(0, V, 3)
        a, rewards, dones, infos = ours.step(actions)
        b, wanted, terminated, truncated, info = theirs.step(actions)
        assert rewards.dtype == np.float32 and dones.dtype == np.bool_
        np.testing.assert_allclose(rewards, wanted, atol=1e-6)
        np.testing.assert_array_equal(dones, terminated | truncated)
        for slot in np.flatnonzero(dones):
            ends += 1
            last = infos[slot]["terminal_observation"]
            np.testing.assert_array_equal(last["input_ids"], info["final_obs"][slot]["input_ids"])
            assert last["length"] == info["final_obs"][slot]["length"]
            assert infos[slot]["TimeLimit.truncated"] is False
            assert type(infos[slot]["rm_score"]) is float
        for slot in np.flatnonzero(~dones):
            assert "terminal_observation" not in infos[slot]
    assert ends > 5


def test_truncation_is_told_and_pays_no_score(options):
    env = TextVecEnv(2, **{**options, "cap_truncates": True, "eos_token_id": (), "beta": 0.0})
    env.reset()
    for step in range(6):
        _, rewards, dones, infos = env.step(np.array([5, 6]))
        assert not rewards.any()
        assert [i["TimeLimit.truncated"] for i in infos] == [step == 5] * 2
    assert dones.all()


def test_seeds_and_prompts_at_reset(options):
    env = TextVecEnv(4, **options)
    env.seed(3)
    first = env.reset()["input_ids"]
    assert [info["prompt_index"] for info in env.reset_infos] == [PROMPTS.index(r[r != 0].tolist()) for r in first]
    later = [env.reset()["input_ids"].tolist() for _ in range(8)]
    assert any(ids != first.tolist() for ids in later)  # a seed is used once
    env.seed(3)
    np.testing.assert_array_equal(env.reset()["input_ids"], first)
    env.set_options({"prompt": [30, 31]})
    np.testing.assert_array_equal(env.reset()["input_ids"][:, :3], [[30, 31, 0]] * 4)


def test_attributes_and_methods_by_slot(options):
    mask = np.arange(V) % 2 == 0
    env = TextVecEnv(3, **options, action_mask=lambda prompt, response: mask if len(response) else ~mask)
    env.reset()
    env.step(np.array([5, 7, 9]))
    assert env.get_attr("response", [0, 2]) == [[5], [9]]
    assert env.get_attr("task") == [env.task] * 3
    masks = env.env_method("action_masks")
    assert len(masks) == 3 and all(m.dtype == np.bool_ and (m == mask).all() for m in masks)
    env.set_attr("note", "x", indices=1)
    assert env.get_attr("note", 1) == ["x"]
    assert not env.has_attr("note") and not env.has_attr("missing") and env.has_attr("action_masks")
    assert "5" in env.env_method("render", indices=0)[0]
    assert env.env_is_wrapped(VecMonitor) == [False] * 3


def test_made_from_an_environment_a_task_or_an_id(options):
    vector = TextGenerationVectorEnv(5, **options)
    env = TextVecEnv.from_env(vector)
    assert env.task is vector.task and env.num_envs == 5
    assert TextVecEnv.from_env(Task(**{**options}), 2).num_envs == 2
    assert TextVecEnv.from_env("lm_env/TokenMDP-v0", 3, beta=2.0).task.kl.beta == 2.0
    with pytest.raises(ConfigurationError, match="settled"):
        TextVecEnv.from_env(vector, beta=1.0)
    with pytest.raises(ConfigurationError, match="text environment"):
        TextVecEnv.from_env(object())


def test_controller_is_told_the_mean_kl_of_finished_episodes(options):
    told = []

    class Controller(AdaptiveKL):
        def update(self, kl, episodes):
            told.append((kl, episodes))

    env = TextVecEnv(4, **{**options, "beta": Controller()}, kl_update_episodes=8)
    agent = make_agent(PPO, env, n_steps=12, n_epochs=1, batch_size=16)
    recorder = Recorder()
    agent.learn(200, recorder)
    kls, running = [], np.zeros(4)
    for step in recorder.steps:
        running += [i["kl"] for i in step["infos"]]
        for slot in np.flatnonzero(step["dones"]):
            kls.append(running[slot])
            running[slot] = 0
    assert sum(n for _, n in told) >= 16 and all(n >= 8 for _, n in told)
    assert told[0][0] == pytest.approx(np.mean(kls[: told[0][1]]), abs=1e-6)
    quiet = TextVecEnv(4, **{**options, "beta": Controller()}, kl_update_episodes=None)
    count = len(told)
    quiet.reset()
    for _ in range(60):
        quiet.step(np.zeros(4, dtype=int))
    assert len(told) == count


def test_vec_monitor_reports_episodes(options):
    env = TextVecEnv(4, **options)
    agent = make_agent(PPO, VecMonitor(env, info_keywords=("rm_score",)), n_steps=16, n_epochs=1, batch_size=32)
    recorder = Recorder()
    agent.learn(64, recorder)
    episodes, rewards, _ = recorder.episodes(env.task)
    assert len(episodes) > 4
    reported = sorted(info["r"] for info in agent.ep_info_buffer)
    np.testing.assert_allclose(reported, sorted(map(sum, rewards)), atol=1e-5)
    assert {info["l"] for info in agent.ep_info_buffer} == set(map(len, rewards))


# -- acting --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "table"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_rollout_equals_full_forwards_and_env_score(options, make_lm, kind, critic):
    if kind == "table":
        options |= {"prompts": [[0]], "eos_token_id": (1,), "max_new_tokens": 5}
    env = TextVecEnv(4, **{**options, "model": make_lm(kind), "reference": make_lm(kind, seed=1), "temperature": 0.8})
    agent = make_agent(
        PPO, env, n_steps=20, n_epochs=1, batch_size=40, learning_rate=0.0, policy_kwargs={"critic": critic}
    )
    recorder = Recorder()
    agent.learn(80, recorder)
    episodes, rewards, logps = recorder.episodes(env.task)
    assert len(episodes) > 8
    assert {i["logp_source"] for step in recorder.steps for i in step["infos"]} == {"published"}
    scored = env.task.score(episodes)
    logp = response_logprobs(env.task.model, episodes, 0.8)
    for row, (paid, told) in enumerate(zip(rewards, logps, strict=True)):
        np.testing.assert_allclose(paid, scored.rewards[row, : len(paid)], atol=1e-5)
        np.testing.assert_allclose(told, logp[row, : len(told)], atol=1e-5)


def test_stored_log_probs_and_values_equal_full_forwards(options):
    env = TextVecEnv(3, **options)
    agent = make_agent(PPO, env, n_steps=15, buffer=None)
    torch.nn.init.normal_(agent.policy.network.value_head.weight)
    buffer = rollout(agent)
    assert isinstance(buffer, DictRolloutBuffer)
    for step in range(15):
        for slot in range(3):
            ids, length = (
                buffer.observations["input_ids"][step, slot],
                int(buffer.observations["length"][step, slot, 0]),
            )
            logits = full_logits(env.task.model, ids, length)
            wanted = torch.log_softmax(logits, -1)[int(buffer.actions[step, slot, 0])]
            assert buffer.log_probs[step, slot] == pytest.approx(float(wanted), abs=1e-5)
            with torch.no_grad():
                states = env.task.model(
                    input_ids=torch.as_tensor(ids[None, :length]), output_hidden_states=True
                ).hidden_states
                value = float(agent.policy.network.value_head(states[-1][0, -1]))
            assert buffer.values[step, slot] == pytest.approx(value, abs=1e-5)


def acting_logits(policy, observation):
    return policy.brain._actor.outputs(observation["input_ids"], observation["length"][:, 0])[0]


def continued(observation, tokens):
    ids, length = observation["input_ids"].copy(), observation["length"].copy()
    ids[np.arange(len(ids)), length[:, 0]] = tokens
    return {"input_ids": ids, "length": length + 1}


def swap(observation, policy):
    return {k: v[::-1].copy() for k, v in observation.items()}


def edit(observation, policy):
    observation["input_ids"][1, 0] += 1
    return observation


def edit_last(observation, policy):
    observation["input_ids"][0, observation["length"][0, 0] - 1] += 1
    return observation


def shorten(observation, policy):
    observation["length"][2] -= 1
    return observation


def one_row_less(observation, policy):
    return {k: v[1:].copy() for k, v in observation.items()}


def optimizer_step(observation, policy):
    policy.optimizer.zero_grad()
    policy.evaluate_actions(
        obs_as_tensor(observation, "cpu"), torch.zeros(len(observation["length"]), dtype=torch.long)
    )[1].sum().backward()
    policy.optimizer.step()
    return observation


def load_weights(observation, policy):
    policy.load_state_dict({k: v + 0.1 for k, v in policy.state_dict().items()})
    return observation


def write_data(observation, policy):
    for p in policy.parameters():
        p.data.add_(0.1)
    return observation


def assign_data(observation, policy):
    for p in policy.parameters():
        p.data = p.data + 0.1
    return observation


@pytest.mark.parametrize(
    "change", [swap, edit, edit_last, shorten, one_row_less, optimizer_step, load_weights, write_data, assign_data]
)
def test_a_wrong_cache_never_acts(options, change):
    env = TextVecEnv(4, **options)
    agent = make_agent(PPO, env)
    policy = agent.policy
    observation = env.reset()
    for tokens in ([30, 31, 32, 33], [40, 41, 42, 43]):
        acting_logits(policy, observation)
        observation = continued(observation, tokens)
    observation = change(observation, policy)
    got = acting_logits(policy, observation)
    for row, (ids, (length,)) in enumerate(zip(observation["input_ids"], observation["length"], strict=True)):
        torch.testing.assert_close(got[row], full_logits(env.task.model, ids, length), atol=2e-5, rtol=1e-4)


def test_an_environment_reset_underneath_is_noticed(options):
    env = TextVecEnv(4, **options)
    agent = make_agent(PPO, env, n_steps=4)
    rollout(agent)
    agent._last_obs = env.reset()
    _, _, logp = agent.policy(obs_as_tensor(agent._last_obs, "cpu"))
    actions = env.mdp.behavior._actions
    wanted = [
        torch.log_softmax(full_logits(env.task.model, ids, n), -1)[a]
        for ids, (n,), a in zip(agent._last_obs["input_ids"], agent._last_obs["length"], actions, strict=True)
    ]
    torch.testing.assert_close(logp, torch.stack(wanted), atol=1e-5, rtol=0)


def test_a_step_costs_one_token_per_row(options):
    """After the first, forwards see one token a row: what is not re-read is not re-computed."""
    env = TextVecEnv(4, **{**options, "eos_token_id": ()})
    agent = make_agent(PPO, env, n_steps=6)
    rollout(agent)  # the model is probed once
    widths = []
    handle = env.task.model.transformer.register_forward_pre_hook(
        lambda m, a, kw: widths.append(kw["input_ids"].shape[1]), with_kwargs=True
    )
    rollout(agent)
    handle.remove()
    assert widths[1:6] == [1] * 5 and len(widths) == 7  # the last one: values of the new prompts


def test_actions_other_than_the_published_ones_are_refused(options):
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, env)
    actions, _, _ = agent.policy(obs_as_tensor(env.reset(), "cpu"))
    with pytest.raises(PublishedActionsError):
        env.step((actions.numpy() + 1) % V)


def test_predict_does_not_publish_and_evaluates(options):
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, env)
    observation = env.reset()
    actions, _ = agent.predict(observation, deterministic=True)
    wanted = [
        int(full_logits(env.task.model, i, n[0]).argmax())
        for i, n in zip(observation["input_ids"], observation["length"], strict=True)
    ]
    assert actions.tolist() == wanted
    env.step((actions + 1) % V)
    single = {k: v[0] for k, v in observation.items()}
    assert agent.predict(single, deterministic=True)[0] == wanted[0]
    mean, _ = evaluate_policy(agent, VecMonitor(env), n_eval_episodes=4)
    assert np.isfinite(mean)


def test_another_model_is_bound_as_scorer(options, make_lm):
    other = make_lm("gpt2", seed=7)
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, env, policy_kwargs={"model": other})
    observation = env.reset()
    actions, _ = agent.predict(observation)
    _, _, _, infos = env.step(actions)
    for slot, info in enumerate(infos):
        logits = full_logits(other, observation["input_ids"][slot], observation["length"][slot, 0])
        assert info["logp_source"] == "scorer"
        assert info["logp"] == pytest.approx(float(torch.log_softmax(logits, -1)[actions[slot]]), abs=1e-5)


def test_dropout_stays_off(make_lm, options):
    env = TextVecEnv(4, **{**options, "model": make_lm("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)})
    agent = make_agent(PPO, env, n_epochs=1, batch_size=40, learning_rate=0.0)
    agent.learn(40)
    agent.policy.set_training_mode(True)
    agent.policy.train()
    assert not any(m.training for m in agent.policy.modules())
    assert agent.rollout_buffer.full
    sample = next(agent.rollout_buffer.get(None))
    _, logp, _ = agent.policy.evaluate_actions(sample.observations, sample.actions.long().flatten())
    torch.testing.assert_close(logp, sample.old_log_prob, atol=1e-5, rtol=0)


def test_the_critic_starts_at_zero_and_frozen_weights_stay(options):
    env = TextVecEnv(2, **options)
    env.task.model.transformer.wte.weight.requires_grad_(False)
    agent = make_agent(PPO, env, n_epochs=1, batch_size=20, learning_rate=0.01)
    frozen, free = (
        env.task.model.transformer.wte.weight.clone(),
        env.task.model.transformer.h[0].mlp.c_fc.weight.clone(),
    )
    assert not rollout(agent).values.any()
    agent.train()
    assert torch.equal(env.task.model.transformer.wte.weight, frozen)
    assert not torch.equal(env.task.model.transformer.h[0].mlp.c_fc.weight, free)


def test_spaces_and_models_that_do_not_fit(options, make_lm):
    env = TextVecEnv(2, **options)
    with pytest.raises(ConfigurationError, match="match them"):
        make_agent(PPO, env, policy_kwargs={"model": make_lm("table")})
    plain = copy.deepcopy(env.observation_space)
    assert type(plain) is spaces.Dict and plain == env.observation_space
    with pytest.raises(ConfigurationError, match=r"observation_space=env\.observation_space"):
        CausalLMPolicy(plain, env.action_space, lambda _: 0.1)
    with pytest.raises(ConfigurationError, match="reads Dict"):
        CausalLMPolicy(spaces.Box(0, 1), env.action_space, lambda _: 0.1)
    masked = TextVecEnv(2, **options, action_mask=lambda p, r: np.ones(V, dtype=bool))
    with pytest.raises(ConfigurationError, match="MaskablePPO"):
        make_agent(PPO, masked)


# -- minibatches ---------------------------------------------------------------------------------------
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_sequences_hold_every_state_in_as_few_texts_as_there_are(data):
    rows = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12))
    lengths = np.array([len(r) for r in rows])
    ids = np.full((len(rows), 7), data.draw(st.integers(0, 2)))  # padding that looks like tokens
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    sequences = Sequences.from_observations(ids, lengths)
    for n, tokens in enumerate(rows):
        assert sequences.input_ids[sequences.rows[n], : sequences.positions[n] + 1].tolist() == tokens
    distinct = {tuple(r) for r in rows}
    maximal = [a for a in distinct if not any(b != a and b[: len(a)] == a for b in distinct)]
    assert len(sequences.input_ids) == len(maximal)
    seen = []
    for part in sequences.parts(data.draw(st.integers(1, 20))):
        seen += part.states.tolist()
        for state, row, position in zip(part.states, part.rows, part.positions, strict=True):
            assert part.input_ids[row, : position + 1].tolist() == rows[state]
    assert sorted(seen) == list(range(len(rows)))


class SameMinibatches(DictRolloutBuffer):
    """The stock buffer, with the minibatches of an `EpisodeRolloutBuffer`."""

    plan: EpisodeRolloutBuffer

    def get(self, batch_size=None):
        size, n = self.buffer_size, self.n_envs
        if not self.generator_ready:
            self.observations = {k: self.swap_and_flatten(v) for k, v in self.observations.items()}
            for name in ("actions", "values", "log_probs", "advantages", "returns"):
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        for transitions in self.plan.minibatches(batch_size):
            step, env = np.divmod(transitions, n)
            yield self._get_samples(env * size + step)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "table"])
@pytest.mark.parametrize("cls", [PPO, A2C])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_loss_and_gradients_equal_the_stock_buffers(options, make_lm, kind, cls, critic):
    """Unmodified `train` on the same transitions and minibatches: same losses, same weights after SGD."""
    if kind == "table":
        options |= {"prompts": [[0]], "eos_token_id": (1,)}
    options |= {"reference": make_lm(kind, seed=3), "max_new_tokens": 5}
    sgd = {"critic": critic, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    extra = {"n_epochs": 1, "batch_size": 12} if cls is PPO else {}
    pair = []
    for buffer in (EpisodeRolloutBuffer, SameMinibatches):
        env = TextVecEnv(4, **{**options, "model": make_lm(kind)})
        agent = make_agent(
            cls,
            env,
            n_steps=9,
            buffer=buffer,
            learning_rate=0.01,
            ent_coef=0.01,
            max_grad_norm=1e9,
            policy_kwargs=sgd,
            **extra,
        )
        if buffer is EpisodeRolloutBuffer:
            agent.policy.brain.part_tokens = 20  # several forwards a minibatch
        torch.manual_seed(0)
        torch.nn.init.normal_(agent.policy.network.value_head.weight, std=0.1)
        torch.manual_seed(1)
        env.seed(1)
        rollout(agent)
        np.random.seed(0)
        pair.append(agent)
    ours, stock = pair
    np.testing.assert_array_equal(ours.rollout_buffer.actions, stock.rollout_buffer.actions.astype(int))
    for name in ("rewards", "values", "log_probs", "episode_starts", "advantages", "returns"):
        np.testing.assert_array_equal(
            getattr(ours.rollout_buffer, name), getattr(stock.rollout_buffer, name), err_msg=name
        )
    stock.rollout_buffer.plan = ours.rollout_buffer
    (our_loss, our_gradients), (stock_loss, stock_gradients) = first_loss(ours), first_loss(stock)
    assert our_loss == pytest.approx(stock_loss, abs=1e-6, rel=1e-6)
    size = max(1.0, *(float(g.abs().max()) for g in our_gradients.values()))
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, stock_gradients[name], atol=1e-6 * size, rtol=0, msg=name)
    for agent in pair:
        np.random.seed(0)
        agent.train()
    for (name, ours_then), theirs in zip(
        ours.policy.state_dict().items(), stock.policy.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours_then, theirs, atol=1e-5, rtol=1e-5, msg=name)


class Stop(Exception):
    """Raised before the first optimizer step."""


def first_loss(agent):
    """Run `train` up to its first optimizer step: the loss, and the gradients by name."""

    def stop(optimizer, args, kwargs):
        raise Stop

    handle = agent.policy.optimizer.register_step_pre_hook(stop)
    np.random.seed(0)
    with pytest.raises(Stop) as raised:
        agent.train()
    handle.remove()
    frame = next(entry.frame for entry in raised.traceback if entry.name == "train")
    return float(frame.f_locals["loss"].detach()), {
        n: p.grad.clone() for n, p in agent.policy.named_parameters() if p.grad is not None
    }


def test_segments_are_whole_minibatches_even_and_together_everything(options):
    env = TextVecEnv(4, **options)
    agent = make_agent(PPO, env, n_steps=25)
    buffer = rollout(agent)
    segment, starts = buffer._segment, buffer.episode_starts.astype(bool)
    for slot in range(4):  # a new segment exactly where an episode starts, and at the rollout's edge
        changes = np.append(True, segment[1:, slot] != segment[:-1, slot])
        np.testing.assert_array_equal(changes[1:], starts[1:, slot])
    for batch_size in (10, 7, 1, 1000, None):
        batches = buffer.minibatches(batch_size)
        assert sorted(np.concatenate(batches)) == list(range(100))
        owners = [set(segment.reshape(-1)[b]) for b in batches]
        assert sum(map(len, owners)) == len(set.union(*owners))  # no segment in two
        if batch_size is not None:
            assert all(len(b) <= batch_size or len(o) == 1 for b, o in zip(batches, owners, strict=True))
    first, second = (np.concatenate(buffer.minibatches(10)) for _ in range(2))
    assert first.tolist() != second.tolist()
    sample = next(buffer.get(None))
    assert len(sample.observations) == 100 and len(sample.observations.input_ids) == segment.max() + 1


def test_segments_cut_at_the_edges_go_on_in_the_next_rollout(options):
    """Four rollouts of 4 steps each, through episodes of 6: every state is the environment's own."""
    env = TextVecEnv(3, **{**options, "eos_token_id": ()})
    agent = make_agent(PPO, env, n_steps=4, learning_rate=0.0, n_epochs=1)
    _, callback = agent._setup_learn(48, None)
    for turn in range(4):
        shown = []
        callback.on_step = lambda shown=shown: shown.append(copy.deepcopy(callback.locals["obs_tensor"])) or True
        assert agent.collect_rollouts(env, callback, agent.rollout_buffer, 4)
        buffer = agent.rollout_buffer
        if turn == 1:
            np.testing.assert_array_equal(buffer.episode_starts.any(1), [False, False, True, False])
            assert buffer._segments == 6
        sample = next(buffer.get(None))
        order = buffer.minibatches(None)[0]
        for n, transition in enumerate(order):
            step, slot = divmod(int(transition), 3)
            sequences = buffer._sequences(order)
            length = int(shown[step]["length"][slot, 0])
            assert sequences.positions[n] == length - 1
            np.testing.assert_array_equal(
                sequences.input_ids[sequences.rows[n], :length], shown[step]["input_ids"][slot, :length]
            )
        _, logp, _ = agent.policy.evaluate_actions(sample.observations, sample.actions.flatten())
        torch.testing.assert_close(logp, sample.old_log_prob, atol=1e-5, rtol=0)


def test_an_unannounced_reset_begins_a_segment(options):
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, env, n_steps=4)
    buffer, zeros = agent.rollout_buffer, np.zeros(2)
    first = env.reset()
    other = continued(continued(first, [5, 6]), [7, 8])
    other["input_ids"][1, 0] += 1
    texts = [first, continued(first, [5, 6]), other, continued(other, [9, 9])]
    for observation in texts:
        buffer.add(observation, zeros, zeros, zeros, torch.zeros(2), torch.zeros(2))
    assert buffer._segment[:, 0].tolist() == [0, 0, 0, 0]
    assert buffer._segment[:, 1].tolist() == [1, 1, 2, 2]
    sequences = buffer._sequences(np.arange(8))
    for n, (observation, slot) in enumerate((o, s) for o in texts for s in range(2)):
        ids = sequences.input_ids[sequences.rows[n], : sequences.positions[n] + 1]
        assert ids.tolist() == observation["input_ids"][slot, : observation["length"][slot, 0]].tolist()


def test_advantages_are_the_stock_buffers_with_truncation(options):
    """A hand-written pass: terminal ends stop the sum, truncated ones bootstrap, edges bootstrap."""
    env = TextVecEnv(2, **{**options, "cap_truncates": True})
    agent = make_agent(PPO, env, n_steps=14, gae_lambda=0.9)
    agent.gamma = agent.rollout_buffer.gamma = 0.97
    torch.nn.init.normal_(agent.policy.network.value_head.weight)
    recorder = Recorder()
    recorder.init_callback(agent)
    agent._setup_learn(10_000, None)
    recorder._on_training_start()
    agent.collect_rollouts(env, recorder, agent.rollout_buffer, 14)
    buffer, ends = agent.rollout_buffer, 0
    with torch.no_grad():
        last = agent.policy.predict_values(obs_as_tensor(agent._last_obs, "cpu")).numpy()
    for slot in range(2):
        following, running = float(last[slot]), 0.0
        for t in reversed(range(14)):
            info, done, reward = (
                recorder.steps[t]["infos"][slot],
                recorder.steps[t]["dones"][slot],
                recorder.steps[t]["rewards"][slot],
            )
            if done:
                running, following = 0.0, 0.0
                if info["TimeLimit.truncated"]:
                    ends += 1
                    terminal, _ = agent.policy.obs_to_tensor(info["terminal_observation"])
                    following = float(agent.policy.predict_values(terminal)[0].detach())
            running = reward + 0.97 * following - buffer.values[t, slot] + 0.97 * 0.9 * running
            assert buffer.advantages[t, slot] == pytest.approx(running, abs=2e-4)
            following = buffer.values[t, slot]
    assert ends >= 2
    np.testing.assert_array_equal(buffer.returns, buffer.advantages + buffer.values)
    assert EpisodeRolloutBuffer.compute_returns_and_advantage is RolloutBuffer.compute_returns_and_advantage


def test_the_stock_buffers_minibatch_shares_forwards(options):
    env = TextVecEnv(2, **{**options, "eos_token_id": (), "prompts": [[1, 2], [3, 4, 5]], "temperature": 0.7})
    agent = make_agent(PPO, env, n_steps=6, buffer=None)
    agent.policy.brain.part_tokens = 1  # a forward for each text
    sample = next(rollout(agent).get(None))
    rows = []
    handle = env.task.model.transformer.register_forward_pre_hook(
        lambda m, a, kw: rows.append(len(kw["input_ids"])), with_kwargs=True
    )
    values, logp, entropy = agent.policy.evaluate_actions(sample.observations, sample.actions.long().flatten())
    handle.remove()
    assert sum(rows) == 2
    torch.testing.assert_close(logp, sample.old_log_prob, atol=1e-5, rtol=0)
    distribution = agent.policy.get_distribution(sample.observations)
    torch.testing.assert_close(distribution.entropy(), entropy)
    torch.testing.assert_close(distribution.log_prob(sample.actions.long().flatten()), logp)
    torch.testing.assert_close(agent.policy.predict_values(sample.observations), values)


# -- learning ------------------------------------------------------------------------------------------
T0 = TokenMDP.t0()


def trained(cls, beta, steps, num_envs, model=None, **kwargs):
    """The evaluation on T0 of an agent after `steps` steps."""
    options = {} if model is None else {"model": model}
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", num_envs, beta=beta, **options)
    make_agent(cls, env, **kwargs).learn(steps)
    return T0.evaluate(env.task.model, beta)


@pytest.mark.parametrize(("beta", "buffer"), [(0.5, EpisodeRolloutBuffer), (1.0, EpisodeRolloutBuffer), (0.5, None)])
def test_ppo_reaches_the_optimum(beta, buffer):
    end = trained(
        PPO,
        beta,
        120_000,
        128,
        n_steps=8,
        batch_size=256,
        n_epochs=4,
        learning_rate=LinearSchedule(0.03, 0.0, 1.0),
        buffer=buffer,
    )
    assert end.gap <= 5e-4 and end.tv <= 0.005


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_a2c_reaches_the_optimum(beta):
    end = trained(
        A2C,
        beta,
        100_000,
        64,
        n_steps=6,
        gae_lambda=0.95,
        use_rms_prop=False,
        learning_rate=LinearSchedule(0.05, 0.0, 1.0),
    )
    assert end.gap <= 3e-3 and end.tv <= 0.02


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_trpo_reaches_the_optimum(beta):
    trpo = pytest.importorskip("sb3_contrib").TRPO
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", 256, beta=beta)
    agent = make_agent(trpo, env, n_steps=6, batch_size=512, learning_rate=0.03)
    for target_kl, steps in (
        (0.03, 40_000),
        (0.003, 50_000),
        (0.0005, 50_000),
    ):  # its trust region never closes by itself
        agent.target_kl = target_kl
        agent.learn(steps, reset_num_timesteps=False)
    end = T0.evaluate(env.task.model, beta)
    assert end.gap <= 3e-3 and end.tv <= 0.02


def two_layers(attention="sdpa"):
    config = GPT2Config(vocab_size=4, n_embd=32, n_layer=2, n_head=2, n_positions=8, bos_token_id=3, eos_token_id=3)
    torch.manual_seed(0)
    return GPT2LMHeadModel._from_config(config, attn_implementation=attention).eval()


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_ppo_brings_a_transformer_to_the_optimum(beta):
    end = trained(
        PPO,
        beta,
        150_000,
        256,
        two_layers(),
        n_steps=8,
        batch_size=512,
        n_epochs=4,
        learning_rate=LinearSchedule(0.003, 0.0, 1.0),
    )
    best = T0.optimum(beta)
    assert end.gap <= 5e-3 and end.tv <= 0.03
    assert abs(end.R - best.R) <= 0.03 and abs(end.KL - best.KL) <= 0.05


def test_trpo_improves_a_transformer_with_eager_attention():
    trpo = pytest.importorskip("sb3_contrib").TRPO
    model = two_layers("eager")
    before = T0.evaluate(model, 1.0)
    after = trained(trpo, 1.0, 800, 64, model, n_steps=6, cg_max_steps=5, n_critic_updates=2)
    assert after.gap < before.gap - 0.1


# -- masks ---------------------------------------------------------------------------------------------
def no_b(prompt, response):
    """B may not follow A."""
    return np.array([True, not (len(response) and response[-1] == 0), True, True])


def masked_optimum(beta):
    """The allowed texts, tilted by the reward: (probabilities of all trajectories)."""
    tokens, lengths = T0.trajectories()
    allowed = np.array(
        [
            not any(a == 0 and b == 1 for a, b in itertools.pairwise(row[:n]))
            for row, n in zip(tokens, lengths, strict=True)
        ]
    )
    weights = np.exp(T0.trajectory_logprobs(T0.reference_logits) + T0.scores() / beta) * allowed
    return weights / weights.sum()


@pytest.mark.parametrize("stock", [False, True])
def test_maskable_ppo_reaches_the_masked_optimum(stock):
    contrib = pytest.importorskip("sb3_contrib")
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", 128, beta=0.5, action_mask=no_b)
    buffer = None if stock else agents.sb3.MaskableEpisodeRolloutBuffer
    schedule = LinearSchedule(0.03, 0.0, 1.0)
    agent = make_agent(
        contrib.MaskablePPO, env, n_steps=8, batch_size=256, n_epochs=4, learning_rate=schedule, buffer=buffer,
        policy=agents.sb3.MaskableCausalLMPolicy,
    )  # fmt: skip
    agent.learn(100_000)  # the environment refuses masked tokens: none was drawn
    tokens, lengths = T0.trajectories()
    mass = np.zeros(len(tokens))
    with torch.no_grad():
        for i, (row, n) in enumerate(zip(tokens, lengths, strict=True)):
            ids, logp = np.concatenate([[3], row[:n]]), 0.0
            for t in range(n):
                logits = full_logits(env.task.model, ids, t + 1).double()
                logits[torch.from_numpy(~no_b(None, row[:t]))] = -np.inf
                logp += float(torch.log_softmax(logits, -1)[row[t]])
            mass[i] = np.exp(logp)
    assert mass.sum() == pytest.approx(1)
    assert np.abs(mass - masked_optimum(0.5)).sum() / 2 <= 0.01
    observation = env.reset()
    observation["input_ids"][:, 1], observation["length"][:] = 0, 2
    actions, _ = agent.predict(observation, action_masks=np.tile(no_b(None, [0]), (128, 1)))
    assert 1 not in actions


def test_masked_minibatches_equal_the_stock_buffers(options):
    contrib = pytest.importorskip("sb3_contrib")
    env = TextVecEnv(3, **options, action_mask=lambda p, r: np.arange(V) % 3 != len(r) % 3)
    agent = make_agent(
        contrib.MaskablePPO,
        env,
        buffer=agents.sb3.MaskableEpisodeRolloutBuffer,
        policy=agents.sb3.MaskableCausalLMPolicy,
        ent_coef=0.1,
    )
    buffer = rollout(agent)
    assert buffer.action_masks.dtype == np.bool_ and not buffer.action_masks.all()
    sample = next(buffer.get(None))
    _, logp, entropy = agent.policy.evaluate_actions(
        sample.observations, sample.actions.flatten(), action_masks=sample.action_masks
    )
    torch.testing.assert_close(logp, sample.old_log_prob, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        entropy, agent.policy.get_distribution(sample.observations, sample.action_masks).entropy(), atol=1e-5, rtol=1e-5
    )
    agent.train()
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())


# -- files ---------------------------------------------------------------------------------------------
@pytest.fixture
def saved(options, text_lm, tokenizer, tmp_path):
    """(agent after an update, the folder it is saved in, options of its environment)."""
    options |= {
        "model": text_lm(),
        "reference": text_lm(seed=1),
        "tokenizer": tokenizer,
        "prompts": ["a good", "the end"],
        "eos_token_id": None,
    }
    env = TextVecEnv(2, **options)
    agent = make_agent(
        PPO, env, n_epochs=2, batch_size=10, learning_rate=LinearSchedule(0.01, 0.0, 0.5), clip_range=0.17,
        gae_lambda=0.9, policy_kwargs={"critic": "separate", "optimizer_kwargs": {"eps": 1e-6}},
    ).learn(40)  # fmt: skip
    return agent, agents.sb3.save(agent, tmp_path / "agent"), {**options, "model": text_lm(seed=5)}


def test_save_and_load(saved):
    agent, folder, options = saved
    env = TextVecEnv(2, **options)
    again = agents.sb3.load(PPO, folder, env)
    for (name, a), b in zip(agent.policy.state_dict().items(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert again.policy.network.lm is env.task.model
    assert again.num_timesteps == 40 and again._n_updates == 4 and type(again.rollout_buffer) is EpisodeRolloutBuffer
    for name in ("gamma", "gae_lambda", "n_steps", "batch_size", "n_epochs", "ent_coef"):
        assert getattr(again, name) == getattr(agent, name), name
    assert again.clip_range(1.0) == 0.17 and again.lr_schedule(0.75) == pytest.approx(0.005)
    assert again.policy.optimizer.param_groups[0]["eps"] == 1e-6
    moments = (a.policy.optimizer.state_dict()["state"] for a in (agent, again))
    for (index, a), (other, b) in zip(*(sorted(m.items()) for m in moments), strict=True):
        assert index == other and all(torch.equal(a[k], b[k]) for k in a)
    ids = {"input_ids": np.arange(8).reshape(1, 8), "length": np.array([[5]])}
    observation = {k: np.resize(v, (1, *env.observation_space[k].shape)) for k, v in ids.items()}
    assert agent.predict(observation, deterministic=True)[0] == again.predict(observation, deterministic=True)[0]
    again.set_logger(configure(None, []))
    again.learn(20, reset_num_timesteps=False)


def test_transformers_loads_what_is_saved(saved):
    agent, folder, _ = saved
    model = AutoModelForCausalLM.from_pretrained(folder)
    for (name, a), b in zip(model.state_dict().items(), agent.policy.network.lm.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    kinds = {p.suffix for p in folder.rglob("*") if p.is_file()}
    assert kinds <= {".json", ".safetensors", ".jinja", ".txt"}


def test_load_refuses_pickles_damage_and_other_agents(saved, tmp_path):
    agent, folder, options = saved
    env = TextVecEnv(2, **options)
    with pytest.raises(CheckpointMismatchError, match="holds a PPO"):
        agents.sb3.load(A2C, folder, env)
    agent.policy_kwargs = {}
    agent.save(tmp_path / "theirs.zip", exclude=["observation_space"])
    with pytest.raises(UnsafeFileError, match="unpickled"):
        agents.sb3.load(PPO, tmp_path / "theirs.zip", env)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointCorruptError):
        agents.sb3.load(PPO, tmp_path / "bin", env)
    state = folder / "agent" / "state.json"
    state.write_text(state.read_text().replace("0.17", "0.18"))
    with pytest.raises(CheckpointCorruptError, match="damaged"):
        agents.sb3.load(PPO, folder, env)


def test_table_models_and_a2c_are_saved_too(tmp_path):
    env = TextVecEnv.from_env("lm_env/TokenMDP-v0", 4)
    agent = make_agent(A2C, env, n_steps=5, buffer=None).learn(20)
    folder = agents.sb3.save(agent, tmp_path / "a2c")
    state = json.loads((folder / "agent" / "state.json").read_text())
    assert state["optimizer_class"] == "RMSprop" and state["buffer"] == "DictRolloutBuffer"
    again = agents.sb3.load(A2C, folder, TextVecEnv.from_env("lm_env/TokenMDP-v0", 4))
    assert torch.equal(again.policy.network.lm.table, agent.policy.network.lm.table)
    assert isinstance(again.policy.optimizer, torch.optim.RMSprop)


def test_what_json_cannot_hold_is_said(options, tmp_path):
    agent = make_agent(PPO, TextVecEnv(2, **options), learning_rate=lambda left: 0.1 * left)
    with pytest.raises(ConfigurationError, match="learning_rate is a function"):
        agents.sb3.save(agent, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_zip_of_sb3_works_for_those_who_ask(options, tmp_path, make_lm):
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, env, n_epochs=1).learn(20)
    agent.save(tmp_path / "theirs.zip")
    other = TextVecEnv(2, **{**options, "model": make_lm("gpt2", seed=4)})
    again = PPO.load(tmp_path / "theirs.zip", env=other, observation_space=other.observation_space)
    assert torch.equal(again.policy.network.lm.lm_head.weight, agent.policy.network.lm.lm_head.weight)
    assert again.policy.network.lm is other.task.model
    again.set_logger(configure(None, []))
    again.learn(20)


def test_lora_trains_adapters_alone_and_is_saved(options, make_lm, tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(seed=0):
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=True)
        return peft.get_peft_model(make_lm("gpt2", seed), config)

    env = TextVecEnv(2, **{**options, "model": adapted()})
    agent = make_agent(PPO, env, n_epochs=2, learning_rate=0.01)
    base = env.task.model.get_base_model().transformer.wte.weight.clone()
    buffer = rollout(agent)
    sample = next(buffer.get(None))
    _, logp, _ = agent.policy.evaluate_actions(sample.observations, sample.actions.flatten())
    torch.testing.assert_close(logp, sample.old_log_prob, atol=1e-5, rtol=0)
    agent.train()
    assert torch.equal(env.task.model.get_base_model().transformer.wte.weight, base)
    trained_names = {n for n, p in agent.policy.named_parameters() if p.requires_grad}
    assert all("lora" in n or "value_head" in n for n in trained_names) and len(trained_names) == 6
    folder = agents.sb3.save(agent, tmp_path / "lora")
    again = agents.sb3.load(PPO, folder, TextVecEnv(2, **{**options, "model": adapted(seed=3)}))
    ids = torch.arange(6)[None]
    with torch.no_grad():
        wanted = env.task.model(input_ids=ids).logits
        torch.testing.assert_close(again.policy.network.lm(input_ids=ids).logits, wanted)
        merged = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-4)


def test_names_are_sorted_and_there():
    assert agents.sb3.__all__ == sorted(agents.sb3.__all__)
    assert all(hasattr(agents.sb3, name) for name in agents.sb3.__all__)
    with pytest.raises(AttributeError):
        agents.sb3.missing  # noqa: B018
