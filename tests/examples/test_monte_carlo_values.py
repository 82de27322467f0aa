"""The example's Monte-Carlo values cover the exact ones as often as their intervals promise."""

from __future__ import annotations

import argparse

import audit_critic
import monte_carlo_values
import numpy as np
import pytest
import torch

from lm_env import TokenMDP
from lm_env.theory.token_env import make_token_env

BETA = 0.5


@pytest.fixture(scope="module")
def t0():
    return TokenMDP.t0()


def states_of(env, mdp) -> dict:
    """One state for each number that the policy reaches."""
    env.reset(seed=0)
    states = audit_critic.sample_states(env, 150, torch.Generator().manual_seed(0))
    return {audit_critic.state_number(mdp, state): state for state in states}


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_values_of_the_optimal_policy_are_the_soft_values(seed):
    mdp = TokenMDP.random(seed)
    best = mdp.optimum(BETA)
    values = audit_critic.exact_values(mdp, best.policy_logits, BETA)
    np.testing.assert_allclose(values, best.value, atol=1e-12)


def test_the_exact_value_of_any_policy_at_the_start_is_its_objective(rng):
    mdp = TokenMDP.random(1)
    logits = rng.standard_normal(mdp.reference_logits.shape)
    assert audit_critic.exact_values(mdp, logits, BETA)[0] == pytest.approx(mdp.evaluate(logits, BETA).J, abs=1e-12)


def test_intervals_hold_the_exact_values_of_a_fixed_policy_at_the_nominal_rate(t0, rng):
    env = make_token_env(t0, beta=BETA)
    logits = rng.standard_normal(t0.reference_logits.shape)
    env.task.model.table.data.copy_(torch.tensor(logits))
    exact = audit_critic.exact_values(t0, logits, BETA)
    generator = torch.Generator().manual_seed(0)
    inside = []
    for number, state in states_of(env, t0).items():
        for _ in range(20):
            env.restore_state(state)
            value = monte_carlo_values.estimate(monte_carlo_values.sample_returns(env, 200, generator))
            inside.append(abs(value.mean - exact[number]) <= monte_carlo_values.Z95 * value.error)
    assert len(inside) >= 200
    # A share of .95 of 200 has a standard error of .015; few continuations make the rate a little lower.
    assert 0.89 < np.mean(inside) < 0.99


def test_the_value_of_a_good_beginning_is_above_that_of_a_bad_one():
    values = [monte_carlo_values.main(f"This film is {word}, and", 64, 0) for word in ("wonderful", "terrible")]
    assert values[0].mean - values[1].mean > 2 * (values[0].error + values[1].error)


def test_an_audit_tells_a_right_critic_from_a_wrong_one(t0):
    env = make_token_env(t0, beta=BETA)
    env.task.model.table.data.copy_(torch.tensor(t0.optimum(0.7).policy_logits))
    exact = audit_critic.exact_values(t0, env.task.model.table.detach().double().numpy(), BETA)
    numbered = states_of(env, t0)
    numbers = {tuple(state.ids): number for number, state in numbered.items()}
    states = list(numbered.values())

    def shares_inside(error: float) -> float:
        values, estimates = audit_critic.audit_critic(
            env,
            lambda ids, lengths: [exact[numbers[tuple(ids[0, : lengths[0]])]] + error],
            states,
            300,
            torch.Generator().manual_seed(0),
        )
        pairs = zip(values, estimates, strict=True)
        return float(np.mean([abs(v - e.mean) <= monte_carlo_values.Z95 * e.error for v, e in pairs]))

    assert shares_inside(0.0) > 0.75 and shares_inside(0.5) < 0.25


def test_the_script_audits_a_trained_critic(tmp_path, capsys):
    options = {"env": "lm_env/TokenMDP-v0", "timesteps": 2000, "states": 12, "samples": 100, "seed": 0}
    path = tmp_path / "audit.png"
    found = audit_critic.main(argparse.Namespace(**options, plot=str(path)))
    assert len(found["values"]) == len(found["estimates"]) == 12
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "the exact value lies inside the interval in" in capsys.readouterr().out
