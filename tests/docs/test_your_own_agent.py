"""The example of an agent of one's own is certified by the command that the page names."""

from __future__ import annotations

import re

import pytest
from blocks import blocks_of
from paths import REPOSITORY

from agents import PPO
from lm_env.objective.functions import load_function
from lm_env.tasks.token_mdp import make
from lm_env.theory.check_agent import check_agent

PAGE = REPOSITORY / "docs" / "your_own_agent.md"


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    code = next(block.text for block in blocks_of(PAGE) if block.language == "python")
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(code)
    return file


def test_it_is_short(mine):
    assert len([line for line in mine.read_text().splitlines() if line.strip()]) <= 40


def test_it_maximizes_what_it_should(mine):
    command = next(block.text for block in blocks_of(PAGE) if "check-agent" in block.text)
    beta, seeds = (float(re.search(rf"--{name} (\S+)", command)[1]) for name in ("beta", "seeds"))
    train = load_function(f"{mine}:train", "train(env, seed)")
    check = check_agent(train, name="mine", mdp="t0", beta=beta, seeds=int(seeds))
    assert check.passed, check.sentence()


def test_without_the_right_gradient_it_fails(mine, tmp_path):
    """Rewards shifted by one token: what is certified is the example, not the check."""
    broken = tmp_path / "broken.py"
    wrong = mine.read_text().replace("return (to_come - baseline) * rollout.mask", "return np.roll(to_come, 1, 0)")
    assert wrong != mine.read_text()
    broken.write_text(wrong.replace("60 * 1024", "20 * 1024"))
    train = load_function(f"{broken}:train", "train(env, seed)")
    assert not check_agent(train, name="broken", mdp="t0", beta=1.0, seeds=1).passed


def test_it_saves_loads_and_logs_like_any_agent(mine, tmp_path):
    Mine = load_function(f"{mine}:train", "train(env, seed)").__globals__["Mine"]
    agent = Mine(make(), rollout_episodes=8, slots=8, batch_size=4, learning_rate=0.05)
    agent.learn(30)
    again = Mine.load(agent.save(tmp_path / "saved"), make())
    assert again.config == agent.config and again.num_timesteps == agent.num_timesteps
    assert all((a == b).all() for a, b in zip(agent.policy.parameters(), again.policy.parameters(), strict=True))
    metrics = agent.update(agent.collect_rollout())
    assert {"advantage_std", "grad_norm", "approx_kl"} <= metrics.keys() and issubclass(PPO, Mine.__mro__[1])
