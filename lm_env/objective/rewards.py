"""The protocol of a reward function, and the one place where a reward is composed.

Shapes: B episodes, T response tokens (padded).
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, Sized
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from lm_env.errors import RewardError, RewardValueError

__all__ = ["RewardFunction", "compose_rewards", "final_scores", "score_responses"]

Array = TypeVar("Array", np.ndarray, torch.Tensor)


class RewardFunction(Protocol):
    """A callable over a batch of finished episodes.

    `prompts` and `responses` are lists of B strings; the response has no EOS and ends before a stop
    string.  Every other argument is a keyword that the function may name or leave out:
    `prompt_ids`, `response_ids` (B lists of token ids, the EOS included), and each extra column of
    the prompts (the answer of a problem, a reference summary), a list of B values.  Returns B
    finite numbers (a list, an array, a tensor), higher is better.
    """

    def __call__(
        self, prompts: list[str], responses: list[str], **columns: Any
    ) -> Sequence[float] | np.ndarray | torch.Tensor: ...


def score_responses(
    reward: Callable[..., Any],
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> np.ndarray:
    """Call a reward function and check what comes back.

    Returns:
        float64 (B,): one finite score per response.

    Raises:
        RewardError: the function raised (chained).
        RewardValueError: a score is missing, not a number, NaN or infinite; the message shows the
            sample.
    """
    name = name_of(reward)
    try:
        raw = reward(prompts=list(prompts), responses=list(responses), **_accepted(reward, columns))
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(
            f"reward function {name} raised {type(error).__name__}: {error} (batch of {len(responses)}, "
            f"first response {_short(responses[0]) if responses else None})"
        ) from error
    # A set has a length too, but no order in which its scores belong to the samples.
    flat = isinstance(raw, Sized) and isinstance(raw, Iterable) and getattr(raw, "ndim", 1) == 1
    if not flat or isinstance(raw, str | bytes | Mapping | Set):
        raise RewardValueError(
            f"reward function {name} returned {_short(raw)}: return a flat list of {len(responses)} numbers"
        )
    if len(raw) != len(responses):
        raise RewardValueError(
            f"reward function {name} returned {len(raw)} scores for {len(responses)} responses: one each is needed"
        )
    scores = np.empty(len(raw), dtype=np.float64)
    for i, value in enumerate(raw.tolist() if isinstance(raw, torch.Tensor) else raw):
        score = _number(value)
        if not math.isfinite(score):
            raise RewardValueError(
                f"reward function {name} gave {_short(value)} ({type(value).__name__}) for sample {i} "
                f"(prompt {_short(prompts[i])}, response {_short(responses[i])}): each score must be a finite number"
            )
        scores[i] = score
    return scores


def final_scores(scores: Array, ended: Array, missing_eos_score: float | None) -> Array:
    """The score that is paid: an episode that never ended by itself has its score REPLACED.

    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 3.1.2, penalty -1; None switches it off.

    Args:
        scores: (B,) reward-model scores.
        ended: (B,) bool, whether an EOS or a stop string ended the episode.
    """
    if missing_eos_score is None:
        return scores
    where: Callable[..., Any] = torch.where if isinstance(scores, torch.Tensor) else np.where
    return where(ended, scores, missing_eos_score)


def compose_rewards(scores: Array, logprobs: Array, ref_logprobs: Array, last: Array, beta: float) -> Array:
    """r_t = -beta (log pi(a_t|s_t) - log pi_ref(a_t|s_t)) + [t is the last token] score.

    The k1 estimator in the reward gives the exact gradient of E[score] - beta KL(pi || pi_ref)
    (Ziegler et al. 2019, equation 2).  Used for a step (shapes (n,)) and for whole episodes
    (scores (B, 1) against (B, T)).

    Args:
        scores: the paid score, broadcast against `last`; read only where `last` is True.
        logprobs, ref_logprobs: logprobs of the tokens taken, nats, under the policy sampled from and
            under the reference.
        last: bool, True where the score is paid.
    """
    penalty = beta * (ref_logprobs - logprobs)  # this way round, no KL is +0.0
    where: Callable[..., Any] = torch.where if isinstance(penalty, torch.Tensor) else np.where
    return where(last, penalty + scores, penalty)


def _accepted(function: Callable[..., Any], columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Those columns that the function's signature can take."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return dict(columns)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(columns)
    return {k: v for k, v in columns.items() if k in {p.name for p in parameters}}


def _number(value: object) -> float:
    """The value as a float; NaN for what is not a real number, or too large for a float."""
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_ | np.timedelta64):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def name_of(function: object) -> str:
    """How errors and logs call a reward function."""
    return getattr(function, "__name__", type(function).__name__)


def _short(value: object, limit: int = 80) -> str:
    try:
        text = repr(value)
    except Exception:  # an error message must not fail on what it reports
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."
