"""check_agent passes what maximises E[score] - beta KL, and names what does something else."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from agents import GRPO, PPO, RLOO
from agents.checks import CHECKED, trainer
from lm_env import TokenMDP, check_agent
from lm_env.agent_checker import EXPLANATIONS, parse_mdp
from lm_env.errors import ConfigurationError
from lm_env.kl import k2
from lm_env.objectives import fixed_point

T0 = TokenMDP.t0()
PPO_FAST = {"rollout_episodes": 512, "slots": 512, "batch_size": 128, "learning_rate": 0.03, "n_epochs": 4}
ONE_STEP = {"rollout_episodes": 512, "slots": 512, "batch_size": 512, "learning_rate": 0.1, "group_size": 64}
UNSCALED = {**ONE_STEP, "scale_by_std": False, "length_normalization": "constant"}


def train(cls, rollouts: int, **options):
    """A trainer for `check_agent`, as a user would write it."""

    def run(env, seed: int) -> None:
        agent = cls(env, seed=seed, **options)
        agent.learn(rollouts * agent.config.rollout_episodes * 2)

    return run


# -- PASS --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("mdp", ["t0", "random:3"])
@pytest.mark.parametrize("cls", [PPO, RLOO])
def test_agents_that_maximise_the_objective_pass(cls, mdp, beta):
    options = PPO_FAST if cls is PPO else ONE_STEP
    check = check_agent(train(cls, 60 if cls is PPO else 200, **options), name="ours", mdp=mdp, beta=beta, seeds=1)
    assert check.passed and check.objective == "gibbs" and check.sentence().startswith("PASS")
    assert check.gap == pytest.approx(check.J_star - check.J, abs=1e-9) and 0 <= check.gap < 3e-3
    assert pytest.approx(check.R - beta * check.KL, abs=1e-9) == check.J


def test_grpo_with_k1_in_the_reward_and_no_std_passes():
    assert check_agent(train(GRPO, 200, **UNSCALED, kl_in="reward"), seeds=1).passed


def test_a_returned_policy_is_the_one_that_is_judged():
    def exact(env, seed):
        logits = torch.tensor(T0.optimum(0.5).policy_logits)
        return type(env.task.model)(4, 3, logits, torch.float64)

    check = check_agent(exact, seeds=2)
    assert check.passed and abs(check.gap) < 1e-9 and check.tv < 1e-9
    assert check.J_star == pytest.approx(0.589453, abs=1e-6)


# -- FAIL, with the reason ---------------------------------------------------------------------------
def test_discounting_is_named():
    check = check_agent(train(PPO, 60, **PPO_FAST, gamma=0.9), seeds=1)
    assert not check.passed and check.objective == "gamma" and "gamma to 1" in check.sentence()
    assert pytest.approx((1.138252, 1.104839), abs=0.03) == (check.R, check.KL)


def test_k3_in_the_loss_is_named():
    check = check_agent(train(GRPO, 200, **UNSCALED), seeds=1)
    assert not check.passed and check.objective == "k3_loss" and "k1 in the reward" in check.sentence()
    assert pytest.approx((1.044151, 1.146446), abs=0.06) == (check.R, check.KL)


@pytest.mark.parametrize(
    ("normalization", "objective"), [("constant", "k3_loss_rescaled"), ("sequence", "k3_loss_rescaled_by_length")]
)
def test_division_by_the_std_of_the_group_is_named(normalization, objective):
    large = {"rollout_episodes": 1024, "slots": 1024, "batch_size": 1024, "max_grad_norm": 100.0}
    options = {**ONE_STEP, **large, "length_normalization": normalization}
    check = check_agent(train(GRPO, 1000, **options), mdp="random:0", seeds=1)
    assert not check.passed and check.objective == objective and "beta x std" in check.sentence()


def test_an_entropy_bonus_is_named():
    """Without whitening, which divides by advantages that vanish at the optimum, and so drowns the bonus."""
    check = check_agent(train(PPO, 60, **PPO_FAST, ent_coef=0.03, normalize_advantage=False), seeds=1)
    assert not check.passed and check.objective == "entropy_bonus"


class K2Loss(RLOO):
    """The KL as k2 beside the policy loss, with the score alone in the return."""

    def _loss(self, evaluation, rollout, advantages, rows, means):
        mask = rollout.mask[rows]
        ref = torch.from_numpy(rollout.scored.ref_logp[rows][mask]).to(evaluation.logp)
        return super()._loss(evaluation, rollout, advantages, rows, means) + self.task.kl.beta * k2(
            evaluation.logp, ref
        )

    def update(self, rollout):
        scored = rollout.scored
        last = np.cumsum(rollout.mask, 1) == rollout.episodes.response_lengths[:, None]
        rewards = np.where(last & rollout.mask, scored.scores[:, None], 0.0)
        return super().update(dataclasses.replace(rollout, scored=dataclasses.replace(scored, rewards=rewards)))


def test_k2_in_the_loss_is_named():
    check = check_agent(train(K2Loss, 200, **ONE_STEP), seeds=1)
    assert not check.passed and check.objective == "k2_loss"
    assert pytest.approx((1.358754, 1.637491), abs=0.06) == (check.R, check.KL)


class Rescaled(RLOO):
    """The score divided by its standard deviation over the rollout, the KL as it is."""

    def update(self, rollout):
        scored = rollout.scored
        last = (np.cumsum(rollout.mask, 1) == rollout.episodes.response_lengths[:, None]) & rollout.mask
        extra = scored.scores / (scored.scores.std() + 1e-4) - scored.scores
        rewards = scored.rewards + np.where(last, extra[:, None], 0.0)
        return super().update(dataclasses.replace(rollout, scored=dataclasses.replace(scored, rewards=rewards)))


def test_a_rescaled_reward_is_named():
    check = check_agent(train(Rescaled, 200, **ONE_STEP), beta=1.0, seeds=1)
    assert not check.passed and check.objective == "reward_rescaled" and "beta x std" in check.sentence()


def with_score(env, *, missing_eos_score, reward):
    """The same environment, otherwise paid: the slip is in the rewards that the agent sees."""
    env.task.missing_eos_score, env.task.reward = missing_eos_score, reward
    return env


def test_a_penalty_that_is_subtracted_is_named():
    def reward(prompts, responses, response_ids):
        return [T0.score(ids) - (ids[-1] != T0.eos_id) for ids in response_ids]

    def run(env, seed):
        train(PPO, 60, **PPO_FAST)(with_score(env, missing_eos_score=None, reward=reward), seed)

    check = check_agent(run, seeds=1)
    assert not check.passed and check.objective == "subtracted_penalty"


def test_a_forgotten_penalty_is_named():
    def run(env, seed):
        train(PPO, 60, **PPO_FAST)(with_score(env, missing_eos_score=None, reward=T0.reward), seed)

    check = check_agent(run, seeds=1)
    assert not check.passed and check.objective == "no_penalty"


def test_an_agent_that_did_not_learn_is_unknown():
    check = check_agent(lambda env, seed: None, seeds=2)
    assert not check.passed and check.objective == "unknown" and "not have converged" in check.sentence()
    assert check.gap == pytest.approx(0.589453 + 0.187, abs=1e-3) and pytest.approx(0, abs=1e-6) == check.KL


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("mdp", ["t0", "random:0", "random:1"])
def test_every_fixed_point_is_recognised_as_itself(mdp, beta):
    """What the diagnosis is built on: an agent that rests exactly there gets exactly that name."""
    problem = parse_mdp(mdp)
    for objective in EXPLANATIONS:
        try:
            table = fixed_point(problem, beta, objective)
        except ConfigurationError:
            continue

        def rest(env, seed, table=table):
            return type(env.task.model)(problem.vocab_size, problem.horizon, torch.tensor(table), torch.float64)

        check = check_agent(rest, mdp=mdp, beta=beta, seeds=1)
        if objective == "entropy_bonus" and check.tv < 0.01:  # too small a bonus to matter
            continue
        assert not check.passed and check.objective == objective


# -- the report --------------------------------------------------------------------------------------
def test_the_report_is_json_and_averages_over_seeds():
    def seeded(env, seed):
        with torch.no_grad():
            env.task.model.table += 0.1 * torch.randn(
                env.task.model.table.shape, generator=torch.Generator().manual_seed(seed)
            )

    single = [check_agent(lambda env, _, s=s: seeded(env, s), seeds=1) for s in range(3)]
    check = check_agent(seeded, name="noise", seeds=3)
    for field in ("J", "gap", "R", "KL", "tv"):
        assert getattr(check, field) == pytest.approx(np.mean([getattr(c, field) for c in single]), abs=1e-12)
    report = json.loads(json.dumps(check.as_dict()))
    assert {"agent", "mdp", "beta", "J_star", "J", "gap", "R", "KL", "tv", "passed", "objective"} <= report.keys()
    assert (report["agent"], report["mdp"], report["beta"], report["seeds"]) == ("noise", "t0", 0.5, 3)


@pytest.mark.parametrize("seed", range(12))
def test_random_mdps_are_small_and_spread_like_t0(seed):
    mdp = parse_mdp(f"random:{seed}")
    assert 5 <= mdp.vocab_size <= 8 and 3 <= mdp.horizon <= 4
    assert mdp.raw_scores().std() == pytest.approx(T0.raw_scores().std(), abs=1e-9)
    again = parse_mdp(f"random:{seed}")
    assert np.array_equal(mdp.scores(), again.scores()) and np.array_equal(mdp.reference_logits, again.reference_logits)


@pytest.mark.parametrize("mdp", ["t1", "random", "random:", "random:-1", "random:x", ""])
def test_unknown_mdps(mdp):
    with pytest.raises(ConfigurationError, match="random:SEED"):
        check_agent(lambda env, seed: None, mdp=mdp)


def test_refusals():
    with pytest.raises(ConfigurationError, match="seeds"):
        check_agent(lambda env, seed: None, seeds=0)
    with pytest.raises(ConfigurationError, match=r"no agent is called 'pqo': choose from .*ppo"):
        trainer("pqo")


def test_the_named_agents():
    assert {"a2c", "dr-grpo", "grpo", "ppo", "reinforce", "rloo", "sb3-a2c", "sb3-ppo", "trpo"} <= CHECKED.keys()
    assert all(callable(trainer(name)) for name in CHECKED)


def test_check_agent_is_a_function_whatever_was_imported_before():
    """A module of the same name would take its place in the package."""
    import lm_env

    assert callable(lm_env.check_agent) and lm_env.check_agent is check_agent
