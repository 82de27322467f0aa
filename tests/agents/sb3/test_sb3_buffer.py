"""EpisodeRolloutBuffer: the stock buffer's losses and gradients, from whole segments."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_helpers import Recorder, continued, make_agent, rollout, text_options
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor

from agents.sb3 import EpisodeRolloutBuffer, TextVecEnv
from agents.sb3.sequences import Sequences


@pytest.fixture
def options(make_lm):
    return text_options(make_lm)


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
            agent.policy.actor_critic.part_tokens = 20  # several forwards a minibatch
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
        _, logprobs, _ = agent.policy.evaluate_actions(sample.observations, sample.actions.flatten())
        torch.testing.assert_close(logprobs, sample.old_log_prob, atol=1e-5, rtol=0)


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
    agent.policy.actor_critic.part_tokens = 1  # a forward for each text
    sample = next(rollout(agent).get(None))
    rows = []
    handle = env.task.model.transformer.register_forward_pre_hook(
        lambda m, a, kw: rows.append(len(kw["input_ids"])), with_kwargs=True
    )
    values, logprobs, entropy = agent.policy.evaluate_actions(sample.observations, sample.actions.long().flatten())
    handle.remove()
    assert sum(rows) == 2
    torch.testing.assert_close(logprobs, sample.old_log_prob, atol=1e-5, rtol=0)
    distribution = agent.policy.get_distribution(sample.observations)
    torch.testing.assert_close(distribution.entropy(), entropy)
    torch.testing.assert_close(distribution.log_prob(sample.actions.long().flatten()), logprobs)
    torch.testing.assert_close(agent.policy.predict_values(sample.observations), values)
