"""The one way in which a language model is written to a folder, and the check of weights before that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_env.errors import ConfigurationError, ModelLoadError, NonFiniteError
from lm_env.models.adapters import (
    base_name_of,
    has_adapter,
    is_adapter_folder,
    merged_copy,
    save_adapter,
    without_wrapper,
)
from lm_env.models.inspection import is_quantized
from lm_env.models.loading import without_weight_bars
from lm_env.models.names import EMBEDDED_MODELS, known_name, resolve

__all__ = ["BASE_FILE", "base_of", "check_finite", "check_mergeable", "export_language_model"]

BASE_FILE = "base_model.json"
"""Beside a model that was trained: the name of the one that it was trained from."""


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise NonFiniteError if a tensor of weights holds a NaN or an infinity; every `save` asks first."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"{name} holds NaN or infinite weights, so nothing was saved: load the last checkpoint with a lower"
                " learning_rate"
            )


def check_mergeable(model: nn.Module) -> None:
    """Raise ConfigurationError if the model's adapter cannot be merged into its base."""
    if has_adapter(model) and is_quantized(model):
        raise ConfigurationError(
            "merge=True: the base is quantized, and merging the adapter into it would round it; save the adapter alone"
        )


def export_language_model(
    model: nn.Module, tokenizer: Any, folder: Path, *, merge: bool = False, base: str | None = None
) -> bool:
    """Write a model and its tokenizer as `AutoModelForCausalLM` and `AutoTokenizer` read them.

    Args:
        tokenizer: None, or one without `save_pretrained`, is left out.
        merge: merge a peft model's adapter into a copy of its base, and write that.  Otherwise the adapter
            alone is written, with the name of its base; transformers reads that where peft is installed.
        base: the name of the model that this one was trained from, which `base_of` gives back.

    Returns:
        whether anything was written; a model that is not one of transformers has no such layout.

    Raises:
        ConfigurationError: the adapter cannot be merged into a quantized base.
    """
    if not isinstance(without_wrapper(model), PreTrainedModel):
        return False
    if merge:
        check_mergeable(model)
    plain: Any = model
    with without_weight_bars():
        if has_adapter(model) and not merge:
            save_adapter(model, str(folder))
        else:
            if has_adapter(model):
                plain = merged_copy(model)
            plain.save_pretrained(folder)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    if base and not is_adapter_folder(folder):
        (folder / BASE_FILE).write_text(json.dumps({"base_model": _anywhere(base)}) + "\n")
    return True


def base_of(name: str | Path) -> str | None:
    """The model that a saved one was trained from: an adapter's base, or the reference of its training.

    Returns:
        a name for `load_model`; None where the folder does not say it, or there is no folder.
    """
    folder = Path(resolve(name))
    if is_adapter_folder(folder):
        try:
            return known_name(base_name_of(folder, name))
        except ModelLoadError:
            return None
    try:
        found = json.loads((folder / BASE_FILE).read_bytes()).get("base_model")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return known_name(found) if isinstance(found, str) and found else None


def _anywhere(base: str) -> str:
    """A name that means the same in another working directory, and where possible on another machine."""
    for name in EMBEDDED_MODELS:
        if base == resolve(name):
            return name
    path = Path(base)
    return str(path.resolve()) if path.exists() else base
