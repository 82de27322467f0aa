"""The one way in which a language model is written to a folder, and the check of weights before that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_env.errors import NonFiniteError
from lm_env.models.adapters import has_adapter, merged_copy, save_adapter, without_wrapper
from lm_env.models.loading import is_quantized, without_weight_bars

__all__ = ["check_finite", "export_language_model"]


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise NonFiniteError if a tensor of weights holds a NaN or an infinity; every `save` asks first."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"{name} holds NaN or infinite weights, so nothing was saved: load the last checkpoint with a lower"
                " learning_rate"
            )


def export_language_model(model: nn.Module, tokenizer: Any, folder: Path) -> bool:
    """Write a model and its tokenizer as `AutoModelForCausalLM` and `AutoTokenizer` read them.

    A peft model's adapter is merged into a copy of its base.  Over a quantized base it is written beside
    the base's name instead, because merging would round it.

    Args:
        tokenizer: None, or one without `save_pretrained`, is left out.

    Returns:
        whether anything was written; a model that is not one of transformers has no such layout.
    """
    if not isinstance(without_wrapper(model), PreTrainedModel):
        return False
    plain: Any = model
    with without_weight_bars():
        if has_adapter(model) and is_quantized(model):
            save_adapter(model, str(folder))
        else:
            if has_adapter(model):
                plain = merged_copy(model)
            plain.save_pretrained(folder)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    return True
