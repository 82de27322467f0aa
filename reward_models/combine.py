"""Rewards made of rewards: weighted sums, a linear rescaling to mean 0 and standard deviation 1, clipping.

What an agent maximizes is E[reward] - beta KL, so a change of the reward changes what beta means:

- adding a constant changes nothing: every text gets it (not those that are paid a `missing_eos_score`
  instead, which counts in the new units: scale it along);
- multiplying by `gain` makes beta count as beta / gain against the raw score (`effective_beta`), so
  normalizing by a standard deviation s makes it beta x s;
- clipping keeps beta (see `Clipped`) but has another optimum: pi_ref exp(clipped / beta) / Z.  Among the texts beyond a
  bound nothing is left to gain, so they keep the proportions that they have under the reference.

The statistics are those of fixed samples.  Running ones move the objective while it is being maximized:
beta / gain drifts with the policy's own spread, so nothing here keeps them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError
from lm_env.objective.description import reward_in_words
from lm_env.objective.rewards import (
    RewardFunction,
    call_reward,
    is_causal,
    name_of,
    reads_prefixes,
    score_responses,
)
from lm_env.objective.scores import Scores
from lm_env.objective.wrapping import WrappedReward
from lm_env.validation import check_number

__all__ = ["Affine", "Clipped", "WeightedSum", "effective_beta", "normalize"]

log = logging.getLogger(__name__)


class WeightedSum:
    """sum_k weight_k * reward_k, every part checked by itself.

    Each part gets those columns that its signature names, and a part that raises or returns anything
    else than finite numbers is named in the error.

    Each part is paid where it is paid alone: numbers per token and spans of causal parts at their tokens,
    everything else at the end of the text (`lm_env.objective.RewardFunction`).

    Attributes:
        last_parts: the unweighted scores of the last call, float64 (B,) by name; empty before it.
            For logging: nothing is computed twice.
    """

    def __init__(self, terms: Sequence[tuple[float, RewardFunction]]) -> None:
        """Take (weight, reward) pairs; a negative weight is a penalty.

        Raises:
            ConfigurationError: no terms, one that is no pair, a weight that is not finite, or a reward
                that cannot be called.
        """
        if not isinstance(terms, list | tuple) or not terms:
            raise ConfigurationError(f"WeightedSum takes a list of at least one (weight, reward) pair, not {terms!r}")
        for term in terms:
            if not isinstance(term, list | tuple) or len(term) != 2:
                raise ConfigurationError(f"WeightedSum takes (weight, reward) pairs, not {term!r}")
            _check_reward("WeightedSum", term[1])
            check_number(f"the weight of {name_of(term[1])}", term[0])
        weights, rewards = zip(*terms, strict=True)
        self.weights = [float(weight) for weight in weights]
        self.rewards = dict(zip(_distinct([name_of(reward) for reward in rewards]), rewards, strict=True))
        self.last_parts: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        pairs = zip(self.weights, self.rewards.values(), strict=True)
        terms = " ".join(f"{'-' if w < 0 else '+'} {abs(w):g} * {reward_in_words(reward)}" for w, reward in pairs)
        return f"WeightedSum({terms.removeprefix('+ ')})"

    @property
    def fingerprint(self) -> str:
        """Its settings, for checkpoints; see `RewardFunction`."""
        return f"weights {self.weights}"

    @property
    def causal(self) -> bool:
        """Whether any part is: then the sum is asked about texts under way, and the other parts are not."""
        return any(is_causal(part) for part in self.rewards.values())

    @property
    def reads_prefixes(self) -> bool:
        """Whether every part does."""
        return all(reads_prefixes(part) for part in self.rewards.values())

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> np.ndarray | Scores:
        """-> float64 (B,), or `Scores` where a part scores tokens."""
        finished = _finished(self, columns)
        parts = {name: call_reward(part, prompts, responses, columns, finished) for name, part in self.rewards.items()}
        self.last_parts = {name: part.totals() for name, part in parts.items()}
        total = Scores(np.zeros(len(responses)))
        for weight, part in zip(self.weights, parts.values(), strict=True):
            total = total.plus(part.scaled(weight))
        return total.simplest()

    def parts(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> dict[str, np.ndarray]:
        """The unweighted scores of each part, float64 (B,), by the part's name ("Length", "Length_2").

        Raises:
            RewardError: a part raised.
            RewardValueError: a part returned something else than finite numbers for each response.
        """
        return {name: score_responses(part, prompts, responses, columns) for name, part in self.rewards.items()}


@dataclass(frozen=True)
class Affine(WrappedReward):
    """gain * reward + bias; the ranking of the responses stays the same, beta counts as beta / gain.

    Where the reward scores tokens, each number is multiplied, and the bias is paid once, at the end of the text.

    Raises:
        ConfigurationError: the gain is not positive, either is not finite, or the reward cannot be called.
    """

    reward: RewardFunction
    gain: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        _check_reward("Affine", self.reward)
        check_number("the gain of Affine", self.gain, low=0.0, above=True)
        check_number("the bias of Affine", self.bias)

    @property
    def causal(self) -> bool:
        """As the reward inside."""
        return is_causal(self.reward)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> np.ndarray | Scores:
        """-> float64 (B,), or `Scores` where the reward scores tokens."""
        raw = call_reward(self.reward, prompts, responses, columns, _finished(self, columns))
        return raw.scaled(self.gain).plus(Scores(np.full(len(responses), self.bias))).simplest()


def normalize(reward: RewardFunction, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> Affine:
    """The reward rescaled so that these reference samples score mean 0 and standard deviation 1.

    The samples should come from the policy that training starts from; the standard deviation s is the
    population's.  Against the raw score, beta then counts as beta x s, which is logged.  Source: Ziegler
    et al. 2019 (arXiv:1909.08593), section 2.1.

    Raises:
        ConfigurationError: fewer than two samples, or all score the same, or the reward cannot be called.
    """
    _check_reward("normalize", reward)
    scaled = Affine(reward, *standardizing(score_responses(reward, prompts, responses, columns)))
    log.info(
        "%s is divided by %.4g: a beta of b counts as %.4g b against it",
        name_of(reward),
        1 / scaled.gain,
        effective_beta(scaled, 1.0),
    )
    return scaled


@dataclass(frozen=True)
class Clipped(WrappedReward):
    """The reward, held between `low` and `high`; beta stays, the optimum is that of the clipped reward.

    All texts beyond a bound score the same, so outliers of the reward are not exploited.  trlX clips at -10 and
    10, DeepSpeed-Chat at -5 and 5, of scores of about unit spread: normalize first.

    What is clipped is the score of a whole text, which has no place among scores of tokens: a reward that
    is paid token by token is refused; clip its numbers inside it, or clip another part of a `WeightedSum`.

    Raises:
        ConfigurationError: `low` is not below `high`, one of them is no number, the reward cannot be called,
            or it is causal.
    """

    reward: RewardFunction
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        _check_reward("Clipped", self.reward)
        numbers = all(isinstance(x, int | float | np.number) and not isinstance(x, bool) for x in (self.low, self.high))
        if not numbers or not self.low < self.high:
            raise ConfigurationError(f"Clipped needs numbers low < high, not {self.low!r} and {self.high!r}")
        if is_causal(self.reward):
            raise ConfigurationError(
                f"{name_of(self.reward)} scores tokens as they come, and only the score of a whole text can be clipped:"
                " clip its numbers inside it"
            )

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> np.ndarray:
        """-> float64 (B,); a score that is NaN or infinite is an error, not a bound."""
        return np.clip(score_responses(self.reward, prompts, responses, columns), self.low, self.high)


def _finished(reward: WeightedSum | Affine, columns: dict[str, Any]) -> np.ndarray | None:
    """Which texts are finished, taken out of the columns that a causal reward is given; None: all are."""
    finished = columns.pop("response_finished", None) if reward.causal else None
    return None if finished is None else np.array(finished, dtype=bool)


def effective_beta(reward: RewardFunction, beta: float) -> float:
    """The weight that the KL penalty has against the raw score, under `Affine` and `Clipped`.

    Maximizing E[gain x raw + bias] - beta KL is maximizing E[raw] - (beta / gain) KL.  Clipping changes
    the raw score and not the weight.

    Raises:
        ConfigurationError: beta is negative or not finite.
    """
    check_number("beta", beta, low=0.0)
    if isinstance(reward, Affine):
        return effective_beta(reward.reward, beta / reward.gain)
    return effective_beta(reward.reward, beta) if isinstance(reward, Clipped) else beta


def standardizing(scores: np.ndarray) -> tuple[float, float]:
    """(gain, bias) that bring scores (B,) to mean 0 and population standard deviation 1.

    Raises:
        ConfigurationError: fewer than two scores, or no spread to scale by.
    """
    mean, std = (float(np.mean(scores)), float(np.std(scores))) if len(scores) else (0.0, 0.0)
    if std <= 1e-6 * abs(mean):  # what rounding in fp32 alone leaves of equal scores
        raise ConfigurationError(
            f"{len(scores)} reference samples that score {mean:.4g} have no spread to normalize by: "
            "give more, and different ones"
        )
    return 1.0 / std, -mean / std


def _check_reward(owner: str, reward: object) -> None:
    if not callable(reward):
        raise ConfigurationError(
            f"{owner} takes a reward function f(prompts, responses, **columns) -> floats, not {reward!r}"
        )


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the repetitions: a, b, a -> a, b, a_2."""
    return [name if (n := names[:i].count(name)) == 0 else f"{name}_{n + 1}" for i, name in enumerate(names)]
