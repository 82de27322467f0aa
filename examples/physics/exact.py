"""What the scripts of this folder have in common: distributions over the texts of an enumerable token MDP.

Shapes: N texts, T tokens of the longest text, S states (prefixes of texts), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lm_env import TokenMDP
from lm_env.theory.credit import Credits

FLOOR = -60.0
"""The least logprob of a token: e^-60 is as good as never."""
STILL = 1e-9
"""`settle` stops when no text's probability changes faster than this, per unit of step size."""


def probabilities(mdp: TokenMDP, logits: np.ndarray) -> np.ndarray:
    """The probability (N,) of each text under logits (S, V)."""
    return np.exp(mdp.trajectory_logprobs(logits))


def tilted(reference: np.ndarray, scores: np.ndarray, beta: float) -> np.ndarray:
    """reference exp(scores / beta) / Z, (N,): the optimum of E[score] - beta KL."""
    weights = reference * np.exp((scores - scores.max()) / beta)
    return weights / weights.sum()


def best_of(reference: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """The probability (N,) of each text to be chosen as the best of n samples of the reference, ties broken at random.

    The best score is at most s with probability F(s)^n, where F(s) is the probability of a score of at most s.
    """
    levels, level = np.unique(scores, return_inverse=True)
    mass = np.bincount(level, reference, len(levels))
    best = np.diff(np.minimum(mass.cumsum(), 1.0) ** n, prepend=0.0)
    return reference * (best / mass)[level]


def kl(p: np.ndarray, reference: np.ndarray) -> float:
    """KL(p || reference) of distributions (N,), in nats."""
    taken = p > 0
    return float(p[taken] @ np.log(p[taken] / reference[taken]))


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Half the sum of absolute differences of two distributions (N,), from 0 (the same) to 1 (no text in common)."""
    return float(np.abs(p - q).sum() / 2)


def normalized(logits: np.ndarray) -> np.ndarray:
    """Logprobs (S, V), none below FLOOR."""
    return np.maximum(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), FLOOR)


def clipped(ratio: np.ndarray, advantage: np.ndarray, clip: float) -> np.ndarray:
    """The factor of A grad log pi in the gradient of min(ratio A, clip(ratio, 1 - clip, 1 + clip) A): ratio or 0."""
    return np.where(np.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip), 0.0, ratio)


def per_token(credits: Credits, credit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean credit of each token in each state, the probability that a text passes there and takes it), both (S, V).

    Args:
        credit: what each token of each text is credited with, (N, T).
    """
    tree = credits.mdp.enumeration
    weights = np.where(tree.real, credits.probabilities[:, None], 0.0)
    mass, total = (np.zeros_like(credits.policy) for _ in range(2))
    np.add.at(mass, (tree.states, tree.tokens), weights)
    np.add.at(total, (tree.states, tree.tokens), weights * credit)
    return np.divide(total, mass, out=np.zeros_like(total), where=mass > 0), mass


class Rest(NamedTuple):
    """The policy at which repeated exact updates have ended."""

    policy: np.ndarray  # (S, V) logprobs
    moves: float  # how fast the probability of some text still changes, per unit of step size

    @property
    def settled(self) -> bool:
        """Whether the updates have come to rest, up to small oscillations."""
        return self.moves < 1e-3


def settle(mdp: TokenMDP, direction: Callable[[np.ndarray], np.ndarray], rate: float, steps: int = 800) -> Rest:
    """Add `rate * direction(policy)`, (S, V), to the policy's logits, from the reference on, until nothing changes.

    It ends after `steps` updates in any case; `Rest.settled` says whether it has come to rest by then.
    """
    policy = normalized(mdp.reference_logits)
    now = probabilities(mdp, policy)
    moves = np.inf
    for _ in range(steps):
        policy = normalized(policy + rate * direction(policy))
        before, now = now, probabilities(mdp, policy)
        moves = float(np.abs(now - before).max()) / rate
        if moves < STILL:
            break
    return Rest(policy, moves)
