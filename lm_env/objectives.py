"""The policies that other objectives than E[score] - beta KL settle at, exact, on an enumerable MDP.

Each is what a well-known slip or choice in an agent really optimises, so an agent's exact R and KL
tell which one it has.  At a fixed point the agent's expected update is zero at every state:

    sum_a pi(a|s) (Q(s, a) - V(s) - c(s, a)) grad log pi(a|s) = 0

with Q the agent's own expected return and c the gradient coefficient of its loss.  Q depends on the
future only, so one backward pass that solves each state (a `Rule`) is exact: nothing is iterated,
`reward_rescaled` aside.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.prefix_tree import Rule, backward_recursion, gibbs_rule, logsumexp
from lm_env.token_mdp import TokenMDP, check_beta

__all__ = ["Objective", "fixed_point"]

Objective = Literal[
    "entropy_bonus",
    "gamma",
    "gibbs",
    "k2_loss",
    "k3_loss",
    "no_penalty",
    "reward_rescaled",
    "subtracted_penalty",
]
_STD_EPSILON = 1e-4  # what keeps a division by the standard deviation finite; GRPO's usual value


def fixed_point(
    mdp: TokenMDP, beta: float, objective: Objective, *, gamma: float = 0.9, entropy_coef: float = 0.01
) -> np.ndarray:
    """log pi (S, V) float64 of the policy at which an agent with this objective comes to rest.

    - `gibbs`: k1 in the reward, gamma 1.  The optimum that is meant.
    - `gamma`: k1 in the reward, returns discounted from each token on, sum_u gamma^(u-t) r_u:
      V(s) = beta log sum pi_ref exp(Q / beta), Q = gamma V(s').
    - `k2_loss`: score alone in the return, beta (log pi - log pi_ref)^2 / 2 per token in the loss;
      each state answers its own KL but not the KL of what follows.
    - `k3_loss`: the same with pi_ref/pi - 1 - log(pi_ref/pi), as GRPO (without division by the std
      or by each response's own length): pi = pi_ref / (1 - (Q - V) / beta).
    - `entropy_bonus`: k1 in the reward and entropy_coef x the policy's entropy per token in the loss.
    - `reward_rescaled`: k1 in the reward, score divided by its standard deviation under the policy
      itself (a large batch), so that beta is in truth beta (std + 1e-4).  Followed from the
      reference's std; where no positive std is left standing the policy collapses on the best response.
    - `subtracted_penalty`: `missing_eos_score` added to the score instead of replacing it.
    - `no_penalty`: `missing_eos_score` forgotten.

    Raises:
        ConfigurationError: an unknown objective, beta <= 0, gamma or entropy_coef out of range, an MDP
            without `missing_eos_score` for `subtracted_penalty`, or a std that never settles.
    """
    check_beta(beta)
    if not (0 <= gamma <= 1 and 0 <= entropy_coef < np.inf):
        raise ConfigurationError(f"gamma {gamma} must lie in [0, 1] and entropy_coef {entropy_coef} in [0, inf)")
    scores, discount, rule = mdp.scores(), 1.0, gibbs_rule(beta)
    match objective:
        case "gibbs":
            pass
        case "gamma":
            discount = gamma
        case "k2_loss":
            rule = _k2_rule(beta)
        case "k3_loss":
            rule = _k3_rule(beta)
        case "entropy_bonus":
            rule = _entropy_rule(beta, entropy_coef)
        case "reward_rescaled":
            rule = gibbs_rule(beta * _settled_std(mdp, beta))
        case "subtracted_penalty":
            if mdp.missing_eos_score is None:
                raise ConfigurationError("subtracted_penalty needs an MDP with a missing_eos_score: this one has None")
            scores = mdp.raw_scores() + np.where(mdp.ended(), 0.0, mdp.missing_eos_score)
        case "no_penalty":
            scores = mdp.raw_scores()
        case _:
            raise ConfigurationError(f"objective {objective!r} is unknown: use {', '.join(get_args(Objective))}")
    policy, _ = backward_recursion(mdp.enumeration, mdp.reference_logits, scores, rule, discount)
    return policy


def _k2_rule(beta: float) -> Rule:
    """c = beta log(pi / pi_ref), no KL in Q."""
    gibbs = gibbs_rule(beta)

    def rule(q: np.ndarray, log_ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_pi, _ = gibbs(q, log_ref)
        return log_pi, (np.exp(log_pi) * q).sum(axis=1)

    return rule


def _k3_rule(beta: float) -> Rule:
    """c = beta (1 - pi_ref / pi), no KL in Q: pi = pi_ref / (d - g), g = (Q - max Q) / beta, d such that it sums to 1.

    The sum falls in d from at least 1 at d = pi_ref(argmax Q) to at most 1 at d = 1.
    """

    def rule(q: np.ndarray, log_ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ref = np.exp(log_ref)
        taken = np.where(ref > 0, q, -np.inf)
        g = (taken - taken.max(axis=1, keepdims=True)) / beta
        low = np.where(g == 0, ref, 0.0).max(axis=1, keepdims=True)
        high = np.ones_like(low)
        for _ in range(100):  # bisection down to neighbouring floats
            d = (low + high) / 2
            above = (ref / (d - g)).sum(axis=1, keepdims=True) > 1
            low, high = np.where(above, d, low), np.where(above, high, d)
        log_pi = log_ref - np.log(high - g)
        log_pi -= logsumexp(log_pi)[:, None]
        return log_pi, (np.exp(log_pi) * q).sum(axis=1)

    return rule


def _entropy_rule(beta: float, entropy_coef: float) -> Rule:
    """k1 in Q, c = entropy_coef log pi: the bonus acts at each state and is no part of the return."""

    def rule(q: np.ndarray, log_ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = (beta * log_ref + q) / (beta + entropy_coef)
        log_pi = logits - logsumexp(logits)[:, None]
        pi = np.exp(log_pi)
        log_ratio = np.subtract(log_pi, log_ref, where=pi > 0, out=np.zeros_like(pi))
        return log_pi, (pi * (q - beta * log_ratio)).sum(axis=1)

    return rule


def _settled_std(mdp: TokenMDP, beta: float) -> float:
    """The standard deviation, its epsilon included, of the scores under the policy that divides by it."""
    scores = mdp.scores()
    pi = np.exp(mdp.trajectory_logprobs(mdp.reference_logits))
    previous = np.inf
    for _ in range(10_000):
        std = float(np.sqrt(pi @ (scores - pi @ scores) ** 2)) + _STD_EPSILON
        if abs(std - previous) <= 1e-13:
            return std
        previous, pi = std, mdp.optimum(beta * std).distribution
    raise ConfigurationError(f"reward_rescaled at beta {beta} does not settle: its standard deviation keeps moving")
