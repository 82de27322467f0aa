"""RoundedCopy: a copy of a model in bfloat16 that follows the weights of the original."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lm_env.errors import ConfigurationError
from lm_env.models.adapters import adapter_layers, adapter_state
from lm_env.models.inspection import is_quantized

__all__ = ["RoundedCopy"]


class RoundedCopy:
    """A frozen bfloat16 copy of a model; its weights keep their places in memory while the original's parts do.

    Parameters are rounded, buffers are not: rotary frequencies need their digits.

    Args:
        model: holds floating-point weights.

    Raises:
        ConfigurationError: the model is quantized.
    """

    def __init__(self, model: nn.Module) -> None:
        if is_quantized(model):
            raise ConfigurationError(
                f"{type(model).__name__} is quantized and computes in its own precision: leave out bf16 for decoding"
            )
        self._original = model
        self._copy = _rounded(model)
        self._parts = _parts(model)

    @torch.no_grad()
    def refresh(self) -> nn.Module:
        """The copy, with the weights that the original has now; a new copy where its parts are others."""
        if self._parts != _parts(self._original):
            self._copy = _rounded(self._original)
            self._parts = _parts(self._original)
            return self._copy
        for mine, theirs in zip(_tensors(self._copy), _tensors(self._original), strict=True):
            mine.copy_(theirs)
        return self._copy


def _rounded(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters are made in bfloat16 at once; tied ones stay tied."""
    rounded = {id(p): nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, dict(rounded)).eval()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _parts(model: nn.Module) -> tuple[object, ...]:
    """What a model is made of, apart from the numbers in it: if this changes, the copy is made anew."""
    config = getattr(getattr(model, "config", None), "_attn_implementation", None)
    tensors = [(name, t.shape, t.device) for name, t in [*model.named_parameters(), *model.named_buffers()]]
    kinds = [(name, type(module)) for name, module in model.named_modules()]
    return (config, tensors, kinds, adapter_state(adapter_layers(model.modules())))
