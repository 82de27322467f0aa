"""Rewards by name: a folder that `lm-env rm train` wrote, a classifier, a function, the lexicon."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from lm_env.objective.functions import load_function
from lm_env.storage import is_saved_folder

__all__ = ["load_reward"]


def load_reward(
    name: str | os.PathLike[str], *, device: str | torch.device | None = None, download: bool = False, **options: Any
) -> Callable[..., Any]:
    """The reward function of a name, for `reward=` of an environment.

    Args:
        name: `"lexicon"`; `"package.module:function"` or `"file.py:function"`; a folder of a `RewardModel` or a
            `RewardEnsemble`; or a folder or hub id of a sequence classifier, such as the reward models that others
            have published.
        device: where a network is put; default: CUDA, where there is one.
        download: let a hub id that is not in the local cache be fetched.
        options: of `SequenceClassifierReward`, where it is one.

    Raises:
        ConfigurationError: there is no such function, or the classifier needs an option, such as a `label`.
        ModelLoadError: there is nothing of this name.
        CheckpointCorruptError, CheckpointMismatchError: a folder that this package saved cannot be read.
    """
    import reward_models

    spec = os.fspath(name)
    if spec == "lexicon":
        return reward_models.LexiconSentiment()
    if not os.path.isdir(spec):
        module, _, function = spec.rpartition(":")
        if (module and function.isidentifier()) or spec.endswith(".py"):
            return load_function(spec, "prompts, responses, **columns")
    if is_saved_folder(spec):
        for kind in (reward_models.RewardEnsemble, reward_models.RewardModel):
            if kind.is_at(spec):
                return kind.load(spec, device=device)
    return reward_models.SequenceClassifierReward(spec, device=device, download=download, **options)
