"""Load models and tokenizers by name: safetensors only, no foreign code, no unasked download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from lm_env.errors import ModelLoadError

__all__ = ["load_pretrained", "load_tokenizer"]


def load_pretrained(
    auto_class: Any, name: str | Path, *, device: str | torch.device | None = None, download: bool = False
) -> Any:
    """Load a model, in the dtype it was saved in, with one of transformers' Auto classes.

    Args:
        auto_class: `AutoModel`, `AutoModelForSequenceClassification`, ...
        name: a folder in transformers' layout, or a hub id.
        device: where to put it; CUDA where there is one, else the CPU, by default.
        download: let a hub id that is not in the local cache be fetched.

    Raises:
        ModelLoadError: no such model here, weights missing or pickled, or code that would be run.
    """
    try:
        model, report = auto_class.from_pretrained(
            str(name),
            local_files_only=not download,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises six kinds for what is one fault here
        raise ModelLoadError(_message("model", name, download, error)) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelLoadError(
            f"{str(name)!r} holds no weights for {missing}, which would be left at random: "
            f"give a checkpoint that was trained as a {type(model).__name__}"
        )
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_tokenizer(name: str | Path, *, download: bool = False) -> Any:
    """Load a tokenizer.

    Raises:
        ModelLoadError: no such tokenizer here, or code that would be run.
    """
    try:
        return AutoTokenizer.from_pretrained(str(name), local_files_only=not download, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelLoadError(_message("tokenizer", name, download, error)) from error


def _message(what: str, name: str | Path, download: bool, error: Exception) -> str:
    mend = "check the name" if download else "give a folder with safetensors weights, or download=True for a hub id"
    lines = str(error).strip().splitlines()
    return f"cannot load the {what} {str(name)!r}: {lines[0] if lines else type(error).__name__} -- {mend}"
