"""What a loss credits each token with: the pieces that the gradients of the known losses are made of.

A policy-gradient loss has the expected gradient  sum_n p(n) sum_t C(n, t) grad log pi(a_t | s_t)  with a credit C for
each token of each response.  The right credit is  score - beta (k1 of this token and all after it)  plus any baseline
that does not depend on the token; each mistake has another one.  Losses that are no policy gradients have a
credit as well: the gradient of beta k3 as a loss is that of the credit -beta (1 - pi_ref / pi), that of an entropy
bonus of the credit -c log pi.

Shapes: N responses, T horizon, G responses to a prompt.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from lm_env.theory.token_mdp import TokenMDP

__all__ = ["Credits"]

STD_EPSILON = 1e-4
"""What keeps a division by the standard deviation finite; GRPO's usual value."""


class Credits:
    """The pieces of a policy on an MDP, each float64 (N, T) and 0 in the padding.

    Args:
        policy: (S, V) log-probabilities of the policy under training.
        beta: the weight of the KL penalty.
        behavior: (S, V) log-probabilities of the policy that sampled; default: the same one.
        group_size: G.
    """

    def __init__(
        self,
        mdp: TokenMDP,
        policy: np.ndarray,
        beta: float,
        behavior: np.ndarray | None = None,
        group_size: int = 1,
    ) -> None:
        tree = mdp.enumeration
        behavior = policy if behavior is None else behavior
        self.mdp = mdp
        self.policy = policy
        self.beta = beta
        self.group_size = group_size
        self.real = tree.real
        self.lengths = tree.lengths[:, None]
        self.position = np.arange(tree.tokens.shape[1])[None, :]
        self.is_eos = tree.real & (tree.tokens == mdp.eos_id)
        self.scores = mdp.scores()[:, None]
        self.probabilities = np.exp(mdp.trajectory_logprobs(behavior))
        self.logprobs = self.on_tokens(policy)
        self.old_logprobs = self.on_tokens(behavior)
        ref_logprobs = self.on_tokens(mdp.reference_logits)
        self.log_ratio = self.logprobs - ref_logprobs
        self.paid_k1 = self.old_logprobs - ref_logprobs
        """k1 under the policy that sampled: what the rewards hold."""
        self.step_ratio = self.logprobs - self.old_logprobs
        """log pi - log pi_old."""

    def on_tokens(self, table: np.ndarray) -> np.ndarray:
        """The entries (N, T) of a table (S, V) at each token of each response, 0 in the padding."""
        tree = self.mdp.enumeration
        return np.where(tree.real, table[tree.states, tree.tokens], 0.0)

    @cached_property
    def values(self) -> np.ndarray:
        """Before each token, the expectation of the rewards to come under the policy that sampled."""
        tree = self.mdp.enumeration
        to_come = self.to_go(self.rewards)
        weights = np.where(tree.real, self.probabilities[:, None], 0.0)
        mass, worth = (np.zeros(len(self.policy)) for _ in range(2))
        np.add.at(mass, tree.states, weights)
        np.add.at(worth, tree.states, weights * to_come)
        mean = np.divide(worth, mass, out=worth, where=mass > 0)
        return np.where(tree.real, mean[tree.states], 0.0)

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
        size = self.group_size
        if size < 2:
            return returns
        groups = np.indices((len(returns),) * size).reshape(size, -1)
        values = returns[groups]
        spread = values.std(0, ddof=1) + STD_EPSILON
        weights = self.probabilities[groups[1:]].prod(0)
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
        return np.where(last, self.scores, 0.0) - self.beta * self.paid_k1

    def whole(self, kind: str, gamma: float = 1.0) -> np.ndarray:
        """The credit of a loss that does something else to the returns than to weigh them.

        `gae_LAMBDA` is generalized advantage estimation, whose values are those without a discount.
        """
        if kind.startswith("gae_"):
            following = np.pad(self.values, ((0, 0), (0, 1)))[:, 1:]
            return self.to_go(self.rewards + gamma * following - self.values, gamma * float(kind.removeprefix("gae_")))
        to_come = self.to_go(self.rewards)
        match kind:
            case "whitened_advantages" | "whitened_advantages_unbiased":
                return self._whitened(to_come - self.values, kind.endswith("unbiased"))
            case "whitened_returns" | "whitened_returns_unbiased":
                return self._whitened(to_come, kind.endswith("unbiased"))
            case "whitened_rewards" | "whitened_rewards_unbiased":
                return self.to_go(self._whitened(self.rewards, kind.endswith("unbiased")))
            case "preference":  # of pairs of samples, as in online DPO: one is better by its score, or by its log-ratio
                worth, implied = self.scores[:, 0], self.beta * self.log_ratio.sum(1)
                lead = [np.tanh((values[:, None] - values) / 2) / 2 for values in (worth, implied)]
                return np.where(self.real, ((lead[0] - lead[1]) @ self.probabilities)[:, None], 0.0)
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
        tree = self.mdp.enumeration
        pull = np.zeros_like(self.policy)
        np.add.at(pull, (tree.states, tree.tokens), np.where(tree.real, self.probabilities[:, None] * credit, 0.0))
        return pull - np.exp(self.policy) * pull.sum(1, keepdims=True)
