"""KL between policy and reference: estimators from samples, the exact one, and the controllers of beta.

With x = log pi(a|s) - log pi_ref(a|s) of tokens sampled from pi, in nats:

| name | formula | bias | in this package |
|---|---|---|---|
| k1 | x | none | the reward of every step |
| k2 | x^2 / 2 | O(KL^1.5) | metric |
| k3 | exp(-x) - 1 + x | none, never negative | metric; a loss in GRPO |
| full | sum_a pi(a) (log pi(a) - log pi_ref(a)) | exact | metric |
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lm_env.errors import CheckpointMismatchError, ConfigurationError
from lm_env.models.logprobs import log_distribution
from lm_env.validation import check_number

__all__ = ["AdaptiveKL", "FixedKL", "KLController", "full_kl", "k1", "k2", "k3", "make_controller"]

Array = TypeVar("Array", np.ndarray, Tensor)


def k1(logprobs: Array, ref_logprobs: Array) -> Array:
    """Unbiased, may be negative: log pi - log pi_ref."""
    return logprobs - ref_logprobs


def k2(logprobs: Array, ref_logprobs: Array) -> Array:
    """Half the squared log-ratio: low variance, biased by O(KL^1.5)."""
    return (logprobs - ref_logprobs) ** 2 / 2


def k3(logprobs: Array, ref_logprobs: Array) -> Array:
    """exp(-x) - 1 + x: unbiased and never negative (Schulman 2020, "Approximating KL divergence")."""
    x = ref_logprobs - logprobs
    return (torch.expm1(x) if isinstance(x, Tensor) else np.expm1(x)) - x


def full_kl(logits: Tensor, ref_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Exact KL of the next-token distributions, summed over the vocabulary.

    Args:
        logits, ref_logits: (..., V).

    Returns:
        (...,) nats.  A token of probability 0 under the policy adds nothing.
    """
    logprobs = log_distribution(logits, temperature)
    ref = log_distribution(ref_logits, temperature)
    probs = logprobs.exp()
    return torch.where(probs > 0, probs * (logprobs - ref), 0.0).sum(-1)


@runtime_checkable
class KLController(Protocol):
    """Holds beta, the weight of the KL penalty in the reward."""

    beta: float

    def update(self, kl: float, episodes: int) -> None:
        """Adapt beta to the mean KL per episode (nats, summed over its tokens) of `episodes` new episodes."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FixedKL:
    """A constant beta."""

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = check_number("beta", beta, low=0.0)

    def __repr__(self) -> str:
        return f"FixedKL(beta={self.beta:g})"

    def update(self, kl: float, episodes: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "fixed", "beta": self.beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the saved beta; a warning tells if another one was given, which it replaces."""
        _expect(state, "fixed", "beta")
        saved = check_number("beta", state["beta"], low=0.0)
        if saved != self.beta:
            warnings.warn(
                f"beta differs: {saved} was saved, {self.beta} is given, and training goes on with the one saved; to"
                " use another, set task.kl.beta of the agent once it is loaded",
                stacklevel=4,
            )
        self.beta = saved


class AdaptiveKL:
    """Proportional control of log beta toward a target KL.

    beta <- beta (1 + clip(KL / target - 1, -.2, .2) n / horizon), n the number of episodes.  Agents of this package
    call `update` once per rollout, and `TextVecEnv` does; in any other loop the loop has to, or beta stays as it is.
    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2; defaults from its public code.

    Args:
        beta: where it starts.
        target: nats per episode.
        horizon: episodes; the larger, the slower.
    """

    def __init__(self, beta: float = 0.15, target: float = 6.0, horizon: float = 10_000) -> None:
        self.beta = check_number("beta", beta, low=0.0, above=True)
        self.target = check_number("target", target, low=0.0, above=True)
        self.horizon = check_number("horizon", horizon, low=0.0, above=True)

    def __repr__(self) -> str:
        return f"AdaptiveKL(beta={self.beta:.4g}, target={self.target:g}, horizon={self.horizon:g})"

    def update(self, kl: float, episodes: int) -> None:
        if not math.isfinite(kl):
            raise ConfigurationError(
                f"the measured KL is {kl}: the policy has left the reference's support; beta is unchanged"
            )
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= max(1 + error * episodes / self.horizon, 1e-3)  # never to 0 or below, however large the batch

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "adaptive", "beta": self.beta, "target": self.target, "horizon": self.horizon}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _expect(state, "adaptive", "beta", "target", "horizon")
        for name in ("target", "horizon"):
            if state[name] != getattr(self, name):
                raise CheckpointMismatchError(
                    f"saved KL controller has {name} {state[name]}, this one {getattr(self, name)}: use the same"
                )
        self.beta = check_number("beta", state["beta"], low=0.0, above=True)


def make_controller(beta: float | KLController) -> KLController:
    """A number becomes a `FixedKL`; a controller stays as it is.

    Raises:
        ConfigurationError: it is neither.
    """
    if isinstance(beta, KLController):
        return beta
    return FixedKL(beta)


def _expect(state: dict[str, Any], kind: str, *names: str) -> None:
    if state.get("kind") != kind:
        raise CheckpointMismatchError(
            f"saved KL controller is {state.get('kind')!r}, this one {kind!r}: pass the same beta or controller as in"
            " the saved run"
        )
    if missing := [name for name in names if name not in state]:
        raise CheckpointMismatchError(f"saved KL controller has no {missing[0]}: it was not written by state_dict()")
