"""What a config's options mean, for `help()`, for `--help` and for the docs: the strings under its fields.

A dataclass documents a field by a string on the line below it, which editors show and Python itself drops.
`field_docs` reads these strings from the source, and `explained` puts them into the class's docstring.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import sys
from typing import Any, TypeVar

__all__ = ["explained", "field_docs", "shown_type"]

Class = TypeVar("Class", bound=type)


def field_docs(config: type) -> dict[str, str]:
    """Field -> the text under it, in one line; "" where nothing is written, or no source is at hand.

    Inherited fields come first, as in the constructor; a subclass's text stands for its parent's.
    """
    texts: dict[str, str] = {}
    for parent in reversed(config.__mro__):
        if dataclasses.is_dataclass(parent):
            texts.update(_own_docs(parent))
    return {field.name: texts.get(field.name, "") for field in dataclasses.fields(config)}


def explained(config: Class) -> Class:
    """A decorator above `@dataclass`: `help(config)` then lists each option with its type, default and meaning."""
    docs = field_docs(config)
    lines = []
    for field in dataclasses.fields(config):
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        text = f": {docs[field.name]}" if docs[field.name] else ""
        lines.append(f"    {field.name} ({shown_type(field.type)}{default}){text}")
    config.__doc__ = "\n".join([inspect.cleandoc(config.__doc__ or ""), "", "Options:", *lines])
    return config


def shown_type(annotation: Any) -> str:
    """An annotation as it is written: `float | None`."""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _own_docs(config: type) -> dict[str, str]:
    """The texts under the fields that this class itself declares."""
    try:
        source = inspect.getsource(sys.modules[config.__module__])
    except (KeyError, OSError, TypeError):  # made in an interpreter, or shipped without sources
        return {}
    body = _body(ast.parse(source), config.__qualname__)
    docs = {}
    for statement, below in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            docs[statement.target.id] = " ".join(below.value.value.split())
    return docs


def _body(module: ast.Module, qualified_name: str) -> list[ast.stmt]:
    """The statements of a class; none where it is made inside a function."""
    body: list[ast.stmt] = module.body
    for name in qualified_name.split("."):
        found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == name]
        if not found:
            return []
        body = found[-1].body
    return body
