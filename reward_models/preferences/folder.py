"""A reward model as a folder: the trunk and tokenizer in transformers' layout, the head and settings beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModel
from transformers.utils import logging

from lm_env.errors import CheckpointCorruptError, CheckpointMismatchError, ConfigurationError, ModelLoadError
from lm_env.models.export import check_finite
from lm_env.models.inspection import usable_device
from lm_env.models.loading import read_pretrained, read_tokenizer, without_weight_bars
from lm_env.storage import is_saved_folder, read_folder, read_json
from reward_models.preferences.network import ScalarHeadModel

__all__ = ["SETTINGS_FILE", "check_saved", "fill_folder", "read_held", "read_saved"]

HEAD_FILE = "head.safetensors"
SETTINGS_FILE = "reward_model.json"
VERSION = 2
"""Of the settings.  Version 1 knew neither templates nor poolings."""

NEW_SETTINGS = {"template": "{prompt}", "pooling": None}
"""What version 2 has added, and what a folder of version 1 is read as."""

T = TypeVar("T")


def check_saved(network: ScalarHeadModel) -> None:
    """Raise NonFiniteError where a weight is NaN or infinite."""
    check_finite(network.state_dict())


def fill_folder(folder: Path, network: ScalarHeadModel, tokenizer: Any, settings: dict[str, Any]) -> None:
    """Write all files of a reward model into a folder that is there."""
    state = network.state_dict()
    head = {k: v.detach().cpu().contiguous() for k, v in state.items() if not k.startswith("trunk.")}
    with without_weight_bars():
        _as_classifier(network).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(head, folder / HEAD_FILE)
    content = {"version": VERSION, **settings, "pooling": network.pooling}
    (folder / SETTINGS_FILE).write_text(json.dumps(content, indent=2) + "\n")


def _as_classifier(network: ScalarHeadModel) -> Any:
    """The trunk inside transformers' classifier of one label, whose logit is gain * weight . h; else the trunk alone.

    Those classifiers of decoders have a linear `score` without a bias that reads the last token, as here.
    """
    trunk: Any = network.trunk
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(trunk.config), None)
    if network.pooling != "last" or kind is None:
        return trunk
    known = {k: v for k, v in trunk.config.to_dict().items() if k not in ("id2label", "label2id", "num_labels")}
    config = type(trunk.config).from_dict({**known, "num_labels": 1})
    with torch.device("meta"):
        classifier = kind(config)
    score = getattr(classifier, "score", None)
    prefix = classifier.base_model_prefix
    if (
        not isinstance(score, nn.Linear)
        or score.bias is not None
        or type(getattr(classifier, prefix)) is not type(trunk)
    ):
        return trunk
    if score.in_features != network.head.in_features:
        return trunk
    setattr(classifier, prefix, trunk)
    weight = (network.head.weight * network.gain).detach()
    classifier.score = nn.Linear(score.in_features, 1, bias=False, device=weight.device, dtype=weight.dtype)
    classifier.score.weight.data.copy_(weight)
    return classifier


def read_saved(folder: str | Path, make: Callable[..., T], device: str | torch.device | None = None) -> T:
    """`make(network, tokenizer, **settings)` of what was saved in a folder.

    Raises:
        ModelLoadError, CheckpointCorruptError, CheckpointMismatchError: see `RewardModel.load`.
    """
    if not is_saved_folder(folder):
        raise ModelLoadError(f"no reward model was saved at {str(folder)!r}: give a folder that RewardModel.save wrote")
    return read_folder(folder, lambda held: read_held(held, folder, make, device))


def read_held(held: Path, name: str | Path, make: Callable[..., T], device: str | torch.device | None) -> T:
    """`read_saved` of a folder as it lies there; `name` is what messages call it."""
    settings = _settings(held, name)
    with _without_load_report():
        trunk = read_pretrained(AutoModel, held, name=name).to(usable_device(device)).eval()
    try:
        network = ScalarHeadModel(trunk, pooling=settings.pop("pooling")).eval()
        head = load_file(held / HEAD_FILE)
        own = {k: v for k, v in network.state_dict().items() if k.startswith("trunk.")}
        network.load_state_dict(own | head)  # strict: every weight of the head, and no other
        return make(network, read_tokenizer(held, name=name), **settings)
    except (OSError, RuntimeError, SafetensorError, ConfigurationError) as error:
        raise CheckpointCorruptError(
            f"{str(name)!r} is no whole reward model ({error}): {HEAD_FILE} and {SETTINGS_FILE} must be as"
            " they were saved"
        ) from error


@contextmanager
def _without_load_report() -> Iterator[None]:
    """No word from transformers about the classifier's `score`, which the trunk alone has no use for."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _settings(held: Path, name: str | Path) -> dict[str, Any]:
    """The keyword arguments of a saved reward model; their values are checked by the constructor."""
    if not (held / SETTINGS_FILE).is_file():
        raise ModelLoadError(f"{str(name)!r} holds no reward model (no {SETTINGS_FILE}): give one that does")
    settings = read_json(held / SETTINGS_FILE)
    version = settings.pop("version", None)
    if isinstance(version, int) and version > VERSION:
        raise CheckpointMismatchError(
            f"{str(name)!r} is a reward model of version {version} and this package reads {VERSION}: use a newer one"
        )
    if version == 1:
        settings = {**NEW_SETTINGS, **settings}
    expected = {"max_length", "batch_tokens", *NEW_SETTINGS}
    if version not in (1, VERSION) or settings.keys() != expected:
        raise CheckpointCorruptError(f"{str(name)!r}: {SETTINGS_FILE} is not as it was saved, use another copy")
    return settings
