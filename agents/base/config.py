"""Options that every batched agent has; an algorithm's own file adds its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lm_env.errors import ConfigurationError
from lm_env.validation import check_choice, check_integers, check_numbers

__all__ = ["AgentConfig", "make_config"]

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
        check_integers(self, "rollout_episodes", "slots", "batch_size", "n_epochs", "micro_batch_tokens")
        check_integers(self, "warmup_rollouts", "seed", low=0)
        check_numbers(self, "learning_rate", "max_grad_norm", low=0.0, above=True)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay must lie between 0 and 1, not {self.ema_decay!r}")
        check_choice("lr_schedule", self.lr_schedule, ("constant", "linear"))


def make_config(kind: type[C], owner: str, options: Mapping[str, Any]) -> C:
    """A config from its options; ConfigurationError, naming the owner, for an option that it does not have."""
    try:
        return kind(**options)
    except TypeError as error:
        reason = str(error).partition("() ")[2] or str(error)
        raise ConfigurationError(f"{owner}: {reason}; see {kind.__name__}") from error
