"""The warning that the KL in the reward is always 0: to agents that train other weights, and to nobody else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lm_env.envs.env import TextGenerationEnv
from lm_env.envs.vector_env import TextGenerationVectorEnv
from lm_env.generation.step_logprobs import Surprise
from lm_env.theory.token_env import token_task_options
from lm_env.theory.token_mdp import TokenMDP

T0 = TokenMDP.t0()
SLOTS = 50


def t0_env(**options) -> TextGenerationVectorEnv:
    return TextGenerationVectorEnv(SLOTS, autoreset_mode="SameStep", **token_task_options(T0, **options))


def rollout(env: TextGenerationVectorEnv, policy: torch.nn.Module, episodes: int, publish: bool = False):
    """(texts, lengths, actions, rewards) of the steps until so many episodes have ended."""
    observation = env.observation()
    steps, ended = [], 0
    while ended < episodes:
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor(observation["input_ids"])).logits
        at = torch.arange(SLOTS), torch.tensor(observation["length"][:, 0] - 1)
        distribution = torch.distributions.Categorical(logits=logits[at])
        actions = distribution.sample()
        if publish:
            env.publish(actions, distribution.log_prob(actions))
        before = observation
        observation, rewards, terminated, truncated, _ = env.step(actions.numpy())
        steps.append((before["input_ids"], before["length"][:, 0], actions, torch.tensor(rewards)))
        ended += int((terminated | truncated).sum())
    return steps


def reinforce_step(policy: torch.nn.Module, optimizer: torch.optim.Optimizer, steps) -> None:
    """One update by the rewards of single steps: enough of an algorithm to move weights."""
    loss = torch.zeros(())
    for ids, lengths, actions, rewards in steps:
        logits = policy(input_ids=torch.tensor(ids)).logits[torch.arange(SLOTS), torch.tensor(lengths - 1)]
        loss = loss - (torch.distributions.Categorical(logits=logits).log_prob(actions) * rewards).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(
    env: TextGenerationVectorEnv,
    policy: torch.nn.Module,
    first: int,
    updates: int,
    publish: bool = False,
    rate: Callable[[int], float] = lambda update: 1.0,
) -> list[str]:
    """The warnings of a training with rollouts of 50 episodes after a first one."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env.reset(seed=0)
        for update in range(updates):
            reinforce_step(policy, optimizer, rollout(env, policy, first if update == 0 else SLOTS, publish))
            schedule.step()
    return [str(w.message) for w in caught if "KL in the reward" in str(w.message)]


def test_training_in_place_after_a_long_first_rollout_is_not_warned():
    env = t0_env()
    assert train(env, env.task.model, first=400, updates=8) == []
    assert env.mdp.log_ratios.any(), "it has been trained"


def test_training_in_place_whose_rate_begins_at_0_is_not_warned():
    env = t0_env()
    assert train(env, env.task.model, first=100, updates=8, rate=lambda update: float(update > 6)) == []


def test_a_loop_over_weights_of_its_own_is_warned_once():
    env = t0_env()
    (message,) = train(env, copy.deepcopy(env.task.model), first=100, updates=12)
    assert "publish" in message and "bind" in message


def test_a_loop_over_weights_of_its_own_that_publishes_or_binds_is_not_warned():
    env = t0_env()
    assert train(env, copy.deepcopy(env.task.model), first=100, updates=12, publish=True) == []
    env, policy = t0_env(), T0.policy_model()

    def logprobs(observation, actions):
        logits = policy(input_ids=torch.tensor(observation["input_ids"])).logits
        rows = torch.arange(len(actions)), torch.tensor(observation["length"][:, 0] - 1)
        return torch.log_softmax(logits[rows], -1)[torch.arange(len(actions)), torch.tensor(actions)]

    env.bind_logprob_fn(logprobs)
    assert train(env, policy, first=100, updates=12) == []


class Critic(torch.nn.Module):
    """A value of its own for each prefix, from a trunk that has an embedding for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(T0.vocab_size, 4)
        self.head = torch.nn.Linear(4, 1)

    def forward(self, ids):
        return self.head(self.embedding(torch.tensor(ids)).mean(1))


def actor_and_critic(policy: torch.nn.Module, env: TextGenerationVectorEnv, updates: int, actor: bool) -> list[str]:
    """The warnings while a critic is trained on the rewards of `policy`, which the same optimizer may train too."""
    critic = Critic()
    optimizer = torch.optim.Adam([*critic.parameters(), *(policy.parameters() if actor else ())], lr=0.1)
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env.reset(seed=0)
        for _ in range(updates):
            steps = rollout(env, policy, SLOTS)
            loss = sum((critic(ids)[:, 0] - rewards.float()).square().mean() for ids, _, _, rewards in steps)
            optimizer.zero_grad()
            loss.backward()
            if actor:
                reinforce_step(policy, optimizer, steps)
            optimizer.step()
    return [str(w.message) for w in caught if "KL in the reward" in str(w.message)]


def test_a_separate_critic_that_is_warmed_up_alone_is_not_warned_of():
    env = t0_env()
    assert actor_and_critic(env.task.model, env, 40, actor=False) == []
    assert not env.mdp.log_ratios.any(), "the KL is 0, as it should be"


def test_a_policy_with_a_critic_that_is_trained_elsewhere_is_warned_of_once_its_actions_show_it():
    env = t0_env()
    assert len(actor_and_critic(copy.deepcopy(env.task.model), env, 40, actor=True)) == 1


def test_surprise_stays_small_for_samples_and_grows_for_others():
    """Many independent runs of samples, and of samples of a flatter model; rare tokens among them."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, 60, 9, generator=generator) + torch.tensor([0.0] * 6 + [-4.0] * 3)

    def deviations(sampled_from):
        actions = torch.multinomial(sampled_from.flatten(0, 1).softmax(-1), 1, generator=generator).view(200, 60)
        found = []
        for row, own in zip(actions, logits, strict=True):
            surprise = Surprise()
            for part in range(0, 60, 20):
                surprise.add(row[part : part + 20], own[part : part + 20].softmax(-1))
            found.append(surprise.deviation)
        return np.array(found)

    same, other = deviations(logits), deviations(0.2 * logits)
    assert same.mean() < 0.1 and (same < 4).mean() > 0.99 and np.median(other) > 4
    assert Surprise().deviation == 0


def test_without_a_kl_in_the_reward_nothing_is_warned_of():
    env = t0_env(beta=0.0)
    assert train(env, copy.deepcopy(env.task.model), first=100, updates=12) == []


def test_an_evaluation_in_a_second_environment_of_the_model_under_training_is_not_warned():
    env = t0_env()
    assert train(env, env.task.model, first=100, updates=2) == []
    model, reference = env.task.model, env.task.reference
    evaluation = t0_env(model=model, reference=reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation.reset(seed=0)
        rollout(evaluation, model, 100)


# --- step by step ----------------------------------------------------------------------------------------------------


def elsewhere() -> None:
    """One step of an optimizer of other weights."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    torch.optim.SGD([weight], lr=0.1).step()


def episodes(env: TextGenerationEnv, n: int, update: bool = False) -> list[str]:
    """The warnings of n episodes of two tokens, with an update of other weights after each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(n):
            env.reset()
            for action in (5, 0):
                env.step(action)
            if update:
                elsewhere()
    return [str(w.message) for w in caught]


def test_nothing_is_warned_of_while_nothing_is_trained(id_task):
    assert episodes(TextGenerationEnv(**id_task(reference=None)), 100) == []


def test_what_was_trained_before_the_first_step_does_not_count(id_task):
    env = TextGenerationEnv(**id_task(reference=None))
    for _ in range(10):  # a reward model, say
        elsewhere()
    assert episodes(env, 100) == []


def test_the_warning_comes_16_episodes_after_the_fourth_update(id_task):
    env = TextGenerationEnv(**id_task(reference=None))
    assert episodes(env, 4, update=True) == []
    assert episodes(env, 15) == []
    assert len(episodes(env, 1)) == 1
    assert episodes(env, 100, update=True) == []


def test_episodes_that_did_not_end_do_not_count(id_task):
    env = TextGenerationEnv(**id_task(reference=None))
    episodes(env, 4, update=True)
    for _ in range(40):
        env.reset()
        env.step(5)
    assert episodes(env, 15) == [] and len(episodes(env, 1)) == 1


@pytest.mark.parametrize("vector", [False, True])
def test_the_warning_points_at_the_line_that_steps(vector, id_task):
    options = id_task(reference=None)
    env = TextGenerationVectorEnv(1, **options) if vector else TextGenerationEnv(**options)
    with pytest.warns(UserWarning, match="equals its reference") as caught:
        for _ in range(21):
            env.reset()
            env.step(np.array([0]) if vector else 0)
            elsewhere()
    assert caught[0].filename == __file__


def test_where_the_warning_is_an_error_the_step_has_not_happened(id_task):
    env = TextGenerationEnv(**id_task(reference=None))
    episodes(env, 4, update=True)
    assert episodes(env, 15) == []
    env.reset(seed=1)
    before = env.observation()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="equals its reference"):
            env.step(0)
    for key, values in env.observation().items():
        np.testing.assert_array_equal(values, before[key])
    assert env.step(0)[2], "the same step goes through the second time"


def test_a_model_that_differs_from_its_reference_is_never_warned_of(id_task):
    assert episodes(TextGenerationEnv(**id_task()), 40, update=True) == []
    trained = TextGenerationEnv(**id_task(reference=None))
    assert episodes(trained, 10, update=True) == []
    with torch.no_grad():
        next(trained.task.model.parameters()).mul_(1.1)
    assert episodes(trained, 40, update=True) == []
