"""Another distribution on PyPI, `openai-agents`, has a package called `agents` as well.

pip installs both into one folder, so that files of one replace those of the other, and whichever is uninstalled takes
files of the other with it.  This is noticed and said; nothing is changed.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import distributions
from pathlib import Path

__all__ = ["NAMESAKE", "namesake_problem", "own_agents_problem"]

NAMESAKE = "openai-agents"

_REMEDY = "install lm-env into an environment of its own (python -m venv)"


def namesake_problem(own: Path, path: list[str] | None = None) -> str | None:
    """A sentence with the remedy, if the other distribution is installed in this environment.

    Args:
        own: the folder of this project's package `agents`.
        path: the folders in which distributions are looked for; default `sys.path`.
    """
    found = next(iter(distributions(name=NAMESAKE, path=sys.path if path is None else path)), None)
    if found is None:
        return None
    theirs = Path(str(found.locate_file("agents"))).resolve()
    both = f"{NAMESAKE} is installed in the same environment, and its package is called agents too"
    if theirs == own.resolve():
        return (
            f"{both}: the files of the two are mixed, and uninstalling one breaks the other; {_REMEDY}, and reinstall"
            f" it after uninstalling {NAMESAKE}"
        )
    return f"{both}: only one of the two can be imported, here that in {own}; {_REMEDY}"


def own_agents_problem(spec: ModuleSpec | None) -> str | None:
    """A sentence with the remedy, if `import agents` does not find this project's package.

    Args:
        spec: what it finds, `importlib.util.find_spec("agents")`.
    """
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    if spec is not None and spec.origin and any((Path(place) / "best_of_n.py").is_file() for place in places):
        return None
    lies = "is missing or incomplete" if spec is None or not spec.origin else f"is another one, {spec.origin}"
    return (
        f"the package agents {lies}, as after installing or uninstalling {NAMESAKE} in this environment: {_REMEDY}, or"
        f" uninstall {NAMESAKE} and run pip install --force-reinstall --no-deps lm-env"
    )
