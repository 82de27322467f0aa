"""The policies to which losses converge that optimize something else than E[score] - beta KL, exact, on a small MDP.

Each is what a well-known mistake or choice in an agent really optimizes, so an agent's exact R and KL
tell which one it has.  At a fixed point the agent's expected update is zero at every state:

    sum_a pi(a|s) (Q(s, a) - V(s) - c(s, a)) grad log pi(a|s) = 0

with Q the agent's own expected return and c the gradient coefficient of its loss.  Q depends on the
future only, so one backward pass that solves each state (a `Rule`) is exact.  Only objectives that divide by a
standard deviation or by lengths, and those that whiten, need iteration.  A loss that divides by the std of the policy's
own scores may have several fixed points; the one that small updates from the reference reach first is given
(`first_fixed_point.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.theory.credit import Credits
from lm_env.theory.first_fixed_point import first_mean, first_std
from lm_env.theory.prefix_tree import Rule, backward_recursion, gibbs_rule, logsumexp
from lm_env.theory.settled import Own, annealed, answered, answered_by_length
from lm_env.theory.token_mdp import TokenMDP
from lm_env.validation import check_number

__all__ = ["Credit", "Objective", "fixed_point"]

Objective = Literal[
    "advantages_whitened_per_sample",
    "entropy_bonus",
    "gamma",
    "gibbs",
    "k2_loss",
    "k2_loss_by_length",
    "k2_loss_rescaled",
    "k2_loss_rescaled_by_length",
    "k3_loss",
    "k3_loss_by_length",
    "k3_loss_rescaled",
    "k3_loss_rescaled_by_length",
    "kl_early",
    "kl_late",
    "last_score_only",
    "no_kl",
    "no_penalty",
    "reward_rescaled",
    "rewards_whitened_per_sample",
    "score_at_each_token",
    "score_per_token",
    "subtracted_penalty",
]
Credit = Literal["to_go", "return"]
Response: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(Q, strength of the penalty, log pi_ref), each (n, V), -> log pi (n, V)."""
_STD_EPSILON = 1e-4  # what keeps a division by the standard deviation finite; GRPO's usual value


def fixed_point(
    mdp: TokenMDP,
    beta: float,
    objective: Objective,
    *,
    gamma: float = 0.9,
    entropy_coef: float = 0.01,
    scale: float | None = None,
    credit: Credit = "to_go",
) -> np.ndarray:
    """log pi (S, V) float64 of the policy to which an agent with this objective converges.

    - `gibbs`: k1 in the reward, gamma 1.  The optimum that is meant.
    - `gamma`: k1 in the reward, returns discounted from each token on, sum_u gamma^(u-t) r_u:
      V(s) = beta log sum pi_ref exp(Q / beta), Q = r + gamma V(s').
    - `k2_loss`: score alone in the return, beta (log pi - log pi_ref)^2 / 2 per token in the loss;
      each state takes its own KL into account but not the KL of what follows.
      k3 times the importance ratio (TRL's GRPO) has the same gradient, and so has the KL of a token summed over
      the vocabulary.
    - `k3_loss`: the same with pi_ref/pi - 1 - log(pi_ref/pi), as GRPO (without division by the std
      or by each response's own length): pi = pi_ref / (1 - (Q - V) / beta).
    - `k3_loss_rescaled`: the same with the score divided by its standard deviation under the policy
      itself, as GRPO does in large groups, so that beta is in truth beta (std + 1e-4).  This and the other objectives
      with such a std may have several fixed points: the policy is the one that small steps from the reference reach
      first.  If there is none on the way, it is the collapse on the best response.
    - `k3_loss_by_length`, `k3_loss_rescaled_by_length`: with each response's loss divided by its own length.
    - `k2_loss_by_length`, `k2_loss_rescaled`, `k2_loss_rescaled_by_length`: the same with k2.  With k1 in the
      reward the optimum itself stays: there all responses have the same return, whatever weighs them.
    - `entropy_bonus`: k1 in the reward and entropy_coef x the policy's entropy per token in the loss.
    - `reward_rescaled`: k1 in the reward, score divided by `scale`, so that beta is in truth beta scale;
      by default by its standard deviation under the policy itself (a large batch), + 1e-4.
    - `last_score_only`: of scores per token only that of the last token is paid.
    - `subtracted_penalty`: `missing_eos_score` added to the score instead of replacing it.
    - `no_penalty`: `missing_eos_score` forgotten.
    - `no_kl`: the score alone, so the best response alone.
    - `kl_late`, `kl_early`: each token pays for the k1 of the token before it, or after it.  Nobody pays for the last
      token's, or the first one's.
    - `score_at_each_token`: the whole score in the reward of every token.
    - `score_per_token`: the score divided by the response's length, the KL summed.
    - `rewards_whitened_per_sample`, `advantages_whitened_per_sample`: mean 0 and std 1 within each response.  The
      gradient of these vanishes nowhere; the policy is where exact steps end whose size falls to 0.

    Args:
        gamma, entropy_coef, scale: of the objectives that have one.
        credit: `to_go`: a token is credited with its own and all later rewards; `return`: with all rewards of the
            response.  It matters where rewards depend on what comes later: `kl_early` and `score_at_each_token`.

    Raises:
        ConfigurationError: an unknown objective, beta <= 0, gamma, entropy_coef or scale out of range, an MDP
            without `missing_eos_score` for `subtracted_penalty` or without scores per token for `last_score_only`.
    """
    check_number("beta", beta, low=0.0, above=True)
    check_number("gamma", gamma, low=0.0, high=1.0)
    check_number("entropy_coef", entropy_coef, low=0.0)
    if scale is not None:
        check_number("scale", scale, low=0.0, above=True)
    if objective not in get_args(Objective):
        raise ConfigurationError(f"objective {objective!r} is unknown: use {', '.join(get_args(Objective))}")
    if (settled := _settled(mdp, beta, objective, credit)) is not None:
        return settled
    scores = _paid_scores(mdp, objective)
    rule = _rule_of(mdp, beta, objective, entropy_coef, scale)
    discount = gamma if objective == "gamma" else 1.0
    policy, _ = backward_recursion(mdp.enumeration, mdp.reference_logits, scores, rule, discount)
    return policy


def _paid_scores(mdp: TokenMDP, objective: Objective) -> np.ndarray:
    """The scores (S, V) that are paid at each token under an objective."""
    match objective:
        case "last_score_only":
            if not mdp.dense:
                raise ConfigurationError("last_score_only needs a dense MDP: this one pays at the last token anyway")
            return np.where(mdp.enumeration.last, mdp.step_scores(), 0.0)
        case "subtracted_penalty":
            if mdp.missing_eos_score is None:
                raise ConfigurationError("subtracted_penalty needs an MDP with a missing_eos_score: this one has None")
            unended = mdp.enumeration.last & ~mdp.ended()[:, None]
            return mdp.raw_step_scores() + np.where(unended, mdp.missing_eos_score, 0.0)
        case "no_penalty":
            return mdp.raw_step_scores()
    return mdp.step_scores()


def _rule_of(mdp: TokenMDP, beta: float, objective: Objective, entropy_coef: float, scale: float | None) -> Rule:
    """How the policy of a state follows from its Q under an objective."""
    match objective:
        case "k2_loss":
            return _k2_rule(beta)
        case "k3_loss":
            return _k3_rule(beta)
        case "k2_loss_rescaled":
            return _k2_rule(beta * _settled_std(mdp, beta, _k2_rule))
        case "k3_loss_rescaled":
            return _k3_rule(beta * _settled_std(mdp, beta, _k3_rule))
        case "entropy_bonus":
            return _entropy_rule(beta, entropy_coef)
        case "reward_rescaled":
            return gibbs_rule(beta * (scale or _settled_std(mdp, beta, gibbs_rule)))
    return gibbs_rule(beta)


def _settled(mdp: TokenMDP, beta: float, objective: Objective, credit: Credit) -> np.ndarray | None:
    """The policy of an objective that no backward recursion solves; None of the others."""
    match objective:
        case "k2_loss_by_length" | "k2_loss_rescaled_by_length":
            return _settled_by_length(mdp, beta, _k2_response, rescaled="rescaled" in objective)
        case "k3_loss_by_length" | "k3_loss_rescaled_by_length":
            return _settled_by_length(mdp, beta, _k3_response, rescaled="rescaled" in objective)
        case "no_kl" | "kl_early" | "kl_late" | "score_at_each_token" | "score_per_token":
            return _misplaced(mdp, beta, objective, credit)
        case "advantages_whitened_per_sample":
            return annealed(mdp, beta, lambda credits: credits.whole("whitened_advantages"))
        case "rewards_whitened_per_sample":
            return annealed(mdp, beta, lambda credits: credits.whole("whitened_rewards"))
    return None


def _k2_rule(beta: float) -> Rule:
    """c = beta log(pi / pi_ref), no KL in Q."""
    gibbs = gibbs_rule(beta)

    def rule(q: np.ndarray, ref_logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logprobs, _ = gibbs(q, ref_logprobs)
        return logprobs, (np.exp(logprobs) * q).sum(axis=1)

    return rule


def _k3_rule(beta: float) -> Rule:
    """c = beta (1 - pi_ref / pi), no KL in Q."""

    def rule(q: np.ndarray, ref_logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logprobs = _k3_response(q, np.full_like(q, beta), ref_logprobs)
        return logprobs, (np.exp(logprobs) * q).sum(axis=1)

    return rule


def _k3_response(q: np.ndarray, strength: np.ndarray, ref_logprobs: np.ndarray) -> np.ndarray:
    """log pi (n, V) with pi (Q - V) = strength (pi - pi_ref): pi = b / (d - g), with b = strength pi_ref,
    g = Q - strength less its largest, and d such that it sums to 1.  The sum falls in d, from at least 1 at
    d = max(g + b).
    """
    b = strength * np.exp(ref_logprobs)
    g = np.where(b > 0, q - strength, -np.inf)
    g = g - g.max(axis=1, keepdims=True)
    d = (g + b).max(axis=1, keepdims=True)
    for _ in range(100):  # Newton's steps: the sum is convex in d, so that none of them goes too far
        parts = b / (d - g)
        step = (parts.sum(axis=1, keepdims=True) - 1) / (parts / (d - g)).sum(axis=1, keepdims=True)
        d = d + np.maximum(step, 0.0)
        if (step <= 2e-16 * d).all():
            break
    logprobs = ref_logprobs + np.log(strength) - np.log(d - g)
    return logprobs - logsumexp(logprobs)[:, None]


def _k2_response(q: np.ndarray, strength: np.ndarray, ref_logprobs: np.ndarray) -> np.ndarray:
    """log pi (n, V) with Q - V = strength log(pi / pi_ref), and V such that it sums to 1."""
    value = (q + strength * ref_logprobs).max(axis=1, keepdims=True)  # one token alone would sum to 1
    for _ in range(100):  # Newton's steps: the log of the sum is convex in V, so that none of them goes too far
        logprobs = ref_logprobs + (q - value) / strength
        excess = logsumexp(logprobs)[:, None]
        slope = (np.exp(logprobs - excess) / strength).sum(axis=1, keepdims=True)
        following = value + np.maximum(excess / slope, 0.0)
        if ((excess <= 1e-15) | (following == value)).all():
            break
        value = following
    return logprobs - excess


def _entropy_rule(beta: float, entropy_coef: float) -> Rule:
    """k1 in Q, c = entropy_coef log pi: the bonus acts at each state and is no part of the return."""

    def rule(q: np.ndarray, ref_logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = (beta * ref_logprobs + q) / (beta + entropy_coef)
        logprobs = logits - logsumexp(logits)[:, None]
        pi = np.exp(logprobs)
        log_ratio = np.subtract(logprobs, ref_logprobs, where=pi > 0, out=np.zeros_like(pi))
        return logprobs, (pi * (q - beta * log_ratio)).sum(axis=1)

    return rule


def _policy(mdp: TokenMDP, rule: Rule) -> np.ndarray:
    """log pi (S, V) of a rule on the scores of the MDP."""
    return backward_recursion(mdp.enumeration, mdp.reference_logits, mdp.step_scores(), rule)[0]


def _mean_and_std(mdp: TokenMDP, policy: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the texts' scores under a policy; the latter includes the epsilon."""
    scores = mdp.scores()
    pi = np.exp(mdp.trajectory_logprobs(policy))
    mean = float(pi @ scores)
    return mean, float(np.sqrt(pi @ (scores - mean) ** 2)) + _STD_EPSILON


def _best(mdp: TokenMDP) -> float:
    """The largest score of a text that the reference can write."""
    return float(mdp.scores()[np.isfinite(mdp.trajectory_logprobs(mdp.reference_logits))].max())


def _settled_std(mdp: TokenMDP, beta: float, rule: Callable[[float], Rule]) -> float:
    """The standard deviation of the scores under the policy of `rule(beta std)`, which divides by it."""
    reference = _mean_and_std(mdp, mdp.reference_logits)
    return first_std(lambda std: _mean_and_std(mdp, _policy(mdp, rule(beta * std))), reference, beta, _best(mdp))


def _settled_by_length(mdp: TokenMDP, beta: float, response: Response, *, rescaled: bool) -> np.ndarray:
    """The fixed point of a loss that subtracts the mean of the policy's own scores, and may divide by their std.

    The baseline matters here, because the weight of a response, 1 / its length, depends on how it goes on.
    """
    scores = mdp.scores()
    mean, _ = reference = _mean_and_std(mdp, mdp.reference_logits)

    def answer(mean: float, std: float) -> np.ndarray:
        return answered_by_length(mdp, (scores - mean) / std, beta, response)

    def settled(std: float) -> np.ndarray:
        nonlocal mean  # the search begins at the mean of the last policy, whose std was similar
        mean = first_mean(lambda m: _mean_and_std(mdp, answer(m, std))[0], mean, scores.min(), scores.max())
        return answer(mean, std)

    if not rescaled:
        return settled(1.0)
    return settled(first_std(lambda std: _mean_and_std(mdp, settled(std)), reference, beta, _best(mdp)))


def _misplaced(mdp: TokenMDP, beta: float, objective: Objective, credit: Credit) -> np.ndarray:
    """The fixed points of losses in which a score or a KL is paid at the wrong tokens, or not at all."""

    def following(credits: Credits) -> np.ndarray:
        """The KL of the tokens after each."""
        return beta * (credits.kl("reward") - credits.paid_k1)

    match objective:
        case "no_kl":
            return answered(mdp, beta, lambda credits: credits.score("end"), "free")
        case "kl_early":
            own: Own = "free" if credit == "to_go" else "free_at_the_start"
            return answered(mdp, beta, lambda credits: credits.score("end") - following(credits), own)
        case "kl_late":
            return answered(
                mdp,
                beta,
                lambda c: c.score("end") - beta * np.where(c.position < c.lengths - 1, c.kl("late") - c.paid_k1, 0.0),
                "free_at_the_end",
            )
        case "score_per_token":
            return answered(mdp, beta, lambda credits: credits.score("end") / credits.lengths - following(credits))
    kind = "at_each_token" if credit == "to_go" else "times_length"
    return answered(mdp, beta, lambda credits: credits.score(kind) - following(credits))
