"""Rewards by name: on the command line, and where an environment is given a text as its reward."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lm_env.objective.functions import load_function
from lm_env.storage import folder_of

__all__ = ["load_reward"]


def load_reward(
    name: str | os.PathLike[str], *, device: str | None = None, download: bool = False
) -> Callable[..., Any]:
    """The reward function of a name.

    Args:
        name: `"lexicon"`; `"package.module:function"` or `"file.py:function"`; a folder that
            `RewardModel.save` wrote; or the folder or hub id of a sequence classifier with one label.
        device: where a network is put; default CUDA where there is one.
        download: allow a hub id to be fetched.

    Raises:
        ConfigurationError: there is no such function, or the classifier has several labels.
        ModelLoadError, CheckpointCorruptError, CheckpointMismatchError: the folder cannot be read.
    """
    import reward_models

    spec = os.fspath(name)
    if spec == "lexicon":
        return reward_models.LexiconSentiment()
    folder = folder_of(spec)
    if not folder.is_dir():
        module, _, function = spec.rpartition(":")
        if (module and function.isidentifier()) or spec.endswith(".py"):
            return load_function(spec, "prompts, responses, **columns")
    if (folder / "reward_model.json").is_file() or (folder / "head.safetensors").is_file():
        return reward_models.RewardModel.load(folder, device=device)
    return reward_models.SequenceClassifierReward(
        str(folder) if folder.is_dir() else spec, device=device, download=download
    )
