"""Options that every batched agent has; an algorithm's own file adds its own."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lm_env.errors import ConfigurationError

__all__ = ["AgentConfig", "check_number", "check_whole", "make_config"]

C = TypeVar("C")


@dataclass(frozen=True)
class AgentConfig:
    """Options that every batched agent has."""

    learning_rate: float = 1e-4
    """Adam's step size at the start."""
    lr_schedule: Literal["constant", "linear"] = "linear"
    """Linear falls to 0 at `total_timesteps`."""
    rollout_episodes: int = 128
    """Episodes per rollout, each from a prompt drawn beforehand."""
    slots: int = 32
    """Texts decoded at a time."""
    batch_size: int = 32
    """Episodes per optimizer step."""
    n_epochs: int = 4
    """Passes over each rollout."""
    warmup_rollouts: int = 0
    """The learning rate rises from a tenth over this many rollouts (10 in InstructGPT)."""
    ema_decay: float | None = None
    """Keep `agent.ema.module`, an exponential moving average of the LM's weights (.992 in InstructGPT)."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    bf16: bool = False
    """Forwards and backwards of the update under bfloat16 autocast; weights and sums stay fp32."""
    micro_batch_tokens: int = 16_384
    """Padded tokens per forward of an update; memory only, the gradient is the same."""
    gradient_checkpointing: bool = False
    """Layers keep only their inputs for the backward pass: less memory for one more forward, the same gradient."""
    seed: int = 0
    """Of prompts, sampling and minibatches."""

    def __post_init__(self) -> None:
        check_whole(self, "rollout_episodes", "slots", "batch_size", "n_epochs", "micro_batch_tokens")
        check_whole(self, "warmup_rollouts", "seed", least=0)
        check_number(self, "learning_rate", "max_grad_norm", open_low=True)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay must lie between 0 and 1, not {self.ema_decay!r}")
        if self.lr_schedule not in ("constant", "linear"):
            raise ConfigurationError(f"lr_schedule must be one of constant, linear, not {self.lr_schedule!r}")


def check_whole(config: object, *names: str, least: int = 1) -> None:
    """Raise ConfigurationError unless these fields are whole numbers of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_number(config: object, *names: str, low: float = 0.0, high: float = math.inf, open_low: bool = False) -> None:
    """Raise ConfigurationError unless these fields are finite numbers from `low` (not itself: `open_low`) to `high`."""
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high or (open_low and value == low):
            least = f"above {low:g}" if open_low else f"of at least {low:g}"
            most = f" and at most {high:g}" if math.isfinite(high) else ""
            raise ConfigurationError(f"{name} must be a finite number {least}{most}, not {value!r}")


def make_config(kind: type[C], owner: str, options: Mapping[str, Any]) -> C:
    """A config from its options; ConfigurationError, naming the owner, for an option that it does not have."""
    try:
        return kind(**options)
    except TypeError as error:
        reason = str(error).partition("() ")[2] or str(error)
        raise ConfigurationError(f"{owner}: {reason}; see {kind.__name__}") from error
