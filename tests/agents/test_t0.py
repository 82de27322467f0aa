"""The main test: PPO reaches the closed-form optimum of E[score] - beta KL on T0, and with a bug in it does not.

T0 has 40 texts.  At its optimum every advantage is exactly 0, so whoever stays away from it has a bug, not noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from agents import PPO
from agents.learning.rollout import Rollout
from lm_env.tasks.token_mdp import make
from lm_env.theory.objectives import fixed_point
from lm_env.theory.token_mdp import ExactEvaluation, TokenMDP

PAIRS = [(0.2, 0), (0.5, 1), (1.0, 2), (2.0, 0)]  # of beta and seed
TABULAR = {"learning_rate": 0.03, "rollout_episodes": 512, "slots": 512, "batch_size": 128, "n_epochs": 4}
ONE_EPOCH = {**TABULAR, "learning_rate": 0.06, "n_epochs": 1}  # as near to the optimum in less than half the time
TRANSFORMER = {**TABULAR, "learning_rate": 0.001, "gae_lambda": 1.0, "clip_range_vf": None, "vf_coef": 0.5}
FASTER = {**TRANSFORMER, "learning_rate": 0.0015, "n_epochs": 2}  # too fast for the way to the optimum at beta .2


def tokens(beta: float, far: int, near: int) -> int:
    """How many to learn from: at beta .2 the optimum is 3 nats away from the reference, at the others at most 1.2."""
    return far if beta < 0.5 else near


@pytest.fixture(scope="module")
def t0() -> TokenMDP:
    return TokenMDP.t0()


def train(mdp: TokenMDP, beta: float, seed: int = 0, agent: type[PPO] = PPO, **options: Any) -> ExactEvaluation:
    """The exact figures of a table, trained from the reference on."""
    env = make(mdp=mdp, beta=beta)
    agent(env, seed=seed, **{**TABULAR, **options}).learn(tokens(beta, far=170_000, near=110_000))
    return mdp.evaluate(env.task.model, beta)


def train_briefly(mdp: TokenMDP, agent: type[PPO]) -> ExactEvaluation:
    """The same at beta .5, in one epoch per rollout."""
    env = make(mdp=mdp, beta=0.5)
    agent(env, **ONE_EPOCH).learn(80_000)
    return mdp.evaluate(env.task.model, 0.5)


def at_optimum(found: ExactEvaluation, gap: float = 5e-4, tv: float = 0.005) -> bool:
    """The criterion of a tabular policy."""
    return -1e-9 <= found.gap <= gap and found.tv <= tv


# -- the optimum ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("beta", "seed"), PAIRS)
def test_a_table_reaches_the_optimum(t0, beta, seed):
    found = train(t0, beta, seed)
    assert at_optimum(found), found


@pytest.mark.parametrize(("beta", "seed"), PAIRS[::2])
def test_a_transformer_reaches_the_optimum(t0, beta, seed):
    env = make(mdp=t0, beta=beta, model=supervised(t0, seed))
    assert t0.evaluate(env.task.model, beta).gap > 0.01, "it starts elsewhere"
    PPO(env, seed=seed, **(TRANSFORMER if beta < 0.5 else FASTER)).learn(tokens(beta, far=120_000, near=80_000))
    found, best = t0.evaluate(env.task.model, beta), t0.optimum(beta)
    assert at_optimum(found, gap=0.005, tv=0.03), found
    assert abs(found.R - best.R) <= 0.03
    assert abs(found.p_eos - best.p_eos) <= 0.01


def supervised(mdp: TokenMDP, seed: int) -> nn.Module:
    """Two layers that have learned the reference: phase one of RLHF, by the exact cross-entropy."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=mdp.vocab_size,
                n_embd=32,
                n_layer=2,
                n_head=2,
                n_positions=mdp.horizon + 1,
                bos_token_id=mdp.eos_id,
                eos_token_id=mdp.eos_id,
            )
        ).eval()
    tree = mdp.enumeration
    texts = torch.tensor(tree.tokens)
    before = torch.cat([torch.full_like(texts[:, :1], mdp.start_token), texts[:, :-1]], 1)
    weights = torch.tensor(np.exp(mdp.trajectory_logprobs(mdp.reference_logits))[:, None] * tree.real)
    optimizer, steps = torch.optim.Adam(lm.parameters(), lr=0.01), 150
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        logprobs = torch.log_softmax(lm(input_ids=before).logits, -1).gather(-1, texts[..., None])[..., 0]
        optimizer.zero_grad()
        (-weights * logprobs).sum().backward()
        optimizer.step()
    return lm


@pytest.mark.parametrize("beta", [0.5])
def test_another_mdp(beta):
    """155 states, normal scores; the optimum is 3 nats away at beta .5."""
    found = train(TokenMDP.random(1, vocab_size=5, horizon=3), beta)
    assert at_optimum(found), found


@pytest.mark.parametrize("options", [{"gae_lambda": 1.0}, {"clip_range_vf": None}], ids=str)
def test_what_must_not_move_the_optimum(t0, options):
    found = train(t0, 0.5, **options)
    assert at_optimum(found), found


def test_a_temperature_moves_policy_and_reference_alike(t0):
    """At temperature T the texts are those of softmax(logits / T): another MDP, whose optimum is reached as well."""
    cold = replace(t0, reference_logits=t0.reference_logits / 0.7)
    env = make(mdp=t0, beta=0.5, temperature=0.7)
    PPO(env, **ONE_EPOCH).learn(80_000)
    found = cold.evaluate(env.task.model.table.detach() / 0.7, 0.5)
    assert at_optimum(found), found


def test_masked_tokens_condition_the_optimum(t0):
    """Without C in the first place: the optimum is that of the reference conditioned on it, a constant of J aside."""
    logits = t0.reference_logits.copy()
    logits[0, 2] = -np.inf

    def no_c(prompt, response):
        return np.arange(4) != 2 if len(response) == 0 else np.ones(4, dtype=bool)

    env = make(mdp=t0, beta=0.5, action_mask=no_c)
    PPO(env, **ONE_EPOCH).learn(80_000)
    table = env.task.model.table.detach().clone()
    table[0, 2] = -torch.inf
    found = replace(t0, reference_logits=logits).evaluate(table, 0.5)
    assert at_optimum(found), found


# -- bugs, put in ----------------------------------------------------------------------------------------
class Tampered(PPO):
    """PPO that updates on something else than what it has sampled."""

    def tamper(self, rollout: Rollout) -> Rollout:
        return rollout

    def update(self, rollout: Rollout) -> dict[str, float]:
        return super().update(self.tamper(rollout))

    def penalty(self, rollout: Rollout) -> np.ndarray:
        """The KL's part of the rewards, (B, T)."""
        return -self.task.kl.beta * (rollout.scored.logprobs - rollout.scored.ref_logprobs)

    def with_rewards(self, rollout: Rollout, rewards: np.ndarray) -> Rollout:
        return replace(rollout, scored=replace(rollout.scored, rewards=np.where(rollout.mask, rewards, 0.0)))


class NoKL(Tampered):
    def tamper(self, rollout):
        return self.with_rewards(rollout, rollout.scored.rewards - self.penalty(rollout))


class KLOfTheTokenBefore(Tampered):
    """Each token pays for the one before it; the last one's KL is lost."""

    def tamper(self, rollout):
        own = self.penalty(rollout)
        late = np.pad(own, ((0, 0), (1, 0)))[:, :-1]
        return self.with_rewards(rollout, rollout.scored.rewards - own + late)


class KLWithTheOtherSign(Tampered):
    def tamper(self, rollout):
        return self.with_rewards(rollout, rollout.scored.rewards - 2 * self.penalty(rollout))


class KLNeverNegative(Tampered):
    """k1 clamped at 0."""

    def tamper(self, rollout):
        own = self.penalty(rollout)
        return self.with_rewards(rollout, rollout.scored.rewards - own + np.minimum(own, 0))


class SubtractedPenalty(Tampered):
    """The -1 of a missing EOS beside the score instead of in its place."""

    def tamper(self, rollout):
        mdp = TokenMDP.t0()
        score = np.array(
            [
                0.0 if ended else mdp.score(r)
                for r, ended in zip(rollout.episodes.responses(), rollout.scored.ended, strict=True)
            ]
        )
        last = np.arange(rollout.mask.shape[1]) == rollout.episodes.response_lengths[:, None] - 1
        return self.with_rewards(rollout, rollout.scored.rewards + last * score[:, None])


class ScoreOnTheTokenBefore(Tampered):
    def tamper(self, rollout):
        score = rollout.scored.rewards - self.penalty(rollout)
        early = np.pad(score, ((0, 0), (0, 1)))[:, 1:]
        early[:, 0] += score[:, 0]
        return self.with_rewards(rollout, rollout.scored.rewards - score + early)


class ScaledRewards(Tampered):
    """Divided by their standard deviation, which changes beta."""

    def tamper(self, rollout):
        score = rollout.scored.rewards - self.penalty(rollout)
        return self.with_rewards(rollout, rollout.scored.rewards - score + score / (rollout.scored.scores.std() + 1e-4))


class ValuesOfTheNextState(Tampered):
    """A baseline that knows the token taken."""

    def tamper(self, rollout):
        return replace(rollout, values=np.pad(rollout.values, ((0, 0), (0, 1)))[:, 1:])


class EOSNotTrained(Tampered):
    """Loss masked where id == pad, and pad == eos."""

    def loss(self, evaluation, batch, targets):
        ids = np.concatenate([np.array(response) for response in batch.episodes.responses()])
        return super().loss(evaluation, batch, targets) * torch.from_numpy(ids != 3)


BUGS = [
    NoKL,
    KLOfTheTokenBefore,
    KLWithTheOtherSign,
    KLNeverNegative,
    SubtractedPenalty,
    ScoreOnTheTokenBefore,
    ScaledRewards,
    ValuesOfTheNextState,
    EOSNotTrained,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_is_found(t0, bug):
    found = train_briefly(t0, bug)
    assert not at_optimum(found), found


def test_the_harness_of_the_bugs_is_none(t0):
    found = train_briefly(t0, Tampered)
    assert at_optimum(found), found


@pytest.mark.parametrize(
    ("objective", "agent", "options"),
    [
        ("gamma", PPO, {"gamma": 0.9}),
        ("subtracted_penalty", SubtractedPenalty, {}),
        ("entropy_bonus", PPO, {"ent_coef": 0.05, "normalize_advantage": False}),
    ],
    ids=["gamma", "subtracted", "entropy"],
)
def test_where_a_wrong_objective_comes_to_rest(t0, objective, agent, options):
    """Not only away from the optimum, but where the theory of that objective has it."""
    found = train(t0, 0.5, agent=agent, **options)
    coefficient = {"entropy_coef": 0.05} if objective == "entropy_bonus" else {}
    expected = t0.evaluate(fixed_point(t0, 0.5, objective, **coefficient), 0.5)
    assert not at_optimum(found), found
    for name in ("R", "KL", "J", "p_eos"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=0.01), name
