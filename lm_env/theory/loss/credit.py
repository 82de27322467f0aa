"""What a loss credits each token with: the pieces that the gradients of the known losses are made of.

A policy-gradient loss has the expected gradient  sum_n p(n) sum_t C(n, t) grad log pi(a_t | s_t)  with a credit C for
each token of each response.  The right credit is  score - beta (k1 of this token and all after it)  plus any baseline
that does not depend on the token; each slip has another one.  Losses that are no policy gradients have a
credit as well: the gradient of beta k3 as a loss is that of the credit -beta (1 - pi_ref / pi), that of an entropy
bonus of the credit -c log pi.

Shapes: N responses, T horizon, G responses to a prompt.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from lm_env.theory.loss.problem import LossProblem

__all__ = ["Credits"]

STD_EPSILON = 1e-4
"""What keeps a division by the standard deviation finite; GRPO's usual value."""


class Credits:
    """The pieces of a problem, each float64 (N, T) and 0 in the padding."""

    def __init__(self, problem: LossProblem) -> None:
        self.problem = problem
        mdp, tree = problem.mdp, problem.mdp.enumeration
        self.real = tree.real
        self.lengths = tree.lengths[:, None]
        self.position = np.arange(tree.tokens.shape[1])[None, :]
        self.is_eos = tree.real & (tree.tokens == mdp.eos_id)
        self.scores = mdp.scores()[:, None]
        self.logprobs = problem.on_tokens(problem.policy)
        self.log_ratio = problem.on_tokens(problem.policy - mdp.reference_logits)
        self.paid_k1 = problem.on_tokens(problem.behavior - mdp.reference_logits)
        """k1 under the policy that sampled: what the rewards hold."""
        self.step_ratio = problem.on_tokens(problem.policy - problem.behavior)
        """log pi - log pi_old."""

    def ones(self) -> np.ndarray:
        return self.real.astype(np.float64)

    def to_go(self, values: np.ndarray, gamma: float = 1.0) -> np.ndarray:
        """sum_{u >= t} gamma^(u - t) values_u."""
        total = np.zeros_like(values)
        running = np.zeros(len(values))
        for t in reversed(range(values.shape[1])):
            running = values[:, t] + gamma * running
            total[:, t] = running
        return np.where(self.real, total, 0.0)

    # -- the score ------------------------------------------------------------------------------------
    def score(self, kind: str, gamma: float = 1.0) -> np.ndarray:
        """What the score adds to a token's credit."""
        match kind:
            case "end":
                credit = self.scores * np.where(self.real, gamma ** np.maximum(self.lengths - 1 - self.position, 0), 0)
            case "at_each_token":  # in every token's reward, and each token credited with those from its own on
                credit = self.scores * (self.lengths - self.position)
            case "times_length":  # in every token's reward, and each token credited with all of them
                credit = self.scores * self.lengths
            case "group_std":
                credit = self.standardized(self.scores[:, 0])[:, None]
            case _:
                raise ValueError(kind)
        return np.where(self.real, credit, 0.0)

    def standardized(self, returns: np.ndarray) -> np.ndarray:
        """E[(r - mean) / (std + epsilon)] (N,) of a return (N,) in a group with G - 1 others."""
        size = self.problem.group_size
        if size < 2:
            return returns
        groups = np.indices((len(returns),) * size).reshape(size, -1)
        values = returns[groups]
        spread = values.std(0, ddof=1) + STD_EPSILON
        weights = self.problem.probabilities[groups[1:]].prod(0)
        mean = np.zeros_like(returns)
        np.add.at(mean, groups[0], weights * (values[0] - values.mean(0)) / spread)
        return mean

    # -- the KL penalty, without beta ------------------------------------------------------------------
    def kl(self, kind: str, gamma: float = 1.0) -> np.ndarray:
        """What the KL penalty takes from a token's credit, beta aside."""
        k1, own = self.paid_k1, self.log_ratio
        match kind:
            case "reward":
                return self.to_go(k1, gamma)
            case "none":
                return np.zeros_like(k1)
            case "late":  # each token pays for the one before it, and nobody for the last one
                return self.to_go(np.where(self.position < self.lengths - 1, k1, 0.0))
            case "early":  # each token pays for the next one
                return self.to_go(k1) - k1
            case "early_in_return":  # nobody pays for the first token
                return self.to_go(k1) - np.where(self.position == 0, k1, 0.0)
            case "last_token":  # the last token's KL is all that is paid
                return self.to_go(np.where(self.position == self.lengths - 1, k1, 0.0))
            case "clamped":
                return self.to_go(np.maximum(k1, 0.0))
            case "absolute":
                return self.to_go(np.abs(k1))
            case "k2_reward":
                return self.to_go(k1**2 / 2)
            case "k3_reward":
                return self.to_go(np.where(self.real, np.expm1(-k1) + k1, 0.0))
            case "k2_loss":
                return own
            case "k3_loss":
                return np.where(self.real, -np.expm1(-own), 0.0)
            case _:
                raise ValueError(kind)

    # -- what weighs a token, whatever its credit -----------------------------------------------------
    def weight(self, length: str, mask: str) -> np.ndarray:
        """A response's weight, and which of its tokens count."""
        weight = self.ones()
        if length == "own_length":
            weight = weight / self.lengths
        match mask:
            case "all":
                return weight
            case "no_eos":
                return np.where(self.is_eos, 0.0, weight)
            case "no_last":
                return np.where(self.position == self.lengths - 1, 0.0, weight)
            case "no_first":
                return np.where(self.position == 0, 0.0, weight)
            case _:
                raise ValueError(mask)

    def ratio(self, kind: str) -> np.ndarray:
        """The importance ratio to the policy that sampled, by which the credit is multiplied."""
        match kind:
            case "none":
                return self.ones()
            case "token":
                return np.where(self.real, np.exp(self.step_ratio), 0.0)
            case "sequence":
                return np.where(self.real, np.exp(self.step_ratio.sum(1, keepdims=True)), 0.0)
            case "sequence_mean":  # the geometric mean over the tokens (GSPO)
                return np.where(self.real, np.exp(self.step_ratio.sum(1, keepdims=True) / self.lengths), 0.0)
            case _:
                raise ValueError(kind)

    # -- credits that cannot be taken apart into score and KL ------------------------------------------
    @cached_property
    def rewards(self) -> np.ndarray:
        """score at the last token - beta k1."""
        last = self.real & (self.position == self.lengths - 1)
        return np.where(last, self.scores, 0.0) - self.problem.beta * self.paid_k1

    def whole(self, kind: str) -> np.ndarray:
        """The credit of a loss that does something else to the returns than to weigh them."""
        to_come = self.to_go(self.rewards)
        match kind:
            case "whitened_advantages" | "whitened_advantages_unbiased":
                return self._whitened(to_come - self.problem.values, kind.endswith("unbiased"))
            case "whitened_returns" | "whitened_returns_unbiased":
                return self._whitened(to_come, kind.endswith("unbiased"))
            case "whitened_rewards" | "whitened_rewards_unbiased":
                return self.to_go(self._whitened(self.rewards, kind.endswith("unbiased")))
            case "standardized_return":
                return np.where(self.real, self.standardized(self.rewards.sum(1))[:, None], 0.0)
            case _:
                raise ValueError(kind)

    def _whitened(self, values: np.ndarray, unbiased: bool) -> np.ndarray:
        """Mean 0 and standard deviation 1 within each response; a single token becomes 0."""
        mean = np.where(self.real, values, 0.0).sum(1, keepdims=True) / self.lengths
        centered = np.where(self.real, values - mean, 0.0)
        variance = (centered**2).sum(1, keepdims=True) / np.maximum(self.lengths - unbiased, 1)
        return centered / np.sqrt(variance + 1e-8)

    # -- to gradients -----------------------------------------------------------------------------------
    def gradient(self, credit: np.ndarray) -> np.ndarray:
        """sum_n p(n) sum_t C(n, t) grad log pi(a_t | s_t) in the policy's logits (S, V)."""
        problem, tree = self.problem, self.problem.mdp.enumeration
        pull = np.zeros_like(problem.policy)
        weighted = np.where(tree.real, problem.probabilities[:, None] * credit, 0.0)
        np.add.at(pull, (tree.states, tree.tokens), weighted)
        return pull - np.exp(problem.policy) * pull.sum(1, keepdims=True)
