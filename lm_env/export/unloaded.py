"""A language model's configuration without its weights: enough to read prompts and to score given texts.

Shapes: B rows, L tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lm_env.models.adapters import base_name_of, is_adapter_folder
from lm_env.models.inspection import text_config
from lm_env.models.loading import read_without_weights
from lm_env.models.names import known_name, source_of
from lm_env.storage import is_saved_folder, read_folder

__all__ = ["UnloadedModel"]


class UnloadedModel(nn.Module):
    """A stand-in for a language model that has its configuration (vocabulary size, positions) and no weights.

    It gives every token the same probability.  So texts must not be sampled from it, nor a KL be computed with it.

    Args:
        name: any name that `lm_env.load_model` takes.
        download: allow fetching the configuration of a hub id.

    Raises:
        ModelLoadError: there is no such model here, or its configuration cannot be read.
    """

    def __init__(self, name: str | Path, *, download: bool = False) -> None:
        super().__init__()
        self.config = _config_of(name, download)
        self.name_or_path = str(name)
        self.vocab_size = int(text_config(self).vocab_size)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """An object with `.logits` (B, L, V), all 0."""
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocab_size))


def _config_of(name: str | Path, download: bool) -> Any:
    """The configuration that transformers reads; of an adapter's folder, that of its base model."""
    source = source_of("model", name, download)
    if is_adapter_folder(source):
        return _config_of(known_name(base_name_of(source, name)), download)

    def read(folder: str | Path) -> Any:
        from transformers import AutoConfig

        return read_without_weights(AutoConfig, "configuration of the model", folder, name=name, download=download)

    return read_folder(source, read) if is_saved_folder(source) else read(source)
