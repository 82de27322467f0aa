"""The agents that compare samples: expected gradients by enumeration, golden advantages, weights of the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents import GRPO, RLOO, Reinforce
from agents.base.group import group_metrics
from agents.learning.metrics import Means
from agents.learning.rollout import Rollout
from agents.learning.updater import MicroBatch
from lm_env import TextGenerationEnv, TokenMDP
from lm_env.data.episodes import Episodes
from lm_env.errors import ConfigurationError
from lm_env.objective.scoring import score_episodes
from lm_env.tasks.token_mdp import make

T0 = TokenMDP.t0()
BETA = 0.5


def policy_logits(seed: int = 0) -> np.ndarray:
    """A policy some way from the reference, so that its KL counts."""
    return T0.reference_logits + 0.5 * np.random.default_rng(seed).standard_normal(T0.reference_logits.shape)


def build(cls, mdp: TokenMDP = T0, **options):
    """An agent over a float64 table away from the reference."""
    model = mdp.policy_model(torch.float64)
    with torch.no_grad():
        model.table.copy_(torch.from_numpy(policy_logits()))
    env = make(mdp=mdp, model=model, reference=mdp.reference_model(torch.float64), beta=BETA)
    return cls(env, **options)


def rollout_of(agent, trajectories) -> Rollout:
    """The given trajectories (their numbers) as if they had been sampled by the agent's policy."""
    tokens, lengths = T0.trajectories()
    task = agent.task
    count = len(trajectories)
    ids = np.concatenate([np.full((count, 1), T0.start_token), tokens[trajectories]], axis=1)
    episodes = Episodes(ids, np.ones(count, dtype=np.int64), lengths[trajectories] + 1, [task.prompts[0]] * count)
    logits = agent.task.model.table.detach().numpy()
    step = logits - np.logaddexp.reduce(logits, -1)[:, None]
    tree = T0.enumeration
    width = int(lengths[trajectories].max())
    logprobs = np.where(tree.real, step[tree.states, tree.tokens], 0.0)[trajectories, :width]
    episodes = Episodes(ids, episodes.prompt_lengths, episodes.lengths, episodes.prompts, logprobs)
    return Rollout(episodes, np.zeros(logprobs.shape), np.zeros(count), score_episodes(task, episodes))


def loss_of(agent, rollout: Rollout, advantages: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """The agent's own per-token losses under given weights (one per episode), summed."""
    rows = np.arange(len(rollout))
    batch = MicroBatch(rollout, rows, (torch.device("cpu"), torch.float64), Means())
    losses = agent.loss(agent.policy.evaluate(batch.episodes), batch, advantages)
    return (losses * batch.tokens(weights)).sum()


def token_weights(agent, rollout: Rollout) -> np.ndarray:
    """The weight of each episode's tokens when the whole rollout is one minibatch."""
    if isinstance(agent, GRPO):
        return agent.token_weights(rollout, np.arange(len(rollout)))
    return np.full(len(rollout), 1 / (agent.task.max_new_tokens * len(rollout)))


def all_pairs_gradient(agent) -> np.ndarray:
    """E over all ordered pairs of trajectories (G = 2) of the gradient that the agent takes, (S, V)."""
    count = len(T0.enumeration.lengths)
    p = np.exp(T0.trajectory_logprobs(agent.task.model))
    pairs = np.array([(i, j) for i in range(count) for j in range(count)])
    single = rollout_of(agent, np.arange(count))
    advantages = agent.advantages(single.scored.rewards.sum(1)[pairs])
    weight = (p[pairs[:, 0]] * p[pairs[:, 1]])[:, None] * np.ones((1, 2))
    # The loss is linear in the advantages of a trajectory: its pairs can be summed beforehand.
    mean = np.zeros(count)
    np.add.at(mean, pairs.ravel(), (weight * advantages).ravel())
    mean /= 2 * p  # each trajectory's expected advantage, over both places
    agent.policy.zero_grad()
    loss_of(agent, single, mean, p * count * token_weights(agent, single)).backward()
    return agent.task.model.table.grad.numpy().copy()


def true_gradient(agent) -> np.ndarray:
    """Of J = sum_tau pi(tau) (score - beta log pi / pi_ref), by autograd through the enumeration."""
    tree = T0.enumeration
    table = agent.task.model.table.detach().clone().requires_grad_(True)
    states, tokens, real = (torch.tensor(x) for x in (tree.states, tree.tokens, tree.real))
    logprobs = torch.where(real, table.log_softmax(-1)[states, tokens], 0.0).sum(1)
    ref = torch.from_numpy(T0.trajectory_logprobs(T0.reference_logits))
    (logprobs.exp() * (torch.tensor(T0.scores()) - BETA * (logprobs - ref))).sum().backward()
    return table.grad.numpy()


# -- expected gradients ------------------------------------------------------------------------------
def test_the_expected_gradient_of_rloo_is_the_true_one():
    agent = build(RLOO, group_size=2, rollout_episodes=2)
    truth = true_gradient(agent)
    assert np.abs(truth).max() > 0.05
    # The cap (3) divides each sequence's sum, and the loss descends.
    assert -3 * all_pairs_gradient(agent) == pytest.approx(truth, abs=1e-9)


def test_a_group_mean_holds_the_sample_itself_and_so_shrinks_the_gradient():
    options = {"scale_by_std": False, "kl_in": "reward", "length_normalization": "constant"}
    agent = build(GRPO, group_size=2, rollout_episodes=2, **options)
    assert -3 * all_pairs_gradient(agent) == pytest.approx(true_gradient(agent) / 2, abs=1e-9)


@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_dividing_by_lengths_is_not_the_true_gradient(normalization):
    options = {"scale_by_std": False, "kl_in": "reward", "length_normalization": normalization}
    agent = build(GRPO, group_size=2, rollout_episodes=2, **options)
    got, truth = -all_pairs_gradient(agent), true_gradient(agent)
    scale = (got * truth).sum() / (got * got).sum()  # the best that any step size can do
    relative = np.linalg.norm(scale * got - truth) / np.linalg.norm(truth)
    if normalization == "sequence":
        assert relative > 0.02
    else:  # here all trajectories are one batch, with one divisor
        assert relative < 1e-9


@pytest.mark.parametrize("size", [2, 3, 8])
def test_group_mean_and_leave_one_out_differ_by_their_factor(size, rng):
    returns = rng.standard_normal((5, size))
    options = {"group_size": size, "rollout_episodes": 5 * size}
    mean = build(GRPO, scale_by_std=False, **options).advantages(returns)
    left_out = build(RLOO, **options).advantages(returns)
    assert mean == pytest.approx(left_out * (size - 1) / size, abs=1e-12)
    by_hand = [[r - np.delete(row, i).mean() for i, r in enumerate(row)] for row in returns]
    assert left_out == pytest.approx(np.array(by_hand), abs=1e-12)


def test_one_update_takes_the_step_of_that_gradient():
    """Not only the pieces: `update` itself, from a rollout that holds every trajectory in proportion."""
    agent = build(RLOO, group_size=2, rollout_episodes=80, batch_size=80, max_grad_norm=1e9)
    rollout = rollout_of(agent, np.arange(40).repeat(2))  # groups of twins: every advantage is 0
    before = agent.task.model.table.detach().clone()
    metrics = agent.update(rollout)
    assert metrics["equal_groups"] == 1 and metrics["grad_norm"] == 0
    assert torch.equal(agent.task.model.table, before)
    mixed = rollout_of(agent, np.array([0, 39] * 40))
    metrics = agent.update(mixed)
    returns = mixed.scored.rewards.sum(1)
    advantages = np.array([1.0, -1.0] * 40) * (returns[0] - returns[1])
    agent.policy.zero_grad()
    agent.task.model.table.data.copy_(before)
    loss_of(agent, mixed, advantages, np.full(80, 1 / (3 * 80))).backward()
    assert metrics["grad_norm"] == pytest.approx(float(agent.task.model.table.grad.norm()), rel=1e-9)
    assert metrics["advantage_std"] == pytest.approx(abs(returns[0] - returns[1]), rel=1e-9)


# -- advantages --------------------------------------------------------------------------------------
def test_standardized_advantages():
    agent = build(GRPO, group_size=4, rollout_episodes=8)
    # mean 2.5, sample std sqrt(5/3) = 1.290994
    got = agent.advantages(np.array([[1.0, 2.0, 3.0, 4.0], [7.0, 7.0, 7.0, 7.0]]))
    assert got[0] == pytest.approx([-1.161805, -0.387268, 0.387268, 1.161805], abs=1e-6)
    assert (got[1] == 0).all()


def test_an_equal_group_leaves_the_others_advantages_alone(rng):
    returns = rng.standard_normal((3, 4))
    with_equal = np.concatenate([returns, np.full((1, 4), 5.0)])
    for cls in (GRPO, RLOO):
        agent = build(cls, group_size=4, rollout_episodes=16)
        got = agent.advantages(with_equal)
        assert np.array_equal(got[:3], agent.advantages(returns))
        assert (got[3] == 0).all()


def test_groups_of_one_are_counted_as_equal():
    """Their only sample has the return of all samples, so that the early warning about such groups can speak."""
    assert group_metrics(np.array([[1.0], [2.0]]), np.zeros((2, 1)))["equal_groups"] == 1


def test_the_running_mean_of_reinforce_does_not_hold_its_own_rollout():
    agent = build(Reinforce, rollout_episodes=2, baseline_decay=0.75)
    first = agent.advantages(np.array([[1.0], [3.0]]))
    assert first.ravel() == pytest.approx([-1, 1])  # no past: its own mean, 2
    second = agent.advantages(np.array([[6.0], [10.0]]))
    assert second.ravel() == pytest.approx([4, 8])  # against 2, not against 8 or a mixture
    third = agent.advantages(np.array([[0.0], [0.0]]))
    assert third.ravel() == pytest.approx([-3.5, -3.5])  # .75 x 2 + .25 x 8


# -- the loss ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("constant", [1 / 9, 1 / 9, 1 / 9]), ("sequence", [1 / 3, 1 / 6, 1 / 9]), ("token", [1 / 6, 1 / 6, 1 / 6])],
)
def test_length_normalization(normalization, expected):
    agent = build(GRPO, group_size=3, rollout_episodes=3, length_normalization=normalization)
    lengths = T0.trajectories()[1]
    rows = np.array([np.flatnonzero(lengths == n)[0] for n in (1, 2, 3)])
    rollout = rollout_of(agent, rows)
    assert token_weights(agent, rollout) == pytest.approx(expected, abs=1e-12)


def test_k3_in_the_loss_by_hand():
    """A one-token text: loss = -A + beta (e^x - 1 - x) with x = log pi_ref - log pi, at a ratio of 1."""
    agent = build(GRPO, group_size=2, rollout_episodes=2)
    eos_first = int(np.flatnonzero(T0.trajectories()[1] == 1)[0])
    rollout = rollout_of(agent, np.array([eos_first, eos_first]))
    logits = policy_logits()[0]
    x = np.log(0.1) - (logits[3] - np.logaddexp.reduce(logits))
    expected = -0.7 + BETA * (np.exp(x) - 1 - x)
    assert abs(x) > 0.03
    loss = loss_of(agent, rollout, np.array([0.7, 0.7]), np.array([1.0, 0.0]))
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_with_k3_in_the_loss_the_return_is_the_score_alone():
    """Else the penalty would count twice."""
    in_loss = build(GRPO, group_size=2, rollout_episodes=2, scale_by_std=False)
    in_reward = build(GRPO, group_size=2, rollout_episodes=2, scale_by_std=False, kl_in="reward")
    a, b = (int(i) for i in np.argsort(T0.scores())[[0, -1]])
    for agent, column in ((in_loss, "scores"), (in_reward, "rewards")):
        rollout = rollout_of(agent, np.array([a, b]))
        returns = getattr(rollout.scored, column).reshape(2, -1).sum(1)
        metrics = agent.update(rollout)
        assert metrics["advantage_std"] == pytest.approx(abs(returns[0] - returns[1]) / 2, rel=1e-9)
        assert ("kl_loss" in metrics) == (column == "scores")


# -- prompts and options -----------------------------------------------------------------------------
def test_each_prompt_is_drawn_group_size_times_side_by_side():
    agent = build(RLOO, group_size=4, rollout_episodes=12)
    drawn = agent.draw_prompts()
    assert len(drawn) == 12
    assert all(drawn[i] is drawn[i - i % 4] for i in range(12))


def test_groups_hold_samples_of_one_prompt(id_task):
    """On an environment with several prompts, each group of the rollout belongs to one of them."""
    agent = RLOO(TextGenerationEnv(**id_task()), group_size=3, rollout_episodes=12)
    rollout = agent.collect_rollout()
    groups = np.array([p.index for p in rollout.episodes.prompts]).reshape(-1, 3)
    assert (groups == groups[:, :1]).all() and len(set(groups[:, 0])) > 1


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (RLOO, {"group_size": 1}, "at least 2"),
        (GRPO, {"group_size": 1}, "GRPO compares .*at least 2"),
        (GRPO, {"group_size": 5, "rollout_episodes": 12}, "multiple of group_size"),
        (GRPO, {"group_size": 0}, "group_size"),
        (GRPO, {"kl_in": "both"}, "kl_in must be one of 'reward', 'loss'"),
        (GRPO, {"length_normalization": "mean"}, "length_normalization must be one of"),
        (RLOO, {"n_epochs": 0}, "n_epochs"),
        (GRPO, {"group": 8}, "group"),
    ],
)
def test_bad_options_are_one_sentence(cls, options, words):
    with pytest.raises(ConfigurationError, match=words):
        build(cls, **options)


def test_at_beta_0_grpo_learns_beside_a_reference_that_never_takes_a_token():
    reference = T0.reference_model(torch.float64)
    with torch.no_grad():
        reference.table[:, 1] = -torch.inf
    env = make(mdp=T0, model=T0.policy_model(torch.float64), reference=reference, beta=0.0)
    agent = GRPO(env, rollout_episodes=64, learning_rate=0.05)
    before = env.task.model.table.detach().clone()
    agent.learn(1000)
    assert torch.isfinite(env.task.model.table).all() and not torch.equal(before, env.task.model.table)
