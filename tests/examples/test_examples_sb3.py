"""The examples with other libraries' agents run, and learn."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from paths import REPOSITORY

from lm_env import TokenMDP

EXAMPLES = REPOSITORY / "examples"


def example(name):
    """The module of `examples/NAME.py`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # A dataclass looks up its module there.
    spec.loader.exec_module(module)
    return module


T0 = TokenMDP.t0()
START = T0.evaluate(T0.reference_logits, 0.5).gap


@pytest.mark.parametrize(("name", "steps", "gap"), [("sb3_ppo", 30_000, 0.02), ("sb3_a2c", 20_000, 0.2)])
def test_stable_baselines3(name, steps, gap):
    assert example(name).main(steps, verbose=0).gap < gap < START / 3


def test_trpo():
    assert example("trpo").main(40_000, verbose=0).gap < 0.1


def test_maskable_ppo():
    module = example("maskable_ppo")
    assert sum(module.best_distribution().values()) == pytest.approx(1)
    assert module.main(40_000, verbose=0) < 0.1


def test_cleanrl():
    module = example("cleanrl_ppo")
    assert module.main(module.Args(total_timesteps=40_000)).gap < 0.02
