"""Reading JSON that comes from outside, and turning arrays and tensors into values that JSON can hold."""

from __future__ import annotations

import json
from typing import Any

from lm_env.objective.scores import short_repr

__all__ = ["plain", "read_object"]


def read_object(body: bytes, error: type[Exception]) -> dict[str, Any]:
    """The JSON object that a body holds.

    Raises:
        error: the body is no UTF-8, no JSON (NaN and infinities are none), nested too deeply, or no object.
    """
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as problem:  # UnicodeDecodeError is a ValueError
        kind = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"it holds no JSON ({kind[:120]}): it begins with {short_repr(body[:40])}") from None
    if not isinstance(content, dict):
        raise error(f"it holds no JSON object: it begins with {short_repr(body[:40])}")
    return content


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def plain(value: Any) -> Any:
    """Arrays, tensors and their numbers as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON")
