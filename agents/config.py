"""Options that every batched agent has; an algorithm's own file adds its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_env.errors import ConfigurationError

__all__ = ["AgentConfig"]


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
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the LM's own trunk, on a copy of it, or none where the agent needs no values."""
    bf16: bool = False
    """Forwards and backwards of the update under bfloat16 autocast; weights and sums stay fp32."""
    micro_batch_tokens: int = 16_384
    """Padded tokens per forward of an update; memory only, the gradient is the same."""
    seed: int = 0
    """Of prompts, sampling and minibatches."""

    def __post_init__(self) -> None:
        for name in ("rollout_episodes", "slots", "batch_size", "n_epochs", "micro_batch_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1, not {value!r}")
        if (
            isinstance(self.warmup_rollouts, bool)
            or not isinstance(self.warmup_rollouts, int)
            or self.warmup_rollouts < 0
        ):
            raise ConfigurationError(
                f"warmup_rollouts must be a whole number of at least 0, not {self.warmup_rollouts!r}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay must lie between 0 and 1, not {self.ema_decay!r}")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigurationError(f"{name} must be a finite number above 0, not {getattr(self, name)!r}")
        for name, known in (("lr_schedule", ("constant", "linear")), ("critic", ("shared", "separate", "none"))):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
