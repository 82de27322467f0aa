"""The checks of numbers and choices that every option of the package goes through."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

import numpy as np

from lm_env.errors import ConfigurationError

__all__ = ["check_choice", "check_integer", "check_integers", "check_number", "check_numbers"]


def check_integer(name: str, value: Any, *, low: int = 1) -> int:
    """Return `value` as an int; raise ConfigurationError unless it is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ConfigurationError(f"{name} must be an integer of at least {low}, not {value!r}")
    return int(value)


def check_number(
    name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> float:
    """Return `value` as a float; raise ConfigurationError unless it is finite and within [low, high].

    Args:
        above: `low` itself is refused too.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_) and math.isfinite(value)
    if not is_number or not low <= value <= high or (above and value == low):
        bounds = []
        if math.isfinite(low):
            bounds.append(f"above {low:g}" if above else f"of at least {low:g}")
        if math.isfinite(high):
            bounds.append(f"at most {high:g}")
        allowed = " and ".join(bounds)
        raise ConfigurationError(f"{name} must be a finite number{' ' + allowed if allowed else ''}, not {value!r}")
    return float(value)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise ConfigurationError unless `value` is one of the choices."""
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def check_integers(owner: object, *names: str, low: int = 1) -> None:
    """`check_integer` for several attributes of an object, such as the fields of a config."""
    for name in names:
        check_integer(name, getattr(owner, name), low=low)


def check_numbers(
    owner: object, *names: str, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> None:
    """`check_number` for several attributes of an object, such as the fields of a config."""
    for name in names:
        check_number(name, getattr(owner, name), low=low, high=high, above=above)
