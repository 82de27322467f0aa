"""The fixtures for other projects' suites, as pytest runs them there."""

from __future__ import annotations

import subprocess
import sys

import pytest
from paths import REPOSITORY

pytest_plugins = "pytester"

LOSSES = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "tests" / "support")!r})
import planted_losses as planted
"""


@pytest.fixture
def outcomes(pytester):
    """Run a test file with the plugin; its outcomes and its output."""

    def run(text: str):
        pytester.makepyfile(text)
        result = pytester.runpytest_inprocess("-p", "lm_env.pytest_plugin", "-q", "-p", "no:cacheprovider")
        return result.parseoutcomes(), result.stdout.str()

    return run


def test_losses_are_held_against_the_closed_form(outcomes):
    found, printed = outcomes(
        LOSSES
        + """
def test_right(check_loss):
    assert check_loss(planted.reward_to_go, group_size=1).passed
def test_wrong(check_loss):
    check_loss(planted.discounted, group_size=1)
def test_known(check_loss):
    check_loss(planted.k3_as_loss, group_size=1, expect="k3_loss")
def test_known_and_mended(check_loss):
    check_loss(planted.reward_to_go, group_size=1, expect=["k3_loss"])
"""
    )
    assert found == {"passed": 2, "failed": 2}
    assert "discounted: FAIL: 'gamma': returns are discounted" in printed
    assert "reward_to_go: PASS: " in printed and "(k3_loss was expected)" in printed
    assert "Traceback" not in printed


def test_agents_are_held_against_the_closed_form(outcomes):
    found, printed = outcomes(
        """
import torch
from lm_env import TokenMDP
from lm_env.theory import fixed_point

def trained(objective):
    def train(env, seed):
        table = fixed_point(TokenMDP.t0(), env.task.kl.beta, objective)
        env.task.model.table.data.copy_(torch.tensor(table))
    return train

def test_right(check_agent):
    assert check_agent(trained("gibbs"), seeds=1, beta=1.0).beta == 1.0
def test_wrong(check_agent):
    check_agent(trained("gamma"), name="mine", seeds=1)
def test_known(check_agent):
    check_agent(trained("k3_loss"), seeds=1, expect="k3_loss")
"""
    )
    assert found == {"passed": 2, "failed": 1}
    assert "mine: FAIL: the agent converges to the fixed point of 'gamma': returns are discounted" in printed


def test_loading_the_plugin_imports_no_torch():
    """pytest loads it in every run of every project of the environment."""
    code = "import sys, lm_env.pytest_plugin; assert not {'torch', 'transformers', 'agents'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pytest_finds_it_by_itself():
    assert '"lm_env.pytest_plugin" = "lm_env.pytest_plugin"' in (REPOSITORY / "pyproject.toml").read_text()
