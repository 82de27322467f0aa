"""A function that a user names on the command line: `package.module:function` or `file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from lm_env.errors import ConfigurationError

__all__ = ["load_function"]


def load_function(spec: str, signature: str) -> Any:
    """The function of that name; of a class, an instance made without arguments.

    Args:
        signature: what the function must take, for the error: `"train(env, seed)"`.

    Raises:
        ConfigurationError: there is none.
    """
    module, _, name = spec.rpartition(":")
    if module.endswith(".py"):
        found = _from_file(Path(module), spec)
    else:
        try:
            found = importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"{spec} cannot be imported ({error}): write 'package.module:function' or 'file.py:function'"
            ) from error
    function = getattr(found, name, None)
    if not callable(function):
        raise ConfigurationError(f"{spec}: {module} has no function {name}: it takes {signature}")
    return function() if isinstance(function, type) else function


def _from_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise ConfigurationError(f"{spec}: there is no file {path}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
