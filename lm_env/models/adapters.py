"""Everything that this package knows about peft: LoRA and its relatives, whose adapter can be switched off.

A peft model wraps a transformers model and puts its adapter's layers into it.  The wrapped model, with
the adapter's layers in it, has the interface of a plain causal LM, and is what everything else uses.
peft itself is never imported: a model brings all that is needed.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

__all__ = ["adapter_off", "base_tensors", "has_adapter", "merged_copy", "without_wrapper"]


def has_adapter(model: nn.Module) -> bool:
    """Whether this is a peft model, whose adapter can be switched off."""
    return callable(getattr(model, "disable_adapter", None)) and callable(getattr(model, "get_base_model", None))


def trains_adapter(model: nn.Module) -> bool:
    """Whether a peft adapter is in this model, wrapped by peft or loaded through transformers."""
    return has_adapter(model) or bool(getattr(model, "_hf_peft_config_loaded", False))


def without_wrapper(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft model, the adapter's layers included; any other model as it is."""
    return model.get_base_model() if has_adapter(model) else model  # type: ignore[operator]


def adapter_off(adapter: nn.Module) -> AbstractContextManager[Any]:
    """Inside, the peft model computes what its base would compute."""
    return adapter.disable_adapter()  # type: ignore[operator]


def merged_copy(adapter: nn.Module) -> nn.Module:
    """A plain transformers model whose weights have taken the adapter in; the original is untouched."""
    return copy.deepcopy(adapter).merge_and_unload()  # type: ignore[operator]


def save_adapter(adapter: nn.Module, folder: str) -> None:
    """Write the adapter alone, in peft's layout, with the name of its base."""
    # The default, "auto", would ask the hub whether the embeddings have been resized.
    adapter.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]


def base_tensors(model: nn.Module) -> list[Tensor]:
    """The weights of a model in their order, each tied one once, without those that an adapter has added."""
    added: set[int] = set()
    for module in model.modules():
        names = ("modules_to_save", *getattr(module, "adapter_layer_names", ()))
        parts = [getattr(module, name, None) for name in names]
        added |= {id(p) for part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    return [p.detach() for p in model.parameters() if id(p) not in added]
