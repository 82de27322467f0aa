"""The losses of this package and of others by name, for `lm-env check-loss NAME` and `lm_env.check_loss`.

Each is the library's own code, unmodified, on a `LossBatch`: advantages, loss and backward pass as in training.  The
other libraries are imported when theirs is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from agents.check_losses.batched import batched_loss
from agents.check_losses.sb3 import sb3_loss
from agents.check_losses.torchrl import torchrl_loss
from agents.check_losses.trl import trl_loss
from lm_env.errors import ConfigurationError
from lm_env.theory.loss import Loss

__all__ = ["LOSSES", "UNGROUPED", "batched_loss", "named_loss", "sb3_loss", "torchrl_loss", "trl_loss"]

UNSCALED = {"scale_by_std": False, "length_normalization": "constant"}

LOSSES: dict[str, Callable[[], Loss]] = {
    "a2c": partial(batched_loss, "a2c"),
    "dr-grpo": partial(batched_loss, "grpo", **UNSCALED),
    "dr-grpo-k1": partial(batched_loss, "grpo", **UNSCALED, kl_in="reward"),
    "dr-grpo-with-ratio": partial(batched_loss, "grpo", **UNSCALED, kl_in="loss_with_ratio"),
    "grpo": partial(batched_loss, "grpo"),
    "grpo-with-ratio": partial(batched_loss, "grpo", length_normalization="token", kl_in="loss_with_ratio"),
    "online-dpo": partial(batched_loss, "online-dpo"),
    "ppo": partial(batched_loss, "ppo"),
    "ppo-penalty": partial(batched_loss, "ppo-penalty"),
    "reinforce": partial(batched_loss, "reinforce"),
    "reinforce-value": partial(batched_loss, "reinforce-value"),
    "rloo": partial(batched_loss, "rloo"),
    "sb3-a2c": partial(sb3_loss, "A2C"),
    "sb3-ppo": partial(sb3_loss, "PPO"),
    "torchrl-ppo": torchrl_loss,
    "trl-grpo": partial(trl_loss, "GRPO"),
    "trl-rloo": partial(trl_loss, "RLOO"),
}
"""Name -> what makes the loss."""

UNGROUPED = ("sb3-a2c", "sb3-ppo", "torchrl-ppo")
"""Losses that know of no groups, and are slow on the many rows of one."""


def named_loss(name: str) -> Loss:
    """The loss of a name.

    Raises:
        ConfigurationError: no such name.
        MissingDependencyError: the library is not installed.
    """
    if name not in LOSSES:
        raise ConfigurationError(
            f"no loss is called {name!r}: choose from {', '.join(LOSSES)}, or name your own, 'file.py:function'"
        )
    return LOSSES[name]()
