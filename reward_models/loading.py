"""Rewards by name: on the command line, and where an environment is given a text as its reward."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lm_env.errors import ConfigurationError
from lm_env.objective.functions import load_function
from lm_env.storage import folder_of, is_saved_folder
from reward_models.serving.address import is_reward_url

__all__ = ["load_reward"]


def load_reward(
    name: str | os.PathLike[str], *, device: str | torch.device | None = None, download: bool = False, **options: Any
) -> Callable[..., Any]:
    """The reward function of a name, for `reward=` of an environment.

    Args:
        name: `"lexicon"`; `"package.module:function"` or `"file.py:function"`; a folder of a `RewardModel`, a
            `RewardEnsemble` or a `SpanRewardModel`; a folder or hub id of a sequence classifier, such as the reward
            models that others have published; or the address of a reward server, "http://127.0.0.1:8000"
            (`RemoteReward`).
        device: where a network is put; default: CUDA, where there is one.
        download: let a hub id that is not in the local cache be fetched.
        options: of `SequenceClassifierReward` or `RemoteReward`, where it is one.

    Raises:
        ConfigurationError: there is no such function, or the classifier needs an option, such as a `label`.
        ModelLoadError: there is nothing of this name.
        CheckpointCorruptError, CheckpointMismatchError: a folder that this package saved cannot be read.
        RewardUnavailableError, RewardTimeoutError, RewardProtocolError: no reward server answers at the address.
    """
    import reward_models

    spec = os.fspath(name)
    if spec == "lexicon":
        return reward_models.LexiconSentiment()
    if is_reward_url(spec):
        return reward_models.RemoteReward(spec, **options)
    folder = folder_of(spec)
    if not spec or not folder.is_dir():
        module, _, function = spec.rpartition(":")
        if not spec or (module and function.isidentifier()) or spec.endswith(".py"):
            return load_function(spec, "prompts, responses, **columns")
    if folder.is_dir() and not (folder / "config.json").exists() and not _is_ours(folder):
        raise ConfigurationError(f"{spec} holds no reward: {_what_it_holds(folder)}")
    if is_saved_folder(folder):
        for kind in (reward_models.RewardEnsemble, reward_models.RewardModel, reward_models.SpanRewardModel):
            if kind.is_at(folder):
                return kind.load(folder, device=device)
    return reward_models.SequenceClassifierReward(
        str(folder) if folder.is_dir() else spec, device=device, download=download, **options
    )


def _is_ours(folder: Path) -> bool:
    import reward_models

    return is_saved_folder(folder) and any(
        kind.is_at(folder) for kind in (reward_models.RewardEnsemble, reward_models.RewardModel)
    )


def _what_it_holds(folder: Path) -> str:
    """What a folder without a reward is, and what to give instead."""
    remedy = "give the folder of `lm-env rm train`, a classifier, 'lexicon' or 'file.py:function'"
    if (folder / "reward_model").is_dir():
        return f"its reward model is in {folder / 'reward_model'}"
    if (folder / "run.yaml").exists():
        return f"it is a training run, whose result is a language model; {remedy}"
    return f"there is no config.json in it; {remedy}"
