"""Best of n: its KL bound, its selection, and its distribution on T0 by enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents import BestOfN
from lm_env import TextGenerationEnv, TokenMDP
from lm_env.errors import ConfigurationError
from lm_env.objective.scoring import score_episodes
from lm_env.tasks.token_mdp import make

T0 = TokenMDP.t0()
REFERENCE = np.exp(T0.trajectory_logprobs(T0.reference_logits))


def best_of(n: int) -> np.ndarray:
    """(N,) probabilities of the best of n independent texts of the reference; among equals, the first drawn.

    P(best score <= s) = P(score <= s)^n, and within equal scores the reference's own proportions.
    """
    scores = T0.scores()
    below = np.array([REFERENCE[scores < s].sum() for s in scores])
    equal = np.array([REFERENCE[scores == s].sum() for s in scores])
    return REFERENCE / equal * ((below + equal) ** n - below**n)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_bound_holds_on_t0(n):
    agent = BestOfN(make(mdp=T0), n=n)
    p = best_of(n)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    kl = float(p @ np.log(p / REFERENCE))
    assert -1e-12 <= kl <= agent.kl_bound + 1e-12
    if n > 1:  # ties keep it from being tight
        assert kl < agent.kl_bound - 0.01


@pytest.mark.parametrize(("n", "bound"), [(1, 0.0), (2, math.log(2) - 0.5), (4, math.log(4) - 0.75)])
def test_the_bound(n, bound):
    assert BestOfN(make(mdp=T0), n=n).kl_bound == pytest.approx(bound, abs=1e-12)


def test_the_figures_of_best_of_four():
    p = best_of(4)
    assert p @ T0.scores() == pytest.approx(0.744440, abs=1e-6)
    assert p @ np.log(p / REFERENCE) == pytest.approx(0.574706, abs=1e-6)


def test_the_agents_samples_have_that_distribution():
    agent = BestOfN(make(mdp=T0), n=4, slots=2048, seed=1)
    count = 6000
    episodes = agent.generate_episodes(n=count)
    assert len(episodes) == count and episodes.logprobs is None
    tokens, lengths = T0.trajectories()
    number = {tuple(row[:n].tolist()): i for i, (row, n) in enumerate(zip(tokens, lengths, strict=True))}
    seen = np.bincount([number[tuple(r)] for r in episodes.responses()], minlength=len(tokens))
    expected = best_of(4) * count
    often = expected >= 5
    observed = np.append(seen[often], seen[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    chi2 = ((observed - wanted) ** 2 / wanted).sum()
    degrees = len(wanted) - 1
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)
    spread = math.sqrt(float(best_of(4) @ (T0.scores() - 0.744440) ** 2) / count)
    score = score_episodes(agent.task, episodes).scores.mean()
    assert abs(score - 0.744440) < 4 * spread < 0.05


def test_each_prompt_gets_the_best_of_its_own_samples(id_task):
    """Against the same samples, drawn by an agent with n = 1 and chosen by hand."""
    prompts = [[1, 2, 3, 4, 5], [6], [8, 9]]
    three = BestOfN(TextGenerationEnv(**id_task()), n=3, seed=5)
    one = BestOfN(TextGenerationEnv(**id_task()), n=1, seed=5)
    best = three.generate_episodes(prompts)
    all_of_them = one.generate_episodes([p for p in prompts for _ in range(3)])
    scores = score_episodes(one.task, all_of_them).scores.reshape(3, 3)
    assert (scores.std(1) > 0).all()
    for row in range(3):
        chosen = all_of_them.responses()[row * 3 + int(scores[row].argmax())]
        assert best.responses()[row] == chosen
        assert best.input_ids[row, : best.prompt_lengths[row]].tolist() == prompts[row]


def test_nothing_is_learned():
    agent = BestOfN(make(mdp=T0), n=2)
    before = agent.task.model.table.detach().clone()
    assert agent.learn(1000) is agent
    assert (agent.task.model.table == before).all()
    assert len(agent.generate(n=3)) == 3


@pytest.mark.parametrize("n", [0, -1])
def test_it_refuses(n):
    with pytest.raises(ConfigurationError, match="n must be an integer of at least 1"):
        BestOfN(make(mdp=T0), n=n)
