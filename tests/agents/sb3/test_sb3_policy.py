"""CausalLMPolicy acts from a cache that is never wrong, and its logprobs reach the environment."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_helpers import Recorder, V, continued, full_logits, make_agent, rollout, text_options
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor

import agents.sb3
from agents.sb3 import CausalLMPolicy, TextVecEnv
from lm_env.errors import ConfigurationError, PublishedActionsError
from lm_env.models.logprobs import response_logprobs
from lm_env.objective.scoring import score_episodes


@pytest.fixture
def options(make_lm):
    return text_options(make_lm)


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
    episodes, rewards, published = recorder.episodes(env.task)
    assert len(episodes) > 8
    assert {i["logprob_source"] for step in recorder.steps for i in step["infos"]} == {"published"}
    scored = score_episodes(env.task, episodes)
    logprobs = response_logprobs(env.task.model, episodes, 0.8)
    for row, (paid, logged) in enumerate(zip(rewards, published, strict=True)):
        np.testing.assert_allclose(paid, scored.rewards[row, : len(paid)], atol=1e-5)
        np.testing.assert_allclose(logged, logprobs[row, : len(logged)], atol=1e-5)


def test_stored_logprobs_and_values_equal_full_forwards(options):
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
    return policy.actor_critic._actor.outputs(observation["input_ids"], observation["length"][:, 0])[0]


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


def test_acting_after_a_reset_in_mid_episode_starts_from_the_new_texts(options):
    env = TextVecEnv(4, **options)
    agent = make_agent(PPO, env, n_steps=4)
    rollout(agent)
    observation = env.reset()
    tokens, _, logprobs = agent.policy(obs_as_tensor(observation, "cpu"))
    for row, token in enumerate(tokens.tolist()):
        logits = full_logits(env.task.model, observation["input_ids"][row], observation["length"][row, 0])
        assert float(logprobs[row]) == pytest.approx(float(torch.log_softmax(logits, -1)[token]), abs=1e-5)


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


def test_deterministic_predictions_are_the_likeliest_tokens(options):
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, env)
    observation = env.reset()
    actions, _ = agent.predict(observation, deterministic=True)
    likeliest = [
        int(full_logits(env.task.model, ids, length).argmax())
        for ids, length in zip(observation["input_ids"], observation["length"][:, 0], strict=True)
    ]
    assert actions.tolist() == likeliest
    single = {key: value[0] for key, value in observation.items()}
    assert agent.predict(single, deterministic=True)[0] == likeliest[0]


@pytest.mark.parametrize("own_model", [True, False])
def test_predicted_actions_may_be_altered(options, make_lm, own_model):
    """Their logprobs are computed anew, by the environment's own model or by the policy where it has another."""
    policy_kwargs = {} if own_model else {"model": make_lm("gpt2", seed=7)}
    env = TextVecEnv(2, **options)
    agent = make_agent(PPO, env, policy_kwargs=policy_kwargs)
    lm = agent.policy.network.lm
    observation = env.reset()
    for change in (0, 1):
        actions, _ = agent.predict(observation)
        actions = (actions + change) % V
        wanted = [
            float(torch.log_softmax(full_logits(lm, ids, length), -1)[action])
            for ids, length, action in zip(
                observation["input_ids"], observation["length"][:, 0], actions.tolist(), strict=True
            )
        ]
        observation, _, _, infos = env.step(actions)
        assert [info["logprob"] for info in infos] == pytest.approx(wanted, abs=1e-5)
        altered = "model" if own_model else "logprob_fn"
        assert {info["logprob_source"] for info in infos} == {altered if change else "published"}


def test_an_action_repeated_at_the_next_step_gets_its_new_logprob(options):
    env = TextVecEnv(2, **{**options, "eos_token_id": ()})
    agent = make_agent(PPO, env)
    actions, _ = agent.predict(env.reset())
    observation, _, _, _ = env.step(actions)
    _, _, _, infos = env.step(actions)
    for slot, info in enumerate(infos):
        logits = full_logits(env.task.model, observation["input_ids"][slot], observation["length"][slot, 0])
        wanted = float(torch.log_softmax(logits, -1)[int(actions[slot])])
        assert info["logprob"] == pytest.approx(wanted, abs=1e-5)


def test_dropout_stays_off(make_lm, options):
    env = TextVecEnv(4, **{**options, "model": make_lm("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)})
    agent = make_agent(PPO, env, n_epochs=1, batch_size=40, learning_rate=0.0)
    agent.learn(40)
    agent.policy.set_training_mode(True)
    agent.policy.train()
    assert not any(m.training for m in agent.policy.modules())
    assert agent.rollout_buffer.full
    sample = next(agent.rollout_buffer.get(None))
    _, logprobs, _ = agent.policy.evaluate_actions(sample.observations, sample.actions.long().flatten())
    torch.testing.assert_close(logprobs, sample.old_log_prob, atol=1e-5, rtol=0)


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


def test_names_are_sorted_and_there():
    assert agents.sb3.__all__ == sorted(agents.sb3.__all__)
    assert all(hasattr(agents.sb3, name) for name in agents.sb3.__all__)
    with pytest.raises(AttributeError):
        agents.sb3.missing  # noqa: B018
