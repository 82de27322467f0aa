"""The checks of numbers and choices that every option of the package goes through."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import os
import reprlib
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lm_env.errors import ConfigurationError

__all__ = [
    "check_choice",
    "check_field_types",
    "check_flag",
    "check_integer",
    "check_integers",
    "check_known",
    "check_number",
    "check_numbers",
    "checked_path",
]

LARGEST = 1e18
"""A larger number is a mistake in every option, and its square overflows in float32."""


def check_integer(name: str, value: Any, *, low: int = 1) -> int:
    """Return `value` as an int; raise ConfigurationError unless it is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value < 2**62:
        largest = "" if not isinstance(value, int) or value < 2**62 else " and below 2**62"
        raise ConfigurationError(f"{name} must be an integer of at least {low}{largest}, not {reprlib.repr(value)}")
    return int(value)


def check_number(
    name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> float:
    """Return `value` as a float; raise ConfigurationError unless it is finite and within [low, high].

    Args:
        above: `low` itself is refused too.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    is_number = real and -LARGEST < value < LARGEST
    if not is_number or not low <= value <= high or (above and value == low):
        bounds = []
        if math.isfinite(low):
            bounds.append(f"above {low:g}" if above else f"of at least {low:g}")
        if math.isfinite(high):
            bounds.append(f"at most {high:g}")
        allowed = " and ".join(bounds)
        raise ConfigurationError(
            f"{name} must be a finite number{' ' + allowed if allowed else ''}, not {reprlib.repr(value)}"
        )
    return float(value)


def check_flag(name: str, value: Any) -> None:
    """Raise ConfigurationError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigurationError(f"{name} must be True or False, not {reprlib.repr(value)}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise ConfigurationError unless `value` is one of the choices."""
    if value not in choices:
        similar = difflib.get_close_matches(str(value), choices, n=1)
        meant = f": did you mean {similar[0]!r}?" if similar else ""
        raise ConfigurationError(
            f"{name} must be one of {', '.join(map(repr, choices))}, not {reprlib.repr(value)}{meant}"
        )


def check_known(what: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise ConfigurationError if a name is given that is not known; the message names one that is spelled alike.

    Args:
        what: what takes the names, for the message: "an environment".
    """
    for name in given:
        if name not in known:
            similar = difflib.get_close_matches(str(name), known, n=1)
            meant = f"; did you mean {similar[0]!r}?" if similar else f": it has {', '.join(sorted(known))}"
            raise ConfigurationError(f"{what} has no option {name!r}{meant}")


def checked_path(name: str, value: Any) -> Path:
    """`value` as a path; raise ConfigurationError if it is none."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str) or not os.fspath(value):
        raise ConfigurationError(f"{name} must be a path, as text or pathlib.Path, not {reprlib.repr(value)}")
    return Path(value)


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


def check_field_types(config: Any) -> None:
    """Raise ConfigurationError if a field of a dataclass holds no value of the type that it is declared with.

    It looks at the fields that are bool, int, float, str, a `Literal`, or one of these or None; other fields are
    left to the class.  An integer will do as a float.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kinds = _parts(hints[field.name])
        if not all(kind in _PLAIN or typing.get_origin(kind) is Literal for kind in kinds):
            continue
        if not any(_is_of(value, kind) for kind in kinds):
            allowed = " or ".join(_WORDS.get(kind) or _listed(kind) for kind in kinds)
            raise ConfigurationError(f"{field.name} must be {allowed}, not {reprlib.repr(value)}")


_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    types.NoneType: "None",
}
_PLAIN = frozenset(_WORDS)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type the type alone."""
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def _is_of(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if kind is int or kind is float:
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool | np.bool_)
    return isinstance(value, (bool, np.bool_) if kind is bool else kind)


def _listed(kind: Any) -> str:
    return "one of " + ", ".join(map(repr, typing.get_args(kind)))
