"""check_agent passes what maximizes E[score] - beta KL, and names what does something else."""

from __future__ import annotations

import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from agents import GRPO, PPO, RLOO
from agents.check_presets import CHECKED, trainer
from lm_env import TokenMDP, check_agent
from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.objective.kl import k2
from lm_env.tasks.token_mdp import make
from lm_env.theory.check_agent import EXPLANATIONS, MAX_TV, SCORE_STD, parse_mdp
from lm_env.theory.objectives import Objective, fixed_point

T0 = TokenMDP.t0()
PPO_FAST = {"rollout_episodes": 512, "slots": 512, "batch_size": 128, "learning_rate": 0.03, "n_epochs": 4}
ONE_EPOCH = {**PPO_FAST, "learning_rate": 0.06, "n_epochs": 1}  # enough where the policy does not collapse
ONE_STEP = {"rollout_episodes": 512, "slots": 512, "batch_size": 512, "learning_rate": 0.1, "group_size": 64}
UNSCALED = {**ONE_STEP, "scale_by_std": False, "length_normalization": "constant"}


def train(cls, rollouts: int, **options):
    """A trainer for `check_agent`, as a user would write it."""

    def run(env, seed: int) -> None:
        agent = cls(env, seed=seed, **options)
        agent.learn(rollouts * agent.config.rollout_episodes * 2)

    return run


# -- PASS --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cls", "mdp", "beta"), [(PPO, "t0", 0.5), (PPO, "random:3", 1.0), (RLOO, "t0", 1.0), (RLOO, "random:3", 0.5)]
)
def test_agents_that_maximize_the_objective_pass(cls, mdp, beta):
    options = ONE_EPOCH if cls is PPO else ONE_STEP
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
    check = check_agent(train(PPO, 60, **ONE_EPOCH, gamma=0.9), seeds=1)
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
    check = check_agent(train(GRPO, 300, **options), mdp="random:0", seeds=1)
    assert not check.passed and check.objective == objective and "beta x std" in check.sentence()


def test_an_entropy_bonus_is_named():
    """Without whitening, which divides by advantages that vanish at the optimum, and so drowns the bonus.

    Of 0.01, whose fixed point is nearer to the optimum (0.008) than an agent may be that passes.
    """
    check = check_agent(train(PPO, 60, **PPO_FAST, ent_coef=0.01, normalize_advantage=False), seeds=2, max_seeds=2)
    assert not check.passed and check.objective == "entropy_bonus"
    assert check.tv < MAX_TV / 2 and check.log_ratio > np.log(100)


def tampered(change):
    """PPO on other rewards than it was paid; `change` gets the rollout's mask, score (B, 1) and KL penalty (B, T)."""

    class Tampered(PPO):
        def update(self, rollout):
            scored = rollout.scored
            penalty = -self.task.kl.beta * (scored.logprobs - scored.ref_logprobs)
            last = np.arange(rollout.mask.shape[1]) == rollout.episodes.response_lengths[:, None] - 1
            rewards = np.where(rollout.mask, change(last, scored.scores[:, None], penalty), 0.0)
            return super().update(dataclasses.replace(rollout, scored=dataclasses.replace(scored, rewards=rewards)))

    return Tampered


@pytest.mark.parametrize(
    ("objective", "change"),
    [
        ("no_kl", lambda last, score, penalty: last * score),
        ("kl_late", lambda last, score, penalty: last * score + np.pad(penalty, ((0, 0), (1, 0)))[:, :-1]),
        ("kl_early", lambda last, score, penalty: last * score + np.pad(penalty, ((0, 0), (0, 1)))[:, 1:]),
        ("score_at_each_token", lambda last, score, penalty: score + penalty),
    ],
    ids=["no kl", "late", "early", "each token"],
)
def test_misplaced_rewards_are_named(objective, change):
    check = check_agent(train(tampered(change), 60, **PPO_FAST), seeds=1)
    assert not check.passed and check.objective == objective and EXPLANATIONS[objective] in check.sentence()


class WhitenedPerSample(PPO):
    """Advantages at mean 0 and std 1 within each response."""

    def targets(self, rollout):
        targets, lengths = super().targets(rollout), rollout.mask.sum(1, keepdims=True)
        mean = targets.advantages.sum(1, keepdims=True) / lengths
        centered = np.where(rollout.mask, targets.advantages - mean, 0.0)
        std = np.sqrt((centered**2).sum(1, keepdims=True) / lengths + 1e-8)
        return dataclasses.replace(targets, advantages=centered / std)


def test_whitening_per_sample_is_named():
    options = {**ONE_EPOCH, "gae_lambda": 1.0, "normalize_advantage": False}
    check = check_agent(train(WhitenedPerSample, 60, **options), seeds=1)
    assert not check.passed and check.objective == "advantages_whitened_per_sample"


def test_k3_times_the_ratio_rests_where_k2_does():
    check = check_agent(train(GRPO, 120, **UNSCALED, kl_in="loss_with_ratio"), seeds=1)
    assert not check.passed and check.objective == "k2_loss" and "importance ratio" in check.sentence()
    assert pytest.approx((1.358754, 1.637491), abs=0.1) == (check.R, check.KL)  # noise of one short training


# -- the agent's own noise -----------------------------------------------------------------------------
def noisy(table: np.ndarray, noise: float):
    """A trainer that leaves these logits (S, V), with normal noise that differs from seed to seed."""
    return lambda env, seed: logits(table + noise * np.random.default_rng(seed).standard_normal(table.shape))(env, seed)


def test_more_seeds_where_two_fixed_points_are_close():
    """Where the noise of three trainings is as large as the distance between them, more are taken, until it is not."""
    table = fixed_point(T0, 0.5, "entropy_bonus", entropy_coef=0.02)
    quiet, loud, cut = (
        check_agent(noisy(table, noise), seeds=3, max_seeds=most)
        for noise, most in ((0.003, 60), (0.07, 60), (0.07, 3))
    )
    assert quiet.seeds == 3 and not quiet.passed and quiet.objective == "entropy_bonus" and quiet.decided
    assert 3 < loud.seeds < 60 and loud.decided and not loud.passed and loud.objective == "entropy_bonus"
    assert cut.seeds == 3 and not cut.decided and cut.objective != "entropy_bonus"


def test_the_smallest_detectable_mistake_shrinks_with_the_noise():
    best = T0.optimum(0.5).policy_logits
    loud, quiet = (check_agent(noisy(best, noise), seeds=3, max_seeds=3) for noise in (0.02, 0.002))
    assert loud.passed and quiet.passed and loud.noise > 5 * quiet.noise
    assert 5 * quiet.detectable["entropy_coef"] < loud.detectable["entropy_coef"] < 0.1
    assert loud.detectable["gamma"] < quiet.detectable["gamma"] < 1
    assert loud.detectable["scale_below_1"] < quiet.detectable["scale_below_1"] < 1
    assert 1 < quiet.detectable["scale_above_1"] < loud.detectable["scale_above_1"]
    assert "an entropy bonus of" in quiet.resolution() and quiet.resolution().count(",") == 3


@pytest.mark.parametrize("objective", ["entropy_bonus", "gamma"])
def test_what_is_said_to_be_detectable_is_detected(objective):
    """A mistake a little larger than the smallest, with the same noise, fails; one that is a fifth of it does not."""
    option = {"entropy_bonus": "entropy_coef", "gamma": "gamma"}[objective]
    best = T0.optimum(0.5).policy_logits
    smallest = check_agent(noisy(best, 0.005), seeds=3, max_seeds=3).detectable[option]
    none = {"entropy_coef": 0.0, "gamma": 1.0}[option]
    for share, fails in ((1.5, True), (0.2, False)):
        table = fixed_point(T0, 0.5, objective, **{option: none + share * (smallest - none)})
        check = check_agent(noisy(table, 0.005), seeds=3, max_seeds=3)
        assert check.passed != fails and (check.objective == objective) == fails


def test_max_seeds_is_at_least_seeds():
    with pytest.raises(ConfigurationError, match="max_seeds"):
        check_agent(lambda env, seed: None, seeds=3, max_seeds=2)


class K2Loss(RLOO):
    """The KL as k2 beside the policy loss, with the score alone in the return."""

    def loss(self, evaluation, batch, advantages):
        penalty = k2(evaluation.logprobs, batch.ref_logprobs)
        return super().loss(evaluation, batch, advantages) + self.task.kl.beta * penalty

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
    """The same environment, otherwise paid: the mistake is in the rewards that the agent sees."""
    env.task.missing_eos_score, env.task.reward = missing_eos_score, reward
    return env


def test_a_penalty_that_is_subtracted_is_named():
    def reward(prompts, responses, response_ids):
        return [T0.score(ids) - (ids[-1] != T0.eos_id) for ids in response_ids]

    def run(env, seed):
        train(PPO, 60, **ONE_EPOCH)(with_score(env, missing_eos_score=None, reward=reward), seed)

    check = check_agent(run, seeds=1)
    assert not check.passed and check.objective == "subtracted_penalty"


def test_a_forgotten_penalty_is_named():
    def run(env, seed):
        train(PPO, 60, **ONE_EPOCH)(with_score(env, missing_eos_score=None, reward=T0.reward), seed)

    check = check_agent(run, seeds=1)
    assert not check.passed and check.objective == "no_penalty"


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_reward_times_a_constant_is_named(factor):
    def run(env, seed):
        def reward(prompts, responses, response_ids):
            return [factor * T0.score(ids) for ids in response_ids]

        train(PPO, 60, **ONE_EPOCH)(with_score(env, missing_eos_score=-factor, reward=reward), seed)

    check = check_agent(run, seeds=1)
    assert not check.passed and check.objective == "reward_rescaled" and "leave the reward" in check.sentence()


@pytest.mark.parametrize("train", [lambda env, seed: None, train(PPO, 2, **{**PPO_FAST, "learning_rate": 1e-30})])
def test_an_agent_that_did_not_learn_is_told_so(train):
    check = check_agent(train, seeds=2)
    assert not check.passed and check.objective == "untrained" and "still equals the reference" in check.sentence()
    assert check.gap == pytest.approx(0.589453 + 0.187, abs=1e-3) and pytest.approx(0, abs=1e-6) == check.KL


def logits(table: np.ndarray):
    """A trainer that learns nothing and leaves these logits (S, V)."""

    def run(env, seed):
        model = env.task.model
        return type(model)(model.vocab_size, model.horizon, torch.tensor(table), torch.float64)

    return run


def test_a_small_gap_alone_is_not_enough():
    """Noise around the optimum costs the objective little, and yet moves a twentieth of the texts."""
    best = T0.optimum(0.5).policy_logits
    check = check_agent(logits(best + 0.1 * np.random.default_rng(2).standard_normal(best.shape)), seeds=1)
    assert check.gap < 4e-3 and 0.025 < check.tv < 0.08
    assert not check.passed and check.objective == "unknown" and "not have converged" in check.sentence()


@pytest.mark.parametrize("mdp", ["t0", "random:0"])
def test_a_policy_on_one_text_that_is_not_the_best_is_said_to_have_converged(mdp):
    """Where a KL penalty with the wrong sign leads."""
    problem = parse_mdp(mdp)
    tree = problem.enumeration
    worst = int(np.argmin(problem.scores()))
    table = np.full(problem.reference_logits.shape, -20.0)
    steps = tree.real[worst]
    table[tree.states[worst, steps], tree.tokens[worst, steps]] = 20.0
    check = check_agent(logits(table), mdp=mdp, seeds=2)
    assert check.objective == "one_text" and not check.passed
    assert "has converged" in check.sentence() and "check-loss" in check.sentence()


def test_a_small_distance_alone_is_not_enough():
    """Seldom, but then a C first: few of the texts are others, and they cost much."""
    best = T0.optimum(0.05).policy_logits.copy()
    best[0] = np.log(0.985 * np.exp(best[0]) + 0.015 * np.eye(4)[2])
    check = check_agent(logits(best), beta=0.05, seeds=1)
    assert check.tv < 0.016 and check.gap > 6e-3
    assert not check.passed


@pytest.mark.parametrize("objective", ["k2_loss", "k3_loss"])
def test_half_way_to_another_objective_is_given_no_name(objective):
    half = (T0.optimum(1.0).policy_logits + fixed_point(T0, 1.0, objective)) / 2
    check = check_agent(logits(half), beta=1.0, seeds=1)
    assert 0.04 < check.tv < 0.1 and check.objective == "unknown"


@pytest.mark.parametrize("share", [0.92, 0.95, 0.98])
@pytest.mark.parametrize("mdp", ["t0", "random:0", "random:14"])
def test_a_training_that_stopped_early_is_given_no_wrong_name(mdp, share):
    """The way of a natural gradient: share / beta in place of 1 / beta."""
    problem = parse_mdp(mdp)
    check = check_agent(logits(problem.optimum(0.5 / share).policy_logits), mdp=mdp, seeds=1)
    assert check.objective == ("gibbs" if check.passed else "unknown")
    assert check.passed == (check.tv < 0.02 and check.gap < 5e-3)


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("mdp", ["t0", "random:0", "random:1"])
def test_every_fixed_point_is_recognized_as_itself(mdp, beta):
    """What the diagnosis is built on: an agent that rests exactly there gets exactly that name."""
    problem = parse_mdp(mdp)
    for objective in get_args(Objective):
        try:
            table = fixed_point(problem, beta, objective)
        except ConfigurationError:
            continue

        check = check_agent(logits(table), mdp=mdp, beta=beta, seeds=1)
        if objective == "gibbs":
            assert check.passed
            continue
        assert not check.passed and objective in (check.objective, *check.alike)
        for other in check.alike:  # policies that have collapsed on the best response are all the same
            assert check.objective == "no_kl" or same_place(problem, beta, objective, other)


def same_place(mdp, beta, *objectives) -> bool:
    """Whether objectives have one and the same fixed point."""
    first, *others = (np.exp(mdp.trajectory_logprobs(fixed_point(mdp, beta, each))) for each in objectives)
    return all(np.abs(first - other).sum() < 1e-5 for other in others)


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("gamma", {"gamma": 0.95}),
        ("gamma", {"gamma": 0.6}),
        ("entropy_bonus", {"entropy_coef": 0.06}),
        ("entropy_bonus", {"entropy_coef": 0.3}),
        ("reward_rescaled", {"scale": 1.7}),
        ("reward_rescaled", {"scale": 0.27}),
    ],
    ids=str,
)
def test_the_numbers_of_an_objective_are_sought(objective, options):
    """Whatever they are, and not only where the search begins."""
    check = check_agent(logits(fixed_point(T0, 0.5, objective, **options)), seeds=1)
    assert not check.passed and check.objective == objective


# -- the report --------------------------------------------------------------------------------------
def test_the_report_is_json_and_averages_over_seeds():
    def seeded(env, seed):
        with torch.no_grad():
            env.task.model.table += 0.1 * torch.randn(
                env.task.model.table.shape, generator=torch.Generator().manual_seed(seed)
            )

    single = [check_agent(lambda env, _, s=s: seeded(env, s), seeds=1) for s in range(3)]
    check = check_agent(seeded, name="noise", seeds=3, max_seeds=3)
    for field in ("J", "gap", "R", "KL", "tv"):
        assert getattr(check, field) == pytest.approx(np.mean([getattr(c, field) for c in single]), abs=1e-12)
    report = json.loads(json.dumps(check.as_dict()))
    assert {"agent", "mdp", "beta", "J_star", "J", "gap", "R", "KL", "tv", "passed", "objective"} <= report.keys()
    assert (report["agent"], report["mdp"], report["beta"], report["seeds"]) == ("noise", "t0", 0.5, 3)


def test_every_objective_has_an_explanation():
    assert EXPLANATIONS.keys() - {"one_text", "unknown", "untrained"} == set(get_args(Objective)) - {"gibbs"}


@pytest.mark.parametrize("seed", [*range(12), 12345])
def test_random_mdps_are_small_and_of_one_spread(seed):
    mdp = parse_mdp(f"random:{seed}")
    assert 5 <= mdp.vocab_size <= 8 and 3 <= mdp.horizon <= 4
    reference, scores = np.exp(mdp.trajectory_logprobs(mdp.reference_logits)), mdp.raw_scores()
    assert np.sqrt(np.cov(scores, aweights=reference, ddof=0)) == pytest.approx(SCORE_STD, abs=1e-9)
    again = parse_mdp(f"random:{seed}")
    assert np.array_equal(mdp.scores(), again.scores()) and np.array_equal(mdp.reference_logits, again.reference_logits)


@pytest.mark.parametrize("seed", [15, 44, 108, 111, 160])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_on_random_mdps_the_other_objectives_lie_elsewhere(seed, beta):
    """The seeds of the least distances among 200: further off than what passes, whatever it is like."""
    mdp = parse_mdp(f"random:{seed}")
    for objective in set(get_args(Objective)) - {"gibbs"}:
        try:
            table = fixed_point(mdp, beta, objective, entropy_coef=0.05)
        except ConfigurationError:  # one score has no last one
            assert objective == "last_score_only"
            continue
        assert mdp.evaluate(table, beta).tv > MAX_TV / 2, objective


@pytest.mark.parametrize("mdp", ["t1", "random", "random:", "random:-1", "random:x", ""])
def test_unknown_mdps(mdp):
    with pytest.raises(ConfigurationError, match="random:SEED"):
        check_agent(lambda env, seed: None, mdp=mdp)


# -- a user's own callable ---------------------------------------------------------------------------
class Dropout(nn.Module):
    """A causal LM that is right in evaluation mode only."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm, self.dropout = lm, nn.Dropout(0.5)

    def forward(self, input_ids):
        out = self.lm(input_ids)
        out.logits = self.dropout(out.logits)
        return out


def test_dropout_is_off_when_the_policy_is_judged():
    lm = Dropout(logits(T0.optimum(0.5).policy_logits)(make(mdp=T0), 0)).train()
    check = check_agent(lambda env, seed: lm, seeds=1)
    assert check.passed and abs(check.gap) < 1e-9 and lm.training


def test_any_causal_lm_over_the_tokens_is_judged():
    """Not only tables: what counts is its logprobs."""
    config = GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=4, bos_token_id=3, eos_token_id=3)
    lm = GPT2LMHeadModel(config)
    check = check_agent(lambda env, seed: lm, seeds=1)
    assert not check.passed and check.objective == "unknown"
    assert pytest.approx(T0.evaluate(lm.eval(), 0.5).J, abs=1e-6) == check.J


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda env: PPO(env, **PPO_FAST), "returned a PPO: return the trained causal LM, or None"),
        (lambda env: 3, "returned a int"),
        (lambda env: T0.optimum(0.5).policy_logits, "returned a ndarray"),
        (lambda env: nn.Linear(4, 4), "a Linear that does not run as a causal LM over the MDP's 4 tokens"),
        (lambda env: TokenMDP.random(0, 5, 3).policy_model(), r"a vocabulary of 4 needs \(40, 3, 4\)"),
        (lambda env: TokenMDP.random(0, 2, 3).policy_model(), "vocabulary of 4|4 tokens"),
    ],
    ids=["agent", "number", "array", "linear", "larger", "smaller"],
)
def test_what_is_no_policy_is_refused(returned, words):
    with pytest.raises(ConfigurationError, match=words):
        check_agent(lambda env, seed: returned(env), seeds=1)


def _raising(env, seed):
    raise KeyError("layer\n7")


def _leaving(env, seed):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (lambda env: None, r"<lambda> raised TypeError: .*2 were given when .* train\(env, seed\): correct it"),
        (_raising, r"_raising raised KeyError: 'layer\\n7' when it was called as train\(env, seed\)"),
        (_leaving, "_leaving raised SystemExit: 3 when"),
    ],
    ids=["signature", "raising", "leaving"],
)
def test_a_trainer_that_fails_is_named_with_what_it_raised(train, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        check_agent(train, seeds=1)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is not None


def test_a_policy_of_nan_is_no_result():
    def diverge(env, seed):
        with torch.no_grad():
            env.task.model.table.fill_(torch.nan)

    with pytest.raises(NonFiniteError, match="diverged"):
        check_agent(diverge, seeds=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": 0}, "seeds"),
        ({"seeds": 1.5}, "seeds"),
        ({"seeds": True}, "seeds"),
        ({"beta": 0.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
    ],
    ids=str,
)
def test_refusals(options, words):
    """Before anything is trained."""

    def never(env, seed):
        raise AssertionError

    with pytest.raises(ConfigurationError, match=words):
        check_agent(never, **options)


def test_a_trainer_is_a_function():
    with pytest.raises(ConfigurationError, match="train must be a function"):
        check_agent("ppo")


# -- the agents by name ------------------------------------------------------------------------------
def test_an_unknown_name():
    with pytest.raises(ConfigurationError, match=r"no agent is called 'pqo': choose from .*ppo"):
        trainer("pqo")


def test_the_named_agents():
    assert {"a2c", "dr-grpo", "grpo", "ppo", "reinforce", "rloo", "sb3-a2c", "sb3-ppo", "trpo"} <= CHECKED.keys()
    assert all(callable(trainer(name)) for name in CHECKED)


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("name", ["rloo", "sb3-ppo"])
def test_a_progress_bar_where_it_is_asked_for(name, progress, capsys):
    """On stderr: what is printed may be JSON."""
    run, (kind, _, options) = CHECKED[name].func, CHECKED[name].args
    run(kind, 1, options, make(mdp=T0), 0, progress=progress)
    printed = capsys.readouterr()
    assert printed.out == "" and ("tok" in printed.err) == progress


def test_check_agent_is_a_function_whatever_was_imported_before():
    """A module of the same name would take its place in the package."""
    import lm_env

    assert callable(lm_env.check_agent) and lm_env.check_agent is check_agent
