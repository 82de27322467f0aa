"""Each early warning fires on its cause, once, and none on a healthy run."""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import PPO, RLOO
from agents.learning.rollout import Rollout
from agents.run.early_warning import EarlyWarning
from lm_env import TextGenerationEnv, TokenMDP
from lm_env.data.episodes import Episodes, ScoredEpisodes
from lm_env.tasks.token_mdp import make

ROWS, WIDTH = 64, 6


def rollout(*, logprobs=-2.0, ref=-2.1, noise=0.5, scores=None, ended=True, lengths=None, seed=0) -> Rollout:
    """Texts whose logprobs, scores and ends are as given; noise sits on both logprobs alike."""
    rng = np.random.default_rng(seed)
    lengths = np.arange(ROWS) % WIDTH + 1 if lengths is None else np.full(ROWS, lengths)
    mask = np.arange(lengths.max()) < lengths[:, None]
    jitter = noise * rng.standard_normal(mask.shape)
    column = lambda level: np.where(mask, level + jitter, 0.0)  # noqa: E731
    scores = rng.standard_normal(ROWS) if scores is None else np.broadcast_to(np.asarray(scores, float), ROWS)
    ids = np.zeros((ROWS, lengths.max() + 1), np.int64)
    episodes = Episodes(ids, np.ones(ROWS, np.int64), lengths + 1, [None] * ROWS)
    scored = ScoredEpisodes(
        np.zeros(mask.shape), scores, column(logprobs), column(ref), np.full(ROWS, ended), np.zeros(mask.shape)
    )
    return Rollout(episodes, np.zeros(mask.shape), np.zeros(ROWS), scored)


HEALTHY = {"first_log_ratio": 1e-6, "equal_groups": 0.1}
CAUSES = {
    "KL is negative": ([rollout(logprobs=-2.0, ref=-1.9)], HEALTHY),
    "entropy has fallen": ([rollout(), rollout(logprobs=-0.15, ref=-2.2, noise=0.0)], HEALTHY),
    "reward is being gamed": (
        [rollout(scores=np.linspace(0, 1, ROWS)), rollout(ref=-3.6, scores=np.linspace(1, 2, ROWS))],
        HEALTHY,
    ),
    "no text has ended": ([rollout(ended=False, lengths=WIDTH)], HEALTHY),
    "all 64 scores are 0.5": ([rollout(scores=0.5)], HEALTHY),
    "the first minibatch's log-ratio": ([rollout()], {**HEALTHY, "first_log_ratio": 0.3}),
    "was sampled with is off by 0.7 nats": ([replace(rollout(), mismatch=np.array([0.01, 0.7]))], HEALTHY),
    "all samples got the same return": ([rollout()], {**HEALTHY, "equal_groups": 0.95}),
}


@pytest.mark.parametrize("words", CAUSES)
def test_each_cause_gives_its_warning_once(words):
    rollouts, metrics = CAUSES[words]
    warning = EarlyWarning()
    for earlier in rollouts[:-1]:
        assert warning.look(earlier, HEALTHY, False) == []
    (text,) = warning.look(rollouts[-1], metrics, False)
    assert words in text
    assert text.count(". ") == 0  # one sentence
    assert warning.look(rollouts[-1], metrics, False) == []


@pytest.mark.parametrize(
    "kind", ["small", "noisy", "bf16", "some ended", "variable length", "score falls", "one token"]
)
def test_what_is_near_a_cause_but_healthy_gives_none(kind):
    warning, metrics, bf16, second = EarlyWarning(), dict(HEALTHY), False, None
    if kind == "small":  # KL exactly 0
        second = rollout(logprobs=-2.0, ref=-2.0)
    elif kind == "noisy":  # negative, within its standard error
        second = rollout(logprobs=-2.0, ref=-2.0)
        jitter = np.random.default_rng(1).standard_normal(second.mask.shape)
        second.scored.ref_logprobs[:] = np.where(second.mask, second.scored.ref_logprobs + jitter, 0)
        shift = second.scored.kl.std() / 8 + second.scored.kl.mean()  # one standard error below 0
        second.scored.ref_logprobs[:, 0] += shift
        assert second.scored.kl.mean() < 0
    elif kind == "bf16":
        metrics["first_log_ratio"], bf16 = 0.3, True
    elif kind == "some ended":
        second = rollout(ended=False, lengths=WIDTH)
        second.scored.ended[0] = True
    elif kind == "variable length":  # a stop string that is judged otherwise
        second = rollout(ended=False)
    elif kind == "score falls":
        second = rollout(ref=-3.6, scores=np.linspace(-3, -2, ROWS))
    else:
        second = rollout(ended=False, lengths=1)
    assert warning.look(rollout(scores=np.linspace(0, 1, ROWS)), HEALTHY, False) == []
    assert warning.look(second or rollout(), metrics, bf16) == []


def warns_of_negative_kl(kl) -> bool:
    """Whether texts of one token with these log-ratios give the warning."""
    ratios = np.asarray(kl, float)[:, None]
    rows = len(ratios)
    episodes = Episodes(np.zeros((rows, 2), np.int64), np.ones(rows, np.int64), np.full(rows, 2), [None] * rows)
    nothing = np.zeros_like(ratios)
    scored = ScoredEpisodes(nothing, np.arange(rows) / rows, ratios - 9, nothing - 9, np.full(rows, True), nothing)
    found = EarlyWarning().look(Rollout(episodes, nothing, nothing, scored), {}, False)
    return any("KL is negative" in text for text in found)


@pytest.mark.parametrize("texts", [1, 2, 3, 4, 8, 16, 64, 200])
def test_right_logprobs_make_the_kl_negative_in_at_most_one_rollout_of_1000(texts):
    """The probability of the warning, summed over all rollouts of a policy that writes one of two texts.

    pi is (p, 1 - p), pi_ref (q, 1 - q).  Of p = 0.1 and a small q, 16 texts are all the likely one with probability
    0.19; their log-ratios are all about -0.1, so that no standard error shows that one is missing.
    """
    warned = {}
    for p, q in itertools.product([0.5, 0.2, 0.1, 0.05, 0.02, 0.005, 0.001], [0.4, 1e-2, 1e-6]):
        rare, likely = math.log(p / q), math.log((1 - p) / (1 - q))
        warned[p, q] = sum(
            math.comb(texts, k) * p**k * (1 - p) ** (texts - k)
            for k in range(texts + 1)
            if warns_of_negative_kl([rare] * k + [likely] * (texts - k))
        )
    assert max(warned.values()) <= 1e-3


@pytest.mark.parametrize("texts", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("nats", [0.01, 0.5, 5.0])
def test_nor_do_log_ratios_of_a_gaussian(texts, nats):
    """If log pi - log pi_ref is Gaussian under pi, its variance is twice its mean, the KL."""
    rng = np.random.default_rng(0)
    warned = [warns_of_negative_kl(rng.normal(nats, math.sqrt(2 * nats), texts)) for _ in range(1000)]
    assert sum(warned) <= 1


def test_different_rounding_of_equal_distributions_is_no_negative_kl():
    """Its sum over many texts may be far below 0, and is never 4 standard errors below it."""
    noise = np.random.default_rng(0).normal(0, 1, 4096)
    noise -= noise.mean() + 2 * noise.std() / 64  # two standard errors below 0, -128 nats in all
    assert noise.sum() < -100 and not warns_of_negative_kl(noise)


@pytest.mark.parametrize("texts", [8, 64, 512])
def test_wrong_logprobs_are_noticed_when_they_come_to_7_nats(texts):
    """As of a temperature that only one of the two has: each text is likelier under the reference than it should be."""
    wrong = np.random.default_rng(0).normal(-8 / texts, 1 / texts, texts)
    assert warns_of_negative_kl(wrong) and not warns_of_negative_kl(wrong / 2)


# -- in a run ----------------------------------------------------------------------------------------
def warned(agent, tokens, caplog) -> str:
    with caplog.at_level(logging.WARNING, logger="agents"):
        agent.learn(tokens)
    return caplog.text


@pytest.mark.parametrize("cls", [PPO, RLOO])
def test_none_in_a_healthy_run(cls, caplog):
    mdp = TokenMDP.t0()
    assert warned(cls(make(mdp=mdp, beta=1.0), learning_rate=0.02, slots=128), 5000, caplog) == ""


def test_a_constant_reward_is_told(caplog, id_task):
    env = TextGenerationEnv(**id_task(reward=lambda prompts, responses, **_: [0.25] * len(prompts)))
    text = warned(PPO(env, rollout_episodes=16, slots=16), 300, caplog)
    assert text.count("all 16 scores are 0.25") == 1


def test_an_eos_that_never_comes_is_told(caplog, id_task):
    text = warned(PPO(TextGenerationEnv(**id_task(eos_token_id=())), rollout_episodes=16, slots=16), 300, caplog)
    assert text.count("no text has ended by itself") == 1


def test_weights_that_change_between_sampling_and_update_are_told(caplog, id_task):
    agent = PPO(TextGenerationEnv(**id_task()), rollout_episodes=16, slots=16)

    class Disturb(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            with torch.no_grad():
                for p in agent.task.model.parameters():
                    p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))

    with caplog.at_level(logging.WARNING, logger="agents"):
        agent.learn(200, callback=Disturb())
    assert caplog.text.count("update and sampling disagree") == 1


def test_logprobs_of_another_distribution_make_the_kl_negative():
    """As top-k does when its samples are given the logprobs of the whole vocabulary."""
    sampled = PPO(make(mdp=TokenMDP.t0()), rollout_episodes=256, slots=256).collect_rollout()
    flattened = sampled.scored.logprobs - 0.5 * sampled.mask  # probabilities that no longer sum to 1
    changed = replace(sampled, scored=replace(sampled.scored, logprobs=flattened))
    (text,) = EarlyWarning().look(changed, {}, False)
    assert "KL is negative" in text
