"""The one way in which a language model is written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lm_env.models.adapters import has_adapter, merged_copy, save_adapter, without_wrapper
from lm_env.models.loading import is_quantized, without_weight_bars

__all__ = ["export_language_model"]


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
