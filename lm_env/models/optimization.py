"""One guarded step of an optimizer, for everything in this project that trains; and its state as files hold it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lm_env.errors import MissingDependencyError, NonFiniteError

__all__ = ["guarded_step", "join_optimizer", "make_adam", "split_optimizer"]


def make_adam(parameters: Iterable[nn.Parameter], learning_rate: float, *, eight_bits: bool = False) -> Optimizer:
    """Adam without weight decay (Kingma and Ba 2015, arXiv:1412.6980), epsilon 1e-8.

    Args:
        eight_bits: keep the moments of weights of at least 4,096 numbers in 8 bits, with a scale for each block
            (Dettmers et al. 2022, arXiv:2110.02861), by bitsandbytes.

    Raises:
        MissingDependencyError: 8 bits, and bitsandbytes is not installed.
    """
    if not eight_bits:
        return torch.optim.Adam(parameters, lr=learning_rate, eps=1e-8, fused=True)
    try:
        from bitsandbytes.optim import Adam8bit
    except ImportError as error:
        raise MissingDependencyError(
            "Adam in 8 bits needs bitsandbytes: pip install 'lm-env[quantized]', or leave the optimizer at 'adam'"
        ) from error
    return Adam8bit(parameters, lr=learning_rate, eps=1e-8)


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
    tensors = {f"{i}.{name}": tensor for i, entry in state["state"].items() for name, tensor in _flat(entry)}
    return tensors, {"param_groups": state["param_groups"]}


def join_optimizer(tensors: dict[str, Tensor], layout: dict[str, Any]) -> dict[str, Any]:
    """The `state_dict` that `split_optimizer` has split."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, path = name.partition(".")
        *outer, key = path.split("/")
        entry = state.setdefault(int(index), {})
        for part in outer:
            entry = entry.setdefault(part, {})
        entry[key] = tensor.item() if tensor.dtype == torch.int64 and not tensor.ndim else tensor
    return {"state": state, "param_groups": layout["param_groups"]}


def _flat(entry: dict[str, Any], before: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors and integers of one parameter's state; what lies in a dictionary inside has a path with slashes."""
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}/")
        else:
            yield f"{before}{key}", torch.as_tensor(value).detach().cpu().clone()
