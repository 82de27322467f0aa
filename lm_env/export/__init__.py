"""Tasks for other libraries: a task, an environment or episodes in the form that each of them takes.

What is exported has the prompts and the scores that it has in this package.  The modules `minari`, `openenv`, `torchrl`
and `verifiers` need the libraries that they are named after, and `trl` none but `datasets`; each is imported only when
one of its functions is looked up.  `source`, `unloaded` and `judging` are what they share.
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

_MODULE_OF = {
    "openenv_app": "openenv",
    "to_minari": "minari",
    "to_openenv": "openenv",
    "to_torchrl": "torchrl",
    "to_trl": "trl",
    "to_verifiers": "verifiers",
}

__all__ = ["openenv_app", "to_minari", "to_openenv", "to_torchrl", "to_trl", "to_verifiers"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"lm_env.export.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'lm_env.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
