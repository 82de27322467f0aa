"""The layout of the packages: who may import whom, no circles, nothing private elsewhere, and the README's tree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import REPOSITORY

PACKAGES = ("lm_env", "agents", "reward_models")

FLOORS = [
    ["lm_env.cli", "lm_env.__main__"],
    ["lm_env.benchmark"],
    ["lm_env.runs"],
    ["lm_env.export"],
    ["lm_env"],  # the package itself: it names what is public, and registers the tasks
    ["lm_env.tasks"],
    ["agents", "reward_models"],
    ["lm_env.report"],
    ["lm_env.theory"],
    ["lm_env.envs"],
    ["lm_env.generation"],
    ["lm_env.objective"],
    ["lm_env.models"],
    ["lm_env.data"],
    ["lm_env.storage"],
    ["lm_env.distributed"],
    ["lm_env.progress"],
    ["lm_env.validation", "lm_env.explain", "lm_env.namesake"],
    ["lm_env.errors"],
]
"""From the top: each uses only what is below it, and itself."""

AGENT_FLOORS = [
    ["agents.check_presets", "agents.check_losses"],
    ["agents.sb3", "agents"],
    ["agents.base"],
    ["agents.run"],
    ["agents.learning"],
]

Import = tuple[str, str]
"""(the module that imports, the module that is imported)."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))}


def imported_names(path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of every import statement, those in functions and for typing included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def imports() -> list[Import]:
    """Every import of one of our modules by another."""
    found = []
    for module, path in MODULES.items():
        for target, name in imported_names(path):
            inner = f"{target}.{name}"
            known = inner if inner in MODULES else target if target in MODULES else None
            if known and known != module:
                found.append((module, known))
    return found


def floor_of(module: str, floors: list[list[str]]) -> int | None:
    """The number of the floor whose longest prefix names the module."""
    best = max(
        (
            (len(name), number)
            for number, names in enumerate(floors)
            for name in names
            if module == name or module.startswith(f"{name}.")
        ),
        default=None,
    )
    return None if best is None else best[1]


def gathers_its_own(module: str, target: str) -> bool:
    """A package's `__init__` names what its own files define."""
    return MODULES[module].name == "__init__.py" and target.startswith(f"{module}.")


def circles(edges: set[Import]) -> list[set[str]]:
    """The groups of modules that reach one another."""
    reached: dict[str, set[str]] = {}
    for start in {module for edge in edges for module in edge}:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            here = waiting.pop()
            new = {target for source, target in edges if source == here} - seen
            seen |= new
            waiting += new
        reached[start] = seen
    return [{m, *(n for n in reached[m] if m in reached[n])} for m in reached if m in reached[m]]


def test_imports_go_down_the_floors():
    wrong = []
    for module, target in imports():
        above, below = floor_of(module, FLOORS), floor_of(target, FLOORS)
        own_package = module in PACKAGES and target.startswith(module)
        if above is not None and below is not None and above > below and not own_package:
            wrong.append(f"{module} imports {target}")
    assert not wrong


def test_imports_go_down_the_floors_of_the_agents():
    wrong = []
    for module, target in imports():
        above, below = floor_of(module, AGENT_FLOORS), floor_of(target, AGENT_FLOORS)
        if above is not None and below is not None and above > below and not gathers_its_own(module, target):
            wrong.append(f"{module} imports {target}")
    assert not wrong


def test_lm_env_knows_neither_agents_nor_reward_models_but_for_what_runs_them():
    foreign = {
        (module, target)
        for module, target in imports()
        if module.startswith("lm_env")
        and not target.startswith("lm_env")
        and not module.startswith(("lm_env.cli", "lm_env.benchmark", "lm_env.runs"))
    }
    assert not foreign


def test_no_circle_of_files():
    assert not circles({edge for edge in imports() if not gathers_its_own(*edge)})


def test_no_circle_of_folders():
    def folder(module: str) -> str:
        return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]

    edges = {(folder(module), folder(target)) for module, target in imports() if not gathers_its_own(module, target)}
    assert not circles({(a, b) for a, b in edges if a != b and a != "lm_env"})


def test_the_circle_finder_finds_circles():
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")})[0] == {"a", "b", "c"}
    assert not circles({("a", "b"), ("b", "c"), ("a", "c")})


def test_nothing_private_is_imported_from_another_file():
    private = [
        f"{module}: {target}.{name}"
        for module, path in MODULES.items()
        for target, name in imported_names(path)
        if target.split(".")[0] in PACKAGES and name and name.startswith("_") and not name.startswith("__")
    ]
    assert not private


@pytest.mark.parametrize("limit", [320])
def test_files_stay_small(limit):
    long = {module: n for module, path in MODULES.items() if (n := len(path.read_text().splitlines())) > limit}
    assert not long


def test_no_folder_is_crowded():
    folders: dict[Path, int] = {}
    for path in MODULES.values():
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert not {str(folder): count for folder, count in folders.items() if count > 14}


def test_formatting_is_never_switched_off():
    assert not [module for module, path in MODULES.items() if re.search(r"#\s*fmt:\s*(skip|off)", path.read_text())]


def test_the_readmes_tree_names_each_folder_and_each_file_of_the_packages():
    """Every name in the tree exists, and every folder of the packages is in it."""
    text = (REPOSITORY / "README.md").read_text()
    tree = re.search(r"## Repository layout\n\n```\n(.*?)```", text, re.S)
    assert tree, "README.md has no section 'Repository layout' with the tree"
    named: set[Path] = set()
    parents: list[tuple[int, Path]] = []
    for line in tree[1].splitlines():
        entry = re.match(r"( *)(\S+)", line)
        assert entry
        indent, names = len(entry[1]), re.split(r"  +", line.strip())[0]
        parents = [(i, p) for i, p in parents if i < indent]
        base = parents[-1][1] if parents else REPOSITORY
        for name in re.split(r",\s*|\s+", names):
            path = base / name
            assert path.exists() or path.with_suffix(".py").exists(), f"{path} is in the tree and does not exist"
            named.add(path.resolve())
            if name.endswith("/"):
                parents.append((indent, path))
    folders = {path.parent.resolve() for path in MODULES.values()}
    assert not {str(f.relative_to(REPOSITORY)) for f in folders - named}
