"""Options that every batched agent has; an algorithm's own file adds its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from agents.learning.updater import UpdaterConfig
from lm_env.errors import ConfigurationError
from lm_env.explain import explained
from lm_env.validation import check_integers

__all__ = ["AgentConfig", "make_config"]

Config = TypeVar("Config")


@explained
@dataclass(frozen=True)
class AgentConfig(UpdaterConfig):
    """Options that every batched agent has."""

    rollout_episodes: int = 128
    """Episodes per rollout, each from a prompt drawn beforehand."""
    slots: int = 32
    """Texts decoded at a time."""
    seed: int = 0
    """The seed of prompts, sampling and minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, "rollout_episodes", "slots")
        check_integers(self, "seed", low=0)


def make_config(kind: type[Config], owner: str, options: Mapping[str, Any]) -> Config:
    """A config from its options; ConfigurationError, naming the owner, for an option that it does not have."""
    try:
        return kind(**options)
    except TypeError as error:
        reason = str(error).partition("() ")[2] or str(error)
        raise ConfigurationError(f"{owner}: {reason}; see {kind.__name__}") from error
