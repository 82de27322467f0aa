"""Load a causal LM and its tokenizer: from a folder, the local hub cache, or the package itself.

Nothing is unpickled, no code of a model's folder is run, and nothing is downloaded unless asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from lm_env.errors import ModelLoadError

__all__ = ["EMBEDDED_MODEL", "load_causal_lm", "load_model", "load_tokenizer", "resolve", "without_weight_bars"]

EMBEDDED_MODEL = "reviews-3m"


def resolve(name: str | Path) -> str:
    """The folder of the embedded model for its name; any other name or path as it is."""
    if str(name) == EMBEDDED_MODEL:
        return str(files("lm_env") / "assets" / EMBEDDED_MODEL)
    return str(name)


def load_model(
    name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, download: bool = False
) -> nn.Module:
    """Load a causal LM in eval mode from a folder, the local hub cache, or the package itself.

    Args:
        name: `"reviews-3m"` (embedded), a folder in transformers' layout, or a hub id.
        download: fetch a hub id that is not in the local cache; never done unasked.

    Raises:
        ModelLoadError: no such model here, pickled weights, or code that would have to be trusted.
    """
    from transformers import AutoModelForCausalLM

    try:
        with without_weight_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                resolve(name),
                dtype=dtype,
                local_files_only=not download,
                adapter_kwargs={"local_files_only": not download},  # else peft's presence alone makes it ask the hub
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(_load_message("model", name, download, error)) from error
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelLoadError(
            f"{str(name)!r} holds no weights for {missing}, which would be left at random: give a causal LM"
        )
    return model.to(device).eval()


def load_tokenizer(name: str | Path, *, download: bool = False) -> Any:
    """Load the tokenizer that belongs to a model; same arguments and errors as `load_model`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(name), local_files_only=not download, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelLoadError(_load_message("tokenizer", name, download, error)) from error


@lru_cache(maxsize=4)
def load_causal_lm(name: str, device: str = "cpu", download: bool = False) -> tuple[nn.Module, Any]:
    """(model, tokenizer) by name, cached: environments made by id share one copy of a frozen model."""
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


def _load_message(what: str, name: object, download: bool, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0]
    mend = (
        "check the name"
        if download
        else (
            f"give a folder with safetensors weights and a tokenizer, '{EMBEDDED_MODEL}', or download=True (--download)"
            " for a hub id"
        )
    )
    if "custom code" in reason:
        mend = (
            "code in a model's folder is never run (trust_remote_code=False); load it yourself and pass the live model"
        )
    return f"cannot load the {what} {str(name)!r}: {reason} -- {mend}"
