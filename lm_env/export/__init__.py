"""Out to other libraries: a task or an environment in the form that each of them takes.

What is exported is paid exactly as here: the same prompts, the same text before the reward function, the same score.
Each file needs the library it is for, and none is imported before its function is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_env.export.minari import to_minari
    from lm_env.export.openenv import openenv_app, to_openenv
    from lm_env.export.torchrl import to_torchrl
    from lm_env.export.trl import to_trl
    from lm_env.export.verifiers import to_verifiers

_HOMES = {
    "openenv_app": "openenv",
    "to_minari": "minari",
    "to_openenv": "openenv",
    "to_torchrl": "torchrl",
    "to_trl": "trl",
    "to_verifiers": "verifiers",
}

__all__ = ["openenv_app", "to_minari", "to_openenv", "to_torchrl", "to_trl", "to_verifiers"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lm_env.export.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lm_env.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
