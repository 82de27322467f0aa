"""check_agent: what Gymnasium's `check_env` is for environments, for agents.

Trains an agent on an enumerable MDP, whose optimum of E[score] - beta KL is known in closed form, and
reports how far from it the agent converged.  Its policies are compared with the exact fixed points of other known
objectives as well, and if one of these explains them, by the agent's own noise, it is named (`evidence`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from torch import nn

from lm_env.errors import ConfigurationError, NonFiniteError
from lm_env.models.inspection import evaluating
from lm_env.theory.evidence import smallest_detectable, weigh
from lm_env.theory.foreign import calling
from lm_env.theory.token_env import make_token_env
from lm_env.theory.token_mdp import TokenMDP
from lm_env.validation import check_integer, check_number

__all__ = ["AgentCheck", "check_agent", "parse_mdp"]

MAX_GAP = 5e-3
"""The largest gap of J to the optimum that passes, averaged over seeds, in units of the score's spread."""
ONE_TEXT = 0.95
"""A policy of which one text has at least this probability, in each training, has collapsed on it."""
MAX_TV = 0.02
"""The largest total variation between the text distributions that passes, averaged over seeds."""
SCORE_STD = 0.55
"""The standard deviation of a random MDP's scores.  It is well below 1, so that dividing by it shows: at 1 a
rescaled reward would be the reward."""
TRAIN_REMEDY = "takes an environment and an integer and returns the trained causal LM, or None if it is env.task.model"
EXPLANATIONS = {
    "advantages_whitened_per_sample": "advantages are whitened within each response, which takes away what the"
    " responses"
    " are worth beside one another: whiten over the whole batch",
    "entropy_bonus": "an entropy bonus is added to the objective: set its coefficient to 0",
    "gamma": "returns are discounted (gamma < 1): set gamma to 1",
    "k2_loss": "the KL penalty is k2 as a per-token loss, or k3 times the importance ratio (TRL's GRPO), or the"
    " KL summed"
    " over the vocabulary; none credits tokens with the KL that follows: put k1 in the reward",
    "k2_loss_by_length": "the KL penalty is k2 as a per-token loss, or k3 times the importance ratio, and each"
    " response's"
    " loss is divided by its own length: put k1 in the reward",
    "k2_loss_rescaled": "the KL penalty is k2 as a per-token loss, or k3 times the importance ratio, and the score is"
    " divided by its standard deviation (TRL's GRPO), so beta is in truth beta x std: put k1 in the reward, and"
    " leave the"
    " std out",
    "k2_loss_rescaled_by_length": "the KL penalty is k2 as a per-token loss, or k3 times the importance ratio,"
    " the score is"
    " divided by its standard deviation (so beta is in truth beta x std), and each response's loss by its own length",
    "k3_loss": (
        "the KL penalty is k3 as a per-token loss (GRPO), whose fixed point is not the optimum: put k1 in the reward"
    ),
    "k3_loss_by_length": "the KL penalty is k3 as a per-token loss (GRPO), and each response's loss is divided"
    " by its own"
    " length: put k1 in the reward",
    "k3_loss_rescaled": "the KL penalty is k3 as a per-token loss, and the score is divided by its standard deviation "
    "(GRPO), so beta is in truth beta x std: put k1 in the reward, and leave the std out",
    "k3_loss_rescaled_by_length": "GRPO in full: k3 as a per-token loss, the score divided by its standard deviation "
    "(so beta is in truth beta x std), and each response's loss divided by its own length",
    "kl_early": "each token pays for the KL of the next one: the KL and the tokens are shifted by one",
    "kl_late": "each token pays for the KL of the one before it: the KL and the tokens are shifted by one",
    "last_score_only": "of the scores per token only the last token's is maximized: sum the rewards of all tokens",
    "no_kl": "there is no KL penalty, or one whose gradient vanishes: the policy collapses on the best response",
    "no_penalty": "the score of a missing EOS is forgotten",
    "one_text": "nearly all mass is on one text, so it has converged, and no known objective has its optimum there:"
    " look for a KL penalty that is missing or has the wrong sign, and for tokens without a gradient; lm-env check-loss"
    " names such mistakes of a loss, without training",
    "reward_rescaled": "the reward is divided by its standard deviation or another number, so beta is in truth "
    "beta x std: leave the reward as it is (if KL is too small, training may have ended early; if it is large,"
    " there may"
    " be no KL penalty)",
    "rewards_whitened_per_sample": "rewards are whitened within each response, which takes away what the responses are"
    " worth beside one another: leave them as they are",
    "score_at_each_token": "the score is in the reward of every token: pay it at the last one",
    "score_per_token": "the score is divided by the length of the response, the KL is not: leave it as it is",
    "subtracted_penalty": "the score of a missing EOS is added to the score instead of replacing it",
    "unknown": "no known objective has its optimum there: it may not have converged, or its loss has a mistake without"
    " a fixed point of its own, which lm-env check-loss may name",
    "untrained": "the policy still equals the reference: train `env.task.model`, or return the model that was trained, "
    "and look at the learning rate",
}

Train = Callable[[Any, int], nn.Module | None]
"""`train(env, seed)`: trains `env.task.model` in place, or returns the policy's causal LM."""


@dataclass(frozen=True)
class AgentCheck:
    """How an agent did, averaged over seeds; nats and units of the score."""

    agent: str
    mdp: str
    beta: float
    seeds: int
    J_star: float
    J: float
    gap: float
    R: float
    """E[score]."""
    KL: float
    tv: float
    passed: bool
    objective: str
    """`gibbs` for the optimum, the objective recognized, `untrained`, `one_text` for policies that collapsed on single
    texts where no objective is recognized, or `unknown`."""
    alike: tuple[str, ...] = ()
    """Other objectives with the same fixed point on this MDP."""
    log_ratio: float = 0.0
    """The log of the likelihood of the nearest other fixed point over that of the optimum, nats; the trainings' own
    variance is the noise."""
    decided: bool = True
    """False where `max_seeds` trainings did not tell the optimum from the nearest other fixed point."""
    noise: float | None = None
    """The standard error of the mean policy, in total variation; None for one training."""
    detectable: dict[str, float] = field(default_factory=dict)
    """Of an agent that passed: the `entropy_coef`, `gamma` and scales of the score that would just have shown."""

    def sentence(self) -> str:
        """The verdict in words."""
        if self.passed:
            undecided = "" if self.decided else ", as far as its noise allows to tell"
            return f"PASS: the agent maximizes E[score] - beta KL{undecided}"
        also = f" (the same on this MDP: {', '.join(self.alike)})" if self.alike else ""
        if self.objective in ("one_text", "unknown", "untrained"):
            return f"FAIL: '{self.objective}': {EXPLANATIONS[self.objective]}"
        return (
            f"FAIL: the agent converges to the fixed point of '{self.objective}'{also}: {EXPLANATIONS[self.objective]}"
        )

    def resolution(self) -> str:
        """The smallest mistakes that these trainings would have shown, in words; empty if the agent failed."""
        words = {
            "entropy_coef": "an entropy bonus of {:.2g}",
            "gamma": "gamma {:.4f}",
            "scale_below_1": "a score multiplied by {:.3f}",
            "scale_above_1": "a score multiplied by {:.3f}",
        }
        # Dividing the score by the scale is what the family does.
        shown = {key: 1 / value if key.startswith("scale") else value for key, value in self.detectable.items()}
        return ", ".join(text.format(shown[key]) for key, text in words.items() if key in shown)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def check_agent(
    train: Train,
    *,
    name: str = "agent",
    mdp: str | TokenMDP = "t0",
    beta: float = 0.5,
    seeds: int = 3,
    max_seeds: int | None = None,
) -> AgentCheck:
    """Train an agent several times and compare the policies with the closed form.

    Args:
        train: `train(env, seed)` gets a `TextGenerationEnv` over the MDP whose model is a table, and
            trains `env.task.model` (or returns another causal LM over the same tokens).
        mdp: `"t0"`, `"random:SEED"`, `"dense:SEED"` (the same, with a score at each token), or a `TokenMDP`.
        beta: weight of the KL penalty.
        seeds: how many trainings there are at least.
        max_seeds: how many there may be, where the optimum and another objective's fixed point are too close to be
            told apart; default: three times `seeds`, or 1 if that is 1.

    Raises:
        ConfigurationError: an unknown MDP, no positive beta, seeds < 1, max_seeds < seeds, or a `train` that is no
            function or returns what is no causal LM over the MDP's tokens, does not take (env, seed), or raises
            (chained).
        NonFiniteError: the trained policy's logprobs are NaN.
    """
    if not callable(train):
        raise ConfigurationError(f"train must be a function train(env, seed), not a {type(train).__name__}")
    check_integer("seeds", seeds)
    max_seeds = (
        (3 * seeds if seeds > 1 else 1) if max_seeds is None else check_integer("max_seeds", max_seeds, low=seeds)
    )
    check_number("beta", beta, low=0.0, above=True)
    label, mdp = (mdp, parse_mdp(mdp)) if isinstance(mdp, str) else ("given", mdp)
    logprobs: list[np.ndarray] = []
    while True:
        env = make_token_env(mdp, beta=beta)
        with calling(train, "train(env, seed)", TRAIN_REMEDY):
            returned = train(env, len(logprobs))
        logprobs.append(_text_logprobs(mdp, returned, env.task.model))
        if len(logprobs) >= seeds:
            evidence = weigh(mdp, beta, np.exp(logprobs))
            if evidence.decided or len(logprobs) >= max_seeds:
                break
    best = mdp.optimum(beta)
    results = [mdp.evaluate_trajectories(row, beta) for row in logprobs]
    mean = {key: float(np.mean([getattr(r, key) for r in results])) for key in ("J", "gap", "R", "KL", "tv")}
    spread = float(np.std(mdp.scores())) or 1.0
    near = mean["gap"] <= MAX_GAP * max(1.0, spread) and mean["tv"] <= MAX_TV
    passed = near and evidence.objective == "unknown"
    collapsed = evidence.objective == "unknown" and bool((np.exp(logprobs).max(1) >= ONE_TEXT).all())
    return AgentCheck(
        agent=name,
        mdp=label,
        beta=beta,
        seeds=len(logprobs),
        J_star=best.J,
        passed=passed,
        objective="gibbs" if passed else "one_text" if collapsed else evidence.objective,
        alike=evidence.alike,
        log_ratio=evidence.log_ratio,
        decided=evidence.decided,
        noise=evidence.noise,
        detectable=smallest_detectable(mdp, beta, np.exp(logprobs), MAX_TV) if passed else {},
        **mean,
    )


@lru_cache(maxsize=32)
def parse_mdp(text: str) -> TokenMDP:
    """`t0`; `random:SEED`, vocabulary 5 to 8, horizon 3 or 4, drawn from the seed; or `dense:SEED`, the same MDP
    with its scores paid token by token, which has the same optimum.

    The draw of `TokenMDP.random` with the reference's logits halved, so that no text that matters is too
    rare to be met, and the scores scaled to a standard deviation of `SCORE_STD` under it: the question is
    what an agent optimizes, not whether it finds a text of probability 1e-6.
    """
    if text == "t0":
        return TokenMDP.t0()
    kind, _, seed = text.partition(":")
    if kind not in ("random", "dense") or not seed.isdecimal():
        raise ConfigurationError(f"mdp must be 't0', 'random:SEED' or 'dense:SEED', not {text!r}")
    rng = np.random.default_rng(int(seed))
    vocab = int(rng.integers(5, 9))
    horizon = int(rng.integers(3, 5))
    drawn = TokenMDP.random(int(seed), vocab_size=vocab, horizon=horizon, dense=kind == "dense")
    flatter = replace(drawn, reference_logits=drawn.reference_logits / 2)
    reference = np.exp(flatter.trajectory_logprobs(flatter.reference_logits))
    scores = flatter.raw_scores()
    scale = SCORE_STD / float(np.sqrt(reference @ (scores - reference @ scores) ** 2))
    return replace(flatter, score=lambda ids: (scale * np.asarray(drawn.score(ids))).tolist())


def _text_logprobs(mdp: TokenMDP, returned: object, given: nn.Module) -> np.ndarray:
    """logprob (N,) of each text under the trained policy: the model that `train` returned, else the given one."""
    policy = given if returned is None else returned
    if not isinstance(policy, nn.Module):
        raise ConfigurationError(
            f"train returned a {type(policy).__name__}: return the trained causal LM, or None if it is env.task.model"
        )
    try:
        with evaluating(policy):
            logprobs = mdp.trajectory_logprobs(policy)
    except ConfigurationError:  # another vocabulary
        raise
    except Exception as error:  # whatever a foreign module raises
        raise ConfigurationError(
            f"train returned a {type(policy).__name__} that does not run as a causal LM over the MDP's"
            f" {mdp.vocab_size} tokens: model(input_ids=...).logits raised {type(error).__name__}: {error}"
        ) from error
    if np.isnan(logprobs).any():
        raise NonFiniteError("the trained policy's logprobs are NaN: training diverged; lower the learning rate")
    return logprobs
