"""EpisodeRolloutBuffer keeps each text once, and an update with it equals one with the stock buffer."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_helpers import Recorder, make_agent, rollout, text_options
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor

from agents.sb3 import EpisodeRolloutBuffer, TextVecEnv
from agents.sb3.sequences import Sequences

WIDTH = 9  # tokens of the longest text
SPACE = spaces.Dict(
    input_ids=spaces.Box(0, 9, (WIDTH,), dtype=np.int64), length=spaces.Box(1, WIDTH, (1,), dtype=np.int64)
)


@pytest.fixture
def options(make_lm):
    return text_options(make_lm)


# -- Sequences ----------------------------------------------------------------------------------------
texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12)
padding = st.integers(0, 2)  # looks like tokens


def padded(rows, filler=0, width=WIDTH):
    """(input_ids, lengths) of texts of different lengths."""
    ids = np.full((len(rows), width), filler)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids, np.array([len(tokens) for tokens in rows])


def states_of(sequences):
    """The texts of all states of `Sequences`, or of a part of them."""
    return [
        sequences.input_ids[row, : position + 1].tolist()
        for row, position in zip(sequences.rows, sequences.positions, strict=True)
    ]


@settings(max_examples=80, deadline=None)
@given(texts, padding)
def test_sequences_give_every_state_back(rows, filler):
    assert states_of(Sequences.from_observations(*padded(rows, filler))) == rows


@settings(max_examples=80, deadline=None)
@given(texts, padding)
def test_sequences_keep_only_texts_that_are_no_prefix_of_another(rows, filler):
    sequences = Sequences.from_observations(*padded(rows, filler))
    distinct = {tuple(tokens) for tokens in rows}
    longest = [a for a in distinct if not any(a != b and a == b[: len(a)] for b in distinct)]
    assert len(sequences.input_ids) == len(longest)


@settings(max_examples=80, deadline=None)
@given(texts, st.data())
def test_a_selection_of_states_is_those_states(rows, data):
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1)))
    sequences = Sequences.from_observations(*padded(rows))[chosen]
    assert states_of(sequences) == [rows[n] for n in chosen]
    assert len(sequences) == len(chosen)


@settings(max_examples=80, deadline=None)
@given(texts, padding, st.integers(1, 20))
def test_parts_contain_each_state_once(rows, filler, tokens):
    parts = list(Sequences.from_observations(*padded(rows, filler)).parts(tokens))
    found = {}
    for part in parts:
        for state, text in zip(part.states.tolist(), states_of(part), strict=True):
            assert state not in found
            found[state] = text
    assert [found[n] for n in range(len(rows))] == rows


@settings(max_examples=80, deadline=None)
@given(texts, st.integers(1, 20))
def test_parts_have_at_most_the_given_number_of_tokens(rows, tokens):
    for part in Sequences.from_observations(*padded(rows)).parts(tokens):
        assert part.input_ids.size <= tokens or len(part.input_ids) == 1


# -- rollouts written by hand -------------------------------------------------------------------------
class Step(NamedTuple):
    """What one environment shows at one step."""

    text: list[int]
    starts: bool


def episode(prompt, response):
    """The steps of an episode: its last token is an action, which no observation shows."""
    return [Step([*prompt, *response[:t]], t == 0) for t in range(len(response))]


def buffer_of(environments):
    """A full buffer; `environments` has the steps of each.  The logprob of a transition is its own number."""
    n_steps = len(environments[0])
    buffer = EpisodeRolloutBuffer(n_steps, SPACE, spaces.Discrete(10), "cpu", n_envs=len(environments))
    for number, steps in enumerate(zip(*environments, strict=True)):
        add_step(buffer, steps, number)
    return buffer


def add_step(buffer, steps, number):
    ids, lengths = padded([step.text for step in steps])
    n = len(steps)
    transitions = torch.arange(number * n, (number + 1) * n).float()
    buffer.add(
        {"input_ids": ids, "length": lengths[:, None]},
        np.array([transition % 10 for transition in transitions.tolist()]),
        transitions.numpy() / 2,
        np.array([step.starts for step in steps]),
        transitions * 3,
        transitions,
    )


def transitions_of(sample):
    """The numbers of a minibatch's transitions."""
    return sample.old_log_prob.int().tolist()


def text_of(environments, transition):
    """What an environment showed at a transition."""
    step, environment = divmod(transition, len(environments))
    return environments[environment][step].text


def segments_of(environments):
    """The sets of transitions between the starts of episodes."""
    segments = []
    n = len(environments)
    for environment, steps in enumerate(environments):
        for number, step in enumerate(steps):
            if step.starts or number == 0:
                segments.append(set())
            segments[-1].add(number * n + environment)
    return segments


@st.composite
def rollouts(draw):
    """Rollouts of up to three environments, cut at a number of steps: the last episodes may be unfinished."""
    n_steps = draw(st.integers(1, 12))
    token = st.integers(0, 1)  # few tokens, so that texts of different episodes are often alike
    environments = []
    for _ in range(draw(st.integers(1, 3))):
        steps = []
        while len(steps) < n_steps:
            prompt = draw(st.lists(token, min_size=1, max_size=3))
            response = draw(st.lists(token, min_size=1, max_size=6))
            steps += episode(prompt, response)
        environments.append(steps[:n_steps])
    return environments


@settings(max_examples=80, deadline=None)
@given(rollouts(), st.one_of(st.none(), st.integers(1, 40)))
def test_minibatches_contain_each_transition_once_with_what_belongs_to_it(environments, batch_size):
    seen = []
    for sample in buffer_of(environments).get(batch_size):
        numbers = transitions_of(sample)
        seen += numbers
        assert states_of(sample.observations) == [text_of(environments, number) for number in numbers]
        assert sample.actions.flatten().tolist() == [number % 10 for number in numbers]
        assert sample.old_values.tolist() == [3 * number for number in numbers]
    assert sorted(seen) == list(range(sum(map(len, environments))))


@settings(max_examples=80, deadline=None)
@given(rollouts(), st.one_of(st.none(), st.integers(1, 40)))
def test_minibatches_consist_of_whole_segments_with_one_text_each(environments, batch_size):
    segments = segments_of(environments)
    for sample in buffer_of(environments).get(batch_size):
        numbers = set(transitions_of(sample))
        inside = [segment for segment in segments if segment & numbers]
        assert set.union(*inside) == numbers
        assert len(sample.observations.input_ids) == len(inside)


@settings(max_examples=80, deadline=None)
@given(rollouts(), st.integers(1, 40))
def test_only_a_single_segment_may_be_longer_than_the_batch_size(environments, batch_size):
    for sample in buffer_of(environments).get(batch_size):
        assert len(sample.observations) <= batch_size or len(sample.observations.input_ids) == 1


@pytest.mark.parametrize(
    ("count", "length", "batch_size", "sizes"),
    [
        (6, 4, 12, [12, 12]),
        (6, 4, 10, [8, 8, 8]),  # two and a half would fit: two each
        (6, 4, 24, [24]),
        (7, 2, 5, [4, 2, 4, 4]),  # three minibatches would not be enough
        (3, 5, 4, [5, 5, 5]),  # each alone is too long
    ],
)
def test_minibatches_of_equal_segments_are_as_few_and_as_even_as_can_be(count, length, batch_size, sizes):
    environment = episode([1], [2] * length) * count
    samples = list(buffer_of([environment]).get(batch_size))
    assert [len(sample.observations) for sample in samples] == sizes


def test_minibatches_are_in_another_order_at_each_pass():
    buffer = buffer_of([episode([1], [2, 3]) * 10])
    np.random.seed(0)
    passes = [[transitions_of(sample) for sample in buffer.get(4)] for _ in range(2)]
    assert passes[0] != passes[1]


def planned_samples(buffer, batch_size):
    """The minibatches of one pass: the numbers of the transitions, and what `get` yields for them."""
    np.random.seed(0)
    planned = [minibatch.tolist() for minibatch in buffer.minibatches(batch_size)]
    np.random.seed(0)
    return list(zip(planned, buffer.get(batch_size), strict=True))


def test_the_transitions_of_minibatches_are_those_that_get_yields():
    buffer = buffer_of([episode([1], [2, 3]) * 5, episode([4], [5, 6, 7, 8, 9]) * 2])
    for planned, sample in planned_samples(buffer, 6):
        assert planned == transitions_of(sample)


def test_a_rollout_that_begins_within_an_episode_begins_a_segment():
    """The text of before is not needed: the newest one contains it."""
    steps = episode([1, 2], [3, 4, 5, 6])
    buffer = buffer_of([steps[:2]])
    buffer.reset()
    assert not buffer.full
    for number, step in enumerate(steps[2:]):
        add_step(buffer, [step], number)
    observations = next(buffer.get()).observations
    assert observations.input_ids[:, :5].tolist() == [[1, 2, 3, 4, 5]]
    assert sorted(states_of(observations)) == [[1, 2, 3, 4], [1, 2, 3, 4, 5]]


def text_count(*environment):
    """How many texts the buffer keeps of one environment's steps."""
    return len(next(buffer_of([list(environment)]).get()).observations.input_ids)


def test_a_text_that_does_not_continue_begins_a_segment():
    """Whether or not an episode's start was announced, as after a reset from outside."""
    first = Step([1, 2], True)
    assert text_count(first, Step([1, 2, 3], False), Step([1, 2, 3, 4], False)) == 1
    assert text_count(first, Step([1, 2, 3], True)) == 2  # looks like a continuation
    assert text_count(first, Step([1, 3, 3], False)) == 2  # another token in the middle
    assert text_count(first, Step([1, 2, 3, 4], False)) == 2  # two tokens more
    assert text_count(first, Step([1, 2], False)) == 2  # no token more
    assert text_count(first, Step([1], False)) == 2  # shorter


def test_minibatches_need_a_full_buffer():
    buffer = EpisodeRolloutBuffer(2, SPACE, spaces.Discrete(10), "cpu", n_envs=1)
    add_step(buffer, [Step([1], True)], 0)
    with pytest.raises(AssertionError, match="full"):
        next(buffer.get())


# -- rollouts of an environment -----------------------------------------------------------------------
class TextsCheck(BaseCallback):
    """At the end of each rollout, the texts of the buffer against those that the environment showed."""

    def _on_training_start(self):
        self.checked = []

    def _on_rollout_start(self):
        self.shown = []  # by the number of the transition

    def _on_step(self):
        observation = self.locals["obs_tensor"]
        lengths = observation["length"].flatten().tolist()
        self.shown += [ids[:length].tolist() for ids, length in zip(observation["input_ids"], lengths, strict=True)]
        return True

    def _on_rollout_end(self):
        for transitions, sample in planned_samples(self.model.rollout_buffer, 5):
            assert states_of(sample.observations) == [self.shown[transition] for transition in transitions]
        self.checked.append(len(self.shown))


def test_texts_are_those_of_the_environment_over_several_rollouts(options):
    """Four rollouts of 4 steps each, through episodes of 6 tokens: most segments begin or end at an edge."""
    env = TextVecEnv(3, **{**options, "eos_token_id": ()})
    agent = make_agent(PPO, env, n_steps=4, n_epochs=1)
    check = TextsCheck()
    agent.learn(48, check)
    assert check.checked == [12] * 4


def test_stored_logprobs_equal_those_of_the_update(options):
    env = TextVecEnv(3, **options)
    agent = make_agent(PPO, env, n_steps=10)
    for sample in rollout(agent).get(8):
        _, logprobs, _ = agent.policy.evaluate_actions(sample.observations, sample.actions.flatten())
        torch.testing.assert_close(logprobs, sample.old_log_prob, atol=1e-5, rtol=0)


# -- against the stock buffer -------------------------------------------------------------------------
class StockBufferWithTheSameMinibatches(DictRolloutBuffer):
    """The stock buffer, which yields the transitions that `plan` would yield."""

    plan: EpisodeRolloutBuffer

    def get(self, batch_size=None):
        self.flatten_once()
        for transitions in self.plan.minibatches(batch_size):
            step, environment = np.divmod(transitions, self.n_envs)
            yield self._get_samples(environment * self.buffer_size + step)

    def flatten_once(self):
        """As `DictRolloutBuffer.get` does it."""
        if not self.generator_ready:
            self.observations = {key: self.swap_and_flatten(value) for key, value in self.observations.items()}
            for name in ("actions", "values", "log_probs", "advantages", "returns"):
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True


def agent_after_a_rollout(cls, options, buffer, critic):
    """An agent with a value head that is not zero and a full buffer; the same every time."""
    env = TextVecEnv(4, **options)
    agent = make_agent(
        cls,
        env,
        n_steps=9,
        buffer=buffer,
        learning_rate=0.01,
        ent_coef=0.01,
        max_grad_norm=1e9,
        policy_kwargs={"critic": critic, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}},
        **({"n_epochs": 1, "batch_size": 12} if cls is PPO else {}),
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(agent.policy.network.value_head.weight, std=0.1)
    torch.manual_seed(1)
    env.seed(1)
    rollout(agent)
    return agent


@pytest.fixture(params=["gpt2", "qwen3", "table"])
def kind(request):
    return request.param


@pytest.fixture(params=[PPO, A2C], ids=["PPO", "A2C"])
def algorithm(request):
    return request.param


@pytest.fixture(params=["shared", "separate"])
def pair(request, options, make_lm, kind, algorithm):
    """Two agents after the same rollout: one with whole segments, one with the stock buffer."""
    options |= {"reference": make_lm(kind, seed=3), "max_new_tokens": 5}
    if kind == "table":
        options |= {"prompts": [[0]], "eos_token_id": (1,)}
    ours, stock = (
        agent_after_a_rollout(algorithm, {**options, "model": make_lm(kind)}, buffer, request.param)
        for buffer in (EpisodeRolloutBuffer, StockBufferWithTheSameMinibatches)
    )
    ours.policy.actor_critic.part_tokens = 20  # several forwards per minibatch
    stock.rollout_buffer.plan = ours.rollout_buffer
    return ours, stock


def test_both_buffers_hold_the_same(pair):
    ours, stock = (agent.rollout_buffer for agent in pair)
    np.testing.assert_array_equal(ours.actions, stock.actions.astype(int))
    for name in ("rewards", "values", "log_probs", "episode_starts", "advantages", "returns"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(stock, name), err_msg=name)


class StopBeforeTheStep(Exception):
    """Raised before the first optimizer step."""


def first_loss_and_gradients(agent):
    """Run the unmodified `train` up to its first optimizer step."""

    def stop(optimizer, args, kwargs):
        raise StopBeforeTheStep

    handle = agent.policy.optimizer.register_step_pre_hook(stop)
    np.random.seed(0)
    with pytest.raises(StopBeforeTheStep) as raised:
        agent.train()
    handle.remove()
    frame = next(entry.frame for entry in raised.traceback if entry.name == "train")
    gradients = {name: p.grad.clone() for name, p in agent.policy.named_parameters() if p.grad is not None}
    return float(frame.f_locals["loss"].detach()), gradients


def test_both_buffers_give_the_same_loss_and_gradients(pair):
    (our_loss, ours), (stock_loss, stocks) = (first_loss_and_gradients(agent) for agent in pair)
    assert our_loss == pytest.approx(stock_loss, abs=1e-6, rel=1e-6)
    assert ours.keys() == stocks.keys()
    largest = max(1.0, *(float(gradient.abs().max()) for gradient in ours.values()))
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, stocks[name], atol=1e-6 * largest, rtol=0, msg=name)


def test_both_buffers_give_the_same_weights_after_an_update(pair):
    for agent in pair:
        np.random.seed(0)
        agent.train()
    ours, stocks = (agent.policy.state_dict() for agent in pair)
    for name, weights in ours.items():
        torch.testing.assert_close(weights, stocks[name], atol=1e-5, rtol=1e-5, msg=name)


def test_prefixes_in_a_minibatch_of_the_stock_buffer_share_a_forward(options):
    env = TextVecEnv(2, **{**options, "eos_token_id": (), "prompts": [[1, 2], [3, 4, 5]], "temperature": 0.7})
    agent = make_agent(PPO, env, n_steps=6, buffer=None)
    agent.policy.actor_critic.part_tokens = 1  # a forward for each text
    sample = next(rollout(agent).get(None))
    texts_read = []
    handle = env.task.model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: texts_read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    agent.policy.evaluate_actions(sample.observations, sample.actions.long().flatten())
    handle.remove()
    assert texts_read == [1, 1]  # twelve states, two episodes


def test_the_stock_buffers_minibatch_is_evaluated_consistently(options):
    env = TextVecEnv(2, **{**options, "temperature": 0.7})
    agent = make_agent(PPO, env, n_steps=6, buffer=None)
    torch.nn.init.normal_(agent.policy.network.value_head.weight)
    sample = next(rollout(agent).get(None))
    actions = sample.actions.long().flatten()
    values, logprobs, entropy = agent.policy.evaluate_actions(sample.observations, actions)
    torch.testing.assert_close(logprobs, sample.old_log_prob, atol=1e-5, rtol=0)
    torch.testing.assert_close(values, sample.old_values, atol=1e-5, rtol=1e-5)
    distribution = agent.policy.get_distribution(sample.observations)
    torch.testing.assert_close(distribution.entropy(), entropy)
    torch.testing.assert_close(distribution.log_prob(actions), logprobs)
    torch.testing.assert_close(agent.policy.predict_values(sample.observations), values)


# -- advantages ---------------------------------------------------------------------------------------
def advantages_by_hand(deltas_and_ends, gamma, gae_lambda):
    """Generalized advantage estimation (Schulman et al. 2016, equation 16) as a double sum."""
    advantages = []
    for begin in range(len(deltas_and_ends)):
        total = 0.0
        weight = 1.0
        for delta, ends in itertools.islice(deltas_and_ends, begin, None):
            total += weight * delta
            weight *= 0.0 if ends else gamma * gae_lambda
        advantages.append(total)
    return advantages


def test_advantages_bootstrap_at_truncation_and_at_the_edge_and_nowhere_else(options):
    gamma = 0.97
    gae_lambda = 0.9
    n_steps = 14
    env = TextVecEnv(2, **{**options, "cap_truncates": True})
    agent = make_agent(PPO, env, n_steps=n_steps, gae_lambda=gae_lambda)
    agent.gamma = gamma
    agent.rollout_buffer.gamma = gamma
    torch.nn.init.normal_(agent.policy.network.value_head.weight)
    recorder = Recorder()
    recorder.init_callback(agent)
    agent._setup_learn(10_000, None)
    recorder._on_training_start()
    agent.collect_rollouts(env, recorder, agent.rollout_buffer, n_steps)
    values = agent.rollout_buffer.values
    ends = {"truncated": 0, "terminated": 0}

    def value_of(observation):
        with torch.no_grad():
            return agent.policy.predict_values(observation).numpy()

    edge = value_of(obs_as_tensor(agent._last_obs, "cpu"))
    for slot in range(2):
        deltas_and_ends = []
        for t, step in enumerate(recorder.steps):
            info = step["infos"][slot]
            done = bool(step["dones"][slot])
            if not done:
                following = values[t + 1, slot] if t + 1 < n_steps else edge[slot]
            elif info["TimeLimit.truncated"]:
                ends["truncated"] += 1
                following = value_of(agent.policy.obs_to_tensor(info["terminal_observation"])[0])[0]
            else:
                ends["terminated"] += 1
                following = 0.0
            deltas_and_ends.append((step["rewards"][slot] + gamma * following - values[t, slot], done))
        wanted = advantages_by_hand(deltas_and_ends, gamma, gae_lambda)
        np.testing.assert_allclose(agent.rollout_buffer.advantages[:, slot], wanted, atol=2e-4)
    assert min(ends.values()) >= 1
    np.testing.assert_array_equal(agent.rollout_buffer.returns, agent.rollout_buffer.advantages + values)


def test_advantages_are_computed_by_the_stock_buffer():
    assert EpisodeRolloutBuffer.compute_returns_and_advantage is RolloutBuffer.compute_returns_and_advantage
