"""Load a causal LM and its tokenizer: from a folder, the local hub cache, or the package itself.

Nothing is unpickled, no code of a model's folder is run, and nothing is downloaded unless asked.  A
folder that this package saved is verified first, and read as one save even while another is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from lm_env.errors import ConfigurationError, MissingDependencyError, ModelLoadError
from lm_env.storage import is_saved_folder, read_folder

__all__ = [
    "EMBEDDED_MODEL",
    "default_device",
    "is_quantized",
    "load_causal_lm",
    "load_model",
    "load_pretrained",
    "load_tokenizer",
    "read_pretrained",
    "read_tokenizer",
    "resolve",
    "without_weight_bars",
]

EMBEDDED_MODEL = "reviews-3m"

_WHAT_LOADS = (
    f"give a folder with safetensors weights and a tokenizer, '{EMBEDDED_MODEL}', or download=True (--download)"
    " for a hub id"
)


def resolve(name: str | Path) -> str:
    """The folder of the embedded model for its name; any other name or path as it is."""
    if str(name) == EMBEDDED_MODEL:
        return str(files("lm_env") / "assets" / EMBEDDED_MODEL)
    return str(name)


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
        name: `"reviews-3m"` (embedded), a folder in transformers' layout, or a hub id.
        dtype: of the weights; of a quantized model, of those that are not quantized.
        download: fetch a hub id that is not in the local cache; never done unasked.
        quantization_config: transformers' own (`BitsAndBytesConfig(load_in_4bit=True)`, ...) or its
            dictionary (`{"load_in_8bit": True}`).  A quantized model comes frozen: to train it, put LoRA
            adapters on it, `peft.get_peft_model(model, config)`.

    Raises:
        ConfigurationError: `quantization_config` is none.
        ModelLoadError: no such model here, pickled weights, code that would have to be trusted, or a
            device that cannot run the quantized weights.
        CheckpointCorruptError: a folder that this package saved is damaged.
        MissingDependencyError: the quantization's own package is not installed.
    """
    from transformers import AutoModelForCausalLM

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
    source = _source_of("model", name, download)

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
    try:
        with without_weight_bars():
            model, report = auto_class.from_pretrained(
                str(folder),
                dtype=dtype,
                local_files_only=not download,
                adapter_kwargs={"local_files_only": not download},  # else peft's presence alone makes it ask the hub
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except ImportError as error:
        raise MissingDependencyError(
            f"cannot load the model {str(name)!r}: {_first_line(error)} -- install it; 8 and 4 bits need"
            " pip install 'lm-env[quantized]'"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(_load_message("model", name, folder, download, error)) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelLoadError(
            f"{str(name)!r} holds no weights for {missing}, which would be left at random: give a checkpoint that was"
            f" trained as a {type(model).__name__}"
        )
    model.name_or_path = resolve(name)
    model.config._name_or_path = resolve(name)
    return model


def default_device() -> str:
    """CUDA where there is a GPU, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def is_quantized(model: nn.Module) -> bool:
    """Whether weights are stored in fewer bits than they stand for, so that gradients cannot move them."""
    return bool(getattr(model, "is_quantized", False)) or any(not p.is_floating_point() for p in model.parameters())


def load_tokenizer(name: str | Path, *, download: bool = False) -> Any:
    """Load the tokenizer that belongs to a model; same arguments and errors as `load_model`."""
    source = _source_of("tokenizer", name, download)

    def read(folder: str | Path) -> Any:
        return read_tokenizer(folder, name=name, download=download)

    return read_folder(source, read) if is_saved_folder(source) else read(source)


def read_tokenizer(folder: str | Path, *, name: str | Path, download: bool = False) -> Any:
    """`load_tokenizer` of a folder as it lies there, or of a hub id, without looking for a manifest."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=not download, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelLoadError(_load_message("tokenizer", name, folder, download, error)) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one up for some models
        raise ModelLoadError(f"cannot load the tokenizer {str(name)!r}: its files are missing -- {_WHAT_LOADS}")
    tokenizer.name_or_path = resolve(name)
    return tokenizer


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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _load_message(what: str, name: object, folder: object, download: bool, error: Exception) -> str:
    reason = _first_line(error).replace(str(folder), str(name))
    remedy = "check the name" if download else _WHAT_LOADS
    if "custom code" in reason:
        remedy = (
            "code in a model's folder is never run (trust_remote_code=False); load it yourself and pass the live model"
        )
    return f"cannot load the {what} {str(name)!r}: {reason} -- {remedy}"


def _source_of(what: str, name: str | Path, download: bool) -> str:
    """What transformers is given: a folder wherever there is one, so that it has no reason to ask the hub."""
    source = resolve(name)
    if download or is_saved_folder(source) or Path(source).exists():
        return source
    cached = _cached_folder(source)
    if cached is None:
        raise ModelLoadError(
            f"cannot load the {what} {str(name)!r}: there is no folder of this name, and no hub id of this name in the"
            f" local cache -- {_WHAT_LOADS}"
        )
    return cached


def _cached_folder(hub_id: str) -> str | None:
    """Where the files of a hub id lie in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        try:
            found = try_to_load_from_cache(hub_id, file)
        except ValueError:  # it cannot be a hub id
            return None
        if isinstance(found, str):
            return str(Path(found).parent)
    return None
