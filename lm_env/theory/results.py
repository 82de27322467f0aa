"""What is known of a policy on an enumerable MDP.

Shapes: N trajectories, V vocabulary, S states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["ExactEvaluation", "Optimum"]


@dataclass(frozen=True, eq=False)
class Optimum:
    """pi* = pi_ref exp(score / beta) / Z, which maximizes J = E[score] - beta KL(pi || pi_ref).

    R is E[score], KL in nats per episode; Z is inf where it passes float64, and J stays exact.
    `distribution` (N,) is over trajectories, `first_token` (V,), `value` (S,) the soft values
    V(s) = beta log sum_a pi_ref(a|s) exp(Q(s, a) / beta) of what is still to be paid, `policy_logits` (S, V)
    log pi*.  States past EOS have value 0 and the reference's row.
    """

    Z: float
    J: float
    R: float
    KL: float
    p_eos: float
    distribution: np.ndarray
    first_token: np.ndarray
    value: np.ndarray
    policy_logits: np.ndarray


@dataclass(frozen=True)
class ExactEvaluation:
    """A policy's exact J, its gap J* - J = beta KL(pi || pi*), R, KL, the total variation of its
    trajectories from the optimum's, and P(EOS)."""

    J: float
    gap: float
    R: float
    KL: float
    tv: float
    p_eos: float
