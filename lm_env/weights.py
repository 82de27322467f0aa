"""WeightsWatch: whether a model's weights have changed, for caches that hold what they computed from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ["WeightsWatch"]

PROBES = 8


class WeightsWatch:
    """Tells at each call of `changed` whether any weight has changed since the last one.

    Autograd counts changes in place, an assignment moves the storage, and optimizers -- whose fused
    kernels are not counted -- announce their steps.  What is written past all of these
    (`weight.data.add_(...)`) is seen in one entry of `PROBES` of the tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        # Walking through a model costs as much as one of its layers: once is enough.
        self._parameters = [part._parameters for part in model.modules() if part._parameters]
        self._marks: list[int] = []
        self._entries: list[Tensor] = []
        self._probe = torch.empty(0)
        self.changed()

    @torch.no_grad()
    def changed(self) -> bool:
        """Whether anything has; asking again then says no."""
        weights = [p for named in self._parameters for p in named.values() if p is not None]
        trained = any([p.requires_grad for p in weights])  # a list is half the price of a generator
        marks = [_optimizer_steps if trained else 0, *[p.data_ptr() for p in weights]]
        marks += [0 if p.is_inference() else p._version for p in weights]
        if moved := marks != self._marks:
            self._marks = marks
            shown = [p for p in weights if p.requires_grad and p.numel()] or [p for p in weights if p.numel()]
            spread = shown[:: -(-len(shown) // PROBES)] if shown else []
            spread = [p for p in spread if p.device == spread[0].device]
            self._entries = [p.detach().reshape(-1)[p.numel() // 2 :][:1] for p in spread]
        probe = torch.cat(self._entries) if self._entries else self._probe
        same = not moved and torch.equal(probe, self._probe)
        self._probe = probe
        return not same


_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)
