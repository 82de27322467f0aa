"""The protocol of a reward function, and the one place where a reward is composed.

Shapes: B texts, T response tokens (padded).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from lm_env.errors import ConfigurationError, RewardError, RewardValueError
from lm_env.objective.scores import Scores, checked_scores, short_repr

__all__ = [
    "RewardFunction",
    "accepted_columns",
    "ask_reward",
    "call_reward",
    "check_keywords",
    "compose_rewards",
    "final_scores",
    "is_causal",
    "lengths_of",
    "name_of",
    "no_reward",
    "parts_of",
    "reads_prefixes",
    "score_responses",
]

Array = TypeVar("Array", np.ndarray, torch.Tensor)


class RewardFunction(Protocol):
    """A callable that scores a batch of texts; higher is better.

    `prompts` and `responses` are lists of B strings; the response has no EOS and ends before a stop
    string.  Every other argument is a keyword that the function may name or leave out:
    `prompt_ids`, `response_ids` (B lists of token ids, the EOS included), and each extra column of
    the prompts (the answer of a problem, a reference summary), a list of B values.

    It returns a list, an array or a tensor with one entry per text, and each entry is

    - a finite number: the score of the whole text, paid at its last token; or
    - an array, tensor or list of T_i finite numbers, one per response token, the EOS included; or
    - a list of `Span`s (or an empty list): scores of characters, each paid at the last token that has one
      of them.

    The score of a text is the sum of its entry.  A flat list of B numbers is always one number per text: for
    B = 1, the numbers of the text's tokens are `[array]`.  A padded array of two dimensions is refused.

    WHEN the scores of tokens are paid.  The reward of a step must depend only on the text up to that step;
    otherwise an agent that uses reward-to-go maximizes something other than E[score] - beta KL.
    So a function whose score of each token depends on the text up to that token says so: it has an attribute
    `causal = True`, or is wrapped in `Causal`.  Then each token is paid at once, stepwise and episode-wise alike.
    Without it all scores of a text are paid together at its last token, and a warning says so unless
    the function has `causal = False`.  Either way the score of a text, and so the optimum, is the same.

    The stepwise environment calls a causal function at every step with the text so far.  Only the last token's
    score may be new; if an earlier score changes, the step raises RewardValueError.  It
    gets one more keyword argument: `response_finished`, B bools, False for a text that is still being written or
    that the length cap has cut (`cap_truncates`).  What belongs to the end of a text, such as one number for all of it,
    is paid to finished texts only.  The text so far holds no half characters and no beginning of a stop string.

    A function that adds several scores may keep them in an attribute `last_parts`: name -> one number for each text of
    its last call.  They are logged as `rollout/score/NAME`, and nothing is computed twice.

    A function that is cheap, and whose score of an unfinished text foretells that of the whole, may say so by an
    attribute `reads_prefixes = True`: agents with a critic then make their values of it (`ScoreCritic`).  About such
    texts it is asked with `response_finished`, False for each, unless it is causal: the scores of its tokens say all.

    A function whose scores depend on more than the weights in it, such as a setting, or weights on another machine, may
    have an attribute `fingerprint`, a text that differs where its scores may: checkpoints remember it.

    A function with a state of its own may have `state_dict()`, which returns JSON, and `load_state_dict(state)`:
    checkpoints save and restore it.
    """

    def __call__(
        self, prompts: list[str], responses: list[str], **columns: Any
    ) -> Sequence[Any] | np.ndarray | torch.Tensor | Scores: ...


def is_causal(reward: object) -> bool:
    """Whether the function declares that each token's score depends on the text up to that token alone."""
    return bool(getattr(reward, "causal", False))


def parts_of(reward: object, count: int) -> dict[str, np.ndarray]:
    """The parts of the scores of a reward's last call, name -> float64 (count,); none for most rewards.

    Raises:
        RewardValueError: `last_parts` is no dict of `count` numbers by name.
    """
    parts = getattr(reward, "last_parts", None) or {}
    try:
        found = {str(name): np.asarray(values, dtype=np.float64) for name, values in parts.items()}
        wrong = [name for name, values in found.items() if values.shape != (count,)]
    except (AttributeError, TypeError, ValueError):
        wrong = [short_repr(parts)]
    if wrong:
        raise RewardValueError(
            f"last_parts of the reward function {name_of(reward)} must hold {count} numbers under each name, one for"
            f" each text of its last call, which {wrong[0]} does not"
        )
    return found


def reads_prefixes(reward: object) -> bool:
    """Whether the function declares that a critic can be made of its scores of unfinished texts.

    It does so by an attribute `reads_prefixes = True`, and says by it that it is cheap to ask, and that the score of
    an unfinished text foretells that of the whole.  A sum of ratings does; an exact match, 0 up to the end, does not.
    """
    return bool(getattr(reward, "reads_prefixes", False))


def check_keywords(reward: Callable[..., Any]) -> None:
    """Refuse a reward function that does not take prompts and responses as keywords.

    Whatever else it names may be a column of the prompts; whether they have it shows where texts are scored, for some
    tasks only write texts.

    Raises:
        ConfigurationError: it cannot be called so.
    """
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {p.name: () for p in signature.parameters.values() if p.kind in by_name}
    try:
        signature.bind(**{**named, "prompts": (), "responses": ()})
    except TypeError as error:
        raise ConfigurationError(
            f"reward function {name_of(reward)}{signature} cannot be called with keywords, as it will be:"
            f" {name_of(reward)}(prompts=[...], responses=[...], ...), {error}; write f(prompts, responses, **columns)"
        ) from error


def score_responses(
    reward: Callable[..., Any],
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> np.ndarray:
    """The score of each finished text, the sum over its tokens where there is more than one number.

    Returns:
        float64 (B,), finite.

    Raises:
        RewardError: the function raised (chained).
        RewardValueError: a score is missing, not a number, NaN or infinite; the message shows the
            sample.
    """
    return call_reward(reward, prompts, responses, columns, warn=False).totals()


def no_reward(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """0 for each text: the reward function of a task whose texts are only written, or judged by something else."""
    return [0.0] * len(responses)


def call_reward(
    reward: Callable[..., Any],
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    finished: np.ndarray | None = None,
    *,
    warn: bool = True,
) -> Scores:
    """Call a reward function, check what comes back, and place it where it is paid.

    Args:
        finished: bool (B,); default: all.  A non-causal function is not called for unfinished texts, which score 0.
        warn: say so where scores of tokens are paid at the end because nothing is declared.

    Raises:
        RewardError, RewardValueError: see `score_responses`.
    """
    done = np.ones(len(responses), dtype=bool) if finished is None else finished
    if is_causal(reward):
        scores = _asked(reward, prompts, responses, {**columns, "response_finished": done.tolist()})
        return scores.without_ends(np.flatnonzero(~done))
    rows = np.flatnonzero(done).tolist()
    at_end = np.zeros(len(responses))
    if not len(rows) and len(responses):
        return Scores(at_end)
    chosen = {name: [values[i] for i in rows] for name, values in columns.items()}
    scores = _asked(reward, [prompts[i] for i in rows], [responses[i] for i in rows], chosen)
    if warn and scores.per_token and not hasattr(reward, "causal"):
        warnings.warn(
            f"reward function {name_of(reward)} scores tokens and does not say when each score is known, so a text's"
            " scores are paid together at its end.  If each depends on the text up to its token alone, wrap the"
            " function, lm_env.Causal(f), and each token is paid at once; else set f.causal = False.",
            stacklevel=2,
        )
    at_end[rows] = scores.totals()
    return Scores(at_end, failed=frozenset(rows[i] for i in scores.failed))


def ask_reward(
    reward: Callable[..., Any],
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> Any:
    """What the function returns, not yet checked, for the columns that it takes.

    Raises:
        RewardError: it raised (chained).
    """
    try:
        return reward(prompts=list(prompts), responses=list(responses), **accepted_columns(reward, columns))
    except RewardError:
        raise
    except (Exception, SystemExit) as error:  # a function that ends the program is as wrong as one that raises
        raise RewardError(
            f"reward function {name_of(reward)} raised {type(error).__name__}: {error} (batch of {len(responses)}, "
            f"first response {short_repr(responses[0]) if responses else None})"
        ) from error


def _asked(
    reward: Callable[..., Any],
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> Scores:
    """What the function returned, checked."""
    raw = ask_reward(reward, prompts, responses, columns)
    return checked_scores(name_of(reward), raw, prompts, responses, lengths_of(columns))


def lengths_of(columns: Mapping[str, Sequence[Any]]) -> list[int] | None:
    """(B,), the response tokens of each text, from the column `response_ids`; None where it is not there."""
    ids = columns.get("response_ids")
    return None if ids is None else [len(row) for row in ids]


def final_scores(token_scores: Array, last: Array, keep: Array, missing_eos_score: float | None) -> Array:
    """What is paid at each token: where a text never ended by itself, its whole score is REPLACED.

    The last token is paid `missing_eos_score` minus what the earlier tokens were paid.
    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 3.1.2, penalty -1; None switches it off.

    Args:
        token_scores: (B, T), what the reward function gives each token.
        last: (B, T) bool, True at the last token of each text.
        keep: (B,) bool, False where `missing_eos_score` replaces the score.
    """
    if missing_eos_score is None:
        return token_scores
    where: Callable[..., Any] = torch.where if isinstance(token_scores, torch.Tensor) else np.where
    earlier = where(last, 0.0, token_scores).sum(-1)
    return where(last & ~keep[:, None], missing_eos_score - earlier[:, None], token_scores)


def compose_rewards(token_scores: Array, logprobs: Array, ref_logprobs: Array, beta: float) -> Array:
    """r_t = -beta (log pi(a_t|s_t) - log pi_ref(a_t|s_t)) + the score that is paid at token t.

    The k1 estimator in the reward gives the exact gradient of E[score] - beta KL(pi || pi_ref)
    (Ziegler et al. 2019, equation 2).  All arrays have one shape: (k,) for a step, (B, T) for whole episodes.

    Args:
        logprobs, ref_logprobs: logprobs of the tokens taken, nats, under the policy sampled from and
            under the reference.  At beta 0 they are not read, so a reference of -inf costs nothing.
    """
    if beta == 0:
        return token_scores + 0.0
    return beta * (ref_logprobs - logprobs) + token_scores  # this way round, no KL is +0.0


def accepted_columns(function: Callable[..., Any], columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Those columns that the function's signature can take."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return dict(columns)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(columns)
    return {k: v for k, v in columns.items() if k in {p.name for p in parameters}}


def name_of(function: object) -> str:
    """How errors and logs call a reward function."""
    return getattr(function, "__name__", type(function).__name__)
