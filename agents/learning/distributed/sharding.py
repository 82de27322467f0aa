"""ShardedCopy: a copy of the policy whose weights, gradients and optimizer state are divided among processes (FSDP2).

Updates run on the copy.  Everything else goes on using the policy itself, which every process holds whole: generation,
values, evaluation, saving.  So a process holds the whole weights once, and one part of everything else.

Source: `torch.distributed.fsdp.fully_shard`; Zhao et al. 2023, arXiv:2304.11277.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lm_env.models.inspection import device_of, facts_of

__all__ = ["ShardedCopy", "as_shards", "whole"]


M = TypeVar("M", bound=nn.Module)


class ShardedCopy(Generic[M]):
    """A copy of a module whose weights are divided, layer by layer, among the processes of the default group.

    Gradients are sums over the processes, as in `Processes.sum_gradients`.

    Args:
        original: a module whose method `evaluate` runs its forwards.
        models: the names of the submodules that are language models.
    """

    def __init__(self, original: M, models: tuple[str, ...]) -> None:
        self.module: M = copy.deepcopy(original)
        for name in models:  # this runs a forward, which must come before the weights are divided
            facts_of(self.module.get_submodule(name))
        mesh = init_device_mesh(device_of(original).type, (dist.get_world_size(),))
        parts: list[nn.Module] = [*_blocks(self.module), self.module]
        for part in parts:
            fully_shard(part, mesh=mesh)
        for part in parts:
            assert isinstance(part, FSDPModule)
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo can only sum
        register_fsdp_forward_method(self.module, "evaluate")

    @torch.no_grad()
    def read(self, original: nn.Module) -> None:
        """Take over the weights of the original."""
        for own, theirs in self._pairs(original):
            own.to_local().copy_(as_shards(theirs, own).to_local())

    @torch.no_grad()
    def write(self, original: nn.Module) -> None:
        """Give the original the weights of the copy; all processes call this."""
        for own, theirs in self._pairs(original):
            if theirs.requires_grad:
                theirs.copy_(own.full_tensor())

    def _pairs(self, original: nn.Module) -> Iterator[tuple[DTensor, nn.Parameter]]:
        own: dict[str, Any] = dict(self.module.named_parameters())
        for name, parameter in original.named_parameters():
            yield own[name], parameter


def whole(state: Any) -> Any:
    """An optimizer's state with every divided tensor put together; all processes call this."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    return state


def as_shards(tensor: Tensor, like: Tensor) -> Any:
    """A whole tensor, which all processes have, divided like another one; itself where that one is not divided."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    tensor = tensor.detach().to(like.device, like.dtype)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of the models inside: what is in the outermost lists of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)
