"""Everything that this package knows about peft: LoRA and its relatives, whose adapter can be switched off.

A peft model wraps a transformers model and puts its adapter's layers into it.  The wrapped model, with
the adapter's layers in it, has the interface of a plain causal LM, and is what everything else uses.
peft itself is imported by `inject_lora` alone: a model that has an adapter brings all that is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from lm_env.errors import MissingDependencyError, UnsupportedModelError

__all__ = [
    "adapter_layers",
    "adapter_off",
    "adapter_state",
    "base_tensors",
    "has_adapter",
    "inject_lora",
    "merge_lora",
    "merged_copy",
    "save_adapter",
    "trains_adapter",
    "without_wrapper",
]


def has_adapter(model: nn.Module) -> bool:
    """Whether this is a peft model, whose adapter can be switched off."""
    return callable(getattr(model, "disable_adapter", None)) and callable(getattr(model, "get_base_model", None))


def trains_adapter(model: nn.Module) -> bool:
    """Whether a peft adapter is in this model, wrapped by peft or loaded through transformers."""
    return has_adapter(model) or bool(getattr(model, "_hf_peft_config_loaded", False))


def without_wrapper(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft model, the adapter's layers included; any other model as it is.

    Raises:
        UnsupportedModelError: peft trains a prompt in front of the text, which the model inside knows nothing of.
    """
    if not has_adapter(model):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} trains a prompt ({model.active_peft_config.peft_type}) outside the model itself:"  # type: ignore[union-attr]
            " use adapters inside its layers, such as LoRA"
        )
    return model.get_base_model()  # type: ignore[operator]


def adapter_off(adapter: nn.Module) -> AbstractContextManager[Any]:
    """Inside, the peft model computes what its base would compute."""
    return adapter.disable_adapter()  # type: ignore[operator]


def adapter_layers(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of the modules in which peft can switch, disable or merge an adapter."""
    return [module for module in modules if hasattr(module, "_disable_adapters")]


def adapter_state(layers: Iterable[nn.Module]) -> list[tuple[Any, ...]]:
    """What each layer does with its adapters: whether they are off, which are active, merged, and how scaled.

    Two states are equal where the layers compute the same from the same weights.
    """
    return [
        (
            layer._disable_adapters,
            *_names(layer._active_adapter),
            None,
            *getattr(layer, "merged_adapters", ()),
            None,
            *_scales(layer),
        )
        for layer in layers
    ]


def _names(active: Any) -> Sequence[str]:
    return (active,) if isinstance(active, str) else active  # peft keeps one name, or several


def _scales(layer: nn.Module) -> Iterable[Any]:
    scaling = getattr(layer, "scaling", None)
    return scaling.values() if isinstance(scaling, dict) else ()


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


def inject_lora(model: nn.Module, *, rank: int = 16, alpha: int | None = None) -> nn.Module:
    """Put LoRA layers (Hu et al. 2021, arXiv:2106.09685) into all linear layers of a transformers model, in place.

    All other weights are frozen.  `merge_lora` takes the layers out again.

    Args:
        alpha: the layers' output counts alpha / rank; default: 2 rank.

    Raises:
        MissingDependencyError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError("LoRA needs peft: pip install 'lm-env[lora]'") from error
    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())  # GPT-2's linear layers
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules="all-linear",
        fan_in_fan_out=transposed,
    )
    model.requires_grad_(False)
    return inject_adapter_in_model(config, model)


def merge_lora(model: nn.Module) -> None:
    """Take the LoRA layers of `inject_lora` into the weights, in place; the model is then as plain as it was before."""
    for name, layer in [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")]:
        merged: Any = layer
        merged.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, merged.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):  # what makes transformers look for an adapter
        vars(model).pop(attribute, None)
    model.requires_grad_(True)
