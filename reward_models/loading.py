"""A reward by name: a folder that `lm-env rm train` wrote, or any sequence classifier of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lm_env.storage import is_saved_folder
from reward_models.classifier import SequenceClassifierReward
from reward_models.preferences.ensemble import ENSEMBLE_FILE, RewardEnsemble
from reward_models.preferences.folder import SETTINGS_FILE
from reward_models.preferences.model import RewardModel

__all__ = ["load_reward"]


def load_reward(
    name: str | Path, *, device: str | torch.device | None = None, download: bool = False, **options: Any
) -> RewardModel | RewardEnsemble | SequenceClassifierReward:
    """The reward function that lies in a folder or at a hub id, for `reward=` of an environment.

    Args:
        name: a folder of a `RewardModel` or a `RewardEnsemble`; or a folder or hub id of a sequence classifier, such as
            the reward models that others have published.
        device: default: CUDA, where there is one.
        download: let a hub id that is not in the local cache be fetched.
        options: of `SequenceClassifierReward`, where it is one.

    Raises:
        ModelLoadError: there is nothing of this name.
        CheckpointCorruptError: a folder that this package saved is damaged.
        ConfigurationError: the classifier needs an option, such as a `label`.
    """
    if is_saved_folder(name):
        place = Path(name)
        if (place / ENSEMBLE_FILE).exists():
            return RewardEnsemble.load(place, device=device)
        if (place / SETTINGS_FILE).exists():
            return RewardModel.load(place, device=device)
    return SequenceClassifierReward(name, device=device, download=download, **options)
