"""What callers hand in -- arrays, seeds, options -- checked before anything changes."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lm_env.errors import ConfigurationError, InvalidActionError
from lm_env.validation import check_integer

__all__ = ["as_array", "as_numbers", "checked_options", "checked_seeds", "checked_slots", "checked_tokens"]


def as_array(values: Any) -> np.ndarray:
    """An array of whatever dtype; of a tensor its values, on whatever device it lies.

    Raises:
        ValueError: the values make no array, or some of them are masked.
    """
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{reprlib.repr(values)} makes no array ({error})") from error
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError("some entries are masked")
    return array


def as_numbers(values: Any) -> np.ndarray:
    """A flat float64 array.

    Raises:
        ValueError: the values are no real numbers.
    """
    array = as_array(values)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{reprlib.repr(values)} holds no numbers (dtype {array.dtype})")
    return array.astype(np.float64).reshape(-1)


def checked_tokens(actions: Any, slots: np.ndarray, vocab_size: int) -> np.ndarray:
    """The actions of `slots (k,)` as int64 (k,).

    Raises:
        InvalidActionError: they are not k token ids.
    """
    try:
        tokens = as_array(actions)
    except ValueError as error:
        raise InvalidActionError(f"actions must be whole token ids: {error}") from error
    if tokens.dtype.kind not in "iu" or tokens.shape != slots.shape:
        raise InvalidActionError(
            f"actions must be {len(slots)} whole token ids, one per slot, not {actions!r} (dtype {tokens.dtype},"
            f" shape {tokens.shape})"
        )
    bad = (tokens < 0) | (tokens >= vocab_size)
    if bad.any():
        raise InvalidActionError(
            f"action {tokens[bad][0]} of slot {slots[bad][0]} is no token id: 0 to {vocab_size - 1} are"
        )
    return tokens.astype(np.int64)


def checked_options(options: Any, *known: str) -> Mapping[str, Any]:
    """The options of a reset; none of them for None.

    Raises:
        ConfigurationError: they are no dict, or one of them is unknown.
    """
    names = " and ".join(map(repr, known))
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"the options of reset must be a dict with {names}, not {reprlib.repr(options)}")
    for name in options:
        if name not in known:
            raise ConfigurationError(f"{name!r} is not among the options of reset: it takes {names}")
    return options


def checked_seeds(seed: Any, slots: int) -> list[int | None]:
    """A seed for each of n slots: `seed + i` of an integer, or the i-th of a sequence.

    Raises:
        ConfigurationError: a seed is no integer of at least 0, or there are not n of them.
    """
    if seed is None:
        return [None] * slots
    if isinstance(seed, np.ndarray) and seed.ndim == 1:
        seed = seed.tolist()
    if isinstance(seed, str | bytes) or not isinstance(seed, Sequence):
        first = check_integer("seed", seed, low=0)
        return [first + slot for slot in range(slots)]
    if len(seed) != slots:
        raise ConfigurationError(f"{len(seed)} seeds for {slots} environments: give one each")
    return [None if own is None else check_integer("each seed", own, low=0) for own in seed]


def checked_slots(slots: Any, count: int) -> np.ndarray:
    """The slots meant, int64 (k,), of `count`; all of them for None.

    Raises:
        ConfigurationError: they are no indices of slots, or one is there twice.
    """
    if slots is None:
        return np.arange(count)
    try:
        index = np.atleast_1d(as_array(slots))
    except ValueError as error:
        raise ConfigurationError(f"slots must be integers: {error}") from error
    if index.ndim != 1 or index.dtype.kind not in "iu" or not len(index) or len(np.unique(index)) < len(index):
        raise ConfigurationError(f"slots must be different integers, at least one, not {reprlib.repr(slots)}")
    if ((index < 0) | (index >= count)).any():
        raise ConfigurationError(f"there are {count} slots, from 0 to {count - 1}, not {reprlib.repr(slots)}")
    return index.astype(np.int64)
