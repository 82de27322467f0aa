"""One guarded step of an optimizer, for everything in this project that trains; and its state as files hold it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lm_env.errors import NonFiniteError

__all__ = ["guarded_step", "join_optimizer", "split_optimizer"]


def guarded_step(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], max_grad_norm: float, *, loss: float
) -> float:
    """Clip the gradients to a norm and take the optimizer's step; the gradients stand until they are cleared.

    Args:
        loss: the loss whose gradients these are, to be checked along with them.

    Returns:
        the norm of all gradients before clipping.

    Raises:
        NonFiniteError: the loss or the norm is NaN or infinite; the weights and the optimizer are unchanged.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(loss) or not math.isfinite(norm):
        optimizer.zero_grad()
        raise NonFiniteError(
            f"the loss is {loss:g} and the gradient's norm {norm:g}: this step was not taken and the weights are"
            " unchanged, but the steps before it stand, so training on from here is likely to fail again; look at the"
            " rewards, or load the last checkpoint with a lower learning_rate"
        )
    optimizer.step()
    return norm


def split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's `state_dict` as (its tensors by name, everything else as JSON)."""
    tensors = {f"{i}.{k}": v.detach().cpu().clone() for i, entry in state["state"].items() for k, v in entry.items()}
    return tensors, {"param_groups": state["param_groups"]}


def join_optimizer(tensors: dict[str, Tensor], layout: dict[str, Any]) -> dict[str, Any]:
    """The `state_dict` that `split_optimizer` has split."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": layout["param_groups"]}
