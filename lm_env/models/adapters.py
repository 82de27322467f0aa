"""Everything that this package knows about peft: LoRA and its relatives, whose adapter can be switched off.

A peft model wraps a transformers model and puts its adapter's layers into it.  The wrapped model, with
the adapter's layers in it, has the interface of a plain causal LM, and is what everything else uses.
peft is imported only where an adapter is made or read: a live model brings all else that is needed.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lm_env.errors import ConfigurationError, MissingDependencyError, ModelLoadError, UnsupportedModelError
from lm_env.validation import check_integer, check_number

__all__ = [
    "adapter_layers",
    "adapter_off",
    "adapter_state",
    "add_lora",
    "base_name_of",
    "base_tensors",
    "has_adapter",
    "inject_lora",
    "is_adapter_folder",
    "merge_lora",
    "merged_copy",
    "merged_from_folder",
    "save_adapter",
    "trains_adapter",
    "without_wrapper",
]


log = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"


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


def add_lora(
    model: nn.Module,
    rank: int = 16,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
    seed: int = 0,
) -> nn.Module:
    """Put fresh LoRA adapters (Hu et al. 2021, arXiv:2106.09685) on the layers of a model.

    The model computes what it did until they are trained; its base is frozen.

    Args:
        model: a causal LM of transformers, which is changed.
        rank: r, the width of the adapters.
        alpha: their outputs are scaled by alpha / r.  Default: 2 r.
        dropout: of their inputs; agents and fine-tuning of this package switch it off.
        targets: names of the layers that get one; "all-linear": all linear layers but the LM head.
        seed: of their weights; no global random state changes.

    Returns:
        the peft model.

    Raises:
        MissingDependencyError: peft is not installed.
        ConfigurationError: an impossible setting, or a model without such layers, with an adapter already, or
            none of transformers.
    """
    check_integer("rank", rank)
    alpha = 2.0 * rank if alpha is None else check_number("alpha", alpha, low=0.0, above=True)
    check_number("dropout", dropout, low=0.0, high=0.99)
    if trains_adapter(model):
        raise ConfigurationError("the model has an adapter already: train that one, or merge it first")
    if not hasattr(model, "config") or not hasattr(model, "get_output_embeddings"):
        raise ConfigurationError(f"{type(model).__name__} is none of transformers' models: train it without LoRA")
    peft = _peft()
    layers = targets if isinstance(targets, str) else list(targets)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers
    )
    try:
        with torch.random.fork_rng(devices=[]), _without_pefts_warnings():
            torch.manual_seed(seed)
            return peft.get_peft_model(model, config)
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"LoRA cannot be put on {type(model).__name__} with targets={targets!r}"
            f" ({' '.join(str(error).split())[:200]}): name other layers, or use peft itself and pass the peft model"
        ) from error


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("adapters need peft: pip install 'lm-env[lora]'") from error
    return peft


@contextmanager
def _without_pefts_warnings() -> Iterator[None]:
    """peft 0.21 reads an attribute that transformers 5.23 has renamed, and which works until it is removed.

    It also warns that it has set `fan_in_fan_out` for GPT-2's layers, as it has to.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        yield


def is_adapter_folder(path: str | Path) -> bool:
    """Whether a folder holds an adapter of peft, and no whole model."""
    path = Path(path)
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def base_name_of(folder: str | Path, name: object = None) -> str:
    """The model that the adapter in a folder belongs on.

    Args:
        name: what the folder is called in messages.

    Raises:
        ModelLoadError: the folder does not say it.
    """
    try:
        found = json.loads((Path(folder) / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelLoadError(f"{ADAPTER_CONFIG} in {str(name or folder)!r} cannot be read ({error})") from error
    if not isinstance(found, str) or not found:
        raise ModelLoadError(
            f"the adapter in {str(name or folder)!r} names no base: load that with peft,"
            " PeftModel.from_pretrained(base, folder), and pass the live model, or save with merge=True"
        )
    return found


def merged_from_folder(base: nn.Module, folder: str | Path, name: object) -> nn.Module:
    """The base with the adapter in a folder merged into it.

    Raises:
        ModelLoadError: the adapter does not fit the base, or cannot be read.
        MissingDependencyError: peft is not installed.
    """
    peft = _peft()
    try:
        with _without_pefts_warnings():
            model = peft.PeftModel.from_pretrained(base, str(folder), local_files_only=True, use_safetensors=True)
            merged = model.merge_and_unload()
    except Exception as error:  # whatever peft makes of a damaged folder
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(f"the adapter in {str(name)!r} does not fit its base ({reason}): save it again") from error
    return merged.requires_grad_(True)


def merged_copy(adapter: nn.Module) -> nn.Module:
    """A plain transformers model whose weights have taken the adapter in; the original is untouched."""
    return copy.deepcopy(adapter).merge_and_unload()  # type: ignore[operator]


def save_adapter(adapter: nn.Module, folder: str) -> None:
    """Write the adapter alone, in peft's layout, with the name of its base."""
    if not getattr(adapter.active_peft_config, "base_model_name_or_path", None):
        log.warning(
            "the base of this adapter was not loaded by name, so the adapter that is saved can be read only onto a base"
            " that is given: PeftModel.from_pretrained(base, folder); or save with merge=True"
        )
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
    peft = _peft()
    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())  # GPT-2's linear layers
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules="all-linear",
        fan_in_fan_out=transposed,
    )
    model.requires_grad_(False)
    with _without_pefts_warnings():
        return peft.inject_adapter_in_model(config, model)


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
