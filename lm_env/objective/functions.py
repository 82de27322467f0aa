"""A function that a user names: `package.module:function` or `file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lm_env.errors import ConfigurationError

__all__ = ["load_function", "load_named"]


def load_function(spec: str, signature: str) -> Callable[..., Any]:
    """The function of that name; of a class, an instance made without arguments.

    Args, Raises: as `load_named`; a class must also be one that can be made and called.
    """
    function = load_named(spec, signature)
    if not isinstance(function, type):
        return function
    try:
        made = function()
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{spec} cannot be made without arguments ({_in_short(error)}): name a function, or pass an instance"
        ) from error
    if not callable(made):
        raise ConfigurationError(f"{spec} is a class whose instances cannot be called: it needs __call__({signature})")
    return made


def load_named(spec: str, signature: str) -> Callable[..., Any]:
    """The function or class of that name, as it is.

    Naming a file or a module runs it, as importing it does.

    Args:
        signature: what the function must take, for the error: `"train(env, seed)"`.

    Raises:
        ConfigurationError: there is no such file, module or function, or it raises, or ends the program,
            as it is imported.
    """
    home, _, name = spec.rpartition(":")
    if not home or not name:
        raise ConfigurationError(f"{spec!r} names no function: write 'package.module:function' or 'file.py:function'")
    path = Path(home)
    if path.suffix == ".py" and not path.is_file():
        problem = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise ConfigurationError(f"{spec}: {problem}: write 'package.module:function' or 'file.py:function'")
    try:
        module = _run_file(path) if path.suffix == ".py" else importlib.import_module(home)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{spec} cannot be imported ({_in_short(error)}): correct it, or write 'package.module:function' or"
            " 'file.py:function'"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigurationError(f"{spec}: {home} has no function {name}: one is needed that takes {signature}")
    return function


def _run_file(path: Path) -> ModuleType:
    """The module that a file makes; it is known by its path, so that it cannot take the place of another module."""
    name = str(path.resolve())
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # where dataclasses look for the names in their annotations
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _in_short(error: BaseException) -> str:
    """The error in one line."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line if len(line) <= 300 else line[:297] + "..."
