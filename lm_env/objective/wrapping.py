"""Reward functions around another one: what they all forward, and `Causal`, a declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lm_env.errors import ConfigurationError
from lm_env.objective.rewards import RewardFunction, accepted_columns, name_of, reads_prefixes

__all__ = ["Causal", "WrappedReward"]


class WrappedReward:
    """Base of a reward function around another one, `reward`: what that one says of itself holds for this one as well.

    These are its name and the optional attributes of `RewardFunction`, but not `causal`, which depends on the wrapper.
    """

    reward: RewardFunction | Callable[..., Any]

    @property
    def __name__(self) -> str:
        return name_of(self.reward)

    @property
    def last_parts(self) -> Mapping[str, Any]:
        """The parts of the scores of the last call of the reward inside, where it is a sum of others."""
        return getattr(self.reward, "last_parts", None) or {}

    @property
    def reads_prefixes(self) -> bool:
        """As the reward inside."""
        return reads_prefixes(self.reward)

    @property
    def state_dict(self) -> Callable[[], Any]:
        """That of the reward inside; AttributeError where it has none."""
        return self.reward.state_dict  # type: ignore[union-attr]

    @property
    def load_state_dict(self) -> Callable[[Any], Any]:
        """That of the reward inside; AttributeError where it has none."""
        return self.reward.load_state_dict  # type: ignore[union-attr]


@dataclass(frozen=True)
class Causal(WrappedReward):
    """The same reward function, declared to score each token by the text up to it alone; see `RewardFunction`."""

    reward: RewardFunction | Callable[..., Any]
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise ConfigurationError(
                f"Causal wraps a reward function f(prompts, responses, **columns), not {self.reward!r:.60}"
            )

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> Any:
        """What the reward function returns, given the columns that it takes."""
        return self.reward(prompts=prompts, responses=responses, **accepted_columns(self.reward, columns))
