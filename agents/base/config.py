"""Options that every batched agent has; an algorithm's own file adds its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from agents.learning.options import UpdaterConfig
from lm_env.errors import CheckpointMismatchError, ConfigurationError
from lm_env.explain import explained
from lm_env.validation import check_integers

__all__ = ["MEMORY_ONLY", "AgentConfig", "check_same_options", "make_config"]

MEMORY_ONLY = ("micro_batch_tokens", "gradient_checkpointing")
"""Options that change how much memory an update takes; its gradient is the same but for rounding."""

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


def check_same_options(saved: Mapping[str, Any], config: Any, place: Any) -> None:
    """Raise CheckpointMismatchError if a run that goes on would have other options than it began with.

    Options that matter to memory alone may differ.
    """
    given = json.loads(json.dumps(vars(config)))
    for name in sorted(saved.keys() | given.keys()):
        if name not in MEMORY_ONLY and saved.get(name) != given.get(name):
            raise CheckpointMismatchError(
                f"{name} differs: the run in {place} has {saved.get(name)!r}, {given.get(name)!r} is given; a run goes"
                " on with the options that it began with (to train its weights with others, load them and call learn)"
            )
