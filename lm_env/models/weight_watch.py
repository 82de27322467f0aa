"""WeightWatch: whether a model's weights have changed, for caches that hold what they computed from them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from lm_env.models.adapters import adapter_layers, adapter_state

__all__ = ["WeightWatch"]

# Frozen tensors of which an entry is compared, and entries of trainable tensors where there are few of these.
FROZEN_PROBES = 8
TRAINABLE_ENTRIES = 64


class WeightWatch:
    """Tells at each call of `changed` whether what a model computes may have changed since the last one.

    Always seen:
      - a parameter or a submodule that was replaced, added or removed, and with it every adapter that is put
        in or taken out;
      - another storage of a parameter: `p.data = ...`, `model.double()`, `model.to(device)`;
      - every change in place that autograd counts, and every step of an optimizer, whose fused kernels autograd
        does not count;
      - peft adapters that are switched, disabled, merged or scaled anew.

    A change in place that goes past autograd (`p.data -= ...`) is seen by the numbers: one entry in the middle of
    each trainable tensor is compared (several where fewer than `TRAINABLE_ENTRIES` tensors are trainable), and one
    entry of `FROZEN_PROBES` of the frozen tensors.

    Not seen: such a write that leaves these entries as they were, because it goes to other rows, to other frozen
    tensors, or is too small to be stored; buffers; options of the model's own such as `config` or a scale that
    is kept in a module's attribute.

    It is asked at every step, and costs some microseconds and about a tenth of a microsecond per tensor.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._take_snapshot()

    @torch.no_grad()
    def changed(self) -> bool:
        """Whether anything has; asking again then says no."""
        same = (
            not self._stepped
            and self._same_parts()
            and self._counts() == self._seen_counts
            and adapter_state(self._adapters) == self._seen_adapters
            and all(map(torch.equal, self._entries(), self._seen_entries))
        )
        if not same:
            self._take_snapshot()
        return not same

    def _parts(self) -> Iterator[object]:
        """The submodules and the parameters that make up the model."""
        return chain.from_iterable(map(dict.values, self._holders))

    def _same_parts(self) -> bool:
        now = list(self._parts())
        return len(now) == len(self._seen_parts) and all(map(operator.is_, now, self._seen_parts))

    def _counts(self) -> list[int]:
        """Where each parameter is stored, and autograd's count of its changes in place (none of inference tensors)."""
        counts = [p.data_ptr() for p in self._weights]
        return counts if self._uncounted else counts + [p._version for p in self._weights]

    def _entries(self) -> list[Tensor]:
        return [torch.cat(views) for views in self._views]

    @torch.no_grad()
    def _take_snapshot(self) -> None:
        modules = list(self._model.modules())
        self._holders: list[dict[str, Any]] = [m._modules for m in modules if m._modules]
        self._holders += [m._parameters for m in modules if m._parameters]
        self._weights = list(self._model.parameters())
        self._uncounted = any(p.is_inference() for p in self._weights)
        self._adapters = adapter_layers(modules)
        self._views = list(_views_by_kind(self._weights))
        self.ids = {id(p) for p in self._weights}
        self._stepped = False
        _watches.add(self)  # registered here, so that a deep copy of the watch is notified as well
        self._seen_parts = list(self._parts())
        self._seen_counts = self._counts()
        self._seen_adapters = adapter_state(self._adapters)
        self._seen_entries = self._entries()


def _views_by_kind(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Views of one entry each, (1,), in lists of one device and dtype."""
    filled = [p for p in weights if p.numel() and not p.is_meta]
    trainable = [p for p in filled if p.requires_grad]
    frozen = [p for p in filled if not p.requires_grad]
    probes = frozen[:: -(-len(frozen) // FROZEN_PROBES)] if frozen else []
    views = [_entry(p, 1, 2) for p in probes]
    each = max(1, TRAINABLE_ENTRIES // len(trainable)) if trainable else 1
    views += [_entry(p, i, each + 1) for p in trainable for i in range(1, each + 1)]
    for kind in {(view.device, view.dtype) for view in views}:
        yield [view for view in views if (view.device, view.dtype) == kind]


def _entry(weight: Tensor, numerator: int, denominator: int) -> Tensor:
    """The entry at numerator / denominator of the way through a tensor, as a view (1,)."""
    view = weight.detach()
    at = weight.numel() * numerator // denominator
    for size in reversed(weight.shape[1:]):
        view = view.select(-1, at % size)
        at //= size
    return view.reshape(1) if not view.ndim else view[at : at + 1]


_watches: WeakSet[WeightWatch] = WeakSet()


def _announce(optimizer: Optimizer, *_: Any) -> None:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for watch in _watches:
        watch._stepped = watch._stepped or not stepped.isdisjoint(watch.ids)


register_optimizer_step_post_hook(_announce)
