"""WeightWatch: whether a model's weights have changed, for caches that hold what they computed from them."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ["WeightWatch"]

PROBES = 8


class WeightWatch:
    """Tells at each call of `changed` whether any weight has changed since the last one.

    Every new tensor is seen, and every change in place that autograd counts; optimizers, whose fused kernels
    it does not count, announce their steps.  What goes past both (`weight.data = ...`,
    `weight.data.add_(...)`) is seen in `PROBES` of the tensors, by their storage and one entry of each.

    It is asked at every step, just after a forward has driven all else from the processor's cache: one more
    look at each tensor would cost as much as an operation of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        # Walking through a model costs as much as one of its layers: once is enough.
        self._parameters = [part._parameters for part in model.modules() if part._parameters]
        self._look()
        _watches.add(self)

    @torch.no_grad()
    def changed(self) -> bool:
        """Whether anything has; asking again then says no."""
        same = (
            not self._stepped
            and self._counts() == self._known
            and [p.data_ptr() for p in self._probes] == self._places
            and torch.equal(torch.cat(self._entries), self._seen)
        )
        if not same:
            self._look()
        return not same

    def _counts(self) -> list[int]:
        """Of each tensor: which it is, and autograd's count of its changes in place (none of inference tensors)."""
        weights = [p for named in self._parameters for p in named.values() if p is not None]
        if self._uncounted:
            return [id(p) for p in weights]
        return [id(p) for p in weights] + [p._version for p in weights]

    @torch.no_grad()
    def _look(self) -> None:
        weights = [p for named in self._parameters for p in named.values() if p is not None]
        self._uncounted = any(p.is_inference() for p in weights)
        self._known, self._stepped = self._counts(), False
        self.ids = {id(p) for p in weights}
        filled = [p for p in weights if p.numel()]
        likely = [p for p in filled if p.requires_grad] or filled
        self._probes = likely[:: -(-len(likely) // PROBES)] if likely else []
        self._probes = [p for p in self._probes if p.device == self._probes[0].device]
        self._places = [p.data_ptr() for p in self._probes]
        self._entries = [p.detach().reshape(-1)[p.numel() // 2 :][:1] for p in self._probes] or [torch.zeros(1)]
        self._seen = torch.cat(self._entries)


_watches: WeakSet[WeightWatch] = WeakSet()


def _announce(optimizer: Optimizer, *_: Any) -> None:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for watch in _watches:
        watch._stepped = watch._stepped or not stepped.isdisjoint(watch.ids)


register_optimizer_step_post_hook(_announce)
