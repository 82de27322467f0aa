"""Scripts of the repository, which belong to no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from paths import REPOSITORY


def load_script(path: str) -> ModuleType:
    """The script at a path within the repository, such as "benchmarks/table.py"; scripts beside it can be imported."""
    file = REPOSITORY / path
    spec = importlib.util.spec_from_file_location(f"script_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module
