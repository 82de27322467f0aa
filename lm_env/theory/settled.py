"""The fixed points of agents that credit tokens with the wrong rewards.

At a fixed point all tokens of a state that are written have the same expected credit, and the others have no more.  If
a token's credit depends only on what follows it, one pass from the last tokens to the first finds that policy
(`answered`); else exact gradient steps are followed to their end (`annealed`).  The credits are those of `Credits`.

Shapes: N responses, T horizon, S states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from lm_env.theory.credit import Credits
from lm_env.theory.prefix_tree import logsumexp
from lm_env.theory.token_mdp import TokenMDP

__all__ = ["Own", "annealed", "answered", "answered_by_length"]

NEVER = -60.0
"""The log-probability of a token that is never taken."""
STEPS = 120
FIRST_STEP = 0.6
"""Of `annealed`, in logits per unit of credit; the last one is 0."""

Own = Literal["paid", "free", "free_at_the_end", "free_at_the_start"]
"""Which tokens pay for their own KL: all, none, all but the last, or all but the first of a response."""


def answered(mdp: TokenMDP, beta: float, credit: Callable[[Credits], np.ndarray], own: Own = "paid") -> np.ndarray:
    """log pi (S, V) of the fixed point where a token's credit depends only on what follows it.

    Args:
        credit: (N, T), what a token is credited with, without the token's own KL.
        own: which tokens pay for their own KL; those that do not are taken only if they are best.
    """
    tree = mdp.enumeration
    policy = mdp.reference_logits.copy()
    ends = np.zeros(policy.shape, dtype=bool)
    ends[tree.states[tree.last], tree.tokens[tree.last]] = True
    for t in reversed(range(mdp.horizon)):
        rows = np.flatnonzero(tree.real[:, t])
        states, tokens = tree.states[rows, t], tree.tokens[rows, t]
        credits = Credits(mdp, policy, beta)
        likely = np.exp(credits.logprobs[:, t + 1 :].sum(1))[rows]
        worth = np.zeros_like(policy)
        np.add.at(worth, (states, tokens), likely * credit(credits)[rows, t])
        level = np.unique(states)
        free = {
            "paid": np.zeros_like(ends),
            "free": np.ones_like(ends),
            "free_at_the_end": ends,
            "free_at_the_start": np.full_like(ends, t == 0),
        }[own]
        for state in level:
            policy[state] = _answer(worth[state], mdp.reference_logits[state], free[state], beta)
    return policy


def _answer(worth: np.ndarray, ref_logprobs: np.ndarray, free: np.ndarray, beta: float) -> np.ndarray:
    """log pi (V,) of one state, given the expected credit `worth` (V,) of its tokens.

    All tokens that pay for their own KL and are written have worth - beta log(pi / pi_ref) = v.  No free token can be
    worth more than v: if at v = the worth of the best free token the others do not sum to 1, that token has the rest.
    """
    possible = np.isfinite(ref_logprobs)
    logits = np.where(possible, ref_logprobs, 0.0) + worth / beta
    paying = possible & ~free
    best = int(np.argmax(np.where(possible & free, worth, -np.inf)))
    logprobs = np.full(len(worth), NEVER)
    total = float(logsumexp(logits[paying])) if paying.any() else -np.inf
    if not (possible & free).any() or total >= worth[best] / beta:
        logprobs[paying] = logits[paying] - total
        return logprobs
    logprobs[paying] = logits[paying] - worth[best] / beta
    logprobs[best] = np.log1p(-np.exp(total - worth[best] / beta))
    return np.maximum(logprobs, NEVER)


def annealed(mdp: TokenMDP, beta: float, credit: Callable[[Credits], np.ndarray]) -> np.ndarray:
    """log pi (S, V): where exact policy-gradient steps from the reference end whose size falls to 0.

    For credits that vanish at no policy, and so keep it moving unless the steps fall to 0.

    Args:
        credit: (N, T), all that a token is credited with, its own KL included.
    """
    tree = mdp.enumeration
    policy = mdp.reference_logits.copy()
    for i in range(STEPS):
        credits = Credits(mdp, policy, beta)
        weights = np.where(tree.real, credits.probabilities[:, None], 0.0)
        mass, worth = (np.zeros_like(policy) for _ in range(2))
        np.add.at(mass, (tree.states, tree.tokens), weights)
        np.add.at(worth, (tree.states, tree.tokens), weights * credit(credits))
        mean = np.divide(worth, mass, out=np.zeros_like(worth), where=mass > 0)
        better = mean - (np.exp(policy) * mean).sum(1, keepdims=True)
        policy = policy + FIRST_STEP * (1 - i / STEPS) * np.where(mass > 0, better, 0.0)
        policy = np.maximum(policy - logsumexp(policy)[:, None], NEVER)
    return policy


def answered_by_length(
    mdp: TokenMDP, worth: np.ndarray, beta: float, response: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """log pi (S, V) where each response's loss is divided by its own length, its KL part included.

    Q is the expectation of worth / length, and beta of a state-action is beta E[1 / length], both by one backward pass.
    The worth is the whole text's, which each of its tokens is credited with, wherever it is paid.

    Args:
        worth: (N,), the score less its baseline, perhaps divided by its std.
        response: (Q, strength, log pi_ref), each (n, V), -> log pi (n, V).
    """
    tree = mdp.enumeration
    ref_logprobs = mdp.reference_logits
    policy = ref_logprobs.copy()
    vocab = mdp.vocab_size
    q = np.zeros_like(ref_logprobs)
    weight = np.zeros_like(ref_logprobs)
    rows = np.arange(len(tree.lengths))
    last = tree.lengths - 1
    ends = (tree.states[rows, last], tree.tokens[rows, last])
    q[ends] = worth / tree.lengths
    weight[ends] = 1 / tree.lengths
    for t in reversed(range(mdp.horizon)):
        level = np.unique(tree.states[tree.real[:, t], t])
        policy[level] = response(q[level], beta * weight[level], ref_logprobs[level])
        if t:
            pi = np.exp(policy[level])
            parents = ((level - 1) // vocab, (level - 1) % vocab)
            q[parents] = (pi * q[level]).sum(1)
            weight[parents] = (pi * weight[level]).sum(1)
    return policy
