"""What `predict` is given, checked before the model sees it.

Shapes: B observations, L tokens of the longest text, V vocabulary.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm_env.envs.inputs import as_array
from lm_env.errors import ConfigurationError

__all__ = ["checked_masks", "checked_observation"]


def checked_observation(observation: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """An observation of a text environment, one or a batch, a Dict or a flat Box.

    Returns:
        (int64 (B, L) token ids, int64 (B,) lengths, whether it was a single one).

    Raises:
        ConfigurationError: it is no such observation, a length is outside 1..L, or a token outside the vocabulary.
    """
    if isinstance(observation, Mapping):
        if missing := {"input_ids", "length"} - observation.keys():
            raise ConfigurationError(f"the observation has no {sorted(missing)[0]!r}: pass what reset or step returned")
        ids, lengths = _integers(observation["input_ids"]), _integers(observation["length"])
    else:
        flat = _integers(observation)
        if flat.ndim not in (1, 2) or flat.shape[-1] < 2:
            raise ConfigurationError(
                f"the observation has the shape {flat.shape}: pass what reset or step returned, a dict, or with"
                " flat=True an array (1 + L,) or (B, 1 + L)"
            )
        ids, lengths = flat[..., 1:], flat[..., :1]
    single = ids.ndim == 1
    ids = np.atleast_2d(ids)
    lengths = lengths.reshape(-1)
    if ids.ndim != 2 or lengths.shape != (len(ids),) or not len(ids):
        raise ConfigurationError(
            f"the observation has input_ids of shape {ids.shape} and {lengths.size} lengths: give one length per row"
        )
    if lengths.min() < 1 or lengths.max() > ids.shape[1]:
        raise ConfigurationError(f"a length of the observation is outside 1..{ids.shape[1]}: pass what reset returned")
    real = ids[np.arange(ids.shape[1]) < lengths[:, None]]
    if real.min() < 0 or real.max() >= vocab_size:
        raise ConfigurationError(f"the observation holds a token outside the vocabulary of {vocab_size}")
    return np.clip(ids, 0, vocab_size - 1), lengths, single  # what the padding holds is nobody's business


def checked_masks(masks: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Action masks as bool (B, V), each with a token that may come next.

    Raises:
        ConfigurationError: they are something else.
    """
    try:
        array = np.asarray(masks)
        whole = np.broadcast_to(array, shape).copy()
    except ValueError as error:
        raise ConfigurationError(f"action_masks must be bool (V,) or (B, V) = {shape}: {error}") from error
    if array.dtype != np.bool_ or array.shape[-1:] != shape[-1:] or not whole.any(-1).all():
        raise ConfigurationError(
            f"action_masks must be bool (V,) or (B, V) = {shape}, with at least one True per row, not {array.dtype}"
            f" {array.shape}: pass env.action_masks()"
        )
    return whole


def _integers(values: Any) -> np.ndarray:
    try:
        array = as_array(values)
    except ValueError as error:
        raise ConfigurationError(f"the observation is no array of token ids: {error}") from error
    if array.dtype.kind not in "iu":
        raise ConfigurationError(
            f"the observation must hold token ids, not {reprlib.repr(values)}: pass what reset or step returned"
        )
    return array.astype(np.int64)
